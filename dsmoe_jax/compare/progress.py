"""Progress view of jobs: the state of every job and the time that is left."""

import dataclasses
import shutil
import statistics
import sys
from collections.abc import Sequence

STATES = ("done", "running", "left", "failed", "left out")


@dataclasses.dataclass
class JobState:
    """Where a job stands.

    Attributes:
      kind: Of its system; jobs of a kind take about as long.
      state: One of `STATES`.
      seconds: What a finished job took, or a running one so far; 0 where unknown.
      note: The last thing it said, or why it failed.
    """

    name: str
    kind: str
    state: str = "left"
    seconds: float = 0.0
    note: str = ""


def expect_seconds(states: Sequence[JobState], workers: int) -> float | None:
    """Seconds until the list is done, from what finished jobs took; None before the first."""
    took: dict[str, list[float]] = {}
    for state in states:
        if state.state == "done" and state.seconds:
            took.setdefault(state.kind, []).append(state.seconds)
    if not took:
        return None
    means = {kind: statistics.fmean(values) for kind, values in took.items()}
    usual = statistics.fmean(means.values())
    left = [s for s in states if s.state in ("left", "running")]
    # A job that is left has taken nothing yet.
    total = sum(max(0.0, means.get(s.kind, usual) - s.seconds) for s in left)
    return total / max(1, min(workers, len(left)))


def summary(states: Sequence[JobState], workers: int) -> str:
    """One line: how many jobs are in each state, and the time that is left."""
    count = {state: sum(s.state == state for s in states) for state in STATES}
    parts = [f"{count['done']} of {len(states)} jobs done"]
    parts += [f"{count[name]} {name}" for name in STATES[1:] if count[name]]
    seconds = expect_seconds(states, workers)
    if seconds is not None and count["left"] + count["running"]:
        parts.append(f"about {max(1, round(seconds / 60))} min to go")
    return ", ".join(parts)


def whole_list(states: Sequence[JobState], workers: int) -> str:
    """Every job on a line of its own, then the summary."""
    width = max((len(s.name) for s in states), default=0)
    lines = [
        f"{number:>4}  {s.state:<8} {s.name:<{width}} {clock(s.seconds):>8}  {s.note}".rstrip()
        for number, s in enumerate(states)
    ]
    return "\n".join([*lines, summary(states, workers)])


def clock(seconds: float) -> str:
    """`m:ss`; empty for nothing."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}" if seconds else ""


class View:
    """Shows jobs while they run: a block that stays in place; plain lines on no terminal."""

    def __init__(self, states: Sequence[JobState], workers: int):
        """Nothing is shown yet."""
        self._states, self._workers = states, workers
        self._is_terminal = sys.stdout.isatty()
        self._shown = 0

    def tell(self, text: str) -> None:
        """Prints a line that stays, and where the list stands."""
        self.clear()
        print(text if self._is_terminal else f"{text}  [{summary(self._states, self._workers)}]")
        sys.stdout.flush()
        self.show()

    def show(self) -> None:
        """Draws the block anew; does nothing on no terminal."""
        if not self._is_terminal:
            return
        self.clear()
        width = shutil.get_terminal_size().columns - 1
        running = [s for s in self._states if s.state == "running"]
        lines = [summary(self._states, self._workers)]
        lines += [f"  {s.name}  {clock(s.seconds)}  {s.note}" for s in running]
        for line in lines:
            print(line[:width])
        sys.stdout.flush()
        self._shown = len(lines)

    def clear(self) -> None:
        """Takes the block away."""
        if self._shown:
            # Up that many lines, and erase to the end of the screen.
            sys.stdout.write(f"\x1b[{self._shown}A\x1b[J")
            self._shown = 0
