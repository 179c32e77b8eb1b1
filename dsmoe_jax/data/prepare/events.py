"""Behaviour logs of any length: from blocks of raw rows to one chronological sequence per user.

Owns the partitioned sort that keeps memory bounded: the rows of each block go to files by range of
users, then one range at a time is read, de-duplicated, sorted, windowed and appended to the store.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Generator, Iterator

import numpy as np
import polars as pl

from dsmoe_jax import runlog
from dsmoe_jax.data import store as store_lib
from dsmoe_jax.data.prepare import clocks, entities, histories, read

_PARTITIONS = 64


@dataclasses.dataclass(frozen=True)
class BehaviorLog:
    """Timed events that describe an item by fields of it, not by its id.

    Events of users outside the user table, exact repetitions, and events whose first field is null
    or outside its vocabulary are left out.

    Attributes:
      name: Name of the sequence, e.g. "behavior".
      fields: Item sparse features whose vocabularies the events share, e.g. ("category", "brand").
      blocks: Yields frames with the columns `user` (raw id), `time_s` (integer unix seconds from 1
        to 2**31 - 2) and the fields (raw values); called once; in any order, of any length.
    """

    name: str
    fields: tuple[str, ...]
    blocks: Callable[[], Iterator[pl.DataFrame]]


def write_behavior(
    writer: store_lib.StoreWriter,
    log: BehaviorLog,
    users: entities.EncodedTable,
    items: entities.EncodedTable,
    rows: list[histories.Rows],
    clock: clocks.Clock,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Writes `sequence_<name>` and `sequence_<name>_time`, user-major and chronological.

    Returns:
      The windows `(start_X, stop_X)` of each of `rows`.

    Raises:
      ValueError: When an event's time is missing or out of range.
    """
    # Partitions are ranges of users, so that in order they are user-major.
    size = -(-len(users.raw_id) // _PARTITIONS)
    scratch = writer.partial / f"scratch_{log.name}"
    scratch.mkdir()
    _partition(log, users, items, scratch, size)
    ids = writer.append_array(f"sequence_{log.name}", np.int32, len(log.fields))
    times = writer.append_array(f"sequence_{log.name}_time", np.int32)
    found = [(np.zeros(len(r.user_X), np.int64), np.zeros(len(r.user_X), np.int64)) for r in rows]
    parts = read.one_ahead(_sorted_parts(scratch, width=2 + len(log.fields)))
    bar = runlog.bar(parts, desc=f"sort {log.name}", total=_PARTITIONS)
    for part, event_EF in enumerate(bar):
        user_E, time_E = event_EF[:, 0].astype(np.int64), event_EF[:, 1].astype(np.int64)
        day_E = clock.days(time_E)
        for row, (start_X, stop_X) in zip(rows, found, strict=True):
            here = slice(*np.searchsorted(row.user_X, [part * size, (part + 1) * size]))
            start, stop = histories.find_windows(
                user_E, day_E, time_E, row.user_X[here], row.day_X[here], row.before_X[here]
            )
            start_X[here], stop_X[here] = start + ids.rows, stop + ids.rows
        ids.append(event_EF[:, 2:])
        times.append(event_EF[:, 1])
    scratch.rmdir()
    return found


def _sorted_parts(scratch: pathlib.Path, width: int) -> Generator[np.ndarray, None, None]:
    """The events of each partition; its file is removed."""
    for part in range(_PARTITIONS):
        path = scratch / str(part)
        path.touch()  # some have no events
        event_EF = np.fromfile(path, np.int32).reshape(-1, width)
        path.unlink()
        yield _sort_distinct(event_EF)


def _sort_distinct(event_EF: np.ndarray) -> np.ndarray:
    """Rows without repetitions, ascending by user, time, then fields."""
    key_E = event_EF[:, 0].astype(np.int64) << 32 | event_EF[:, 1]
    order = np.argsort(key_E)
    key_E, event_EF = key_E[order], event_EF[order]
    # Few events share user and time; only those need their fields compared.
    same_E = np.append(key_E[1:] == key_E[:-1], False)
    tied_E = np.flatnonzero(same_E | np.roll(same_E, 1))
    tied_EF = event_EF[tied_E]
    event_EF[tied_E] = tied_EF[np.lexsort(tied_EF.T[::-1])]
    repeated_E = np.zeros(len(event_EF), bool)
    repeated_E[1:] = np.all(event_EF[1:] == event_EF[:-1], axis=1)
    return event_EF[~repeated_E]


def _partition(
    log: BehaviorLog,
    users: entities.EncodedTable,
    items: entities.EncodedTable,
    scratch: pathlib.Path,
    size: int,
) -> None:
    for block in log.blocks():
        time_s = block["time_s"]
        if time_s.null_count() or not time_s.is_between(1, histories.END_OF_DAY - 1).all():
            raise ValueError(
                f"{log.name}: expected unix seconds from 1 to 2**31 - 2, got "
                f"{time_s.min()!r} to {time_s.max()!r}; remove such rows while reading"
            )
        user_E = users.rows(block["user"])
        columns = [user_E.astype(np.int32), time_s.to_numpy().astype(np.int32)]
        columns += [items.encode(name, block[name]) for name in log.fields]
        event_EF = np.stack(columns, axis=1)
        event_EF = event_EF[(event_EF[:, 0] > 0) & (event_EF[:, 2] > 0)]
        part_E = event_EF[:, 0] // size
        event_EF = event_EF[np.argsort(part_E, kind="stable")]
        bounds = np.searchsorted(event_EF[:, 0] // size, np.arange(_PARTITIONS + 1))
        for part in np.flatnonzero(np.diff(bounds)):
            with (scratch / str(part)).open("ab") as stream:
                stream.write(event_EF[bounds[part] : bounds[part + 1]].tobytes())
