"""Largest kernels of a program: its steps under JAX's profiler, device time by kernel.

Owns what is read of a trace: of an accelerator the kernels of its streams, of a CPU the operations
that XLA's threads ran. What lies inside another event of a thread, as the body of a loop does,
counts for itself and not for that. Times of several devices or threads add up.
"""

import collections
import dataclasses
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

MOST = 5
# Lines of a device's plane that hold kernels, by how their names begin: of a GPU, or else of a TPU.
# Others hold the same time again, by module or by step.
_LINES = ("Stream", "XLA Ops")
_INSTRUCTION = re.compile(
    r'^\s*(?:ROOT )?%?(\S+) = .*metadata=\{.*?op_name="([^"]*)"', re.MULTILINE
)


@dataclasses.dataclass(frozen=True)
class Event:
    """One kernel that ran.

    Attributes:
      hlo: XLA's instruction that it computes; empty where the trace does not say it.
      start_ns: Since the beginning of the trace.
      duration_ns: What it contains included.
    """

    name: str
    hlo: str
    start_ns: float
    duration_ns: float


def profile(
    turn: Callable[[int], None], repetitions: int, program: str, *, most: int = MOST
) -> dict[str, Any]:
    """The largest kernels of a turn, which ends when its results are there.

    Args:
      turn: Runs so many repetitions; compiled already.
      repetitions: Of the turn that is traced.
      program: Text of the compiled program, which says of what its instructions were made.
      most: How many kernels are named.

    Returns:
      `kernel_ms`, the time of all of a repetition, and `kernels`, largest first, each with its
      name, ms of a repetition, share of all, and the operation that most of it was made of.

    Raises:
      ValueError: When the trace holds no kernel, as where the driver forbids it.
    """
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level, options.enable_hlo_proto = 0, False
    with tempfile.TemporaryDirectory(prefix="dsmoe_jax_bench_") as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            turn(repetitions)
        events = [
            event for path in pathlib.Path(folder).rglob("*.xplane.pb") for event in read(path)
        ]
    if not events:
        raise ValueError("profile: expected kernels in the trace, found none")
    return summarise(events, repetitions, dict(_INSTRUCTION.findall(program)), most=most)


def read(path: pathlib.Path) -> list[Event]:
    """The kernels of a trace (`*.xplane.pb`), their durations without what they contain."""
    planes = list(jax.profiler.ProfileData.from_file(str(path)).planes)
    devices = [plane for plane in planes if re.fullmatch(r"/device:[A-Z]+:\d+", plane.name)]
    events = []
    for plane in devices:
        lines = list(plane.lines)
        kind = next((k for k in _LINES if any(line.name.startswith(k) for line in lines)), None)
        for line in lines:
            if kind and line.name.startswith(kind):
                events += subtract_inner([_make_event(event) for event in line.events])
    if not devices:
        for line in (line for plane in planes for line in plane.lines):
            ran = [_make_event(event) for event in line.events]
            events += subtract_inner([event for event in ran if event.hlo])
    return events


def subtract_inner(events: Iterable[Event]) -> list[Event]:
    """Events of one thread, each without the time of those inside it, by their beginning."""
    ordered = sorted(events, key=lambda event: (event.start_ns, -event.duration_ns))
    own_ns = [event.duration_ns for event in ordered]
    open_events: list[int] = []
    for number, event in enumerate(ordered):
        while open_events and _end_ns(ordered[open_events[-1]]) <= event.start_ns:
            open_events.pop()
        if open_events:
            own_ns[open_events[-1]] -= event.duration_ns
        open_events.append(number)
    return [
        dataclasses.replace(event, duration_ns=max(0.0, left))
        for event, left in zip(ordered, own_ns, strict=True)
    ]


def summarise(
    events: Iterable[Event], repetitions: int, made_of: Mapping[str, str], *, most: int = MOST
) -> dict[str, Any]:
    """See `profile`; `made_of` maps XLA's instructions to the operations of the program."""
    by_name: dict[str, float] = collections.defaultdict(float)
    by_hlo: dict[str, dict[str, float]] = {}
    for event in events:
        by_name[event.name] += event.duration_ns
        of_name = by_hlo.setdefault(event.name, collections.defaultdict(float))
        of_name[event.hlo] += event.duration_ns
    total_ns = sum(by_name.values())
    largest = sorted(by_name, key=lambda name: -by_name[name])[:most]
    return {
        "kernel_ms": total_ns / 1e6 / repetitions,
        "kernels": [
            {
                "name": name,
                "ms": by_name[name] / 1e6 / repetitions,
                "share": by_name[name] / total_ns if total_ns else 0.0,
                "op": made_of.get(max(by_hlo[name], key=lambda hlo: by_hlo[name][hlo]), ""),
            }
            for name in largest
        ],
    }


def _make_event(event: Any) -> Event:
    hlo = next((str(value) for name, value in event.stats if name == "hlo_op"), "")
    return Event(event.name, hlo, float(event.start_ns), float(event.duration_ns))


def _end_ns(event: Event) -> float:
    return event.start_ns + event.duration_ns
