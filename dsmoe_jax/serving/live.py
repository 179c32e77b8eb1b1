"""What answers now: the retriever in use, the one before it, and the change from one to another.

Owns the single reference that a request takes once. A new bundle is verified and asked in every
scenario before it is put in place, so that a bad one changes nothing.
"""

import os
import threading
import time

import numpy as np

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
      exclude: What lists leave out where a query does not say.
      query_s: About how long one query takes, in seconds; a moving average.
    """

    def __init__(self, retriever: retriever_lib.Retriever, query_s: float):
        self.retriever = retriever
        self.digest = retriever.bundle.digest
        self.exclude = retriever.usual_exclude
        self.query_s = query_s

    def learn(self, queries: int, seconds: float) -> None:
        """Takes a computation's time into account."""
        self.query_s += 0.1 * (seconds / queries - self.query_s)


class Live:
    """The bundle that answers, and the one that it replaced."""

    def __init__(self, served: Served):
        """Begins with a retriever that was warmed up."""
        self._current = served
        self._previous: Served | None = None
        self._changing = threading.Lock()

    @property
    def current(self) -> Served:
        """What answers; a request reads this once."""
        return self._current

    @property
    def previous(self) -> Served | None:
        """What a roll-back brings again."""
        return self._previous

    def swap(self, path: str | os.PathLike[str]) -> Served:
        """Puts the bundle at `path` in place of the current one, which stays for a roll-back.

        Raises:
          ValueError: In one line, when there is no bundle, it is damaged or of another format.
          BusyError: While another change is under way.
        """
        with _Only(self._changing):
            served = open_warm(path)
            self._current, self._previous = served, self._current
        return served

    def roll_back(self) -> Served:
        """Exchanges the current bundle and the one before it.

        Raises:
          ValueError: When there is none.
          BusyError: While another change is under way.
        """
        with _Only(self._changing):
            if self._previous is None:
                raise ValueError("rollback: expected an earlier bundle, got none since the start")
            self._current, self._previous = self._previous, self._current
        return self._current


def open_warm(path: str | os.PathLike[str]) -> Served:
    """The bundle at `path`, after every hash was checked and every scenario answered.

    Raises:
      ValueError: In one line, when there is no bundle, it is damaged or of another format.
    """
    retriever = retriever_lib.Retriever.load(path)
    users = retriever.encoder.users
    known = users.decode(np.arange(1, min(len(users), 1) + 1))
    wanted = retriever.want(_WARM_K, exclude=retriever.usual_exclude)
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
