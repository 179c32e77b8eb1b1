"""Paired timing: contestants in processes of their own that take turns.

Owns processes, turns and statistics. Each contestant has its own threads and its own memory; while
one runs the others wait on a pipe. A figure is a median over rounds, a comparison the median of the
ratios within rounds, so that a machine whose speed drifts drifts for both.
"""

import argparse
import dataclasses
import multiprocessing
import multiprocessing.connection
import pathlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dsmoe_jax import malloc

# `turn(n)` runs n repetitions.
Turn = Callable[[int], None]

# How long a process that is no longer needed may take to leave by itself.
_GOODBYE_S = 5.0


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
    context = multiprocessing.get_context("spawn")
    processes, pipes, notes = [], {}, {}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    try:
        for name, contestant in contestants.items():
            pipe, remote = context.Pipe()
            process = context.Process(target=_serve, args=(remote, contestant), daemon=True)
            process.start()
            # Held open here, it would keep the end of the process from being noticed.
            remote.close()
            processes.append(process)
            pipes[name] = pipe
            notes[name] = _receive(name, pipe)
            pipe.send(warmup)
            _receive(name, pipe)
        for _ in range(rounds):
            for name, pipe in pipes.items():
                pipe.send(repetitions)
                seconds[name].append(_receive(name, pipe) / repetitions)
    finally:
        for pipe in pipes.values():
            pipe.close()
        for process in processes:
            process.join(_GOODBYE_S)
            process.terminate()
            process.join()
    return {name: Timing(seconds[name], notes[name]) for name in contestants}


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


def _receive(name: str, pipe: multiprocessing.connection.Connection) -> Any:
    try:
        kind, value = pipe.recv()
    except EOFError:
        raise ValueError(f"{name}: the process ended; its own message says why") from None
    if kind == "error":
        raise ValueError(f"{name}: {value}")
    return value


def _serve(pipe: multiprocessing.connection.Connection, contestant: Contestant) -> None:
    if contestant.keeps_freed:
        malloc.keep_freed()
    try:
        turn, notes = contestant.build(*contestant.arguments)
        pipe.send(("ready", notes))
        while True:
            repetitions = pipe.recv()
            # Threads of the contestant before may still be spinning.
            time.sleep(0.02)
            start_s = time.perf_counter()
            turn(repetitions)
            pipe.send(("seconds", time.perf_counter() - start_s))
    except EOFError:
        return
    except ValueError as error:
        pipe.send(("error", str(error)))
