"""Our training step as a contestant: timed whole, and part by part.

Owns how a step is built for timing: jitted and donated as training does it, on batches that are on
the device already. What a PyTorch twin needs in order to show that it is equal is left in a folder.
"""

import dataclasses
import functools
import pathlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from dsmoe_jax import batch as batch_lib
from dsmoe_jax.bench import pairs, peak
from dsmoe_jax.capacity import cases
from dsmoe_jax.config import fingerprint, schema
from dsmoe_jax.data import negatives
from dsmoe_jax.models.matching import dsmoe
from dsmoe_jax.models.ranking import mmoe_din
from dsmoe_jax.training import optimizer, row_sparse, sharding, train_state, train_step

BATCHES = 8
LEARNING_RATE, WEIGHT_DECAY = 1e-4, 1e-6


@dataclasses.dataclass(frozen=True)
class Wanted:
    """Which step, of which shape (see `cases.make_case`); a teacher in it is MMOE-DIN.

    Attributes:
      overrides: Fields of `dsmoe.DSMOEConfig` that differ from the paper's shape.
      min_rows: Least rows of a table that is updated by rows.
    """

    shape: str
    distill: bool = False
    embedding: str = "dense"
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)
    min_rows: int = row_sparse.MIN_ROWS


class Bench:
    """A model with its data on the devices, from which steps are made."""

    def __init__(self, wanted: Wanted):
        """Generates the data and draws the weights."""
        self.wanted = wanted
        self.case = cases.make_case(wanted.shape, BATCHES)
        self.mesh = sharding.make_mesh()
        self.corpus: batch_lib.Items = sharding.put_rows(
            self.mesh,
            lambda rows: jax.tree.map(lambda leaf: leaf[rows], self.case.corpus),
            self.case.spec.num_items,
        )
        self.batches = [
            sharding.put_batch(self.mesh, jax.tree.map(_take_share, batch))
            for batch in self.case.batches
        ]
        self.model = dsmoe.DSMOEConfig(**wanted.overrides).make(self.case.spec)
        self.updater = row_sparse.make_updater(
            schema.OptimConfig(embedding=wanted.embedding, min_rows=wanted.min_rows),
            self.case.spec,
            self.mesh,
            LEARNING_RATE,
            WEIGHT_DECAY,
        )
        self.teacher: nn.Module | None = None
        self.frozen: train_state.Frozen | None = None
        if wanted.distill:
            self.teacher = mmoe_din.MMoEDINConfig().make(self.case.spec)
            self.frozen = train_state.freeze(
                train_state.init_state(
                    self.teacher, self.updater, key=jax.random.key(1), mesh=self.mesh
                )
            )
        self.key, self.weight = jax.random.key(3), jnp.float32(1.0)

    def init(self, updater: optimizer.Updater) -> train_state.TrainState:
        """The student's initial state."""
        return train_state.init_state(self.model, updater, key=jax.random.key(0), mesh=self.mesh)

    def step(self, updater: optimizer.Updater, *, distill: bool) -> train_step.Step:
        """The step with any way of updating, not jitted."""
        return train_step.make_train_step(
            self.model,
            updater,
            num_items=self.case.spec.num_items,
            num_negatives=cases.NEGATIVES,
            teacher=self.teacher if distill else None,
        )

    def arguments(self, step: int = 0, *, distill: bool = True) -> tuple[Any, ...]:
        """What a step takes beside the state; the teacher, if there is one, where it distils."""
        batch = self.batches[step % len(self.batches)]
        return self.frozen if distill else None, self.corpus, batch, self.weight, self.key

    def turn(self, updater: optimizer.Updater, *, distill: bool) -> pairs.Turn:
        """Runs so many steps, jitted and donated."""
        state = self.init(updater)
        jitted = train_step.jit_step(self.step(updater, distill=distill), self.mesh, state)
        taken = 0

        def run(repetitions: int) -> None:
            nonlocal state, taken
            for _ in range(repetitions):
                state, _ = jitted(state, *self.arguments(taken, distill=distill))
                taken += 1
            jax.block_until_ready(state)

        return run


