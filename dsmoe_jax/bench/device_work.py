"""What is measured on one accelerator, job by job: peaks, steps, evaluation, twins, a command.

Owns the jobs but for those of search (`device_search.py`) and of the largest batch
(`device_batch.py`). Each is made and timed on its own, so that a device whose memory one of them
exceeds still answers the others. Data lie on the device before anything is timed.
"""

import functools
import pathlib
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from dsmoe_jax.bench import (
    device_batch,
    device_search,
    device_timing,
    device_twins,
    first_command,
    kernels,
    limited,
    ours,
    pairs,
)
from dsmoe_jax.capacity import cases
from dsmoe_jax.config import load
from dsmoe_jax.run import api, export
from dsmoe_jax.training import sharding, train_state, train_step

PARTS = ("peaks", "step", "dispatch", "search", "evaluation", "twins", "batch", "command")


def list_jobs(
    sizes: device_timing.Sizes, parts: tuple[str, ...], budget: device_timing.Budget | None = None
) -> Iterator[device_timing.Job]:
    """The jobs of some parts, in the order of `PARTS`; what can last long keeps to the budget."""
    budget = budget or device_timing.Budget()
    listed: dict[str, device_timing.Listed] = {
        "peaks": _list_peaks(sizes),
        "step": _list_steps(sizes),
        "dispatch": _list_dispatch(sizes),
        "search": device_search.list_searches(sizes),
        "evaluation": _list_evaluation(sizes),
        "twins": _list_twins(sizes, budget),
        "batch": device_batch.list_batches(sizes, budget),
        "command": _list_commands(sizes, budget),
    }
    for part in PARTS:
        if part in parts:
            for name, measure in listed[part]:
                yield device_timing.Job(part, name, measure)


def _list_peaks(sizes: device_timing.Sizes) -> device_timing.Listed:
    highest = jax.lax.Precision.HIGHEST
    for name, dtype, precision in (
        (device_timing.HIGHEST, jnp.float32, highest),
        (device_timing.DEFAULT, jnp.float32, None),
        (device_timing.BFLOAT16, jnp.bfloat16, None),
    ):
        yield name, functools.partial(_measure_gemm, sizes, dtype, precision)
    yield device_timing.COPY, functools.partial(_measure_copy, sizes)


def _measure_gemm(sizes: device_timing.Sizes, dtype: Any, precision: Any) -> dict[str, Any]:
    a = jnp.ones((sizes.gemm, sizes.gemm), dtype)
    product = jax.jit(
        lambda a: jnp.matmul(a, a, precision=precision, preferred_element_type=jnp.float32)
    )
    found = device_timing.time_turns(device_timing.repeat(lambda: product(a)), sizes)
    return {**found, "flop": 2 * sizes.gemm**3}


def _measure_copy(sizes: device_timing.Sizes) -> dict[str, Any]:
    a = jnp.ones(sizes.copied, jnp.float32)
    copy = jax.jit(lambda a: a + 1)
    return {
        **device_timing.time_turns(device_timing.repeat(lambda: copy(a)), sizes),
        "bytes": 8 * sizes.copied,
    }


def _list_steps(sizes: device_timing.Sizes) -> device_timing.Listed:
    for shape in sizes.shapes:
        for kind, dtype in sizes.kinds:
            measure = functools.partial(_measure_step, sizes, shape, kind, dtype)
            yield f"{shape} {kind} {dtype}", measure


def _measure_step(sizes: device_timing.Sizes, shape: str, kind: str, dtype: str) -> dict[str, Any]:
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

    found = device_timing.time_turns(turn, sizes)
    kernels_found = _profile(turn, sizes, compiled)
    # Operations as the program says them: a device's library calls count as XLA knows them. Bytes
    # only mean something of the fused program.
    asked, costs = lowered.cost_analysis() or {}, compiled.cost_analysis() or {}
    memory = compiled.memory_analysis()
    return {
        **found,
        **kernels_found,
        "first_s": compile_s + found["first_s"],
        "flop": asked.get("flops", 0.0),
        "bytes": costs.get("bytes accessed", 0.0),
        "matmul_flop": ours.count_matmul_flops(bench),
        "state_bytes": sharding.bytes_per_device(state),
        "temporary_bytes": memory.temp_size_in_bytes if memory else 0,
        "peak": device_timing.BFLOAT16 if dtype == "bfloat16" else device_timing.DEFAULT,
    }


def _profile(turn: pairs.Turn, sizes: device_timing.Sizes, compiled: Any) -> dict[str, Any]:
    """The largest kernels, or why there are none: times of a step do not go without them."""
    try:
        return kernels.profile(turn, sizes.profiled, compiled.as_text())
    except (ValueError, RuntimeError) as error:
        return {"why_no_kernels": str(error).strip().partition("\n")[0]}


def _list_dispatch(sizes: device_timing.Sizes) -> device_timing.Listed:
    for most in sizes.dispatch:
        name = f"{sizes.shapes[0]} dense, {most} steps a dispatch"
        yield name, functools.partial(_measure_dispatch, sizes, most)


def _measure_dispatch(sizes: device_timing.Sizes, most: int) -> dict[str, Any]:
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

    return {**device_timing.time_turns(turn, sizes, per_turn=most), "steps_per_dispatch": most}


def _list_evaluation(sizes: device_timing.Sizes) -> device_timing.Listed:
    yield "packaged rows, test queries", functools.partial(_measure_evaluation, sizes)


def _measure_evaluation(sizes: device_timing.Sizes) -> dict[str, Any]:
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

        found = device_timing.time_turns(turn, sizes)
    return {**found, "queries": len(query_Q), "items": stages.spec.num_items - 1}


def _list_twins(sizes: device_timing.Sizes, budget: device_timing.Budget) -> device_timing.Listed:
    for shape in sizes.shapes:
        name = f"PyTorch compile, step {shape} dense float32"
        yield name, functools.partial(_measure_step_twin, sizes, budget, shape)
    yield from device_search.list_twins(sizes, budget)


def _measure_step_twin(
    sizes: device_timing.Sizes, budget: device_timing.Budget, shape: str
) -> dict[str, Any]:
    device = device_twins.find_device()
    bench = ours.Bench(ours.Wanted(shape, overrides=sizes.overrides))
    with tempfile.TemporaryDirectory(prefix="dsmoe_jax_bench_") as name:
        folder = pathlib.Path(name)
        with jax.default_matmul_precision("highest"):
            ours.leave_for_twins(bench, bench.init(bench.updater), folder)
        arguments = (device, shape, "compile", folder, sizes)
        return limited.call("PyTorch", budget.left_s(), time_step_twin, *arguments)


def time_step_twin(
    device: str, shape: str, twin_name: str, folder: pathlib.Path, sizes: device_timing.Sizes
) -> dict[str, Any]:
    """The entry of a PyTorch step, in a process of its own."""
    turn, notes = device_twins.build_step(device, shape, twin_name, folder)
    positives = {"positives": cases.POSITIVES}
    return {**device_timing.time_turns(turn, sizes), **positives, **notes, "peak": DEFAULT}


def _list_commands(
    sizes: device_timing.Sizes, budget: device_timing.Budget
) -> device_timing.Listed:
    flags = sizes.command
    yield (
        f"dsmoe train {' '.join(flags)}",
        lambda: first_command.time_command(flags, min(sizes.command_s, budget.left_s())),
    )
