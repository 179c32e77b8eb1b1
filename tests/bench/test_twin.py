"""Ours against what PyTorch computed from the same weights (see make_twin_literals.py)."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsmoe_jax.training import losses
from tests.bench import small_case


@pytest.fixture(scope="module")
def literals():
    return json.loads(pathlib.Path(__file__).with_name("twin_literals.json").read_text())


@pytest.fixture(scope="module")
def ours():
    batch, items = jax.tree.map(jnp.asarray, small_case.make_batch())
    student = small_case.STUDENT.make(small_case.make_spec())
    teacher = small_case.TEACHER.make(small_case.make_spec())
    weights = jax.tree.map(jnp.asarray, small_case.make_weights(small_case.STUDENT))
    teacher_logit_BG, _ = teacher.apply(
        jax.tree.map(jnp.asarray, small_case.make_weights(small_case.TEACHER)),
        batch.users,
        items,
        batch.scenario_B,
        train=False,
    )

    def objective(params):
        (logit_BG, _), updated = student.apply(
            {"params": params, "batch_stats": weights["batch_stats"]},
            batch.users,
            items,
            batch.scenario_B,
            train=True,
            mutable=["batch_stats"],
        )
        label_BG = jnp.zeros_like(logit_BG).at[:, 0].set(1.0)
        total = losses.bce_with_logits(logit_BG, label_BG).mean()
        kl = losses.bernoulli_kl(teacher_logit_BG, logit_BG).mean()
        return total + small_case.DISTILL_WEIGHT * kl, (logit_BG, updated["batch_stats"])

    (loss, (logit_BG, statistics)), gradient = jax.jit(jax.value_and_grad(objective, has_aux=True))(
        weights["params"]
    )
    return {
        "loss": float(loss),
        "logit": np.asarray(logit_BG)[:3],
        "teacher_logit": np.asarray(teacher_logit_BG)[:3],
        "gradient_norm": small_case.norms(gradient),
        "running_mean_norm": small_case.norms(statistics),
    }


@pytest.mark.parametrize("name", ["loss", "logit", "teacher_logit"])
def test_values(ours, literals, name):
    np.testing.assert_allclose(ours[name], literals[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["gradient_norm", "running_mean_norm"])
def test_norms_of_every_leaf(ours, literals, name):
    assert list(ours[name]) == list(literals[name])
    for leaf, value in literals[name].items():
        assert ours[name][leaf] == pytest.approx(value, rel=1e-3, abs=1e-6), leaf
