"""What is measured on one accelerator, job by job: peaks, steps, search, evaluation, twins.

Owns the jobs. Each is made and timed on its own, so that a device whose memory one of them exceeds
still answers the others. Data lie on the device before anything is timed, and a turn ends when its
results are there.

Letters: Q queries, D vector width, V rows of the corpus, T retrieved list length, X blocks, B
queries of a block.
"""

import contextlib
import dataclasses
import functools
import itertools
import math
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dsmoe_jax.bench import device_twins, ours, pairs, search
from dsmoe_jax.capacity import cases
from dsmoe_jax.config import load
from dsmoe_jax.retrieval import exact
from dsmoe_jax.run import api, export
from dsmoe_jax.training import row_sparse, sharding, train_state, train_step

HIGHEST, DEFAULT, BFLOAT16 = (f"GEMM {name}" for name in ("f32 HIGHEST", "f32 default", "bf16"))
COPY = "copy"
PARTS = ("peaks", "step", "dispatch", "search", "evaluation", "twins")
# Scores held at once by XLA's top-k over whole rows of them.
_SCORE_BYTES = 1 << 30


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
      dispatch: Steps of one dispatch.
      searches: Items, queries and list lengths of each corpus that is searched.
      per_scenario: Test queries evaluated of every scenario; None takes all.
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
    dispatch: tuple[int, ...] = (1, 8, 64)
    searches: tuple[tuple[int, int, tuple[int, ...]], ...] = (
        (1_000_000, 1_000, (50, 1_000)),
        (7_583, 7_451, (100,)),
    )
    per_scenario: int | None = None
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
    dispatch=(2,),
    searches=((2_000, 40, (5,)),),
    per_scenario=8,
    rounds=2,
    least_s=0.0,
)


@dataclasses.dataclass(frozen=True)
class Job:
    """Something to measure: `measure()` gives the fields of its entry beside part and name."""

    part: str
    name: str
    measure: Callable[[], dict[str, Any]]


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


def list_jobs(sizes: Sizes, parts: tuple[str, ...]) -> Iterator[Job]:
    """The jobs of some parts, in the order of `PARTS`."""
    makers = {
        "peaks": _list_peaks,
        "step": _list_steps,
        "dispatch": _list_dispatch,
        "search": _list_searches,
        "evaluation": _list_evaluation,
        "twins": _list_twins,
    }
    for part in PARTS:
        if part in parts:
            for name, measure in makers[part](sizes):
                yield Job(part, name, measure)


_Listed = Iterator[tuple[str, Callable[[], dict[str, Any]]]]


def _repeat(run: Callable[[], Any]) -> pairs.Turn:
    """A turn of calls, of which the last is waited for: a device takes them in order."""

    def turn(repetitions: int) -> None:
        found = None
        for _ in range(repetitions):
            found = run()
        jax.block_until_ready(found)

    return turn


def _list_peaks(sizes: Sizes) -> _Listed:
    highest = jax.lax.Precision.HIGHEST
    for name, dtype, precision in (
        (HIGHEST, jnp.float32, highest),
        (DEFAULT, jnp.float32, None),
        (BFLOAT16, jnp.bfloat16, None),
    ):
        yield name, functools.partial(_measure_gemm, sizes, dtype, precision)
    yield COPY, functools.partial(_measure_copy, sizes)


def _measure_gemm(sizes: Sizes, dtype: Any, precision: Any) -> dict[str, Any]:
    a = jnp.ones((sizes.gemm, sizes.gemm), dtype)
    product = jax.jit(
        lambda a: jnp.matmul(a, a, precision=precision, preferred_element_type=jnp.float32)
    )
    found = time_turns(_repeat(lambda: product(a)), sizes)
    return {**found, "flop": 2 * sizes.gemm**3}


def _measure_copy(sizes: Sizes) -> dict[str, Any]:
    a = jnp.ones(sizes.copied, jnp.float32)
    copy = jax.jit(lambda a: a + 1)
    return {**time_turns(_repeat(lambda: copy(a)), sizes), "bytes": 8 * sizes.copied}


def _list_steps(sizes: Sizes) -> _Listed:
    for shape in sizes.shapes:
        for kind, dtype in sizes.kinds:
            measure = functools.partial(_measure_step, sizes, shape, kind, dtype)
            yield f"{shape} {kind} {dtype}", measure


