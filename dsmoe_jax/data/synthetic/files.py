"""Synthetic files: their folders, written and reused safely, and the values of their columns.

Owns: the folder that a generator writes (beside, then renamed; reused when its settings are
unchanged; never over files that somebody else put there), the `SYNTHETIC.md` note that says what
the rows are, the random streams, and the helpers that give a column its official number of
distinct values, shares or nulls, tied to a score where one is given: without that tie a value
would tell nothing of who or what carries it. Does not own: what is in the files
(`data/synthetic/kuairand_rows.py`, `data/synthetic/alimama_rows.py`, `data/synthetic/world.py`) nor
the preferences that decide them (`data/synthetic/tastes.py`).
"""

import dataclasses
import io
import json
import pathlib
import shutil
import time
import zlib
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import polars as pl
from jaxtyping import Float, Int, Real

from dsmoe_jax import disk, runlog
from dsmoe_jax.data import store as store_lib
from dsmoe_jax.data.prepare import read

# Raised when a generator's output changes for the same settings, so that old folders are rewritten.
GENERATOR_VERSION = 1
NOTE_NAME = "SYNTHETIC.md"


def random_stream(seed: int, *names: str | int) -> np.random.Generator:
    """An independent random stream per (seed, names): columns and blocks never share draws.

    A stream depends on nothing else, so that a block's rows do not change with the number of
    blocks before it.
    """
    words = [n if isinstance(n, int) else zlib.crc32(n.encode()) for n in names]
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence([seed, *words])))


