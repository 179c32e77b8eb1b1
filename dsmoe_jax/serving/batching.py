"""Batching: queries that wait while others are computed are computed together.

Owns the order of computations and where they run. No query waits for company: what is alone is
computed at once. Short computations run in the event loop itself, since a thread would cost more
than they take; what arrives meanwhile is read afterwards and becomes the next batch. Long ones run
in one worker thread, so that the loop goes on taking and refusing requests.

A computation is a task or a thread's future, which keeps whatever it raised. What fails together is
computed again one by one, so that only the query at fault has no lists.
"""

import asyncio
import concurrent.futures
import http
import logging
import pathlib
import time
import traceback
from collections.abc import Callable
from typing import Any

from dsmoe_jax.serving import frames, live, service_metrics, wire
from dsmoe_jax.serving import lists as lists_lib
from dsmoe_jax.serving import retriever as retriever_lib

# Longest computation in the event loop, by estimate, in seconds.
_INLINE_S = 0.005
# Queries (a user in a scenario) that are computed together, but for those of one request.
_MOST_QUERIES = 256
_log = logging.getLogger(__name__)

Watch = Callable[[wire.Query, list[lists_lib.Answer]], None]


class Call:
    """A query that waits for its answers.

    Attributes:
      query: What is asked.
      served: Who answers.
      queries: Users times scenarios.
      arrived_s: When it was handed over.
      queue_s: How long it waited for its computation.
      times: How long that took.
      is_computed: Whether it has begun.
      is_alone: Whether it is computed without others.
    """

    __slots__ = (
        *("arrived_s", "future", "is_alone", "is_computed", "queries", "query"),
        *("queue_s", "served", "times"),
    )

    def __init__(self, query: wire.Query, served: live.Served, future: "asyncio.Future[Any]"):
        self.query, self.served, self.future = query, served, future
        scenarios = 1
        if query.scenario == retriever_lib.ALL:
            scenarios = len(served.retriever.scenarios)
        elif isinstance(query.scenario, list):
            scenarios = len(query.scenario)
        self.queries = len(query.users) * scenarios
        self.arrived_s = time.perf_counter()
        self.queue_s = 0.0
        self.times = lists_lib.Times()
        self.is_computed = self.is_alone = False


class Batcher:
    """Computes calls in the order of their arrival, those that ask alike together."""

    def __init__(
        self,
        source: live.Live,
        limits: wire.Limits,
        metrics: service_metrics.Metrics,
        watch: Watch,
    ):
        """Starts nothing yet.

        Args:
          source: Who answers.
          limits: Of time.
          metrics: Where computations are counted.
          watch: Told of every query and its answers.
        """
        self._source, self._limits, self._metrics, self._watch = source, limits, metrics, watch
        self._waiting: dict[Any, list[Call]] = {}
        self._is_scheduled = self._is_busy = False
        self._worker = concurrent.futures.ThreadPoolExecutor(1, "retrieve")

    def close(self) -> None:
        """Ends the worker."""
        self._worker.shutdown()

    async def answer(self, query: wire.Query) -> tuple[Call, list[lists_lib.Answer]]:
        """The lists of a query.

        Raises:
          ValueError: In one line, on what the bundle does not know or cannot be.
          RefusedError: When its time is over, or the service failed.
        """
        loop = asyncio.get_running_loop()
        call = Call(query, self._source.current, loop.create_future())
        self._waiting.setdefault(_likeness(call), []).append(call)
        self._schedule(loop)
        timer = loop.call_later(self._limits.time_s, self._give_up, call)
        try:
            return call, await call.future
        finally:
            timer.cancel()

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._is_scheduled and self._waiting:
            self._is_scheduled = True
            # A task begins after the requests that the loop reads in this turn.
            self._next = loop.create_task(self._run_next(loop))

    async def _run_next(self, loop: asyncio.AbstractEventLoop) -> list["Outcome"]:
        """Computes the calls like the one that waits longest, or lets the worker do it."""
        self._is_scheduled = False
        calls = self._take()
        if not calls:
            return []
        if sum(call.queries for call in calls) * calls[0].served.query_s <= _INLINE_S:
            self._next.add_done_callback(lambda done: self._end(loop, calls, done))
            return compute(calls)
        self._is_busy = True
        work = loop.run_in_executor(self._worker, compute, calls)
        work.add_done_callback(lambda done: self._end_long(loop, calls, done))
        return []

    def _take(self) -> list[Call]:
        """The next calls to compute; none while the worker is busy and nothing short waits."""
        for likeness, waiting in self._waiting.items():
            calls: list[Call] = []
            total = 0
            for call in waiting:
                if calls and total + call.queries > _MOST_QUERIES:
                    break
                calls.append(call)
                total += call.queries
            if self._is_busy and total * calls[0].served.query_s > _INLINE_S:
                continue
            del waiting[: len(calls)]
            if not waiting:
                del self._waiting[likeness]
            for call in calls:
                call.is_computed = True
            return calls
        return []

    def _end_long(
        self, loop: asyncio.AbstractEventLoop, calls: list[Call], done: "Computation"
    ) -> None:
        self._is_busy = False
        self._end(loop, calls, done)

    def _end(self, loop: asyncio.AbstractEventLoop, calls: list[Call], done: "Computation") -> None:
        """Delivers what was computed; what failed together is computed again one by one."""
        if done.cancelled():  # the loop ends
            return
        error = done.exception()
        if error is None:
            self._deliver(calls, done.result())
        elif len(calls) > 1:
            self._put_back(calls)
        else:
            self._deliver(calls, [_fail(calls[0], error)])
        self._schedule(loop)

    def _put_back(self, calls: list[Call]) -> None:
        """Lets calls wait again, before all others and each for itself."""
        waiting = [call for call in calls if not call.future.done()]
        for call in waiting:
            call.is_computed, call.is_alone = False, True
        self._waiting = {**{_likeness(call): [call] for call in waiting}, **self._waiting}

    def _deliver(self, calls: list[Call], found: list["Outcome"]) -> None:
        self._metrics.batch(len(calls))
        for call, outcome in zip(calls, found, strict=True):
            if call.future.done():
                continue
            if isinstance(outcome, Exception):
                call.future.set_exception(outcome)
                continue
            call.future.set_result(outcome)
            self._metrics.answered(call.query.scenario, call.queue_s, call.times, outcome)
            self._watch(call.query, outcome)

    def _give_up(self, call: Call) -> None:
        if call.future.done():
            return
        if not call.is_computed:
            likeness = _likeness(call)
            self._waiting[likeness].remove(call)
            if not self._waiting[likeness]:
                del self._waiting[likeness]
        limit = f"{self._limits.time_s:g} s"
        if call.is_computed:
            refused = wire.RefusedError(
                http.HTTPStatus.GATEWAY_TIMEOUT, f"time: no list within {limit}; ask for less"
            )
        else:
            refused = wire.RefusedError(
                http.HTTPStatus.SERVICE_UNAVAILABLE, f"time: waited {limit} for others; try again"
            )
        call.future.set_exception(refused)