def _measure_step(sizes: Sizes, shape: str, kind: str, dtype: str) -> dict[str, Any]:
    wanted = ours.Wanted(
        shape,
        distill=kind == "distilled",
        embedding="row_sparse" if kind == "row_sparse" else "dense",
        overrides={**sizes.overrides, "product_dtype": dtype},
        min_rows=sizes.min_rows,
    )
    bench = ours.Bench(wanted)
    state = bench.init(bench.updater)
    step = bench.step(bench.updater, distill=wanted.distill)
    jitted = train_step.jit_step(step, bench.mesh, state)
    start_s = time.perf_counter()
    lowered = jitted.lower(state, *bench.arguments(distill=wanted.distill))
    compiled = lowered.compile()
    compile_s = time.perf_counter() - start_s
    taken = 0

    def turn(repetitions: int) -> None:
        nonlocal state, taken
        for _ in range(repetitions):
            state, _ = compiled(state, *bench.arguments(taken, distill=wanted.distill))
            taken += 1
        jax.block_until_ready(state)

    found = time_turns(turn, sizes)
    # Operations as the program says them: a device's library calls count as XLA knows them. Bytes
    # only mean something of the fused program.
    asked, costs = lowered.cost_analysis() or {}, compiled.cost_analysis() or {}
    memory = compiled.memory_analysis()
    return {
        **found,
        "first_s": compile_s + found["first_s"],
        "flop": asked.get("flops", 0.0),
        "bytes": costs.get("bytes accessed", 0.0),
        "matmul_flop": ours.count_matmul_flops(bench),
        "state_bytes": sharding.bytes_per_device(state),
        "temporary_bytes": memory.temp_size_in_bytes if memory else 0,
        "peak": BFLOAT16 if dtype == "bfloat16" else DEFAULT,
    }


def _list_dispatch(sizes: Sizes) -> _Listed:
    for most in sizes.dispatch:
        name = f"{sizes.shapes[0]} dense, {most} steps a dispatch"
        yield name, functools.partial(_measure_dispatch, sizes, most)


def _measure_dispatch(sizes: Sizes, most: int) -> dict[str, Any]:
    bench = ours.Bench(ours.Wanted(sizes.shapes[0], overrides=sizes.overrides))
    state = bench.init(bench.updater)
    step = train_step.make_steps(bench.step(bench.updater, distill=False), most)
    jitted = train_step.jit_step(step, bench.mesh, state)
    batches = [bench.case.batches[n % len(bench.case.batches)] for n in range(most)]
    placed = sharding.put_batches(bench.mesh, batches)
    count = jnp.int32(most)

    def turn(repetitions: int) -> None:
        nonlocal state
        for _ in range(repetitions):
            state, _ = jitted(state, None, bench.corpus, placed, bench.weight, bench.key, count)
        jax.block_until_ready(state)

    return {**time_turns(turn, sizes, per_turn=most), "steps_per_dispatch": most}


def _list_searches(sizes: Sizes) -> _Listed:
    for items, queries, lengths in sizes.searches:
        for k in lengths:
            # Lists that the first way leaves for the others to be compared with.
            left: dict[str, Any] = {}
            for way in ("lax.top_k", *exact.KEEPERS):
                name = f"{way}, {items:,} items, {queries:,} queries, k = {k:,}"
                yield name, functools.partial(_measure_search, sizes, way, items, queries, k, left)


