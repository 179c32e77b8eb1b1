import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsmoe_jax import batch as batch_lib
from dsmoe_jax.data import negatives
from dsmoe_jax.training import sharding


def test_negatives_are_uniform_over_every_item_but_the_positive():
    positive_B = jnp.repeat(jnp.array([1, 3, 5], jnp.int32), 4000)
    candidate_BG = np.asarray(
        negatives.draw_candidates(jax.random.key(0), positive_B, num_items=6, num_negatives=4)
    )
    np.testing.assert_array_equal(candidate_BG[:, 0], positive_B)
    for positive in (1, 3, 5):
        drawn = candidate_BG[candidate_BG[:, 0] == positive, 1:]
        share = np.bincount(drawn.ravel(), minlength=6) / drawn.size
        expected = np.array([0, *[0.25 if i != positive else 0 for i in range(1, 6)]])
        # 16,000 draws: a standard error of 0.0034.
        np.testing.assert_allclose(share, expected, atol=0.017)


def test_draws_do_not_depend_on_the_number_of_devices():
    positive_B = np.arange(1, 65, dtype=np.int32)

    def draw(devices):
        mesh = sharding.make_mesh(devices)
        sharded_B = sharding.put_batch(mesh, positive_B)
        function = jax.jit(
            lambda ids: negatives.draw_candidates(
                jax.random.key(7), ids, num_items=1000, num_negatives=3
            )
        )
        return np.asarray(function(sharded_B))

    np.testing.assert_array_equal(draw(jax.devices()[:1]), draw(jax.devices()))


SCENARIO_B = np.repeat(np.arange(3, dtype=np.int32), [6, 3, 1])
ITEM_B = np.array([1, 1, 1, 1, 2, 2, 3, 3, 4, 5], np.int32)


def draw_many(kind, uniform_share=0.0, *, seed=0, put=jnp.asarray, log_share_B=None):
    """2,000 negatives of each of ten examples in three scenarios, one of them alone in its own."""
    batch = batch_lib.Batch(None, put(SCENARIO_B), put(ITEM_B), log_share_B)
    drawn = jax.jit(
        lambda key, batch: negatives.draw(
            key,
            batch,
            num_items=12,
            num_scenarios=3,
            num_negatives=2000,
            kind=kind,
            uniform_share=uniform_share,
        )
    )(jax.random.key(seed), batch)
    np.testing.assert_array_equal(drawn.item_BG[:, 0], ITEM_B)
    return np.asarray(drawn.item_BG[:, 1:]), drawn


def shares(item_BN):
    return np.bincount(item_BN.ravel(), minlength=12) / item_BN.size


def test_negatives_by_popularity_follow_the_examples():
    item_BN, drawn = draw_many("popularity")
    # 20,000 draws: a standard error of 0.0035.
    expected = [0, 0.4, 0.2, 0.2, 0.1, 0.1, 0, 0, 0, 0, 0, 0]
    np.testing.assert_allclose(shares(item_BN), expected, atol=0.018)
    np.testing.assert_array_equal(drawn.is_other_BN, item_BN != ITEM_B[:, None])
    assert drawn.log_share_BN is None


def test_negatives_of_a_scenario_follow_its_examples():
    item_BN, drawn = draw_many("scenario")
    np.testing.assert_allclose(shares(item_BN[:6])[[1, 2]], [4 / 6, 2 / 6], atol=0.022)
    np.testing.assert_allclose(shares(item_BN[6:9])[[3, 4]], [2 / 3, 1 / 3], atol=0.031)
    # The only example of its scenario has no other.
    assert (item_BN[9] == 5).all()
    assert not drawn.is_other_BN[9].any()


def test_a_share_of_negatives_is_uniform():
    item_BN, drawn = draw_many("scenario", 0.4)
    own = [0, 2 / 3, 1 / 3, *[0] * 9]
    # An example's own item, 1 or 2 here, is never drawn uniformly.
    rows = item_BN[:4]
    uniform = np.array([0, 0, *[0.1] * 10])
    expected = 0.4 * uniform + 0.6 * np.array(own)
    np.testing.assert_allclose(shares(rows), expected, atol=0.027)
    assert drawn.is_other_BN[9].mean() == pytest.approx(0.4, abs=0.055)


def test_the_probability_of_every_draw_is_told():
    log_share_B = jnp.log(jnp.arange(1.0, 11.0))
    item_BN, drawn = draw_many("popularity", log_share_B=log_share_B)
    for item in np.unique(ITEM_B):
        told = np.asarray(drawn.log_share_BN)[item_BN == item]
        # Those of all examples that have it, which are as many numbers here.
        expected = np.asarray(log_share_B)[item == ITEM_B]
        np.testing.assert_array_equal(np.unique(told), expected)
    _, drawn = draw_many("popularity", 1.0, log_share_B=log_share_B)
    np.testing.assert_allclose(drawn.log_share_BN, np.log(1 / 10), rtol=1e-6)
    _, drawn = draw_many("uniform")
    np.testing.assert_allclose(drawn.log_share_BN, np.log(1 / 10), rtol=1e-6)
    assert drawn.is_other_BN is None


@pytest.mark.parametrize("kind", ["popularity", "scenario"])
def test_draws_from_the_batch_do_not_depend_on_the_number_of_devices(kind):
    rng = np.random.default_rng(0)
    scenario_B = rng.integers(0, 3, 64).astype(np.int32)
    item_B = rng.integers(1, 90, 64).astype(np.int32)

    def draw(devices):
        mesh = sharding.make_mesh(devices)
        batch = sharding.put_batch(mesh, batch_lib.Batch(None, scenario_B, item_B))
        function = jax.jit(
            lambda batch: (
                negatives.draw(
                    jax.random.key(7),
                    batch,
                    num_items=100,
                    num_scenarios=3,
                    num_negatives=3,
                    kind=kind,
                    uniform_share=0.3,
                ).item_BG
            )
        )
        return np.asarray(function(batch))

    np.testing.assert_array_equal(draw(jax.devices()[:1]), draw(jax.devices()))
