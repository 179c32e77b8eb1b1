"""Numbers of matchers and rankers: losses of a few steps, then what the trained model says.

Inputs are generated here and not read from a store, so that a change of the data's order or of a
statistic is no change of every method.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from dsmoe_jax import batch as batch_lib
from dsmoe_jax import features
from dsmoe_jax.capacity import cases
from dsmoe_jax.config import schema
from dsmoe_jax.nn import tables
from dsmoe_jax.training import optimizer, sharding, train_state, train_step
from tests import tiny_features
from tests.bench import small_case
from tests.models import small

B, NEGATIVES, STEPS = 12, 3, 3
LEARNING_RATE, WEIGHT_DECAY = 1e-2, 1e-4
EPSILON = 1e-2
CURVE_STEPS = 12
# Methods that are trained with large tables too: one of every way to read tables, since to compile
# every method twice would take minutes.
LARGE_TABLES = ("dsmoe", "hstu", "mmoe_din")
# What DSMOE is besides its default, each with one encoder of the history, since to compile every
# choice alone would take minutes.
ENCODED: dict[str, dict[str, Any]] = {
    "hstu": {"use_sap": False},
    "fuxi": {"norm": "bn"},
    "fuxi_mme": {
        "gate_input": "scenario_and_features",
        "input_includes_scenario": True,
        "input_dropout": 0.2,
        "item_scenario": "shared",
    },
}
# The norm of DSMOE where the losses of more steps are kept, and whether a teacher distils.
CURVES: dict[str, tuple[str, bool]] = {
    "default": ("dsbn", False),
    "distilled": ("dsbn", True),
    "none": ("none", False),
}


@contextlib.contextmanager
def small_thresholds() -> Iterator[None]:
    """Small fields' tables count as large ones, whose lookups are masked one by one."""
    with (
        mock.patch.object(tables, "LARGE_TABLE_IDS", 6),
        mock.patch.object(tables, "TABLE_ROW_MULTIPLE", 8),
        mock.patch.object(tables, "MASKED_LOOKUP_ROWS", 16),
    ):
        yield


def make_updater(weight_decay: float = WEIGHT_DECAY, epsilon: float = EPSILON) -> optimizer.Dense:
    """Adam with coupled L2.

    A bias before a normalisation has no gradient but rounding, of which Adam's usual epsilon makes
    full steps: every processor would have numbers of its own.
    """
    adam = optax.adam(LEARNING_RATE, eps=epsilon)
    # Without decay too: stages that differ in it alone share how their initial state is compiled.
    return optimizer.Dense(optax.chain(optax.add_decayed_weights(weight_decay), adam))


