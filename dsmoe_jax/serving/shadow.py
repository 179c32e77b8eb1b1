"""Shadow mode: a share of the queries is put to a candidate too, whose lists nobody sees.

Owns the comparison of its lists with those that were sent. It runs in a thread of its own behind a
short queue: when the candidate is slower than its share, queries are left out and counted, and the
service goes on.
"""

import concurrent.futures
import dataclasses
import queue
import threading
from typing import Any

from dsmoe_jax.serving import batching, live, wire
from dsmoe_jax.serving import lists as lists_lib

_QUEUE = 128

Task = tuple[wire.Query, list[lists_lib.Answer]]


@dataclasses.dataclass
class Sums:
    """What is known of one scenario's lists.

    Attributes:
      lists: Compared lists.
      shared: Sum over them of the share of items that both have.
      same_first: Lists that begin with the same item.
      items: Items that both lists of a pair have.
      drift, size: Sums over these of the candidate's score less the other's, and of its size.
    """

    lists: int = 0
    shared: float = 0.0
    same_first: float = 0.0
    items: int = 0
    drift: float = 0.0
    size: float = 0.0

    def add(self, current: lists_lib.Answer, candidate: lists_lib.Answer) -> None:
        """Compares a list with the candidate's for the same query."""
        score_of = dict(zip(current.item_ids, current.scores, strict=True))
        drifts = [
            score - score_of[item]
            for item, score in zip(candidate.item_ids, candidate.scores, strict=True)
            if item in score_of
        ]
        longest = max(len(current.item_ids), len(candidate.item_ids))
        self.lists += 1
        self.shared += len(drifts) / longest if longest else 1.0
        self.same_first += current.item_ids[:1] == candidate.item_ids[:1]
        self.items += len(drifts)
        self.drift += sum(drifts)
        self.size += sum(map(abs, drifts))

    def describe(self) -> dict[str, float | int | None]:
        """Means; None where nothing was compared."""

        def mean(total: float, count: int) -> float | None:
            return total / count if count else None

        return {
            "lists": self.lists,
            "overlap_at_k": mean(self.shared, self.lists),
            "same_first": mean(self.same_first, self.lists),
            "mean_score_drift": mean(self.drift, self.items),
            "mean_absolute_score_drift": mean(self.size, self.items),
        }


class Shadow:
    """A candidate, and how its lists compare so far.

    Attributes:
      served: The candidate.
      share: Of the queries that it gets, in (0, 1].
    """

    def __init__(self, served: live.Served, share: float):
        """Starts its threads."""
        self.served, self.share = served, share
        self._due = 0.0
        self._tasks: queue.Queue[Task | None] = queue.Queue(_QUEUE)
        self._sums: dict[str, Sums] = {}
        self._compared = self._skipped = self._refused = 0
        self._last_refusal = ""
        self._lock = threading.Lock()
        self._asking = concurrent.futures.ThreadPoolExecutor(1, "candidate")
        self._thread = threading.Thread(target=self._work, name="shadow", daemon=True)
        self._thread.start()

    def offer(self, query: wire.Query, answers: list[lists_lib.Answer]) -> None:
        """Takes a query and what was answered, if it is one of the share."""
        self._due += self.share
        if self._due < 1.0:
            return
        self._due -= 1.0
        try:
            self._tasks.put_nowait((query, answers))
        except queue.Full:
            self._skipped += 1

    def describe(self) -> dict[str, Any]:
        """The comparison so far, scenario by scenario."""
        with self._lock:
            return {
                "candidate": self.served.digest,
                "share": self.share,
                "compared": self._compared,
                "skipped": self._skipped,
                "refused": self._refused,
                "last_refusal": self._last_refusal,
                "scenarios": {name: sums.describe() for name, sums in self._sums.items()},
            }

    def close(self) -> None:
        """Ends the threads after the query that they are at."""
        with self._tasks.mutex:
            self._tasks.queue.clear()
        self._tasks.put(None)
        self._thread.join()
        self._asking.shutdown()

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            query, answers = task
            # A future keeps whatever is raised: a candidate that fails must not end the comparison.
            asked = self._asking.submit(batching.ask, self.served, query, query.users)
            error = asked.exception()
            if error is None:
                self._compare(answers, asked.result())
                continue
            reason = wire.one_line(error)
            with self._lock:
                self._refused += 1
                self._last_refusal = (
                    reason if isinstance(error, ValueError) else f"{type(error).__name__}: {reason}"
                )

    def _compare(self, answers: list[lists_lib.Answer], candidates: list[lists_lib.Answer]) -> None:
        with self._lock:
            # With the scenario "all" the candidate may have others.
            if [one.scenario for one in answers] != [one.scenario for one in candidates]:
                self._refused += 1
                self._last_refusal = "scenario: the candidate has others"
                return
            self._compared += 1
            for answer, candidate in zip(answers, candidates, strict=True):
                self._sums.setdefault(answer.scenario, Sums()).add(answer, candidate)


class Shadows:
    """The candidate, where there is one."""

    def __init__(self) -> None:
        self._shadow: Shadow | None = None
        self._changing = threading.Lock()

    def start(self, served: live.Served, share: float) -> None:
        """Puts a candidate in place of an earlier one."""
        with self._changing:
            earlier, self._shadow = self._shadow, Shadow(served, share)
        if earlier:
            earlier.close()

    def stop(self) -> bool:
        """Ends the comparison; whether there was one."""
        with self._changing:
            earlier, self._shadow = self._shadow, None
        if earlier:
            earlier.close()
        return earlier is not None

    def offer(self, query: wire.Query, answers: list[lists_lib.Answer]) -> None:
        """See `Shadow.offer`."""
        if shadow := self._shadow:
            shadow.offer(query, answers)

    def describe(self) -> dict[str, Any]:
        """The comparison so far.

        Raises:
          ValueError: When there is none.
        """
        if not (shadow := self._shadow):
            raise ValueError("compare: expected a candidate, got none; start one by /v1/shadow")
        return shadow.describe()
