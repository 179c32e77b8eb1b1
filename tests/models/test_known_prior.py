"""What `known_prior` makes of every two-tower method: one more entry, a fixed term of logits."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsmoe_jax.data import statistics
from dsmoe_jax.models.matching import next_item
from tests import tiny_features
from tests.models import small, test_every_matcher

B, G = 6, 3
# Methods whose towers, constants or loss are of a kind of their own.
NAMES = ("adin", "dsmoe", "fuxi", "hstu", "m5", "mind", "sass")
SEQUENTIAL = ("fuxi", "fuxi_mme", "hstu")


@pytest.fixture(scope="module", params=NAMES)
def pair(request):
    """A method without and with the prior, with the same parameters."""
    config = small.SMALL_MATCHERS[request.param]
    spec = test_every_matcher.make_spec(config.scenario_histories)
    plain, known = (
        dataclasses.replace(config, known_prior=chosen).make(spec) for chosen in (False, True)
    )
    inputs = (
        tiny_features.make_users(spec, B),
        tiny_features.make_items(spec, (B, G)),
        tiny_features.make_scenarios(spec, B),
    )
    variables = tiny_features.make_variables(plain, *inputs)
    missing = known.constant_shapes.keys() - plain.constant_shapes.keys()
    constants = dict(variables.get("constants", {}))
    for n, name in enumerate(sorted(missing)):
        constants[name] = jax.random.normal(jax.random.key(3 + n), known.constant_shapes[name])
    return plain, known, variables, {**variables, "constants": constants}, inputs


def test_the_prior_is_added_to_the_logits(pair):
    plain, known, variables, with_prior, (users, items, scenario_B) = pair
    expected_BG, _ = plain.apply(variables, users, items, scenario_B, train=False)
    found_BG, _ = known.apply(with_prior, users, items, scenario_B, train=False)
    prior_SV = np.asarray(with_prior["constants"][statistics.KNOWN_PRIOR])
    ids_BG = np.asarray(items.sparse_VF[..., 0])
    share_BG = prior_SV[np.asarray(scenario_B)[:, None], ids_BG]
    share_BG = share_BG + np.log(plain.spec.num_items - 1)
    np.testing.assert_allclose(found_BG, expected_BG + share_BG, rtol=2e-4, atol=2e-4)


def test_one_inner_product_has_it(pair):
    """Both vectors have one entry more; the user's is 1."""
    plain, known, variables, with_prior, (users, items, scenario_B) = pair
    vectors = [
        model.apply(values, side, scenario_B, train=False, method=method)[0]
        for method, side in (("embed_user", users), ("embed_item", items))
        for model, values in ((plain, variables), (known, with_prior))
    ]
    for before, after in (vectors[:2], vectors[2:]):
        assert after.shape[-1] == before.shape[-1] + 1
        np.testing.assert_allclose(after[..., :-1], before, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(vectors[1][..., -1], 1.0)


def test_every_scenario_has_an_index_and_the_constant_is_declared(pair):
    plain, known, *_ = pair
    assert known.item_uses_scenario
    S, V = plain.spec.num_scenarios, plain.spec.num_items
    added = {statistics.KNOWN_PRIOR: (S, V)}
    if isinstance(plain, next_item.NextItemMatcher):
        added[statistics.SEQUENCE_PRIOR] = (V,)
    assert known.constant_shapes == {**plain.constant_shapes, **added}
    assert type(known) is type(plain).with_known_prior()
    assert type(known).__name__ == type(plain).__name__


@functools.cache
def make_case(name):
    """A method with a loss of its own, and a batch whose histories are empty.

    Item 1 is the positive of all examples, item 2 every negative.
    """
    config = dataclasses.replace(small.SMALL_MATCHERS[name], known_prior=True)
    spec = test_every_matcher.make_spec(config.scenario_histories)
    model = config.make(spec)
    users, scenario_B = tiny_features.make_users(spec, B), tiny_features.make_scenarios(spec, B)
    items = tiny_features.make_items(spec, (B, G))
    ids_BG = jnp.concatenate([jnp.full((B, 1), 1), jnp.full((B, G - 1), 2)], axis=1)
    items = items._replace(sparse_VF=items.sparse_VF.at[..., 0].set(ids_BG))
    sequences = {
        name: s._replace(ids_BLF=jnp.zeros_like(s.ids_BLF)) for name, s in users.sequences.items()
    }
    users = users._replace(sequences=sequences)
    variables = tiny_features.make_variables(model, users, items, scenario_B)
    return model, variables, users, items, scenario_B


def find_loss(name, **priors):
    """The mean loss where item 1 has these priors, by constant, and all else has 0."""
    model, variables, users, items, scenario_B = make_case(name)
    constants = dict(variables["constants"])
    for constant, value in priors.items():
        zeros = jnp.zeros(model.constant_shapes[constant])
        constants[constant] = zeros.at[..., 1].set(value)
    loss, _ = model.apply(
        {**variables, "constants": constants},
        users,
        items,
        scenario_B,
        train=False,
        method=small.SMALL_MATCHERS[name].objective().loss_method,
    )
    return float(loss.mean())


@pytest.mark.parametrize(
    "name", [n for n in NAMES if small.SMALL_MATCHERS[n].objective().loss_method]
)
def test_a_loss_of_its_own_learns_beside_the_prior(name):
    """With a prior that knows the positives the loss is smaller, and with one that errs larger."""
    read = statistics.SEQUENCE_PRIOR if name in SEQUENTIAL else statistics.KNOWN_PRIOR
    losses = [find_loss(name, **{read: value}) for value in (-2.0, 0.0, 2.0)]
    assert losses[0] > losses[1] > losses[2]


@pytest.mark.parametrize("name", SEQUENTIAL)
def test_positions_of_any_age_are_not_learned_beside_the_prior_of_today(name):
    """The prior of a day moves the lists of that day alone."""
    losses = [find_loss(name, **{statistics.KNOWN_PRIOR: value}) for value in (0.0, 5.0)]
    assert losses[0] == losses[1]
    model, variables, users, items, scenario_B = make_case(name)
    logits = []
    for value in (0.0, 5.0):
        constants = {
            constant: jnp.zeros(shape).at[..., 1].set(value * (constant == statistics.KNOWN_PRIOR))
            for constant, shape in model.constant_shapes.items()
        }
        values = {**variables, "constants": constants}
        logits.append(model.apply(values, users, items, scenario_B, train=False)[0])
    np.testing.assert_allclose(logits[1] - logits[0], [[5.0, 0.0, 0.0]] * B, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["fism", "dsmoe_plus"])
def test_a_method_that_has_the_prior_refuses_it(name):
    config = dataclasses.replace(small.SMALL_MATCHERS[name], known_prior=True)
    with pytest.raises(ValueError, match=r"model\.known_prior: expected False"):
        config.make(tiny_features.make_spec())
