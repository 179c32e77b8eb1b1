"""Scaling over simulated devices: what a step moves, what each holds, what it computes.

Owns the runs and their comparison. Simulated devices share this machine's cores, so that times say
nothing of speed-up; bytes are those of as many real devices, and losses must agree.
"""

import argparse
import statistics
import time
from typing import Any

from dsmoe_jax.bench import pairs
from dsmoe_jax.capacity import cases, simulated

WARM_UP = 2
# Float sums are taken in another order on another number of devices.
LOSS_TOLERANCE = 1e-4


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds this measurement's flags."""
    parser.add_argument("--shape", choices=sorted(cases.CASES), default="kuairand")
    parser.add_argument("--embedding", choices=("dense", "row_sparse"), default="dense")
    parser.add_argument("--devices", type=pairs.numbers(1), default=(1, 2, 4, 8))
    parser.add_argument("--processes", type=pairs.numbers(1), default=(1, 2))
    parser.add_argument("--steps", type=int, default=5, help="timed, after a warm-up")
    parser.add_argument("--hidden_dim", type=int, default=256)
    parser.add_argument("--output_dim", type=int, default=128)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Runs every number of devices and processes that fit each other.

    Raises:
      ValueError: When a run fails or losses differ.
    """
    overrides = {"hidden_dim": options.hidden_dim, "output_dim": options.output_dim}
    arguments = (options.shape, options.embedding, overrides, options.steps)
    runs = []
    for devices in options.devices:
        for processes in options.processes:
            if devices % processes == 0:
                found = simulated.run(run, arguments, devices=devices, processes=processes)
                runs.append({"devices": devices, "processes": processes, **found[0]})
    if not runs:
        raise ValueError(
            f"devices: expected a multiple of one of {options.processes} processes, "
            f"got {options.devices}"
        )
    return {
        "shape": options.shape,
        "embedding": options.embedding,
        "positives": cases.POSITIVES,
        "runs": runs,
        "loss_difference": compare([entry["losses"] for entry in runs]),
    }


def compare(curves: list[list[float]]) -> float:
    """The largest relative difference of a loss from that of the first run.

    Raises:
      ValueError: When it is not explained by the order of sums.
    """
    differences = [
        abs(got - want) / abs(want)
        for curve in curves
        for got, want in zip(curve, curves[0], strict=True)
    ]
    if not all(difference <= LOSS_TOLERANCE for difference in differences):
        raise ValueError(f"losses: expected the same on any number of devices, got {curves}")
    return max(differences)


def describe(found: dict[str, Any]) -> list[str]:
    """The result as console lines."""
    lines = [
        f"scale, {found['shape']} shape, {found['embedding']}: {found['positives']} positives",
        "  devices are simulated and share this machine's cores: times say nothing of speed-up",
        f"  {'devices':>7} {'processes':>9} {'step ms':>9} {'state MiB':>10} {'moved MiB':>10}"
        "  per device; moved in a step",
    ]
    for entry in found["runs"]:
        moved = entry["moved_bytes"]
        parts = ", ".join(f"{op} {size / 2**20:.2f}" for op, size in moved.items())
        lines.append(
            f"  {entry['devices']:>7} {entry['processes']:>9} {entry['step_ms']:>9.1f} "
            f"{entry['state_bytes'] / 2**20:>10.1f} {sum(moved.values()) / 2**20:>10.2f}  {parts}"
        )
    last = found["runs"][0]["losses"][-1]
    lines.append(
        f"  loss after {len(found['runs'][0]['losses'])} steps: {last:.6f}, the same within "
        f"{found['loss_difference']:.0e}"
    )
    return lines


def run(shape: str, embedding: str, overrides: dict[str, Any], steps: int) -> dict[str, Any]:
    """Takes timed steps on all devices of all processes, of which this is one."""
    import jax

    from dsmoe_jax.bench import ours
    from dsmoe_jax.capacity import collectives
    from dsmoe_jax.training import train_step

    bench = ours.Bench(ours.Wanted(shape, embedding=embedding, overrides=overrides))
    state = bench.init(bench.updater)
    step = bench.step(bench.updater, distill=False)
    jitted = train_step.jit_step(step, bench.mesh, state)
    compiled = jitted.lower(state, *bench.arguments()).compile()
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))
    seconds, losses = [], []
    for taken in range(WARM_UP + steps):
        start_s = time.perf_counter()
        state, metrics = compiled(state, *bench.arguments(taken))
        losses.append(float(metrics["loss"]))
        seconds.append(time.perf_counter() - start_s)
    found = collectives.read(compiled.as_text(), bench.mesh.size)
    return {
        "step_ms": 1e3 * statistics.median(seconds[WARM_UP:]),
        "state_bytes": held,
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "moved_bytes": collectives.total_by_op(found),
        "losses": losses,
    }
