import json
import pathlib
import resource
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsmoe_jax import disk
from dsmoe_jax.training import checkpoint, row_sparse, sharding, train_state


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


def make_padded(devices, *, value=7.0, rows=None, width=2):
    """A state with a table of a field, as so many devices split it, and its moments."""
    mesh = sharding.make_mesh(jax.devices()[:devices])
    rows = rows or sharding.MIN_SHARDED_ROWS
    tree = train_state.TrainState(
        step=jnp.asarray(3, jnp.int32),
        params={"item_tables": {"item_id": jnp.full((rows, width), value)}, "bias": jnp.ones(3)},
        model_state={},
        opt_state=row_sparse.OptState(
            (),
            {
                "item_tables/item_id": row_sparse.RowState(
                    jnp.full((rows, width), value),
                    jnp.full((rows, width), value),
                    jnp.full(rows, 5, jnp.int32),
                )
            },
        ),
    )
    padded = sharding.pad_tables(mesh, tree)
    return mesh, jax.device_put(padded, sharding.state_sharding(mesh, padded))


@pytest.mark.parametrize(("before", "after"), [(8, 6), (6, 8), (6, 5), (8, 1), (1, 6)])
def test_tables_are_resumed_on_any_number_of_devices(before, after, checkpoints):
    _, saved = make_padded(before)
    checkpoints.latest.save(saved, checkpoint.Progress("student", step=3))
    checkpoints.wait()
    mesh, like = make_padded(after, value=0.0)
    _, expected = make_padded(after)
    state, _ = checkpoints.latest.restore(like, mesh)
    for got, want in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        assert got.sharding.is_equivalent_to(want.sharding, got.ndim)
        np.testing.assert_array_equal(np.asarray(got), np.asarray(want))


@pytest.mark.parametrize("other", [{"width": 3}, {"rows": 1024}])
def test_a_state_of_another_model_is_not_cut_to_fit(other, checkpoints):
    checkpoints.latest.save(make_padded(8)[1], checkpoint.Progress("student", step=3))
    checkpoints.wait()
    mesh, like = make_padded(6, **other)
    with pytest.raises(
        ValueError, match=r"expected .*item_tables.* as float32\[.*got .*another model wrote"
    ):
        checkpoints.latest.restore(like, mesh)


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


def save(checkpoints, steps, bests=()):
    """Saves latest states and best ones of these steps; a state holds its step."""
    for step in steps:
        best = max((b for b in bests if b <= step), default=0)
        progress = checkpoint.Progress("student", step, best_score=0.5 if best else -1.0)
        progress.best_step = best
        if step in bests:
            checkpoints.best.save(make_state(step), progress)
            checkpoints.best.wait()
        checkpoints.latest.save(make_state(step), progress)
        checkpoints.wait()


def damage(path: pathlib.Path, name: str) -> None:
    """Flips a bit in the middle of the largest file that matches."""
    found = max(path.rglob(name), key=lambda file: file.stat().st_size)
    content = bytearray(found.read_bytes())
    content[len(content) // 2] ^= 1
    found.write_bytes(bytes(content))


def edit_meta(path: pathlib.Path, edit) -> None:
    file = path / "meta" / "metadata"
    meta = json.loads(file.read_text())
    edit(meta)
    file.write_text(json.dumps(meta))


def resume(workdir, says):
    opened = checkpoint.StageCheckpoints(workdir, "student", {"seed": 1})
    try:
        return opened.resume(make_state(0.0), sharding.make_mesh(), says.append)
    finally:
        opened.close()


def test_the_newest_whole_state_is_resumed_from(checkpoints, tmp_path):
    save(checkpoints, (3, 6, 9), bests=(3, 6))
    assert checkpoints.latest.steps == [6, 9]
    damage(tmp_path / "checkpoints/student/latest/9", "d/*")
    says = []
    state, progress = resume(tmp_path, says)
    assert (progress.step, float(state.opt_state[0][0])) == (6, 6.0)
    [line] = says
    assert "latest/9: the checkpoint is damaged: " in line
    assert line.endswith("; falls back to step 6")
    # What is trained again is saved again.
    assert not (tmp_path / "checkpoints/student/latest/9").exists()


def test_a_latest_state_without_its_best_one_is_not_resumed_from(checkpoints, tmp_path):
    save(checkpoints, (3, 6), bests=(3, 6))
    checkpoints.best.manager.delete(6)
    says = []
    assert resume(tmp_path, says)[1].step == 3
    assert "best/6: the checkpoint is damaged: expected this folder, found none" in says[0]


def test_a_best_state_of_an_epoch_that_is_trained_again_is_dropped(checkpoints, tmp_path):
    save(checkpoints, (3, 6), bests=(3,))
    checkpoints.best.save(make_state(9.0), checkpoint.Progress("student", 9))
    checkpoints.wait()
    says = []
    assert resume(tmp_path, says)[1].step == 6
    assert says == []
    assert [path.name for path in (tmp_path / "checkpoints/student/best").iterdir()] == ["3"]


def test_without_a_whole_state_one_line_says_what_to_delete(checkpoints, tmp_path):
    save(checkpoints, (3, 6))
    for step in (3, 6):
        damage(tmp_path / f"checkpoints/student/latest/{step}", "d/*")
    with pytest.raises(checkpoint.DamagedError) as caught:
        resume(tmp_path, [])
    root = tmp_path / "checkpoints" / "student"
    assert str(caught.value).startswith(f"{root / 'latest' / '6'}: the checkpoint is damaged: ")
    assert f"delete {root} and train again" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["d/*", "_METADATA", "manifest.ocdbt", "metadata"])