def _measure_search(
    sizes: Sizes, way: str, items: int, queries: int, k: int, left: dict[str, Any]
) -> dict[str, Any]:
    """Times one way, after it has shown that it finds what `lax.top_k` found.

    Raises:
      ValueError: When it finds other items.
    """
    item_VD, query_QD = device_twins.make_vectors(items, queries)
    asked_QD = jnp.asarray(query_QD)
    if way in exact.KEEPERS:
        index = exact.ExactIndex(item_VD, keeper=way)
        run: Callable[[], Any] = functools.partial(index.search, asked_QD[:, None], k)
    else:
        rows = max(1, _SCORE_BYTES // (4 * len(item_VD)))
        run = functools.partial(search_whole, asked_QD, jnp.asarray(item_VD), k=k, most=rows)
    found = time_turns(_repeat(run), sizes)
    score_QT, item_QT = (np.asarray(part)[: search.CHECKED] for part in run())
    if left:
        search.compare(way, score_QT, item_QT, left["score"], left["item"])
    elif way not in exact.KEEPERS:
        left["score"], left["item"] = score_QT, item_QT
    flop = 2 * queries * item_VD.size
    return {**found, "flop": flop, "queries": queries, "peak": HIGHEST}


@functools.partial(jax.jit, static_argnames=("k", "most"))
def search_whole(
    query_QD: jax.Array, item_VD: jax.Array, *, k: int, most: int
) -> tuple[jax.Array, jax.Array]:
    """Scores and ids [Q, T] by XLA's top-k over all scores of at most `most` queries at once."""
    Q, D = query_QD.shape
    blocks = -(-Q // most)
    rows = -(-Q // blocks)
    query_XBD = jnp.pad(query_QD, ((0, blocks * rows - Q), (0, 0))).reshape(blocks, rows, D)

    def take(query_BD: jax.Array) -> tuple[jax.Array, jax.Array]:
        score_BV = jnp.matmul(query_BD, item_VD.T, precision=jax.lax.Precision.HIGHEST)
        score_BT, item_BT = jax.lax.top_k(score_BV.at[:, 0].set(-jnp.inf), k)
        return score_BT, item_BT

    score_XBT, item_XBT = jax.lax.map(take, query_XBD)
    return jnp.reshape(score_XBT, (-1, k))[:Q], jnp.reshape(item_XBT, (-1, k))[:Q]


def _list_evaluation(sizes: Sizes) -> _Listed:
    yield "packaged rows, test queries", functools.partial(_measure_evaluation, sizes)


def _measure_evaluation(sizes: Sizes) -> dict[str, Any]:
    """Times a full-corpus evaluation of a student that was not trained."""
    experiment = load.load_config("kuairand:sample")
    with tempfile.TemporaryDirectory(prefix="dsmoe_jax_bench_") as name:
        folder = pathlib.Path(name)
        api.prepare(experiment, folder)
        stages = export.make_stages(experiment, folder)
        frozen = train_state.freeze(stages.make_untrained(stages.student_stage()))
        query_Q = stages.sample_queries("test", sizes.per_scenario)

        def turn(repetitions: int) -> None:
            # Lists are judged on the host, which waits for each.
            for _ in range(repetitions):
                stages.evaluate_matcher(frozen, "test", query_Q)

        found = time_turns(turn, sizes)
    return {**found, "queries": len(query_Q), "items": stages.spec.num_items - 1}


def _list_twins(sizes: Sizes) -> _Listed:
    for shape in sizes.shapes:
        name = f"PyTorch compile, step {shape} dense float32"
        yield name, functools.partial(_measure_step_twin, sizes, shape)
    for items, queries, lengths in sizes.searches:
        for k in lengths:
            name = f"PyTorch topk, {items:,} items, {queries:,} queries, k = {k:,}"
            yield name, functools.partial(_measure_search_twin, sizes, items, queries, k)


def _measure_step_twin(sizes: Sizes, shape: str) -> dict[str, Any]:
    device = device_twins.find_device()
    bench = ours.Bench(ours.Wanted(shape, overrides=sizes.overrides))
    with tempfile.TemporaryDirectory(prefix="dsmoe_jax_bench_") as name, _new_process() as process:
        folder = pathlib.Path(name)
        with jax.default_matmul_precision("highest"):
            ours.leave_for_twins(bench, bench.init(bench.updater), folder)
        arguments = (device, shape, "compile", folder, sizes)
        return pairs.call("PyTorch", process, time_step_twin, *arguments)


def _measure_search_twin(sizes: Sizes, items: int, queries: int, k: int) -> dict[str, Any]:
    device = device_twins.find_device()
    with _new_process() as process:
        return pairs.call("PyTorch", process, time_search_twin, device, items, queries, k, sizes)


def time_step_twin(
    device: str, shape: str, twin_name: str, folder: pathlib.Path, sizes: Sizes
) -> dict[str, Any]:
    """The entry of a PyTorch step, in a process of its own."""
    turn, notes = device_twins.build_step(device, shape, twin_name, folder)
    positives = {"positives": cases.POSITIVES}
    return {**time_turns(turn, sizes), **positives, **notes, "peak": DEFAULT}


def time_search_twin(device: str, items: int, queries: int, k: int, sizes: Sizes) -> dict[str, Any]:
    """The entry of PyTorch's search, in a process of its own."""
    turn = device_twins.build_search(device, items, queries, k)
    return {**time_turns(turn, sizes), "queries": queries, "peak": HIGHEST}


@contextlib.contextmanager
def _new_process() -> Iterator[Any]:
    with pairs.new_process() as process:
        yield process