Outcome = list[lists_lib.Answer] | Exception
Computation = asyncio.Future[list[Outcome]]


def compute(calls: list[Call]) -> list[Outcome]:
    """Answers of calls that ask alike, or why there are none."""
    start, times = time.perf_counter(), lists_lib.Times()
    for call in calls:
        call.queue_s, call.times = start - call.arrived_s, times
    try:
        found = _answer_together(calls, times)
    except ValueError as error:
        # One query must not cost the others their lists.
        return [error] if len(calls) == 1 else [compute([call])[0] for call in calls]
    if queries := sum(call.queries for call in calls):
        calls[0].served.learn(queries, time.perf_counter() - start)
    return found


def _answer_together(calls: list[Call], times: lists_lib.Times) -> list[Outcome]:
    query, served = calls[0].query, calls[0].served
    users = [user for call in calls for user in call.query.users]
    answers = ask(served, query, users, times)
    if len(calls) == 1:
        return [answers]
    found: list[Outcome] = []
    first = 0
    for call in calls:
        found.append(answers[first : first + call.queries])
        first += call.queries
    return found


def ask(
    served: live.Served,
    query: wire.Query,
    users: list[dict[str, Any]],
    times: lists_lib.Times | None = None,
) -> list[lists_lib.Answer]:
    """The lists that a query asks for, of these users; `times` is told how long they took.

    Raises:
      ValueError: In one line, on what the bundle does not know or cannot be.
    """
    wanted = served.retriever.want(
        query.k, exclude=query.exclude, allow=query.allow, filter=query.filter
    )
    return served.retriever.retrieve(frames.read_users(users), query.scenario, wanted, times)


def _fail(call: Call, error: BaseException) -> wire.RefusedError:
    """Logs in one line why a query has no lists, and refuses it."""
    name = type(error).__name__
    *_, last = traceback.extract_tb(error.__traceback__)
    place = f"{pathlib.Path(last.filename).name}:{last.lineno}"
    _log.error(
        "no lists: %s at %s: %s; users: %d, scenario: %s, bundle: %s",
        *(name, place, wire.one_line(error), len(call.query.users), call.query.scenario),
        call.served.digest[:12],
    )
    return wire.RefusedError(
        http.HTTPStatus.INTERNAL_SERVER_ERROR,
        f"no lists: the service failed with {name}; its log says where",
    )


def _likeness(call: Call) -> Any:
    """What calls that are computed together have in common."""
    if call.is_alone:
        return call
    query = call.query
    rest = (query.scenario, query.exclude, query.allow, query.filter)
    # Plain values need no text, which is as long as the lists of ids in it.
    is_plain = not any(isinstance(value, list | dict) for value in rest)
    return call.served, query.k, rest if is_plain else repr(rest)
