"""Capacity plan: what a run of any size would hold and move, without running it.

Owns the count. The training step itself is compiled for as many simulated devices as are asked for,
from shapes alone: no table is allocated, here or there. Bytes of the state are exact; bytes moved
and temporaries are those of XLA's program for CPU, and another compiler's differ.
"""

import argparse
import dataclasses
import math
from typing import Any

import jax

from dsmoe_jax import features
from dsmoe_jax import main as command_line
from dsmoe_jax.capacity import abstract, cases, collectives, simulated
from dsmoe_jax.config import load, schema
from dsmoe_jax.models.matching import dsmoe
from dsmoe_jax.models.ranking import mmoe_din
from dsmoe_jax.training import row_sparse, sharding, train_state

# A search for the largest batch compiles at most so many programs.
ATTEMPTS = 3
TEMPORARY = "activations, gradients, gathered rows"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds this measurement's flags."""
    parser.add_argument("--users", type=parse_count, default=0, help="e.g. 1e9; the shape's own")
    parser.add_argument("--items", type=parse_count, default=0, help="e.g. 1e8; the shape's own")
    parser.add_argument("--devices", type=parse_count, default=8)
    parser.add_argument("--processes", type=parse_count, default=1)
    parser.add_argument("--batch_size", type=parse_count, default=0, help="over all devices")
    parser.add_argument("--memory_gb", type=float, default=80.0, help="of a device, 1e9 bytes")
    parser.add_argument("--embedding", choices=("dense", "row_sparse"), default=None)
    parser.add_argument("--average", action="store_true", help="keep a moving average")
    parser.add_argument("--distill", action="store_true", help="with a teacher in the step")
    parser.add_argument("--shape", choices=sorted(cases.CASES), default="kuairand")
    parser.add_argument("--config", default="", help="FILE[:variant] for models and optimiser")


