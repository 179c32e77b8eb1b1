"""Paired timing: contestants in processes of their own that take turns.

Owns processes, turns and statistics. Each contestant has its own threads and its own memory; while
one runs the others wait on a pipe. A figure is a median over rounds, a comparison the median of the
ratios within rounds, so that a machine whose speed drifts drifts for both.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import multiprocessing
import pathlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from dsmoe_jax import malloc

# `turn(n)` runs n repetitions.
Turn = Callable[[int], None]
T = TypeVar("T")

# Of the contestant that was built in this process.
_turns: list[Turn] = []


@dataclasses.dataclass(frozen=True)
class Contestant:
    """What runs in a process.

    Attributes:
      build: Called in the new process; returns the turn and what it has to say of itself.
      arguments: Of `build`; they are pickled.
      keeps_freed: Whether the process reuses freed memory as a run of ours does, see `malloc`.
    """

    build: Callable[..., tuple[Turn, dict[str, Any]]]
    arguments: tuple[Any, ...] = ()
    keeps_freed: bool = True


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of one repetition in every round, and what the contestant said of itself."""

    seconds: list[float]
    notes: dict[str, Any]

    @property
    def median(self) -> float:
        """The figure to quote."""
        return statistics.median(self.seconds)


def take_turns(
    contestants: Mapping[str, Contestant], *, rounds: int, repetitions: int, warmup: int
) -> dict[str, Timing]:
    """Builds the contestants one after the other, then lets them run in turns.

    Each has `warmup` repetitions, then `rounds` turns that count, of `repetitions` each.

    Raises:
      ValueError: When a contestant fails, with its message.
    """
    notes, pools = {}, {}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    with contextlib.ExitStack() as stack:
        for name, contestant in contestants.items():
            pools[name] = stack.enter_context(new_process())
            notes[name] = call(name, pools[name], _build, contestant)
            call(name, pools[name], _take_turn, warmup)
        for _ in range(rounds):
            for name, pool in pools.items():
                seconds[name].append(call(name, pool, _take_turn, repetitions) / repetitions)
    return {name: Timing(seconds[name], notes[name]) for name in contestants}


def new_process() -> concurrent.futures.ProcessPoolExecutor:
    """A process of one's own, which starts with the first call."""
    context = multiprocessing.get_context("spawn")
    return concurrent.futures.ProcessPoolExecutor(1, mp_context=context)


def call(
    name: str,
    process: concurrent.futures.ProcessPoolExecutor,
    function: Callable[..., T],
    *arguments: Any,
) -> T:
    """What a function returns in the process of a contestant.

    Raises:
      ValueError: When it raises one, or the process ends.
    """
    try:
        return process.submit(function, *arguments).result()
    except (concurrent.futures.BrokenExecutor, SystemExit):
        raise ValueError(
            f"{name}: the process ended; its own message says why, or memory was short"
        ) from None
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def numbers(least: int) -> Callable[[str], tuple[int, ...]]:
    """A flag's type: whole numbers, `least` or more, separated by commas."""

    def parse(text: str) -> tuple[int, ...]:
        parts = text.replace("_", "").split(",")
        if not all(part.isdecimal() and int(part) >= least for part in parts):
            raise argparse.ArgumentTypeError(f"expected numbers >= {least} as 8,16, got {text!r}")
        return tuple(map(int, parts))

    return parse


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": statistics.median(values), "least": min(values), "greatest": max(values)}


def ratio(slower: Timing, faster: Timing) -> dict[str, float]:
    """`spread` of `slower / faster` over the rounds."""
    return spread([a / b for a, b in zip(slower.seconds, faster.seconds, strict=True)])


def show_ratio(ratio: dict[str, float], base: str) -> str:
    """`1.50 x <base> [1.40, 1.60]`."""
    return f"{ratio['median']:.2f} x {base} [{ratio['least']:.2f}, {ratio['greatest']:.2f}]"


def read_memory(field: str) -> int:
    """Bytes of this process by the kernel's account: VmRSS, what it holds, or VmHWM, its peak.

    Linux only. The peak that `getrusage` tells would begin with the parent's memory.
    """
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise ValueError(f"/proc/self/status: expected a field {field}, found none")


def _build(contestant: Contestant) -> dict[str, Any]:
    """Builds the contestant of this process; returns what it has to say of itself."""
    if contestant.keeps_freed:
        malloc.keep_freed()
    turn, notes = contestant.build(*contestant.arguments)
    _turns.append(turn)
    return notes


def _take_turn(repetitions: int) -> float:
    """Seconds of the turn of this process's contestant."""
    # Threads of the contestant before may still be spinning.
    time.sleep(0.02)
    start_s = time.perf_counter()
    _turns[-1](repetitions)
    return time.perf_counter() - start_s
