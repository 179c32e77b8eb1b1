"""Numbers of training: the step with every updater, averages, distillation, draws and losses."""

import contextlib
import dataclasses
import io
import pathlib
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dsmoe_jax.capacity import cases
from dsmoe_jax.config import schema
from dsmoe_jax.data import negatives
from dsmoe_jax.models.matching import dsmoe
from dsmoe_jax.training import losses, optimizer, row_sparse, sharding, train_state, train_step
from tests import tiny
from tests.bench import small_case
from tests.training import test_loop

STEPS = 4
LEARNING_RATE, WEIGHT_DECAY, BETA_2 = 1e-2, 1e-3, 0.98
DISTILL_WEIGHT, TEMPERATURE = 0.7, 2.0


class Setup:
    """A model without normalisation: no parameter's gradient is rounding, whatever the optimiser.

    Its weights are given by a rule, since those of an initialisation are too small to say much.
    """

    def __init__(self) -> None:
        self.spec = small_case.make_spec()
        self.case = cases.make(self.spec, STEPS, shares=(0.5, 0.3, 0.2), positives=16)
        self.mesh = sharding.make_mesh(jax.devices()[:1])
        self.config = dsmoe.DSMOEConfig(
            num_experts=2, rank=2, hidden_dim=6, output_dim=4, norm="none"
        )
        self.model = self.config.make(self.spec)
        self.corpus = jax.tree.map(jnp.asarray, self.case.corpus)
        self.batches = [jax.tree.map(jnp.asarray, batch) for batch in self.case.batches]
        self.teacher = small_case.TEACHER.make(self.spec)
        weights = jax.tree.map(jnp.asarray, small_case.make_weights(small_case.TEACHER))
        params = weights.pop("params")
        self.frozen_teacher = train_state.Frozen(params, weights)
        state = train_state.init_state(
            self.model, optimizer.Dense(optax.identity()), key=jax.random.key(0), mesh=self.mesh
        )
        self.initial = train_state.Frozen(jax.tree.map(lambda leaf: 2 * leaf, state.params), {})

    def init(self, updater: optimizer.Updater, *, averaged: bool = False) -> train_state.TrainState:
        """An initial state with larger weights, which are compiled once for all updaters."""
        params = self.initial.params
        state = train_state.TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            model_state={},
            opt_state=jax.jit(updater.init)(params),
            average=self.initial if averaged else None,
        )
        return train_state.start_from(state, self.initial)

    def make_step(self, updater: optimizer.Updater, **changes: Any) -> train_step.Step:
        """The step of a run."""
        return train_step.make_train_step(
            self.model, updater, num_items=self.spec.num_items, num_negatives=3, **changes
        )

    def run(
        self, updater: optimizer.Updater, *, decay: float = 0.0, distilled: bool = False
    ) -> dict[str, Any]:
        """Losses of some steps and what the parameters, and their averages, are then."""
        state = self.init(updater, averaged=decay > 0)
        changes: dict[str, Any] = {"average_decay": decay}
        if distilled:
            changes |= {
                "teacher": self.teacher,
                "loss": schema.LossConfig(distill_temperature=TEMPERATURE),
            }
        step = jax.jit(self.make_step(updater, **changes))
        frozen = self.frozen_teacher if distilled else None
        curve, found = [], {}
        for batch in self.batches:
            state, metrics = step(
                state, frozen, self.corpus, batch, jnp.float32(DISTILL_WEIGHT), jax.random.key(3)
            )
            curve.append(metrics["loss"])
            found = {f"{name} by scenario": metrics[name] for name in sorted(metrics)}
        found.pop("loss by scenario")
        found |= {"loss": curve, "parameters": summarise(state.params)}
        if state.average is not None:
            found["average"] = summarise(state.average.params)
        if isinstance(updater, row_sparse.RowSparse):
            rows = {name: part._replace(slot_V=0) for name, part in state.opt_state.rows.items()}
            found["moments of rows"] = summarise(rows)
        return found


def summarise(tree: Any) -> list[float]:
    """Norm of every leaf, and its product with a wave, which tells its entries apart."""
    found = []
    for leaf in jax.tree.leaves(tree):
        flat = np.asarray(leaf, np.float64).reshape(-1)
        found += [float(np.linalg.norm(flat)), float(flat @ np.sin(1 + np.arange(flat.size)))]
    return found


def training() -> dict[str, Any]:
    """The numbers."""
    setup = Setup()
    dense = optimizer.Dense(optimizer.make_optimizer(LEARNING_RATE, WEIGHT_DECAY, BETA_2))
    # An average changes no step; groups of steps, below, take them without one.
    runs = {
        "dense, averaged": setup.run(dense, decay=0.5),
        "distilled": setup.run(dense, distilled=True),
    }
    # All tables are large ones, then only some.
    for method, min_rows in (("adam", 1), ("adagrad", 20)):
        updater = row_sparse.RowSparse(
            setup.spec,
            LEARNING_RATE,
            WEIGHT_DECAY,
            method=method,
            min_rows=min_rows,
            beta_2=BETA_2,
        )
        runs[f"row_sparse {method} from {min_rows} rows"] = setup.run(updater, decay=0.5)
    found = {f"{run}: {name}": value for run, part in runs.items() for name, value in part.items()}
    return found | several_steps(setup, dense) | draws() | loss_terms() | stage()


def several_steps(setup: Setup, updater: optimizer.Updater) -> dict[str, Any]:
    """Groups of two steps and of one in a program for three."""
    steps = jax.jit(train_step.make_steps(setup.make_step(updater), 3))
    state, curve = setup.init(updater), []
    for first, count in ((0, 2), (2, 1)):
        group = (setup.batches[first : first + count] * 3)[:3]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *group)
        state, metrics = steps(
            state, None, setup.corpus, stacked, jnp.float32(0), jax.random.key(3), jnp.int32(count)
        )
        curve.append(metrics["loss"])
    return {"several steps: loss": jnp.stack(curve), "several steps: end": summarise(state.params)}


def draws() -> dict[str, Any]:
    """Candidates drawn for fixed keys."""
    positive_B = jnp.asarray([1, 2, 5, 8, 9], jnp.int32)
    found: dict[str, Any] = {}
    for seed in range(3):
        found[f"candidates of key {seed}"] = negatives.draw_candidates(
            jax.random.key(seed), positive_B, num_items=10, num_negatives=4
        )
    return found


def loss_terms() -> dict[str, Any]:
    """Losses of fixed logits."""
    logit_BG = jnp.linspace(-3.0, 4.0, 8).reshape(2, 4)
    teacher_BG = jnp.flip(logit_BG, axis=1) * 0.7
    label_BG = jnp.zeros((2, 4)).at[:, 0].set(1.0)
    return {
        "cross entropy": losses.bce_with_logits(logit_BG, label_BG),
        "divergence": losses.bernoulli_kl(teacher_BG, logit_BG),
        "divergence at temperature 2": losses.bernoulli_kl(teacher_BG, logit_BG, temperature=2.0),
    }


def stage() -> dict[str, Any]:
    """Losses of a stage on the tiny store: two epochs, three steps at a time, then averages."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        store = tiny.write_store(folder / "store")
        trainer = test_loop.Trainer(
            store, folder / "run", devices=tiny.one_device(), average_decay=0.9
        )
        trainer.setting = dataclasses.replace(trainer.setting, steps_per_dispatch=3)
        with contextlib.redirect_stdout(io.StringIO()):
            state, _ = trainer.run()
        found: dict[str, Any] = {"stage: loss": trainer.curve()}
    found["stage: average"] = summarise(train_state.freeze(state).params)
    return found
