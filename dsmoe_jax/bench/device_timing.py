"""How things are timed on one accelerator: sizes, jobs, the time that is left, turns.

Owns what the jobs of `device_work.py`, `device_search.py` and `device_batch.py` share. A turn ends
when its results are there.
"""

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from dsmoe_jax.bench import pairs
from dsmoe_jax.training import row_sparse

HIGHEST, DEFAULT, BFLOAT16 = (f"GEMM {name}" for name in ("f32 HIGHEST", "f32 default", "bf16"))
COPY = "copy"

# Gives the fields of an entry beside part and name.
Measure = Callable[[], dict[str, Any]]
Listed = Iterator[tuple[str, Measure]]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much of everything.

    Attributes:
      gemm: Rows and columns of the square products that give the peaks.
      copied: float32 numbers of a copy.
      shapes: Of the steps, see `cases.make_case`.
      kinds: Ways to update and types of products that every shape is timed with.
      overrides: Fields of the student, see `ours.Wanted`.
      min_rows: Least rows of a table that is updated by rows.
      profiled: Steps that are traced for their largest kernels.
      dispatch: Steps of one dispatch.
      searches: Items, queries and list lengths of each corpus that is searched.
      per_scenario: Test queries evaluated of every scenario; None takes all.
      memory_bytes: Of a device, for the largest batch; 0 takes what the device says.
      command: Flags of the command whose parts are timed.
      command_s: Seconds that it may take.
      rounds: Turns that count.
      least_s: Seconds that a turn lasts at least, but for turns of one repetition.
    """

    gemm: int = 8192
    copied: int = 1 << 28
    shapes: tuple[str, ...] = ("kuairand", "alimama")
    kinds: tuple[tuple[str, str], ...] = tuple(
        itertools.product(("dense", "row_sparse", "distilled"), ("float32", "bfloat16"))
    )
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)
    min_rows: int = row_sparse.MIN_ROWS
    profiled: int = 3
    dispatch: tuple[int, ...] = (1, 8, 64)
    searches: tuple[tuple[int, int, tuple[int, ...]], ...] = (
        (1_000_000, 1_000, (50, 1_000)),
        (7_583, 7_451, (100,)),
    )
    per_scenario: int | None = None
    memory_bytes: int = 0
    # Every part of the README's first command, with few epochs of it.
    command: tuple[str, ...] = (
        "--config=kuairand:sample",
        "--config.teacher.max_epochs=2",
        "--config.train.max_epochs=4",
    )
    command_s: float = 120.0
    rounds: int = 7
    least_s: float = 0.2


# What a CPU does in seconds: to test the measurement, not a device.
SMALL = Sizes(
    gemm=64,
    copied=1 << 12,
    shapes=("200",),
    kinds=(("row_sparse", "float32"), ("distilled", "bfloat16")),
    overrides={"hidden_dim": 8, "output_dim": 8},
    min_rows=1,
    profiled=1,
    dispatch=(2,),
    searches=((2_000, 40, (5,)),),
    per_scenario=8,
    memory_bytes=64 << 20,
    command=(
        "--config=kuairand:synthetic",
        "--config.data.num_users=300",
        "--config.data.num_items=250",
        "--config.data.num_impressions=12000",
        "--config.data.validation_days=5",
        "--config.data.test_days=5",
        "--config.train.batch_size=64",
        "--config.teacher.max_epochs=1",
        "--config.train.max_epochs=1",
        "--config.model.hidden_dim=8",
        "--config.model.output_dim=8",
        "--config.eval.references=False",
    ),
    command_s=400.0,
    rounds=2,
    least_s=0.0,
)


class Budget:
    """Seconds that a measurement may still take."""

    def __init__(self, seconds: float = math.inf):
        """Begins now."""
        self._start_s, self._seconds = time.perf_counter(), seconds

    def left_s(self) -> float:
        """Below 0 once they are spent."""
        return self._seconds - self.elapsed_s()

    def elapsed_s(self) -> float:
        """Since the beginning."""
        return time.perf_counter() - self._start_s


@dataclasses.dataclass(frozen=True)
class Job:
    """Something to measure: `measure()` gives the fields of its entry beside part and name."""

    part: str
    name: str
    measure: Measure


def time_turns(turn: pairs.Turn, sizes: Sizes, *, per_turn: int = 1) -> dict[str, Any]:
    """Seconds of the first repetition, which compiles, and of one repetition in every round.

    A repetition that does `per_turn` things counts as so many.
    """
    start_s = time.perf_counter()
    turn(1)
    first_s = time.perf_counter() - start_s
    start_s = time.perf_counter()
    turn(1)
    once_s = time.perf_counter() - start_s
    repetitions = max(1, min(1000, math.ceil(sizes.least_s / max(once_s, 1e-6))))
    seconds = []
    for _ in range(sizes.rounds):
        start_s = time.perf_counter()
        turn(repetitions)
        seconds.append((time.perf_counter() - start_s) / repetitions / per_turn)
    return {"first_s": first_s, "seconds": pairs.spread(seconds), "repetitions": repetitions}


def repeat(run: Callable[[], Any]) -> pairs.Turn:
    """A turn of calls, of which the last is waited for: a device takes them in order."""

    def turn(repetitions: int) -> None:
        found = None
        for _ in range(repetitions):
            found = run()
        jax.block_until_ready(found)

    return turn
