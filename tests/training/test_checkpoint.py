import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsmoe_jax.training import checkpoint, sharding, train_state


def make_state(value: float) -> train_state.TrainState:
    mesh = sharding.make_mesh()
    tree = train_state.TrainState(
        step=jnp.asarray(3, jnp.int32),
        params={"item_table": jnp.full((sharding.MIN_SHARDED_ROWS, 2), value, jnp.float32)},
        model_state={"batch_stats": {"mean": jnp.full(4, value, jnp.float32)}},
        opt_state=(jnp.full(2, value, jnp.float32),),
    )
    return jax.device_put(tree, sharding.state_sharding(mesh, tree))


@pytest.fixture
def checkpoints(tmp_path):
    opened = checkpoint.StageCheckpoints(tmp_path, "student", {"seed": 1})
    yield opened
    opened.close()


def test_nothing_saved_is_nothing_restored(checkpoints):
    assert checkpoints.latest.restore(make_state(0.0), sharding.make_mesh()) is None
    assert checkpoints.latest.progress() is None


def test_state_and_progress_survive_on_fewer_devices(checkpoints):
    progress = checkpoint.Progress("student", step=3, best_score=0.25, bad_epochs=2, train_s=1.5)
    checkpoints.latest.save(make_state(7.0), progress)
    checkpoints.wait()
    mesh = sharding.make_mesh(jax.devices()[:4])
    state, found = checkpoints.latest.restore(make_state(0.0), mesh)
    assert found == progress
    assert isinstance(state, train_state.TrainState)
    table = state.params["item_table"]
    assert table.sharding.shard_shape(table.shape)[0] == sharding.MIN_SHARDED_ROWS // 4
    for got, want in zip(jax.tree.leaves(state), jax.tree.leaves(make_state(7.0)), strict=True):
        np.testing.assert_array_equal(np.asarray(got), np.asarray(want))


def test_an_average_is_saved_with_the_state(checkpoints):
    def averaged(value):
        state = make_state(value)
        return state._replace(average=train_state.Frozen({"w": jnp.full(2, value)}, {}))

    checkpoints.latest.save(averaged(7.0), checkpoint.Progress("student", step=3))
    checkpoints.wait()
    state, _ = checkpoints.latest.restore(averaged(0.0), sharding.make_mesh())
    assert isinstance(state.average, train_state.Frozen)
    np.testing.assert_array_equal(np.asarray(state.average.params["w"]), [7.0, 7.0])


def test_the_best_state_outlives_later_progress(checkpoints):
    mesh = sharding.make_mesh()
    checkpoints.best.save(make_state(1.0), checkpoint.Progress("student", step=3, best_score=0.5))
    for step in (3, 6, 9):
        checkpoints.latest.save(make_state(step), checkpoint.Progress("student", step=step))
    checkpoints.wait()
    assert checkpoints.latest.progress().step == 9
    best, progress = checkpoints.best.restore(make_state(0.0), mesh)
    latest, _ = checkpoints.latest.restore(make_state(0.0), mesh)
    assert (progress.step, progress.best_score) == (3, 0.5)
    assert float(best.opt_state[0][0]) == 1.0
    assert float(latest.opt_state[0][0]) == 9.0


def test_saving_a_step_again_replaces_it(checkpoints):
    for value in (1.0, 2.0):
        checkpoints.best.save(make_state(value), checkpoint.Progress("student", step=3))
        checkpoints.wait()
    state, _ = checkpoints.best.restore(make_state(0.0), sharding.make_mesh())
    assert float(state.opt_state[0][0]) == 2.0


def test_another_identity_is_refused_with_the_difference(checkpoints, tmp_path):
    checkpoints.latest.save(make_state(1.0), checkpoint.Progress("student", step=3))
    checkpoints.wait()
    other = checkpoint.StageCheckpoints(tmp_path, "student", {"seed": 2, "data_hash": "ab"})
    with pytest.raises(ValueError) as caught:
        other.latest.restore(make_state(0.0), sharding.make_mesh())
    other.close()
    assert "data_hash: checkpoint 'absent', run 'ab', seed: checkpoint 1, run 2" in str(
        caught.value
    )


def test_difference_of_equal_identities_is_empty():
    assert checkpoint.describe_difference({"a": 1}, {"a": 1}) == ""
