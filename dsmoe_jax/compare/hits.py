"""Hits per query, which paired comparisons are made of, in Parquet files.

Owns their schema: a row is a query of a system of a job, with `query`, `scenario`, `relevant` and
`hits@k`. Recall is kept as two integers, relevant items and those of them among the top k, from
which it is exact. A folder of records has `<job>.parquet` beside `<job>.json`, or all of them in
`hits.parquet`, where `pack` moves them.

Letters: Q queries.
"""

import functools
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float, Int

FILE = "hits.parquet"
_KEYS = ("job", "system")


class PerQuery(NamedTuple):
    """One system on the test queries, ascending by query.

    Attributes:
      query_Q: Rows of the split's query table.
      relevant_Q: Number of relevant items, at least 1.
      hits: Relevant items among the top k, by k.
    """

    query_Q: Int[np.ndarray, "Q"]
    scenario_Q: Int[np.ndarray, "Q"]
    relevant_Q: Int[np.ndarray, "Q"]
    hits: dict[int, Int[np.ndarray, "Q"]]

    def recall(self, k: int) -> Float[np.ndarray, "Q"]:
        """Recall@k of every query."""
        return np.asarray(self.hits[k] / self.relevant_Q)


def write(path: pathlib.Path, job: str, systems: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Writes a job's file, of the `results.query_arrays` of its systems."""
    frames = (
        pl.DataFrame(arrays).select(
            pl.lit(job).alias("job"), pl.lit(system).alias("system"), pl.all().cast(pl.Int32)
        )
        for system, arrays in systems.items()
    )
    _write(path, frames)


def load(folder: pathlib.Path) -> dict[tuple[str, str], PerQuery]:
    """Every system by its job's name and its own; a job's own file counts before the packed one."""
    # In order: what is read later replaces what was read before.
    files = sorted(folder.glob("*.parquet"), key=lambda path: path.name != FILE)
    return _load(tuple((path, path.stat().st_mtime_ns) for path in files))


def pack(folder: pathlib.Path) -> pathlib.Path:
    """Moves the jobs' files into one; returns it."""
    packed = folder / FILE
    single = sorted(path for path in folder.glob("*.parquet") if path != packed)
    frames = [pl.read_parquet(path) for path in single]
    if packed.exists():
        stems = [path.stem for path in single]
        frames.append(pl.read_parquet(packed).filter(~pl.col("job").is_in(stems)))
    _write(packed, [pl.concat(frames, how="diagonal").sort(*_KEYS, "query")] if frames else [])
    for path in single:
        path.unlink()
    return packed


@functools.lru_cache(maxsize=4)
def _load(files: tuple[tuple[pathlib.Path, int], ...]) -> dict[tuple[str, str], PerQuery]:
    found = {}
    for path, _ in files:
        parts = pl.read_parquet(path).partition_by(_KEYS, as_dict=True, include_key=False)
        for (job, system), part in parts.items():
            known = part.select(column for column in part if not column.null_count())
            arrays = {column.name: column.to_numpy().astype(np.int64) for column in known}
            hits = {int(n.partition("@")[2]): arrays[n] for n in arrays if n.startswith("hits@")}
            found[str(job), str(system)] = PerQuery(
                arrays["query"], arrays["scenario"], arrays["relevant"], hits
            )
    return found


def _write(path: pathlib.Path, frames: Iterable[pl.DataFrame]) -> None:
    """Writes a file beside its place, then renames it there."""
    partial = path.with_name(f"{path.name}.partial")
    # Groups of many rows are smaller together.
    joined = pl.concat(frames, how="diagonal")
    joined.write_parquet(partial, compression_level=19, row_group_size=1 << 21)
    os.replace(partial, path)