def _take_share(leaf: np.ndarray) -> np.ndarray:
    """This process's slice of a batch."""
    share = len(leaf) // jax.process_count()
    return leaf[jax.process_index() * share : (jax.process_index() + 1) * share]


def build(wanted: Wanted, folder: pathlib.Path | None) -> tuple[pairs.Turn, dict[str, Any]]:
    """The step as a contestant; leaves weights, loss and gradients in the folder, if any."""
    bench = Bench(wanted)
    state = bench.init(bench.updater)
    if folder is not None:
        leave_for_twins(bench, state, folder)
    notes = {
        "matmul_flop": count_matmul_flops(bench),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "device": str(jax.devices()[0].device_kind),
        "jax": jax.__version__,
    }
    return bench.turn(bench.updater, distill=wanted.distill), notes


def count_matmul_flops(bench: Bench) -> int:
    """Operations of the matrix products of a step."""
    return peak.count_matmul_flops(
        bench.step(bench.updater, distill=bench.wanted.distill),
        bench.init(bench.updater),
        *bench.arguments(),
    )


def build_parts(wanted: Wanted) -> tuple[pairs.Turn, dict[str, Any]]:
    """Measures the peaks and the parts of a dense step, by what the step takes without them.

    Without a gradient there is only the forward pass, which holds the drawing of the candidates;
    with an update that only keeps the gradient there is no optimiser.
    """
    bench = Bench(wanted)
    distill = wanted.distill
    turns = {
        "forward": (optimizer.Dense(optax.set_to_zero()), False),
        "gradient": (optimizer.Dense(optax.trace(decay=0.0)), False),
        "step": (bench.updater, False),
        **({"teacher": (bench.updater, True)} if distill else {}),
    }
    until_ms = {}
    for name, (updater, with_teacher) in turns.items():
        turn = bench.turn(updater, distill=with_teacher)
        until_ms[name] = 1e3 * peak.median_seconds(functools.partial(turn, 1))
    parts_ms = {
        "forward": until_ms["forward"],
        "backward": until_ms["gradient"] - until_ms["forward"],
        "update": until_ms["step"] - until_ms["gradient"],
    }
    if distill:
        parts_ms["teacher"] = until_ms["teacher"] - until_ms["step"]
    notes = {
        "parts_ms": parts_ms,
        "peak_flop_per_s": peak.matmul_flops(),
        "peak_byte_per_s": peak.stream_bytes(),
    }
    return lambda repetitions: None, notes


def leave_for_twins(bench: Bench, state: train_state.TrainState, folder: pathlib.Path) -> None:
    """Weights, and the loss and gradient of the first batch."""
    # A step whose optimiser does nothing but keep the gradient.
    keep = optimizer.Dense(optax.trace(decay=0.0))
    kept, metrics = jax.jit(bench.step(keep, distill=bench.wanted.distill))(
        state._replace(opt_state=keep.init(state.params)), *bench.arguments()
    )
    negative_key, _ = jax.random.split(jax.random.fold_in(bench.key, state.step))
    candidate_BG = negatives.draw_candidates(
        negative_key,
        bench.batches[0].item_B,
        num_items=bench.case.spec.num_items,
        num_negatives=cases.NEGATIVES,
    )
    _save(folder / "gradient", params=kept.opt_state.trace)
    for name, of in (("student", state), ("teacher", bench.frozen)):
        if of is not None:
            _save(folder / name, params=of.params, statistics=of.model_state["batch_stats"])
    np.savez(
        folder / "expected.npz",
        candidate=np.asarray(candidate_BG),
        loss=np.asarray(metrics["loss"]),
    )


def _save(path: pathlib.Path, **trees: Any) -> None:
    flat = fingerprint.flatten(trees)
    arrays: dict[str, Any] = {name: np.asarray(leaf) for name, leaf in flat.items()}
    np.savez(f"{path}.npz", **arrays)
