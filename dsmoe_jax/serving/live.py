"""What answers now: the retriever in use, the one before it, and the change from one to another.

Owns the single reference that a request takes once. A new bundle is verified and asked in every
scenario before it is put in place, so that a bad one changes nothing.

Owns too which changes to items follow. What was upserted or removed before a bundle is opened is
older than the bundle: it holds where the bundle has no such id, but what was removed stays removed.
What was changed since a bundle was replaced is newer than it: a roll-back makes all of it there.
"""

import os
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dsmoe_jax.serving import item_changes
from dsmoe_jax.serving import retriever as retriever_lib

# Items of a list that warms a retriever up.
_WARM_K = 10


class BusyError(Exception):
    """Another change is under way."""


class Served:
    """A retriever in use.

    Attributes:
      retriever: It.
      digest: Of its bundle.
      query_s: About how long one query takes, in seconds; a moving average.
      changes: To items that the bundle itself does not hold; those before it too.
      changes_since: Those since it was put in place, the last time.
    """

    def __init__(self, retriever: retriever_lib.Retriever, query_s: float):
        self.retriever = retriever
        self.digest = retriever.bundle.digest
        self.query_s = query_s
        self.changes = item_changes.ItemChanges()
        self.changes_since = item_changes.ItemChanges()

    def learn(self, queries: int, seconds: float) -> None:
        """Takes a computation's time into account."""
        self.query_s += 0.1 * (seconds / queries - self.query_s)

    def follow(self, before: "Served") -> item_changes.Applied:
        """Takes over changes to items from what was in use when this bundle was opened."""
        self.changes = before.changes.beyond(self.retriever)
        return self.changes.apply(self.retriever)

    def catch_up(self, after: "Served") -> item_changes.Applied:
        """Takes over the changes to items since another bundle took the place of this one."""
        self.changes.update(after.changes_since)
        self.changes_since = item_changes.ItemChanges()
        return after.changes_since.apply(self.retriever)


class Live:
    """The bundle that answers, and the one that it replaced."""

    def __init__(self, served: Served):
        """Begins with a retriever that was warmed up."""
        self._current = served
        self._previous: Served | None = None
        self._changing = threading.Lock()
        # Else a change to items during a swap could be made to what is no longer in use.
        self._changing_items = threading.Lock()

    @property
    def current(self) -> Served:
        """What answers; a request reads this once."""
        return self._current

    @property
    def previous(self) -> Served | None:
        """What a roll-back brings again."""
        return self._previous

    def upsert_items(self, items: Sequence[Mapping[str, Any]]) -> int:
        """See `Retriever.upsert_items`; a bundle that is swapped in follows."""
        with self._changing_items:
            served = self._current
            count = served.retriever.upsert_items(items)
            for changes in (served.changes, served.changes_since):
                changes.upsert(served.retriever, items)
            return count

    def remove_items(self, raw_ids: Sequence[Any]) -> tuple[int, int]:
        """See `Retriever.remove_items`; a bundle that is swapped in follows.

        Returns:
          Items that can be retrieved now, and how many could be before and cannot.
        """
        with self._changing_items:
            served = self._current
            before = served.retriever.catalogue.num_items
            count = served.retriever.remove_items(raw_ids)
            for changes in (served.changes, served.changes_since):
                changes.remove(served.retriever, raw_ids)
            return count, before - count

    def open_candidate(self, path: str | os.PathLike[str]) -> Served:
        """The bundle at `path` as a swap would put it in place now.

        Raises:
          ValueError: In one line, when there is no bundle, it is damaged or of another format.
        """
        served = open_warm(path)
        with self._changing_items:
            served.follow(self._current)
        return served

    def swap(self, path: str | os.PathLike[str]) -> item_changes.Applied:
        """Puts the bundle at `path` in place of the current one, which stays for a roll-back.

        Returns:
          The changes to items that it took over.

        Raises:
          ValueError: In one line, when there is no bundle, it is damaged or of another format.
          BusyError: While another change is under way.
        """
        with _Only(self._changing):
            served = open_warm(path)
            with self._changing_items:
                applied = served.follow(self._current)
                self._current, self._previous = served, self._current
        return applied

    def roll_back(self) -> item_changes.Applied:
        """Exchanges the current bundle and the one before it.

        Returns:
          The changes to items that it took over.

        Raises:
          ValueError: When there is none.
          BusyError: While another change is under way.
        """
        with _Only(self._changing):
            if self._previous is None:
                raise ValueError("rollback: expected an earlier bundle, got none since the start")
            with self._changing_items:
                applied = self._previous.catch_up(self._current)
                self._current, self._previous = self._previous, self._current
        return applied


def open_warm(path: str | os.PathLike[str]) -> Served:
    """The bundle at `path`, after every hash was checked and every scenario answered.

    Raises:
      ValueError: In one line, when there is no bundle, it is damaged or of another format.
    """
    retriever = retriever_lib.Retriever.load(path)
    users = retriever.encoder.users
    known = users.decode(np.arange(1, min(len(users), 1) + 1))
    wanted = retriever.want(_WARM_K)
    columns = {"user_id": [None, *known]}
    retriever.retrieve(columns, retriever_lib.ALL, wanted)
    # The first call has read pages and, of a program, compiled it.
    start = time.perf_counter()
    answers = retriever.retrieve({"user_id": columns["user_id"][-1:]}, retriever_lib.ALL, wanted)
    return Served(retriever, (time.perf_counter() - start) / len(answers))


class _Only:
    """Holds a lock that nobody waits for."""

    def __init__(self, lock: threading.Lock):
        self._lock = lock

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise BusyError("another bundle is being opened; try again when it is in place")

    def __exit__(self, *exception: object) -> None:
        self._lock.release()