class Case:
    """Features of every kind, a corpus, batches with times, and values for constants."""

    def __init__(self, *, scenario_histories: bool = False, history_encoder: str = "mean"):
        spec = tiny_features.make_spec(history_encoder=history_encoder)
        if scenario_histories:
            joined = features.SequenceFeature(
                features.SCENARIO_HISTORIES, ("item_id",), 3 * spec.num_scenarios, per_scenario=True
            )
            spec = dataclasses.replace(spec, sequences=(*spec.sequences, joined))
        self.spec = spec
        V = spec.num_items
        corpus = tiny_features.make_items(spec, (V,))
        sparse_VF = np.array(corpus.sparse_VF)
        sparse_VF[:, 0] = np.arange(V)
        self.corpus = corpus._replace(sparse_VF=jnp.asarray(sparse_VF))
        self.batches = [self._batch(seed) for seed in range(STEPS)]

    def _batch(self, seed: int) -> batch_lib.Batch:
        users = tiny_features.make_users(self.spec, B, seed=seed)
        rng = np.random.default_rng([seed, 1])
        now_B = rng.integers(8_000_000, 9_000_000, B)

        def add_times(sequence: batch_lib.Sequence) -> batch_lib.Sequence:
            mask_BL = np.asarray(sequence.ids_BLF[..., 0]) > 0
            age_BL = np.sort(rng.integers(1, 3_000_000, mask_BL.shape), axis=1)[:, ::-1]
            time_BL = (now_B[:, None] - age_BL) * mask_BL
            return sequence._replace(time_BL=jnp.asarray(time_BL, jnp.int32))

        users = users._replace(
            sequences={name: add_times(s) for name, s in users.sequences.items()},
            time_B=jnp.asarray(now_B, jnp.int32),
        )
        scenario_B = rng.permutation(np.arange(B) % self.spec.num_scenarios)
        item_B = rng.integers(1, self.spec.num_items, B)
        return batch_lib.Batch(
            users, jnp.asarray(scenario_B, jnp.int32), jnp.asarray(item_B, jnp.int32)
        )

    def make_constants(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
        """Fields of the corpus by the names of their constants, and random values for the rest."""
        fields = {}
        for n, feature in enumerate(self.spec.item_sparse):
            fields[f"sparse_{feature.name}_V"] = np.array(self.corpus.sparse_VF[:, n])
        for n, dense in enumerate(self.spec.item_dense):
            fields[f"dense_{dense.name}_V"] = np.array(self.corpus.dense_VF[:, n])
        for name, ids_VP in self.corpus.bags.items():
            fields[f"bag_{name}_VP"] = np.array(ids_VP)
        found = {}
        for n, (name, shape) in enumerate(sorted(shapes.items())):
            draw = np.random.default_rng([n, 2]).normal(size=shape).astype(np.float32)
            if name == "clicked_SV":
                draw = (draw > 0).astype(np.float32)
            found[name] = fields.get(name, draw)
        return {name: found[name] for name in shapes}


class Training:
    """A model and its state through the stages of a training."""

    def __init__(self, case: Case, model: Any):
        self.case, self.model = case, model
        self.mesh = sharding.make_mesh(jax.devices()[:1])
        self.numbers: dict[str, Any] = {}
        self.frozen: train_state.Frozen | None = None

    def run(
        self, stage: str, *, loss_method: str = "", weight_decay: float, steps: int = STEPS
    ) -> None:
        """Trains a stage from where the one before ended and keeps its losses."""
        case, updater = self.case, make_updater(weight_decay)
        constants = case.make_constants(self.model.constant_shapes)
        state = train_state.init_state(
            self.model, updater, key=jax.random.key(1), mesh=self.mesh, constants=constants
        )
        if self.frozen is not None:
            state = train_state.start_from(state, self.frozen)
        # Sorted: names of parameters that decide no value have no say.
        leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(state.params)]
        norms = [float(np.linalg.norm(leaf)) for leaf in leaves]
        self.numbers[f"{stage}: initial norms"] = sorted(norms)
        step = jax.jit(
            train_step.make_train_step(
                self.model,
                updater,
                num_items=case.spec.num_items,
                num_negatives=NEGATIVES,
                loss_method=loss_method,
            )
        )
        end_epoch = train_step.make_end_epoch(self.model, self.mesh, state)
        losses, metrics = [], {}
        for index in range(steps):
            if index == steps // 2 and end_epoch is not None:
                state, told = end_epoch(state, jax.random.key(4))
                self.numbers[f"{stage}: end of epoch"] = [told[name] for name in sorted(told)]
            batch = case.batches[index % len(case.batches)]
            state, metrics = step(
                state, None, case.corpus, batch, jnp.float32(0), jax.random.key(3)
            )
            losses.append(metrics["loss"])
        self.numbers[f"{stage}: loss"] = losses
        for name in sorted(set(metrics) - {"loss", "rows"}):
            self.numbers[f"{stage}: {name} by scenario"] = metrics[name]
        self.frozen = train_state.freeze(state)

    def apply(self, *args: Any, method: str) -> Any:
        """What the trained model says, as in serving."""
        return _apply(self.model, method, self.frozen, *args)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _apply(model: nn.Module, method: str, frozen: train_state.Frozen, *args: Any) -> Any:
    return model.apply(frozen.variables, *args, train=False, method=method)


def of_matcher(name: str) -> Callable[[], dict[str, Any]]:
    """What computes the numbers of a matcher."""

    def compute() -> dict[str, Any]:
        matcher = small.SMALL_MATCHERS[name]
        numbers = run_matcher(matcher)
        if name in LARGE_TABLES:
            with small_thresholds():
                found = run_matcher(matcher, steps=2)
            numbers |= {f"large tables: {key}": value for key, value in found.items()}
        if name == "dsmoe":
            numbers |= {f"curve: {name}": train_curve(*CURVES[name]) for name in CURVES}
            for encoder in features.HISTORY_ENCODERS[1:]:
                variant = dataclasses.replace(matcher, **ENCODED[encoder])
                found = run_matcher(variant, history_encoder=encoder)
                changes = ", ".join(f"{name}={value}" for name, value in ENCODED[encoder].items())
                prefix = f"history={encoder}, {changes}"
                numbers |= {f"{prefix}: {key}": value for key, value in found.items()}
        return numbers

    return compute


