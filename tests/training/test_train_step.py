import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dsmoe_jax import batch as batch_lib
from dsmoe_jax import features
from dsmoe_jax.config import schema
from dsmoe_jax.data import negatives, pipeline, statistics
from dsmoe_jax.models.matching import dsmoe
from dsmoe_jax.models.ranking import mmoe_din
from dsmoe_jax.training import losses, optimizer, sharding, train_state, train_step
from tests import tiny

NUM_NEGATIVES = 3


class Setup:
    """A DSMOE student and an MMOE-DIN teacher on the tiny store."""

    def __init__(self, store, devices=None):
        self.mesh = sharding.make_mesh(devices)
        self.spec = features.select(
            store.spec, exclude=(), history_length=6, scenario_history_length=4
        )
        self.corpus = sharding.put_replicated(self.mesh, pipeline.read_corpus(store, self.spec))
        source = pipeline.BatchSource(store, self.spec, seed=0, batch_size=64, max_epochs=1)
        self.batches = [sharding.put_batch(self.mesh, source[i]) for i in range(3)]
        self.student = dsmoe.DSMOEConfig(
            num_experts=2, hidden_dim=8, output_dim=4, input_dropout=0.2
        ).make(self.spec)
        self.ranker = mmoe_din.MMoEDINConfig(
            num_experts=2,
            expert_dims=(8,),
            tower_dims=(4,),
            attention_hidden=(4,),
            use_log_prior=True,
            collaborative=True,
            collaborative_dim=4,
        ).make(self.spec)
        self.optimizer = optimizer.make_optimizer(1e-2, 1e-6)
        self.updater = optimizer.Dense(self.optimizer)
        self.constants = statistics.make_constants(store, self.ranker.constant_shapes)
        # Tests share what is traced: a step with a teacher, one without, which frees the state that
        # it is given, and the teacher.
        self.distilled_step = self.step(self.ranker)
        self.plain_step = self.step(donate_argnums=0)
        self.teacher = train_state.freeze(self.init(self.ranker, 9, self.constants))

    def init(self, model, seed=0, constants=None, averaged=False):
        return train_state.init_state(
            model,
            self.updater,
            key=jax.random.key(seed),
            mesh=self.mesh,
            constants=constants,
            averaged=averaged,
        )

    def step(self, teacher=None, loss=None, **jit_options):
        return jax.jit(
            train_step.make_train_step(
                self.student,
                self.updater,
                num_items=self.spec.num_items,
                num_negatives=NUM_NEGATIVES,
                teacher=teacher,
                loss=loss,
            ),
            **jit_options,
        )

    def logits(self, params, batch, items, dropout_key):
        """Of the student in training, with the running statistics of an initial state."""
        (logit_BG, _), _ = self.student.apply(
            {"params": params, **self.init(self.student).model_state},
            batch.users,
            items,
            batch.scenario_B,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": dropout_key},
        )
        return logit_BG

    def run(self, step, frozen_teacher, weight, batches=None):
        state, curve = self.init(self.student), []
        for batch in batches or self.batches:
            state, metrics = step(
                state,
                frozen_teacher,
                self.corpus,
                batch,
                jnp.float32(weight),
                jax.random.key(3),
            )
            curve.append(float(metrics["loss"]))
        return state, curve, metrics


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tiny.write_store(tmp_path_factory.mktemp("step") / "store")


@pytest.fixture(scope="module")
def one(store):
    return Setup(store, tiny.one_device())


def assert_close(first, second, **tolerance):
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), **tolerance)


def test_distillation_on_eight_devices_equals_one(store, one):
    eight = Setup(store)
    state, curve, _ = one.run(one.distilled_step, one.teacher, 1.0)
    state8, curve8, _ = eight.run(eight.distilled_step, eight.teacher, 1.0)
    np.testing.assert_allclose(curve8, curve, rtol=1e-5)
    assert_close(state.model_state, state8.model_state, rtol=1e-4, atol=1e-5)


def test_weight_zero_is_training_without_a_teacher(one):
    with_teacher, curve, _ = one.run(one.distilled_step, one.teacher, 0.0)
    without, expected, _ = one.run(one.plain_step, None, 0.0)
    np.testing.assert_allclose(curve, expected, rtol=1e-6)
    assert_close(with_teacher.params, without.params, rtol=1e-4, atol=1e-6)


def test_the_average_of_a_run_changes_no_step_of_it(one):
    step = jax.jit(
        train_step.make_train_step(
            one.student,
            one.updater,
            num_items=one.spec.num_items,
            num_negatives=NUM_NEGATIVES,
            average_decay=0.5,
        )
    )
    state, plain = one.init(one.student, averaged=True), one.init(one.student)
    expected = jax.tree.map(np.array, plain.params)
    for i, batch in enumerate(one.batches):
        arguments = (None, one.corpus, batch, jnp.float32(0), jax.random.key(3))
        state, _ = step(state, *arguments)
        plain, _ = one.plain_step(plain, *arguments)
        share = 1 - min(0.5, (2 + i) / (11 + i))
        expected = jax.tree.map(
            lambda old, new, share=share: old + share * (np.array(new) - old),
            expected,
            plain.params,
        )
    assert_close(state.params, plain.params, rtol=1e-5, atol=1e-6)
    assert_close(state.average.params, expected, rtol=1e-4, atol=1e-6)


