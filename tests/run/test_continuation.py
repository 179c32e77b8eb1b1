"""Runs that go on from another run, on an own log that grew."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest

import dsmoe_jax
from dsmoe_jax.data import store as store_lib
from dsmoe_jax.run import continuation, earlier, export, lock
from dsmoe_jax.training import checkpoint, train_state

DAY_S = 86_400
FIELDS = {
    "by_size": False,
    "data.user_id": "user",
    "data.item_id": "item",
    "data.time_unit": "s",
    "data.positive": "",
    "data.scenario": "page",
    "data.scenarios": (),
    "data.users_file": "",
    "data.user_sparse": (),
    "data.user_dense": (),
    "data.user_bags": (),
    "data.items_file": "items.csv",
    "data.item_sparse": ("brand",),
    "data.item_log_dense": ("price",),
    "data.item_bags": ("tags",),
    "data.validation_days": 2,
    "data.test_days": 2,
    "model.hidden_dims": (8,),
    "model.output_dim": 8,
    "train.max_epochs": 1,
    "train.batch_size": 64,
    "train.average_decay": 0.9,
    "eval.references": False,
    "checkpoint.bundle": False,
}


def write_log(folder: pathlib.Path, days: int, items: range) -> None:
    """Clicks of so many days on items of a range; later days have more users."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    frames = []
    for day in range(days):
        rows = 120
        user = rng.integers(0, 30 + 2 * day, rows)
        frames.append(
            pl.DataFrame(
                {
                    "user": user,
                    "item": items.start + (user * 7 + rng.integers(0, 9, rows)) % len(items),
                    "time": 1_700_006_400 + day * DAY_S + np.sort(rng.integers(0, DAY_S, rows)),
                    "page": rng.choice(["home", "search"], rows, p=[0.6, 0.4]),
                }
            )
        )
    pl.concat(frames).write_csv(folder / "log.csv")
    known = np.array(items)
    pl.DataFrame(
        {
            "item": known,
            "brand": [f"b{i % 6}" if i < 40 else "a new one" for i in known],
            "price": 1.5 * known + 1,
            "tags": [f"t{i % 5}|t{i % 3 + 5}" for i in known],
        }
    ).write_csv(folder / "items.csv")


def load(folder: pathlib.Path, tokens: str = "dssm", **fields):
    return dsmoe_jax.load_config(
        f"custom:{tokens}", **{**FIELDS, "data.raw_dir": str(folder), **fields}
    )


def snapshot(folder: pathlib.Path) -> dict:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """Yesterday's files and today's: two more days, an item less in front, four more behind."""
    root = tmp_path_factory.mktemp("logs")
    write_log(root / "yesterday", 9, range(40))
    write_log(root / "today", 11, range(1, 44))
    return root


@pytest.fixture(scope="module")
def old(logs, tmp_path_factory):
    return dsmoe_jax.train(load(logs / "yesterday"), tmp_path_factory.mktemp("old"))


@pytest.fixture(scope="module")
def new(logs, old, tmp_path_factory):
    """Goes on from the old run for an epoch; what that folder held before and after."""
    before = snapshot(old.workdir)
    experiment = load(logs / "today", **{"train.continue_epochs": 1})
    workdir = tmp_path_factory.mktemp("new")
    model = dsmoe_jax.train(experiment, workdir, continue_from=old.workdir)
    assert snapshot(old.workdir) == before
    return model


def read_student(model):
    run = export.make_stages(model.experiment, model.workdir)
    return run, run.load_student().frozen


def test_without_an_epoch_on_the_same_log_the_lists_are_the_same(logs, old, tmp_path):
    experiment = load(logs / "yesterday", **{"train.continue_epochs": 0})
    model = dsmoe_jax.train(experiment, tmp_path, continue_from=old.workdir)
    with np.load(old.workdir / "arrays.npz") as before, np.load(tmp_path / "arrays.npz") as after:
        assert sorted(before) == sorted(after)
        for name in before:
            np.testing.assert_array_equal(before[name], after[name])
    for name in ("scenarios", "macro", "validation", "data_hash"):
        expected = model.results["continued"]["yesterday"] if name != "data_hash" else old.results
        assert model.results[name] == old.results[name] == expected[name]
    _, before = read_student(old)
    _, after = read_student(model)
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_known_ids_go_on_and_numbers_mean_what_they_meant(old, new):
    stores = [store_lib.Store.open(model.workdir / "store") for model in (old, new)]
    moments = [store.manifest["dense"] for store in stores]
    assert moments[0] == moments[1]
    prices = [dict(zip(s.items_raw_id[1:], s.items_dense[1:, 0], strict=True)) for s in stores]
    shared = sorted({*prices[0]} & {*prices[1]})
    assert len(shared) == 39 and len(prices[1]) == 43
    assert [prices[0][i] for i in shared] == [prices[1][i] for i in shared]
    # An epoch at this rate moves a weight by less than its size, if it is kept.
    tables = [
        np.asarray(read_student(model)[1].params["embedder"]["item_tables"]["item_id"])
        for model in (old, new)
    ]
    for raw in (3, 17):
        before, after = (
            table[int(np.flatnonzero(store.items_raw_id.astype(str) == str(raw))[0])]
            for table, store in zip(tables, stores, strict=True)
        )
        assert np.abs(after - before).max() < 0.5 * np.abs(before).max()