def run_matcher(
    matcher: schema.MatcherConfig, *, history_encoder: str = "mean", steps: int = STEPS
) -> dict[str, Any]:
    """Losses of all stages of a matcher, then vectors and logits of one batch."""
    case = Case(scenario_histories=matcher.scenario_histories, history_encoder=history_encoder)
    trained = Training(case, matcher.make(case.spec))
    for stage in matcher.pretraining():
        # Without L2, as a run does it.
        trained.run(stage.name, loss_method=stage.loss_method, weight_decay=0.0, steps=steps)
    trained.run(
        "main",
        loss_method=matcher.objective().loss_method,
        weight_decay=WEIGHT_DECAY,
        steps=steps,
    )
    batch = case.batches[0]
    item_BG = jnp.arange(1, 1 + 3 * B).reshape(B, 3) % (case.spec.num_items - 1) + 1
    items = batch_lib.take_items(case.corpus, item_BG)
    user_BMD, _ = trained.apply(batch.users, batch.scenario_B, method="embed_user")
    item_BGD, _ = trained.apply(items, batch.scenario_B, method="embed_item")
    logit_BGM = jnp.einsum("bmd,bgd->bgm", user_BMD, item_BGD)
    return trained.numbers | {
        "user vectors": user_BMD[:4],
        "item vectors": item_BGD[:4],
        "logits": logit_BGM.max(axis=-1),
    }


def of_ranker(name: str) -> Callable[[], dict[str, Any]]:
    """What computes the numbers of a ranker."""

    def compute() -> dict[str, Any]:
        numbers = run_ranker(small.SMALL_RANKERS[name])
        if name in LARGE_TABLES:
            with small_thresholds():
                found = run_ranker(small.SMALL_RANKERS[name], steps=2)
            numbers |= {f"large tables: {key}": value for key, value in found.items()}
        return numbers

    return compute


def run_ranker(ranker: schema.RankerConfig, *, steps: int = STEPS) -> dict[str, Any]:
    """Losses of a ranker, then logits of items of each example and of items that all share."""
    case = Case()
    trained = Training(case, ranker.make(case.spec))
    trained.run("main", weight_decay=WEIGHT_DECAY, steps=steps)
    batch = case.batches[0]
    item_BG = jnp.arange(1, 1 + 3 * B).reshape(B, 3) % (case.spec.num_items - 1) + 1
    own = batch_lib.take_items(case.corpus, item_BG)
    shared = batch_lib.take_items(case.corpus, jnp.arange(case.spec.num_items)[None])
    encoded = trained.apply(batch.users, batch.scenario_B, method="encode_user")
    return trained.numbers | {
        "logits": trained.apply(batch.users, own, batch.scenario_B, method="__call__")[0],
        "logits of the corpus": trained.apply(encoded, shared, batch.scenario_B, method="score"),
    }


def train_curve(norm: str, distilled: bool) -> list[float]:
    """The losses of the first steps of DSMOE with a norm, alone or with a teacher."""
    spec = small_case.make_spec()
    case = cases.make(spec, 3, shares=(0.5, 0.3, 0.2), positives=24)
    model, updater, state = start_curve(norm)
    teacher, frozen = None, None
    if distilled:
        teacher = small_case.TEACHER.make(spec)
        weights = jax.tree.map(jnp.asarray, small_case.make_weights(small_case.TEACHER))
        frozen = train_state.Frozen(weights.pop("params"), weights)
    step = jax.jit(
        train_step.make_train_step(
            model, updater, num_items=spec.num_items, num_negatives=3, teacher=teacher
        )
    )
    corpus, losses = jax.tree.map(jnp.asarray, case.corpus), []
    for index in range(CURVE_STEPS):
        batch = jax.tree.map(jnp.asarray, case.batches[index % len(case.batches)])
        state, metrics = step(state, frozen, corpus, batch, jnp.float32(1), jax.random.key(3))
        losses.append(float(np.asarray(metrics["loss"])))
    return losses


@functools.cache
def start_curve(norm: str) -> tuple[nn.Module, optimizer.Dense, train_state.TrainState]:
    """A model, its optimiser and its initial state, which curves with that norm share."""
    model = dataclasses.replace(small_case.STUDENT, norm=norm).make(small_case.make_spec())
    updater = make_updater(epsilon=1e-3)
    mesh = sharding.make_mesh(jax.devices()[:1])
    state = train_state.init_state(model, updater, key=jax.random.key(1), mesh=mesh)
    return model, updater, state