def test_one_step_is_adam_on_the_loss_written_out(one):
    batch, key = one.batches[0], jax.random.key(3)
    frozen = one.teacher
    state, _, metrics = one.run(one.distilled_step, frozen, 0.7, [batch])
    before = one.init(one.student)
    negative_key, dropout_key = jax.random.split(jax.random.fold_in(key, 0))
    candidate_BG = negatives.draw_candidates(
        negative_key, batch.item_B, num_items=one.spec.num_items, num_negatives=NUM_NEGATIVES
    )
    items = batch_lib.take_items(one.corpus, candidate_BG)
    teacher_logit_BG, _ = jax.jit(functools.partial(one.ranker.apply, train=False))(
        frozen.variables, batch.users, items, batch.scenario_B
    )

    def loss(params):
        logit_BG = one.logits(params, batch, items, dropout_key)
        first_BG = jnp.arange(NUM_NEGATIVES + 1)[None] == 0
        positive = -jnp.log(jax.nn.sigmoid(logit_BG))
        negative = -jnp.log(1 - jax.nn.sigmoid(logit_BG))
        task = jnp.where(first_BG, positive, negative).mean()
        return task + 0.7 * losses.bernoulli_kl(teacher_logit_BG, logit_BG).mean()

    value, gradient = jax.jit(jax.value_and_grad(loss))(before.params)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    updates, _ = jax.jit(one.optimizer.update)(gradient, before.opt_state, before.params)
    expected = jax.jit(optax.apply_updates)(before.params, updates)
    # Adam's first step is the sign of the gradient: entries of nearly none may differ.
    differs = [
        np.mean(np.abs(np.asarray(a) - np.asarray(b)) > 1e-4)
        for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(expected), strict=True)
    ]
    assert max(differs) < 0.02
    assert int(state.step) == 1


TASKS = {
    "pairwise": schema.LossConfig(task="pairwise", negatives="scenario", uniform_share=0.5),
    "softmax": schema.LossConfig(
        task="softmax",
        negatives="popularity",
        log_q=True,
        distill_kind="listwise",
        distill_temperature=2.0,
    ),
}


@pytest.mark.parametrize("name", TASKS)
def test_other_losses_are_those_of_the_candidates_drawn(one, name):
    chosen, key = TASKS[name], jax.random.key(3)
    batch = one.batches[0]
    batch = batch._replace(log_share_B=jnp.log(jnp.arange(1.0, 65.0) / 100))
    is_taught = name == "softmax"
    step = one.step(one.ranker if is_taught else None, chosen)
    state, _, metrics = one.run(step, one.teacher if is_taught else None, 0.7, [batch])
    negative_key, dropout_key = jax.random.split(jax.random.fold_in(key, 0))
    drawn = negatives.draw(
        negative_key,
        batch,
        num_items=one.spec.num_items,
        num_scenarios=3,
        num_negatives=NUM_NEGATIVES,
        kind=chosen.negatives,
        uniform_share=chosen.uniform_share,
    )
    items = batch_lib.take_items(one.corpus, drawn.item_BG)
    params = one.init(one.student).params
    logit_BG = jax.jit(one.logits)(params, batch, items, dropout_key)
    if name == "pairwise":
        task = losses.pairwise(logit_BG, drawn.is_other_BN)
    else:
        task = losses.sampled_softmax(logit_BG, drawn.is_other_BN, drawn.log_share_BN)
    expected = task.mean()
    if is_taught:
        teacher_BG, _ = jax.jit(functools.partial(one.ranker.apply, train=False))(
            one.teacher.variables, batch.users, items, batch.scenario_B
        )
        kl = losses.listwise_kl(teacher_BG, logit_BG, temperature=2.0)
        expected = expected + 0.7 * kl.mean()
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
    # Logged sums count every candidate, so that losses of all kinds are means over rows.
    rows = float(metrics["rows"].sum())
    assert rows == 64 * (NUM_NEGATIVES + 1)
    np.testing.assert_allclose(metrics["loss_task"].sum() / rows, task.mean(), rtol=1e-5)
    assert int(state.step) == 1


def test_metrics_are_sums_per_scenario(one):
    _, _, metrics = one.run(one.distilled_step, one.teacher, 0.5, one.batches[:1])
    scenario_B = np.asarray(one.batches[0].scenario_B)
    count_S = np.bincount(scenario_B, minlength=3) * (NUM_NEGATIVES + 1)
    np.testing.assert_array_equal(metrics["rows"], count_S)
    total = float(metrics["loss_task"].sum() + 0.5 * metrics["loss_distill"].sum())
    np.testing.assert_allclose(metrics["loss"], total / count_S.sum(), rtol=1e-5)


def test_the_state_is_donated(one):
    state = one.init(one.student)
    one.plain_step(state, None, one.corpus, one.batches[0], jnp.float32(0), jax.random.key(0))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


def test_the_state_holds_the_student_alone(one):
    before = one.init(one.student)
    state, _, _ = one.run(one.distilled_step, one.teacher, 1.0, one.batches[:1])
    assert jax.tree.structure(state) == jax.tree.structure(before)
    assert "constants" in one.teacher.model_state
    assert "constants" not in state.model_state


def test_losses_of_three_steps_are_golden(one):
    _, curve, _ = one.run(one.distilled_step, one.teacher, 1.0)
    np.testing.assert_allclose(
        curve,
        [1.147401, 0.991096, 0.961122],
        rtol=1e-4,
        err_msg="The losses of the first steps moved. Update these values only for a change that "
        "is meant to alter the model's start, its batches, its negatives or its loss.",
    )
