"""What every two-tower method promises, whatever it is."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsmoe_jax import features
from dsmoe_jax.data import statistics
from dsmoe_jax.models import registry
from tests import tiny, tiny_features
from tests.models import small

B, G = 12, 3
NAMES = sorted(registry.MATCHERS)


@pytest.fixture(scope="module", params=NAMES)
def case(request):
    return Case(small.SMALL_MATCHERS[request.param])


class Case:
    """A method with random variables and inputs."""

    def __init__(self, config):
        self.config = config
        self.spec = make_spec(self.config.scenario_histories)
        self.model = self.config.make(self.spec)
        self.users = tiny_features.make_users(self.spec, B)
        self.items = tiny_features.make_items(self.spec, (B, G))
        self.scenario_B = tiny_features.make_scenarios(self.spec, B)
        self.variables = tiny_features.make_variables(
            self.model, self.users, self.items, self.scenario_B
        )

    def apply(self, *args, method, train=False, variables=None):
        return _apply(self.model, method, train, variables or self.variables, *args)

    def user(self, users=None, scenario_B=None, **kwargs):
        users = self.users if users is None else users
        scenario_B = self.scenario_B if scenario_B is None else scenario_B
        return self.apply(users, scenario_B, method="embed_user", **kwargs)[0]

    def item(self, items=None, scenario_B=None, **kwargs):
        items = self.items if items is None else items
        scenario_B = self.scenario_B if scenario_B is None else scenario_B
        return self.apply(items, scenario_B, method="embed_item", **kwargs)[0]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _apply(model, method, train, variables, *args):
    mutable = [name for name in variables if name not in ("params", "constants")]
    rngs = {"dropout": jax.random.key(1)} if train else None
    found, _ = model.apply(variables, *args, train=train, method=method, mutable=mutable, rngs=rngs)
    return found


def make_spec(scenario_histories):
    spec = tiny_features.make_spec()
    if not scenario_histories:
        return spec
    joined = features.SequenceFeature(
        features.SCENARIO_HISTORIES, ("item_id",), 3 * spec.num_scenarios, per_scenario=True
    )
    return dataclasses.replace(spec, sequences=(*spec.sequences, joined))


def test_every_method_has_a_small_configuration():
    assert sorted(small.SMALL_MATCHERS) == NAMES
    for name, config in small.SMALL_MATCHERS.items():
        assert type(config) is registry.MATCHERS[name]


def test_vectors_have_the_output_width(case):
    user_BMD, item_BGD = case.user(), case.item()
    assert user_BMD.shape[0] == B and user_BMD.ndim == 3
    assert item_BGD.shape == (B, G, user_BMD.shape[2])
    assert user_BMD.dtype == item_BGD.dtype == jnp.float32


def test_logit_is_the_largest_inner_product(case):
    arguments = (case.users, case.items, case.scenario_B)
    logit_BG, _ = case.apply(*arguments, method="__call__")
    expected = np.einsum("bmd,bgd->bgm", case.user(), case.item()).max(axis=-1)
    np.testing.assert_allclose(logit_BG, expected, rtol=2e-5, atol=2e-5)


def test_a_candidate_on_its_own_axis_is_the_same_item(case):
    alone = jax.tree.map(lambda leaf: leaf[:, 1], case.items)
    np.testing.assert_allclose(case.item(alone), case.item()[:, 1], rtol=2e-5, atol=2e-5)


def test_a_query_does_not_depend_on_its_batch(case):
    few = jax.tree.map(lambda leaf: leaf[3:5], case.users)
    np.testing.assert_allclose(
        case.user(few, case.scenario_B[3:5]), case.user()[3:5], rtol=2e-5, atol=2e-5
    )


def test_evaluation_repeats_itself(case):
    for read in (case.user, case.item):
        first = read()
        # Traced once more: what Python draws by itself would be a constant of the first trace.
        _apply.clear_cache()
        np.testing.assert_array_equal(read(), first)


def test_items_depend_on_the_scenario_where_the_method_says_so(case):
    other_B = (case.scenario_B + 1) % case.spec.num_scenarios
    same = np.allclose(case.item(), case.item(scenario_B=other_B), atol=1e-6)
    assert same != case.model.item_uses_scenario


def test_padding_of_histories_has_no_say(case):
    """Times at padding change; real events stay."""

    def change(sequence):
        padding_BL = sequence.ids_BLF[..., 0] == 0
        return sequence._replace(time_BL=jnp.where(padding_BL, 77, sequence.time_BL))

    sequences = {name: change(s) for name, s in case.users.sequences.items()}
    users = case.users._replace(sequences=sequences)
    np.testing.assert_allclose(case.user(users), case.user(), rtol=1e-6, atol=1e-6)


def test_every_parameter_learns(case):
    """From random values, the objective of training moves every array."""

    @jax.jit
    @jax.grad
    def gradient(params):
        variables = {**case.variables, "params": params}
        arguments = (case.users, case.items, case.scenario_B)
        logit_BG, aux = case.apply(*arguments, method="__call__", train=True, variables=variables)
        weight_BG = jnp.cos(jnp.arange(B * G, dtype=jnp.float32)).reshape(B, G)
        return (logit_BG * weight_BG).sum() + sum(aux.values())

    still = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(case.variables["params"]))
        if not np.abs(leaf).max() > 0
    ]
    assert still == []


def test_constants_are_those_that_a_store_gives(case, tmp_path_factory):
    store = tiny.write_store(tmp_path_factory.mktemp("store") / "store")
    shapes = case.config.make(
        features.select(
            store.spec,
            exclude=(),
            history_length=4,
            scenario_history_length=3,
            scenario_histories=case.config.scenario_histories,
        )
    ).constant_shapes
    assert set(statistics.make_constants(store, shapes)) == set(shapes)
