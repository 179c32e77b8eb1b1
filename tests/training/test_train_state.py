import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsmoe_jax import features
from dsmoe_jax.training import optimizer, sharding, train_state
from tests import tiny


def make_state(step: int, average: train_state.Frozen | None) -> train_state.TrainState:
    return train_state.TrainState(
        step=jnp.int32(step),
        params={"w": jnp.asarray([3.0, 5.0])},
        model_state={
            "batch_stats": {"mean": jnp.asarray([2.0]), "count": jnp.asarray([7], jnp.int32)},
            "constants": {"prior": jnp.asarray([1.0])},
        },
        opt_state=(),
        average=average,
    )


def make_average() -> train_state.Frozen:
    return train_state.Frozen(
        {"w": jnp.asarray([1.0, 1.0])},
        {"batch_stats": {"mean": jnp.asarray([0.0]), "count": jnp.asarray([1], jnp.int32)}},
    )


@pytest.mark.parametrize(
    ("step", "share"),
    [(1, 1 - 2 / 11), (2, 1 - 3 / 12), (1000, 0.1)],
    ids=["first step", "warm-up", "late"],
)
def test_the_average_moves_by_its_share(step, share):
    state = train_state.move_average(make_state(step, make_average()), 0.9, optimizer.move_towards)
    average = state.average
    np.testing.assert_allclose(average.params["w"], [1 + 2 * share, 1 + 4 * share], rtol=1e-6)
    stats = average.model_state["batch_stats"]
    np.testing.assert_allclose(stats["mean"], [2 * share], rtol=1e-6)
    assert int(stats["count"][0]) == 7


def test_inference_sees_the_average_and_the_constants():
    frozen = train_state.freeze(make_state(5, make_average()))
    np.testing.assert_array_equal(frozen.params["w"], [1.0, 1.0])
    np.testing.assert_array_equal(frozen.model_state["batch_stats"]["mean"], [0.0])
    np.testing.assert_array_equal(frozen.model_state["constants"]["prior"], [1.0])


def test_without_an_average_the_values_stay_and_are_seen():
    state = make_state(5, None)
    assert train_state.move_average(state, 0.9, optimizer.move_towards) is state
    np.testing.assert_array_equal(train_state.freeze(state).params["w"], [3.0, 5.0])


def test_an_initial_average_is_the_initial_model_without_constants(tmp_path):
    store = tiny.write_store(tmp_path / "store")
    spec = features.select(store.spec, exclude=(), history_length=4, scenario_history_length=3)
    state = train_state.init_state(
        tiny.make_matcher(spec),
        optimizer.Dense(optimizer.make_optimizer(1e-3, 0.0)),
        key=jax.random.key(0),
        mesh=sharding.make_mesh(),
        averaged=True,
    )
    assert set(state.average.model_state) == set(state.model_state) - {"constants"}
    for got, want in zip(
        jax.tree.leaves(state.average.params), jax.tree.leaves(state.params), strict=True
    ):
        np.testing.assert_array_equal(np.asarray(got), np.asarray(want))
