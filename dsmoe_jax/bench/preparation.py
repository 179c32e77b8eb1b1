"""Preparation of Alimama's files against one in pandas that writes the same arrays.

Owns the contestants' turns. Every turn is a process of its own, so that its peak of memory is its
own; imports are not timed. The first round compares what both have written.
"""

import argparse
import pathlib
import shutil
import statistics
import tempfile
import time
from typing import Any

import numpy as np

from dsmoe_jax import optional
from dsmoe_jax.bench import pairs
from dsmoe_jax.data.synthetic import alimama_rows

OURS, PANDAS = "dsmoe_jax", "pandas"
# The behaviours of the default size, for as many impressions as the official files have.
BEHAVIORS = 50_000_000
DEFAULT_ROWS = 2_000_000
# Fewer make too few users to hold days out of.
LEAST_ROWS = 20_000
# A standardised price may differ by rounding.
TOLERANCE = 1e-5


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds this measurement's flags."""
    parser.add_argument(
        "--rows",
        type=int,
        default=DEFAULT_ROWS,
        help=f"impressions to generate; {alimama_rows.OFFICIAL_IMPRESSIONS} is the full size; "
        "users, ads and behaviours follow",
    )
    parser.add_argument(
        "--folder",
        type=pathlib.Path,
        help="where the generated files stay and are found again (default: none stay)",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--without_pandas", action="store_true", help="our preparation alone")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Generates the files and prepares them in turns; see `run`."""
    if not options.without_pandas:
        optional.require("pandas", extra="cpu,bench")
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
    # Arrays are emptied and written anew, in a folder of their own beside whatever is there.
    with tempfile.TemporaryDirectory(prefix="dsmoe_jax_bench_", dir=options.folder) as name:
        return run(options, pathlib.Path(name))


def run(options: argparse.Namespace, folder: pathlib.Path) -> dict[str, Any]:
    """Prepares by turns into a folder of each contestant, which is emptied before its turn.

    Raises:
      ValueError: When there are too few rows, a contestant dies, or the arrays differ.
    """
    contestants = (OURS,) if options.without_pandas else (OURS, PANDAS)
    section = _size(options.rows)
    section.raw_dir = str((options.folder or folder) / "raw")
    section.generate(section.raw_dir)
    turns: dict[str, list[tuple[float, int]]] = {name: [] for name in contestants}
    for number in range(options.rounds):
        for name in contestants:
            turns[name].append(_take_turn(name, section, folder / name))
        if number == 0 and PANDAS in contestants:
            check_equal(folder / OURS, folder / PANDAS)
    seconds = {name: [each for each, _ in taken] for name, taken in turns.items()}
    total = options.rows + section.num_behaviors
    return {
        "rows": {
            "impressions": options.rows,
            "behaviors": section.num_behaviors,
            "users": section.num_users,
            "ads": section.num_items,
        },
        "seconds": seconds,
        "rows_per_s": {name: total / statistics.median(each) for name, each in seconds.items()},
        "peak_bytes": {name: max(peak for _, peak in taken) for name, taken in turns.items()},
    }


def describe(found: dict[str, Any]) -> list[str]:
    """The result as console lines."""
    rows = found["rows"]
    lines = [
        f"prepare, Alimama's format: {rows['impressions']:,} impressions, "
        f"{rows['behaviors']:,} behaviours, {rows['users']:,} users, {rows['ads']:,} ads"
    ]
    ours = found["seconds"][OURS]
    for name, seconds in found["seconds"].items():
        text = (
            f"  {name:<10} {statistics.median(seconds):7.1f} s "
            f"[{min(seconds):.1f}, {max(seconds):.1f}], "
            f"{found['rows_per_s'][name] / 1e6:.2f} M rows/s, "
            f"at most {found['peak_bytes'][name] / 2**30:.2f} GiB"
        )
        if name != OURS:
            ratio = statistics.median(a / b for a, b in zip(seconds, ours, strict=True))
            text += f", {ratio:.2f} x ours"
        lines.append(text)
    return lines


def check_equal(ours: pathlib.Path, theirs: pathlib.Path) -> None:
    """Compares two folders of arrays.

    Raises:
      ValueError: Naming the first array that differs.
    """
    names = sorted({path.name for folder in (ours, theirs) for path in folder.glob("*.npy")})
    for name in names:
        if not ((ours / name).exists() and (theirs / name).exists()):
            raise ValueError(f"{name}: expected it in {ours} and in {theirs}, one has none")
        a, b = (np.load(folder / name, mmap_mode="r") for folder in (ours, theirs))
        close = a.dtype == b.dtype and a.shape == b.shape
        if close and a.dtype == np.float32:
            close = bool(np.allclose(a, b, rtol=0, atol=TOLERANCE))
        elif close:
            close = np.array_equal(a, b)
        if not close:
            raise ValueError(f"{name}: the two preparations differ")


def _size(rows: int) -> alimama_rows.SyntheticAlimamaConfig:
    if rows < LEAST_ROWS:
        raise ValueError(f"--rows: expected at least {LEAST_ROWS:,} impressions, got {rows:,}")
    share = rows / alimama_rows.OFFICIAL_IMPRESSIONS
    return alimama_rows.SyntheticAlimamaConfig(
        num_users=round(share * alimama_rows.OFFICIAL_USERS),
        num_items=round(share * alimama_rows.OFFICIAL_ADS),
        num_impressions=rows,
        num_behaviors=round(share * BEHAVIORS),
    )


def _take_turn(
    name: str, section: alimama_rows.SyntheticAlimamaConfig, folder: pathlib.Path
) -> tuple[float, int]:
    """Seconds and peak bytes of one preparation into `folder`, which is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    with pairs.new_process() as process:
        return pairs.call(name, process, _prepare, name, section, folder)


def _prepare(
    name: str, section: alimama_rows.SyntheticAlimamaConfig, folder: pathlib.Path
) -> tuple[float, int]:
    if name == PANDAS:
        from dsmoe_jax.bench import pandas_prepare
    start_s = time.perf_counter()
    if name == PANDAS:
        pandas_prepare.prepare(pathlib.Path(section.raw_dir), folder)
    else:
        section.prepare(str(folder))
    return time.perf_counter() - start_s, pairs.read_memory("VmHWM")