def test_a_continued_run_says_what_it_went_on_from(old, new):
    step, _ = checkpoint.read_best(old.workdir, "student")
    found = new.results["continued"]
    assert found["from"] == str(old.workdir) and step > 0
    assert found["data_hash"] == old.results["data_hash"] != new.results["data_hash"]
    assert found["checkpoint"] == new.experiment.continued_from and len(found["checkpoint"]) == 64
    assert found["yesterday"]["macro"] != old.results["macro"] and found["anew"] is None
    kept = json.loads((new.workdir / "config.json").read_text())["config"]
    assert kept["continued_from"] == found["checkpoint"]
    identity = checkpoint.read_identity(new.workdir, "student")
    assert identity["continued_from"] == found["checkpoint"]
    assert new.results["config_hash"] != old.results["config_hash"]


def read_digests(workdir: pathlib.Path) -> list:
    """Those of the state that a student began with and of its last one."""
    steps = checkpoint.stage_folder(workdir, "student") / "latest"
    order = sorted(steps.glob("[0-9]*"), key=lambda path: int(path.name))
    assert order[0].name == "0" and len(order) == 2
    return [json.loads((path / "meta" / "metadata").read_text())["digests"] for path in order]


def test_a_killed_run_ends_with_the_same_bits_without_the_flag(
    logs, old, new, tmp_path, monkeypatch
):
    class Killed(BaseException):
        pass

    saved = checkpoint.Checkpoint.save

    def save(self, state, progress):
        if progress.step > 0:
            raise Killed
        saved(self, state, progress)

    experiment = load(logs / "today", **{"train.continue_epochs": 1})
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Checkpoint, "save", save)
        with pytest.raises(Killed):
            dsmoe_jax.train(experiment, tmp_path, continue_from=old.workdir)
    model = dsmoe_jax.train(experiment, tmp_path)
    digests = [read_digests(m.workdir) for m in (new, model)]
    assert digests[0] == digests[1]
    assert digests[0][0] != digests[0][1]
    assert model.results["macro"] == new.results["macro"]
    # The same command again has nothing left to do.
    dsmoe_jax.train(experiment, tmp_path, continue_from=old.workdir)
    assert read_digests(tmp_path) == digests[0]


def test_with_items_held_vectors_of_known_items_stay_to_the_bit(logs, old, tmp_path):
    fields = {"train.continue_epochs": 2, "train.hold_items": True, "train.learning_rate": 0.01}
    experiment = load(logs / "today", **fields)
    model = dsmoe_jax.train(experiment, tmp_path, continue_from=old.workdir)
    run, _ = read_student(model)
    opened = checkpoint.StageCheckpoints(tmp_path, "student", None, read_only=True)
    stage = run.student_stage()
    # The last state, whatever its score, so that something has been trained.
    like = train_state.abstract_state(
        stage.model, stage.updater, mesh=run.mesh, averaged=stage.average_decay > 0
    )
    state, progress = opened.latest.restore(like, run.mesh)
    opened.close()
    assert progress.step > 0
    run_old, before = read_student(old)
    ids = earlier.match_ids(run_old.store.items_raw_id, run.store.items_raw_id, "item_id")
    new_id, old_id = np.flatnonzero(ids), ids[np.flatnonzero(ids)]

    def embed(run, frozen, rows):
        items = jax.tree.map(lambda leaf: jnp.asarray(leaf[rows])[None], jax.device_get(run.corpus))
        vectors, _ = run.matcher.apply(
            frozen.variables, items, jnp.zeros(1, jnp.int32), train=False, method="embed_item"
        )
        return np.asarray(vectors)

    after = train_state.freeze(state)
    np.testing.assert_array_equal(embed(run_old, before, old_id), embed(run, after, new_id))
    # New items were trained, which their average follows from afar; and so were users.
    averaged, last = (
        np.asarray(tree["embedder"]["item_tables"]["item_id"][len(ids) - 1])
        for tree in (state.average.params, state.params)
    )
    assert not np.array_equal(averaged, last)
    users = [f.params["user_tower"] for f in (before, after)]
    assert any(
        not np.array_equal(a, b)
        for a, b in zip(*(jax.tree.leaves(tree) for tree in users), strict=True)
    )