def test_damage_is_one_line_whatever_the_file(checkpoints, tmp_path, name, capfd):
    save(checkpoints, (3,))
    step = tmp_path / "checkpoints" / "student" / "latest" / "3"
    for file in list(step.rglob(name)):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(checkpoint.DamagedError) as caught:
        checkpoints.latest.restore(make_state(0.0), sharding.make_mesh())
    assert str(caught.value).startswith(f"{step}: the checkpoint is damaged: ")
    assert "delete this folder and train again" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_a_changed_number_is_found_though_every_file_can_be_read(checkpoints, tmp_path):
    save(checkpoints, (3, 6))
    other = checkpoint.StageCheckpoints(tmp_path / "other", "student", {"seed": 1})
    state = make_state(6.0)
    changed = state.params["item_table"].at[5, 1].set(np.nextafter(np.float32(6), np.float32(7)))
    other.latest.save(
        state._replace(params={"item_table": changed}), checkpoint.Progress("student", 6)
    )
    other.close()
    step = tmp_path / "checkpoints/student/latest/6"
    (step / "state").rename(tmp_path / "old")
    (tmp_path / "other/checkpoints/student/latest/6/state").rename(step / "state")
    with pytest.raises(checkpoint.DamagedError, match=r"params/item_table is not as saved: float"):
        checkpoints.latest.restore(make_state(0.0), sharding.make_mesh())


def test_changed_metadata_are_found(checkpoints, tmp_path):
    save(checkpoints, (3,))
    step = tmp_path / "checkpoints" / "student" / "latest" / "3"
    edit_meta(step, lambda meta: meta["progress"].update(bad_epochs=1))
    with pytest.raises(checkpoint.DamagedError, match="its metadata have another hash"):
        checkpoints.latest.progress()


def test_a_checkpoint_from_before_there_were_digests_is_read(checkpoints, tmp_path):
    save(checkpoints, (3,))

    def forget(meta):
        del meta["sha256"], meta["digests"], meta["progress"]["judged_by"]

    edit_meta(tmp_path / "checkpoints" / "student" / "latest" / "3", forget)
    state, progress = checkpoints.latest.restore(make_state(0.0), sharding.make_mesh())
    assert (progress.step, progress.judged_by) == (3, {})
    assert float(state.opt_state[0][0]) == 3.0


def test_a_state_that_has_no_room_is_refused_before_it_is_written(
    checkpoints, tmp_path, monkeypatch
):
    save(checkpoints, (3,))
    free = shutil.disk_usage(tmp_path)._replace(free=600_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    with pytest.raises(disk.FullDiskError) as caught:
        checkpoints.latest.save(make_state(6.0), checkpoint.Progress("student", 6))
    needed = 2**19 + sum(leaf.nbytes for leaf in jax.tree.leaves(make_state(6.0)))
    step = tmp_path / "checkpoints" / "student" / "latest" / "6"
    assert str(caught.value).startswith(f"{step}: the disk is full")
    assert f"expected room for {needed:,} bytes, got 600,000 free" in str(caught.value)
    assert checkpoints.latest.steps == [3]


def test_a_disk_that_fills_while_a_state_is_written_is_one_line(tmp_path, capfd):
    opened = checkpoint.StageCheckpoints(tmp_path, "student", {"seed": 1})
    save(opened, (3,))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]))
    try:
        with pytest.raises(disk.FullDiskError, match=r"latest.*: the disk is full") as caught:
            opened.latest.save(make_state(6.0), checkpoint.Progress("student", 6))
            opened.wait()
        assert "\n" not in str(caught.value)
        opened.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert capfd.readouterr().err == ""
    state, progress = resume(tmp_path, [])
    assert (progress.step, float(state.opt_state[0][0])) == (3, 3.0)