def generate(
    folder: str | pathlib.Path,
    title: str,
    note: str,
    settings: dict[str, Any],
    write: Callable[[pathlib.Path], None],
) -> pathlib.Path:
    """Fills `folder` with generated files, unless it already holds just these; returns it.

    Args:
      folder: Where the files end up. Written as `<folder>.partial`, then renamed.
      title: What the rows imitate, e.g. "KuaiRand-Pure".
      note: A paragraph for `SYNTHETIC.md` on what is simulated in them.
      settings: JSON-ready values that decide the content, the seed among them.
      write: Writes all files into the folder it is given.

    Raises:
      ValueError: If the folder holds files that no generator wrote, or another process is
        filling it.
    """
    folder = pathlib.Path(folder)
    identity = {"generator_version": GENERATOR_VERSION, "title": title, "settings": settings}
    if folder.exists() and any(folder.iterdir()):
        written = read.read_synthetic(folder)
        if written is None:
            raise ValueError(
                f"{folder}: expected an absent, empty or generated folder (one with "
                f"{read.SYNTHETIC_FILE}), got a folder with other files; choose another "
                "data.raw_dir for the synthetic files, nothing was overwritten"
            )
        sizes = {n: (folder / n).stat().st_size for n in written["files"] if (folder / n).exists()}
        if {**written, "files": None} == {**identity, "files": None} and sizes == written["files"]:
            return folder
    start_s = time.monotonic()
    with store_lib.open_partial(folder, "generating these files") as partial:
        with disk.Writing(folder):
            write(partial)
        (partial / NOTE_NAME).write_text(_note(title, note, settings))
        files = {p.name: p.stat().st_size for p in sorted(partial.iterdir())}
        text = json.dumps({**identity, "files": files}, indent=1, sort_keys=True)
        (partial / read.SYNTHETIC_FILE).write_text(text + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    size_mb = sum(files.values()) / 1e6
    runlog.say(
        f"synthetic files {folder}: {size_mb:,.1f} MB in the layout of {title} generated in "
        f"{time.monotonic() - start_s:.1f} s"
    )
    return folder


class Generated:
    """A section of a configuration whose files are generated, then read as its data set's are.

    It extends this class first and the data set's section second. The fields that it adds decide
    the content of the files.
    """

    raw_dir: str
    # What the rows imitate, and what is simulated in them; see `generate`.
    TITLE: ClassVar[str]
    NOTE: ClassVar[str]

    def write(self, folder: pathlib.Path) -> None:
        """Writes all files into `folder`.

        Raises:
          ValueError: If a size is too small for the tables' distinct values.
        """
        raise NotImplementedError(f"{type(self).__name__} writes nothing")

    def folder(self, store_dir: str) -> pathlib.Path:
        """Where the generated files are, unless another place is asked for."""
        return pathlib.Path(self.raw_dir or f"{store_dir}.synthetic")

    def generate(self, folder: str | pathlib.Path) -> pathlib.Path:
        """Writes the files into `folder`, unless they are there; returns it."""
        section: Any = self
        bases = [base for base in type(self).__mro__ if not issubclass(base, Generated)]
        inherited = {name for base in bases for name in getattr(base, "__dataclass_fields__", ())}
        settings = {n: v for n, v in dataclasses.asdict(section).items() if n not in inherited}
        return generate(folder, self.TITLE, self.NOTE, settings, self.write)

    def prepare(self, store_dir: str) -> None:
        """Generates the files, then writes the store; see `schema.DataConfig.prepare`."""
        section: Any = self
        folder = self.generate(self.folder(store_dir))
        data_set: Any = super(Generated, dataclasses.replace(section, raw_dir=str(folder)))
        data_set.prepare(store_dir)


def check_least(size: Any, **least: int) -> None:
    """Refuses a size that is too small for the generated tables' distinct values.

    Raises:
      ValueError: Naming the first field below its least value.
    """
    for name, low in least.items():
        if getattr(size, name) < low:
            raise ValueError(f"data.{name}: expected at least {low}, got {getattr(size, name)}")


def _note(title: str, note: str, settings: dict[str, Any]) -> str:
    lines = "\n".join(f"- {name}: {value}" for name, value in sorted(settings.items()))
    return f"""# Synthetic rows in the layout of {title}

These files were generated. No row comes from the real data set or from any person,
and numbers measured on them say nothing about it.

{note}

Settings (equal settings give equal bytes with the same NumPy on the same machine):

{lines}
"""


def append_csv(file: io.BufferedWriter, frame: pl.DataFrame) -> None:
    """Appends the frame's rows, after a header in an empty file; a null is an empty field."""
    frame.write_csv(file, include_header=file.tell() == 0)


def covering_codes(
    rng: np.random.Generator, rows: int, distinct: int, exponent: float = 1.0
) -> np.ndarray:
    """Codes (int64) [rows] in [0, distinct), every code at least once, the rest Zipf.

    Raises:
      ValueError: If there are fewer rows than codes.
    """
    if not 1 <= distinct <= rows:
        raise ValueError(f"distinct: expected 1 to {rows} (the rows), got {distinct}")
    rest = draw_shares(rng, zipf_shares(distinct, exponent), rows - distinct)
    return rng.permutation(np.concatenate([np.arange(distinct), rest]))


def zipf_shares(count: int, exponent: float = 1.0) -> np.ndarray:
    """Shares proportional to rank^-exponent, largest first, that sum to 1."""
    weight = (1.0 + np.arange(count)) ** -exponent
    return np.asarray(weight / weight.sum())


def draw_shares(rng: np.random.Generator, share: np.ndarray, rows: int) -> np.ndarray:
    """Codes (int64) [rows], code i with probability share[i]; shares need not sum to 1."""
    edge = np.cumsum(share, dtype=np.float64)
    code = np.searchsorted(edge, rng.random(rows) * edge[-1], side="right")
    # The product can round up to the last edge.
    return np.asarray(np.minimum(code, len(edge) - 1))


def exact_mask(rng: np.random.Generator, rows: int, count: int) -> np.ndarray:
    """A bool mask [rows] with exactly `count` Trues in random places."""
    mask_R = np.zeros(rows, bool)
    mask_R[rng.permutation(rows)[:count]] = True
    return mask_R


def scaled(official: int, official_rows: int, rows: int, least: int = 1) -> int:
    """A published count, scaled to another number of rows; equal to it at the official size."""
    return max(min(least, rows), round(official * rows / official_rows))


def spread_counts(weight_R: np.ndarray, total: int) -> np.ndarray:
    """Counts (int64) in proportion to the weights that sum to `total` exactly."""
    edge = np.concatenate([[0.0], np.cumsum(weight_R, dtype=np.float64)])
    return np.diff(np.rint(edge * (total / edge[-1])).astype(np.int64))


def counts_of(share: Float[np.ndarray, "C"], rows: int) -> Int[np.ndarray, "C"]:
    """Rows per value, proportional to the shares, at least 1 each, `rows` in all.

    Raises:
      ValueError: If there are fewer rows than values.
    """
    if len(share) > rows:
        raise ValueError(f"rows: expected at least {len(share)}, one per value, got {rows}")
    # The reserved row of every value is taken from its own share where it has one.
    rest = np.maximum(share / share.sum() * rows - 1.0, 0.0)
    return 1 + spread_counts(rest + 1e-12, rows - len(share))


def deal(
    rng: np.random.Generator, share: Float[np.ndarray, "C"], rows: int
) -> Int[np.ndarray, "R"]:
    """Codes [rows] in random order with exactly these shares, every code at least once."""
    return rng.permutation(np.repeat(np.arange(len(share)), counts_of(share, rows)))


def by_score(
    rng: np.random.Generator,
    score_R: Float[np.ndarray, "R"],
    share: Float[np.ndarray, "C"],
    noise: float = 0.3,
) -> Int[np.ndarray, "R"]:
    """Codes [R] in [0, C) with these shares; rows with close scores tend to share a code.

    Every code occurs at least once. The noise added to a score has the standard deviation `noise`
    in units of the scores' own.
    """
    noisy_R = score_R + noise * score_R.std() * rng.standard_normal(len(score_R))
    codes = rng.permutation(len(share))
    code_R = np.empty(len(score_R), np.int64)
    code_R[np.argsort(noisy_R, kind="stable")] = np.repeat(
        codes, counts_of(np.asarray(share)[codes], len(score_R))
    )
    return code_R


def draw_steps(
    rng: np.random.Generator,
    rows: int,
    edge: Real[np.ndarray, "C"],
    cumulative: Real[np.ndarray, "C"],
) -> Float[np.ndarray, "R"]:
    """Non-negative numbers with P(x < edge[i]) = cumulative[i], log-linear in between.

    Both ascend; the first edge is the smallest value, and `cumulative` goes from 0 to 1.
    """
    return np.asarray(np.expm1(np.interp(rng.random(rows), cumulative, np.log1p(edge))))


def to_ranges(
    value_R: Int[np.ndarray, "R"], edge: Int[np.ndarray, "C"], names: list[str]
) -> pl.Series:
    """The name of the range each value falls in; range i starts at edge[i]."""
    return take(names, np.searchsorted(edge, value_R, side="right") - 1)


def take(values: list[str], code_R: Int[np.ndarray, "R"]) -> pl.Series:
    """`values[code]` for every row, as text."""
    return pl.Series(values, dtype=pl.String).gather(code_R)


def with_nulls(values: np.ndarray | pl.Series, is_null_R: np.ndarray) -> pl.Series:
    """The values with nulls where the mask says so."""
    series = values if isinstance(values, pl.Series) else pl.Series(values)
    return pl.select(pl.when(pl.Series(~is_null_R)).then(series)).to_series()


# Share of the day's events in each hour 0..23 (Beijing time), as on the KuaiRand-Pure standard log.
_HOUR_SHARE = np.array([
    4.0, 2.4, 1.6, 1.0, 0.8, 0.9, 1.6, 2.5, 3.2, 3.9, 4.4, 5.0,
    5.7, 5.6, 5.1, 5.1, 5.5, 5.9, 5.8, 5.4, 5.7, 6.0, 6.5, 6.2,
])  # fmt: skip


def draw_time_of_day_ms(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Milliseconds (int64) since midnight [rows], following the hours of a real day."""
    hour = draw_shares(rng, _HOUR_SHARE, rows)
    return hour * 3_600_000 + rng.integers(0, 3_600_000, rows)