def refused(experiment, workdir, **how):
    """The one line of a run that is refused before it leaves anything."""
    with pytest.raises(ValueError) as caught:
        dsmoe_jax.train(experiment, workdir, **how)
    assert "\n" not in str(caught.value)
    assert not workdir.exists() or not list(workdir.iterdir())
    return str(caught.value)


def test_what_cannot_be_gone_on_from_is_refused_in_one_line(logs, old, tmp_path):
    today = load(logs / "today")
    empty = tmp_path / "empty"
    empty.mkdir()
    workdir = tmp_path / "new"
    assert "expected the folder of a run, found none" in refused(
        today, workdir, continue_from=tmp_path / "nowhere"
    )
    assert "expected the configuration of a run, found none" in refused(
        today, workdir, continue_from=empty
    )
    assert "expected another folder than --workdir" in refused(today, empty, continue_from=empty)
    dsmoe_jax.train(load(logs / "yesterday"), tmp_path / "prepared", mode="prepare")
    assert "expected a trained student, found none in" in refused(
        today, workdir, continue_from=tmp_path / "prepared"
    )
    other = load(logs / "today", **{"model.output_dim": 16})
    assert "expected model.output_dim as there, 8, got 16" in refused(
        other, workdir, continue_from=old.workdir
    )
    assert "expected model.class as there, 'DSSMConfig', got" in refused(
        load(logs / "today", "mind"),
        workdir,
        continue_from=old.workdir,
    )
    assert "train.hold_items: expected False without --continue_from" in refused(
        load(logs / "today", **{"train.hold_items": True}), workdir
    )
    assert "--anew: expected --continue_from beside it" in refused(today, workdir, anew=True)
    with lock.hold(old.workdir):
        assert "a run works in this folder: process" in refused(
            today, workdir, continue_from=old.workdir
        )


def test_other_columns_are_refused_by_name(logs, old, tmp_path):
    experiment = load(logs / "today", **{"data.item_sparse": ()})
    with pytest.raises(ValueError, match=r"expected the item sparse .*, got no 'brand'; leave"):
        dsmoe_jax.train(experiment, tmp_path, continue_from=old.workdir)


# A second training, of which the report's line is new.
@pytest.mark.slow
def test_a_model_trained_anew_stands_beside(logs, old, tmp_path):
    experiment = load(logs / "today", **{"train.continue_epochs": 0})
    model = dsmoe_jax.train(experiment, tmp_path, continue_from=old.workdir, anew=True)
    anew = dsmoe_jax.load(tmp_path / "anew")
    found = model.results["continued"]
    assert found["anew"]["macro"] == anew.results["macro"]
    assert anew.results["data_hash"] == model.results["data_hash"]
    assert anew.experiment.continued_from == ""
    # Zero epochs: yesterday's model but for ids that it does not know.
    assert found["yesterday"]["macro"].keys() == model.results["macro"].keys()


def test_a_run_that_is_begun_does_not_need_the_other_folder(logs, old, new, tmp_path, capsys):
    known = continuation.read(new.workdir)
    assert known.is_there() and known.scenarios == ("home", "search")
    gone = dataclasses.replace(known, folders={"student": tmp_path / "gone"}, folder=tmp_path / "g")
    before = (new.workdir / continuation.FILE).read_bytes()
    gone.write(new.workdir)
    try:
        dsmoe_jax.train(new.experiment, new.workdir, mode="evaluate", progress=True)
    finally:
        (new.workdir / continuation.FILE).write_bytes(before)
    assert "yesterday's model is not there any more" in capsys.readouterr().out
    assert new.results["continued"]["yesterday"] is None


def test_ids_are_matched_by_their_raw_values():
    old = np.array([-1, 3, 5, 9])
    found = earlier.match_ids(old, np.array([-1, 2, 9, 3, 10]), "item_id")
    assert found.tolist() == [0, 0, 3, 1, 0]
    old = np.array(["", "b", "a"])
    assert earlier.match_ids(old, np.array(["", "a", "ab", "b"]), "x").tolist() == [0, 2, 0, 1]
    assert earlier.match_ids(np.array([-1]), np.array([-1, 4]), "x").tolist() == [0, 0]
    with pytest.raises(ValueError, match=r"expected 'x' to hold numbers .*, got text"):
        earlier.match_ids(np.array([-1, 4]), np.array(["", "4"]), "x")


def test_a_damaged_record_is_one_line(tmp_path):
    (tmp_path / continuation.FILE).write_text("{}")
    with pytest.raises(ValueError, match=r"continued\.json: the file is damaged: .*; delete"):
        continuation.read(tmp_path)