def main(argv: list[str]) -> int:
    """Runs `dsmoe plan`; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="dsmoe plan", description="What a run of any size would hold and move, without it."
    )
    add_options(parser)
    options = parser.parse_args(argv)
    return command_line.exit_status(lambda: print("\n".join(describe(measure(options)))))


def parse_count(text: str) -> int:
    """A flag's type: a whole number above 0, also as 1e9."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (value > 0 and value.is_integer()):
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(value)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Plans with the parsed flags; see `plan`."""
    if options.devices % options.processes:
        raise ValueError(
            f"devices: expected a multiple of the {options.processes} processes, "
            f"got {options.devices}"
        )
    found: dict[str, Any] = simulated.run(plan, (options,), devices=options.devices)[0]
    share = found["devices"] // options.processes
    held = found["bytes"]["corpus features"]
    return {**found, "processes": options.processes, "host_corpus_bytes": share * held}


def describe(found: dict[str, Any]) -> list[str]:
    """The result as console lines."""
    largest, limit = found["largest_batch"], found["memory_bytes"] / 1e9
    return [
        f"plan: {found['users']:,} users, {found['items']:,} items, {found['embedding']} updates, "
        f"{found['devices']} devices, {found['batch_size']:,} positives "
        f"({found['batch_size'] // found['devices']:,} on each)",
        "  bytes on each device in training",
        *(f"    {name:<42} {size:>18,}" for name, size in found["bytes"].items()),
        f"    {'all of these':<42} {found['total_bytes']:>18,}",
        f"  at evaluation, item vectors of one scenario {found['index_bytes']:>18,} in place of "
        "temporaries",
        "  bytes that each device sends in a step",
        *(f"    {op:<42} {size:>18,}" for op, size in found["moved_bytes"].items()),
        f"  each of {found['processes']} processes reads {found['host_corpus_bytes']:,} bytes of "
        "item features",
        *(f"  {note}" for note in found["notes"]),
        f"  the largest batch in {limit:g} GB: {largest:,} positives, "
        f"{largest // found['devices']:,} on each device"
        if largest
        else f"  no batch fits {limit:g} GB: the state alone is too large, or nearly",
    ]


def plan(options: argparse.Namespace) -> dict[str, Any]:
    """Plans for all devices of this process.

    Raises:
      ValueError: When what is asked for does not fit itself.
    """
    return plan_setup(make_setup(options), 1e9 * options.memory_gb)


def make_setup(options: argparse.Namespace) -> abstract.Setup:
    """The `abstract.Setup` of parsed flags, on all devices of this process.

    Raises:
      ValueError: When the configuration is none, or the devices do not divide the batch.
    """
    experiment = load.load_config(options.config) if options.config else _defaults()
    spec = resize(cases.CASES[options.shape][0], options.users, options.items)
    if options.config:
        spec = features.select(
            spec,
            exclude=(),
            history_length=experiment.features.history_length,
            scenario_history_length=experiment.features.scenario_history_length,
            embedding_dim=experiment.features.embedding_dim,
        )
    mesh, train = sharding.make_mesh(), experiment.train
    embedding = options.embedding or experiment.optim.embedding
    default = train.batch_size if options.config else cases.POSITIVES * mesh.size
    batch_size = options.batch_size or default
    if batch_size % mesh.size:
        raise ValueError(
            f"batch_size: expected a multiple of the {mesh.size} devices, got {batch_size}"
        )
    taught = options.distill or experiment.loss.distill_weight > 0
    optim = dataclasses.replace(experiment.optim, embedding=embedding)
    return abstract.Setup(
        experiment.model.make(spec),
        row_sparse.make_updater(optim, spec, mesh, 1e-4, train.weight_decay),
        mesh,
        batch_size=batch_size,
        num_negatives=train.num_negatives,
        teacher=experiment.teacher.model.make(spec) if taught else None,
        averaged=options.average or train.average_decay > 0,
    )


def resize(spec: features.FeatureSpec, users: int, items: int) -> features.FeatureSpec:
    """The features with other numbers of users and items; 0 keeps them."""
    counts = {"user_id": users, "item_id": items}

    def change(columns: tuple[features.SparseFeature, ...]) -> tuple[features.SparseFeature, ...]:
        return tuple(
            dataclasses.replace(column, num_ids=counts[column.name] + 1)
            if counts.get(column.name)
            else column
            for column in columns
        )

    return dataclasses.replace(
        spec, user_sparse=change(spec.user_sparse), item_sparse=change(spec.item_sparse)
    )


def _defaults() -> schema.Experiment:
    """The paper's values, without a teacher."""
    return schema.Experiment(
        dataset="plan",
        data=schema.DataConfig(),
        model=dsmoe.DSMOEConfig(),
        teacher=schema.TeacherConfig(model=mmoe_din.MMoEDINConfig()),
        loss=schema.LossConfig(distill_weight=0.0),
    )


def plan_setup(setup: abstract.Setup, memory_bytes: float) -> dict[str, Any]:
    """Plans a step for devices of so much memory."""
    devices = setup.mesh.size
    compiled = setup.lower_step().compile()
    parts = count_parts(setup)
    fixed = sum(parts.values())
    parts["one batch"] = sharding.bytes_per_device(setup.batch())
    parts[TEMPORARY] = _temporary(compiled)
    largest = _largest_batch(setup, fixed, parts, memory_bytes)
    users = next((f.num_ids for f in setup.spec.user_sparse if f.name == "user_id"), 1)
    return {
        "users": users - 1,
        "items": setup.spec.num_items - 1,
        "devices": devices,
        "embedding": "row_sparse" if isinstance(setup.updater, row_sparse.RowSparse) else "dense",
        "batch_size": setup.batch_size,
        "memory_bytes": memory_bytes,
        "bytes": parts,
        "total_bytes": sum(parts.values()),
        "index_bytes": count_index_bytes(setup),
        "moved_bytes": collectives.total_by_op(collectives.read(compiled.as_text(), devices)),
        "largest_batch": largest,
        "notes": _find_whole_tables(setup),
    }


