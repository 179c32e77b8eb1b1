"""What every joint-input ranker promises, whatever it is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsmoe_jax import batch as batch_lib
from dsmoe_jax.models import registry
from tests import tiny_features
from tests.models import small

B, G = 12, 3
NAMES = sorted(registry.RANKERS)


@pytest.fixture(scope="module", params=NAMES)
def case(request):
    return Case(request.param)


class Case:
    """A ranker with random variables and inputs."""

    def __init__(self, name):
        self.spec = tiny_features.make_spec()
        self.model = small.SMALL_RANKERS[name].make(self.spec)
        self.users = tiny_features.make_users(self.spec, B)
        self.items = tiny_features.make_items(self.spec, (B, G))
        self.scenario_B = tiny_features.make_scenarios(self.spec, B)
        self.variables = tiny_features.make_variables(
            self.model, self.users, self.items, self.scenario_B
        )

    def score(self, users, items, scenario_B):
        return _score(self.model, self.variables, users, items, scenario_B)


@functools.partial(jax.jit, static_argnums=0)
def _score(model, variables, users, items, scenario_B):
    encoded = model.apply(variables, users, scenario_B, train=False, method="encode_user")
    return model.apply(variables, encoded, items, scenario_B, train=False, method="score")


def test_every_ranker_has_a_small_configuration():
    assert sorted(small.SMALL_RANKERS) == NAMES
    for name, config in small.SMALL_RANKERS.items():
        assert type(config) is registry.RANKERS[name]


def test_one_logit_per_candidate(case):
    logit_BG = case.score(case.users, case.items, case.scenario_B)
    assert logit_BG.shape == (B, G) and logit_BG.dtype == jnp.float32


def test_a_shared_catalogue_scores_as_candidates_of_each_user(case):
    shared = jax.tree.map(lambda leaf: leaf[:1], case.items)
    spread = batch_lib.Items(
        *jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (B, *leaf.shape[1:])), shared)
    )
    np.testing.assert_allclose(
        case.score(case.users, shared, case.scenario_B),
        case.score(case.users, spread, case.scenario_B),
        rtol=2e-5,
        atol=2e-5,
    )


def test_a_pair_does_not_depend_on_its_batch(case):
    users, items = jax.tree.map(lambda leaf: leaf[3:5], (case.users, case.items))
    np.testing.assert_allclose(
        case.score(users, items, case.scenario_B[3:5]),
        case.score(case.users, case.items, case.scenario_B)[3:5],
        rtol=2e-5,
        atol=2e-5,
    )


def test_user_and_item_are_seen_together(case):
    """No sum of a user's and an item's part: second differences do not vanish."""
    logit_BG = np.asarray(
        case.score(case.users, jax.tree.map(lambda x: x[:1], case.items), case.scenario_B)
    )
    same = np.asarray(case.scenario_B) == np.asarray(case.scenario_B)[0]
    difference = logit_BG[same, 0] - logit_BG[same, 1]
    assert np.ptp(difference) > 1e-3


def test_every_parameter_learns(case):
    def loss(params):
        variables = {**case.variables, "params": params}
        mutable = [name for name in variables if name not in ("params", "constants")]
        (logit_BG, aux), _ = case.model.apply(
            variables,
            case.users,
            case.items,
            case.scenario_B,
            train=True,
            mutable=mutable,
            rngs={"dropout": jax.random.key(1)},
        )
        weight_BG = jnp.cos(jnp.arange(B * G, dtype=jnp.float32)).reshape(B, G)
        return (logit_BG * weight_BG).sum() + sum(aux.values())

    gradient = jax.jit(jax.grad(loss))(case.variables["params"])
    still = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)
        if not np.abs(leaf).max() > 0
    ]
    assert still == []