def count_parts(setup: abstract.Setup) -> dict[str, int]:
    """Bytes on each device of what stays from step to step, by name."""
    state = setup.state()

    def count(tree: Any, tables: bool) -> int:
        return sum(
            sharding.bytes_per_device(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
            if ("table" in jax.tree_util.keystr(path)) == tables
        )

    parts = {
        "tables": count(state.params, True),
        "moments of tables": count(state.opt_state, True),
        "average of tables": count(state.average, True),
        "all other parameters and their state": count(state, False),
        "teacher": sharding.bytes_per_device(setup.frozen_teacher()),
        "corpus features": sharding.bytes_per_device(setup.corpus()),
    }
    return {name: size for name, size in parts.items() if size}


def count_index_bytes(setup: abstract.Setup) -> int:
    """Bytes on each device of the item vectors of one scenario."""
    _, items, scenario_B = train_state.example_inputs(setup.spec)
    flat = jax.tree.map(lambda leaf: leaf[:, 0], items)
    vector_BD, _ = jax.eval_shape(
        lambda frozen: setup.model.apply(
            frozen.variables, flat, scenario_B, train=False, method="embed_item"
        ),
        train_state.freeze(setup.state()),
    )
    rows = sharding.shard_rows(setup.spec.num_items, setup.mesh.size)
    size: int = rows * vector_BD.shape[1] * vector_BD.dtype.itemsize
    return size


def _largest_batch(
    setup: abstract.Setup, fixed: int, parts: dict[str, int], memory_bytes: float
) -> int:
    """The largest batch whose step fits; 0 where none does.

    Bytes grow nearly in proportion to the batch: programs of better and better guesses are
    compiled.
    """
    devices = setup.mesh.size
    most = most_positives(setup) // devices * devices
    used = fixed + parts["one batch"] + parts[TEMPORARY]
    points = [(0, fixed), (setup.batch_size, used)]
    for _ in range(ATTEMPTS):
        (less, below), (more, above) = points[-2:]
        slope = (above - below) / (more - less)
        guess = more + (0.99 * memory_bytes - above) / slope
        batch_size = min(int(guess) // devices * devices, most)
        if batch_size <= 0:
            return 0
        if batch_size == more:
            break
        other = dataclasses.replace(setup, batch_size=batch_size)
        used = fixed + sharding.bytes_per_device(other.batch())
        used += _temporary(other.lower_step().compile())
        points.append((batch_size, used))
        if used <= memory_bytes and (used >= 0.97 * memory_bytes or batch_size == most):
            break
    return max(size for size, used in points if not size or used <= memory_bytes)


def most_positives(setup: abstract.Setup) -> int:
    """Positives of a batch at most: its numbers, with those of candidates, are counted in int32."""
    users, items, _ = train_state.example_inputs(setup.spec)
    sides = (users, 1), (items, 1 + setup.num_negatives)
    ids_per_example: int = sum(
        times * leaf.size // leaf.shape[0]
        for side, times in sides
        for leaf in jax.tree.leaves(side)
    )
    return features.MAX_IDS // ids_per_example


def _temporary(compiled: Any) -> int:
    size: int = compiled.memory_analysis().temp_size_in_bytes
    return size


def _find_whole_tables(setup: abstract.Setup) -> list[str]:
    """A line for each large table, of a model's own making, that every device would hold whole."""
    return [
        f"{jax.tree_util.keystr(path)}: every device holds all {leaf.shape[0]:,} rows, which "
        f"{setup.mesh.size} devices do not divide; take a power of two"
        for path, leaf in jax.tree_util.tree_leaves_with_path(setup.state().params)
        if "table" in jax.tree_util.keystr(path)
        and leaf.shape[0] >= sharding.MIN_SHARDED_ROWS
        and not sharding.splits_table(setup.mesh, leaf.shape[0])
    ]
