"""What Python callers get, and what their process keeps as it was."""

import asyncio
import concurrent.futures
import contextlib
import copy
import gc
import io
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import polars as pl
import pytest

import dsmoe_jax
from dsmoe_jax.config import fingerprint
from dsmoe_jax.data import store as store_lib
from dsmoe_jax.run import replay

ROOT = pathlib.Path(__file__).parents[2]
DAY_S = 86_400
# What one test run trains: a student without a teacher, as small as it gets.
FIELDS = {
    "model.hidden_dim": 8,
    "model.output_dim": 8,
    "train.max_epochs": 1,
    "train.batch_size": 64,
    "eval.references": False,
}
HANDLED = (signal.SIGINT, signal.SIGTERM)


def make_log(first_day=0, days=12, seed=0):
    rng = np.random.default_rng(seed)
    rows = 1500
    user = rng.integers(0, 50, rows)
    return pl.DataFrame(
        {
            "user_id": user,
            "item_id": (user % 5) * 8 + rng.integers(0, 8, rows),
            "timestamp": 1_700_006_400 + (first_day + rng.integers(0, days, rows)) * DAY_S,
            "page": rng.choice(["home", "search"], rows),
        }
    )


@pytest.fixture(scope="module")
def settings():
    """Signal handlers, JAX's settings and the environment before anything was called."""
    handlers = [signal.getsignal(number) for number in HANDLED]
    return handlers, dict(jax.config.values), dict(os.environ)


@pytest.fixture(scope="module")
def output():
    """What was printed while the model was trained."""
    return io.StringIO()


@pytest.fixture(scope="module")
def model(settings, output):
    """Trained in a thread with a running event loop, as in a server."""

    async def fit():
        return dsmoe_jax.fit(make_log(), scenario="page", variant="no_distill", **FIELDS)

    with (
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(output),
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        return pool.submit(lambda: asyncio.run(fit())).result()


def test_importing_imports_no_jax():
    code = "import dsmoe_jax, sys; assert 'fit' in dir(dsmoe_jax); print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "False\n"


def test_every_public_name_is_there():
    for name in dsmoe_jax.__all__:
        assert getattr(dsmoe_jax, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        _ = dsmoe_jax.fitt


def test_nothing_is_printed_and_the_process_stays_as_it_was(model, settings, output):
    assert output.getvalue() == ""
    handlers, jax_settings, environment = settings
    assert [signal.getsignal(number) for number in HANDLED] == handlers
    assert dict(jax.config.values) == jax_settings
    assert {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")} == {
        k: v for k, v in environment.items() if not k.startswith("PYTEST")
    }


def test_results_are_those_of_the_run(model):
    assert model.results == json.loads((model.workdir / "results.json").read_text())
    assert model.results["dataset"] == "own log"
    assert set(model.results["scenarios"]) == {"home", "search"}
    assert model.experiment.train.batch_size == 64
    assert "own log" in repr(model)


def test_evaluation_repeats_the_results(model):
    for found, split in ((model.evaluate(), "test"), (model.evaluate(split="test"), "test")):
        assert found["macro"] == model.results["macro"]
        assert found["scenarios"] == model.results["scenarios"], split
    validation = dsmoe_jax.evaluate(model.workdir, split="validation")
    assert validation["macro"] == model.results["validation"]["macro"]


def test_a_later_log_is_evaluated(model):
    later = make_log(first_day=12, days=2, seed=1)
    found = dsmoe_jax.evaluate(model, later)
    clicked = later.group_by("user_id", "page").len().height
    assert 0 < sum(row["queries"] for row in found["scenarios"].values()) <= clicked
    assert 0 <= found["macro"]["recall@10"] <= found["macro"]["recall@50"] == 1
    with pytest.raises(ValueError, match="log: expected a column 'page'"):
        model.evaluate(later.drop("page"))


def test_a_model_is_loaded_from_its_folder(model):
    loaded = dsmoe_jax.load(model.workdir)
    assert fingerprint.as_dict(loaded.experiment) == fingerprint.as_dict(model.experiment)
    assert loaded.results == model.results


def test_a_second_training_in_one_process_gives_the_same(model, tmp_path, capsys):
    again = dsmoe_jax.train(model.experiment, tmp_path, progress=True)
    assert again.results["macro"] == model.results["macro"]
    assert "positives" in capsys.readouterr().out


def test_a_day_that_is_appended_to_the_log_leaves_the_model_its_store(model, tmp_path):
    folder = shutil.copytree(model.workdir, tmp_path / "run")
    raw = shutil.copytree(model.experiment.data.raw_dir, tmp_path / "raw")
    experiment = copy.deepcopy(model.experiment)
    experiment.data.raw_dir = str(raw)
    files = [*raw.glob("*.csv"), *raw.glob("*.parquet")]
    [log] = [path for path in files if path.name.startswith("log")]
    later = make_log(first_day=12, days=1, seed=1)
    read, write = (
        (pl.read_csv, "write_csv") if log.suffix == ".csv" else (pl.read_parquet, "write_parquet")
    )
    before = read(log)
    getattr(pl.concat([before, later.cast(before.schema)]), write)(log)
    config = (folder / "config.json").read_bytes()
    with pytest.raises(ValueError, match=r"data_hash: .*; its data are in .*store-[0-9a-f]{12}\)"):
        dsmoe_jax.train(experiment, folder)
    assert (folder / "config.json").read_bytes() == config
    # Today's store is there, and yesterday's model opens its own.
    assert dsmoe_jax.prepare(experiment, folder) == folder / "store"
    assert dsmoe_jax.load(folder).evaluate()["macro"] == model.results["macro"]
    # Yesterday's log brings yesterday's store back.
    getattr(before, write)(log)
    dsmoe_jax.train(experiment, folder, mode="student")
    assert len(list(folder.glob("store*"))) == 2


def test_parts_are_trained_one_by_one(model, tmp_path):
    store = dsmoe_jax.prepare(model.experiment, tmp_path)
    assert (store / "manifest.json").exists()
    part = dsmoe_jax.train(model.experiment, tmp_path, mode="student")
    with pytest.raises(ValueError, match="expected the results of a run, found none"):
        _ = part.results
    assert part.evaluate()["macro"] == model.results["macro"]


def test_a_model_recommends_and_its_saved_bundle_does_without_it(model, tmp_path):
    lists = model.recommend([3, 4], "home", 5)
    assert lists.columns == ["user_id", "scenario", "item_id", "score", "rank"]
    assert lists["user_id"].to_list() == [3] * 5 + [4] * 5
    folder = model.save(tmp_path / "bundle")
    retriever = dsmoe_jax.load(folder)
    assert isinstance(retriever, dsmoe_jax.Retriever)
    assert retriever.recommend([3, 4], "home", 5).equals(lists)
    # The bundle that the run ended with is the model's as long as it is the best student's.
    own = model.workdir / "bundle" / "manifest.json"
    before = own.stat().st_mtime_ns
    assert model.retriever.bundle.digest == json.loads(own.read_text())["digest"]
    assert own.stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="expected the configuration of a run, found none"):
        dsmoe_jax.load(tmp_path)


def test_a_method_keeps_the_training_that_it_asks_for(model):
    """Values by the number of rows are for methods without values of their own."""
    assert model.experiment.train.learning_rate == 1e-3
    fields = {"model.output_dim": 4, "train.max_epochs": 1, "eval.references": False}
    own = dsmoe_jax.fit(make_log(), scenario="page", variant="fism", **fields).experiment
    # A batch of users is no larger than the rows suggest: there are 50.
    assert own.train.batch_size == 32 < own.model.recipe["batch_size"]
    recipe = {**own.model.recipe, "max_epochs": 1, "batch_size": 32}
    assert {name: getattr(own.train, name) for name in recipe} == recipe
    assert recipe["learning_rate"] == 1e-2


def test_repeats_are_found_by_the_evaluation_and_by_the_bundle_alike(tmp_path):
    fields = FIELDS | {"data.repeats": True, "eval.remove_seen": "none", "eval.k": (3, 10)}
    fields |= {"data.time_zone": "Asia/Tokyo"}
    model = dsmoe_jax.fit(
        make_log(), scenario="page", variant="no_distill", workdir=tmp_path / "run", **fields
    )
    assert model.results["split"]["test"]["time_zone"] == "Asia/Tokyo"
    assert model.results["repeats"] and model.results["remove_seen"] == "none"
    table = store_lib.Store.open(dsmoe_jax.prepare(model.experiment, model.workdir)).queries("test")
    again = [
        np.intersect1d(*(part.items[slice(*part.indptr[q : q + 2])] for part in table[1:3]))
        for q in range(len(table.cold_Q))
    ]
    # 8 items and 30 events a user: most of what is held out was clicked before.
    assert sum(map(len, again)) > 20
    assert replay.replay(model.save(), model.workdir).is_equal
    assert model.retriever.usual_exclude is None
    # A later log of nothing but what was clicked before.
    assert model.evaluate(make_log().with_columns(pl.col("timestamp") + 20 * DAY_S))["macro"]


def test_a_temporary_folder_goes_with_its_model(tmp_path):
    experiment = dsmoe_jax.load_config("kuairand:sample")
    kept = dsmoe_jax.Model(experiment, tmp_path / "kept")
    gone = dsmoe_jax.Model(experiment, tmp_path / "gone", is_temporary=True)
    for model in (kept, gone):
        model.workdir.mkdir()
    del kept, gone, model
    gc.collect()
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_overrides_come_with_dots_or_nested():
    dotted = dsmoe_jax.load_config("kuairand:sample", **{"train.learning_rate": 3e-4}, seed=2)
    nested = dsmoe_jax.load_config("kuairand:sample", train={"learning_rate": 3e-4}, seed=2)
    assert dotted == nested
    assert dotted.train.learning_rate == 3e-4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dsmoe_jax.load_config("kuairand:smple"), "unknown token 'smple'"),
        (lambda: dsmoe_jax.load("nowhere"), "nowhere/config.json: expected the configuration"),
        (
            lambda: dsmoe_jax.train(dsmoe_jax.load_config("kuairand:sample"), mode="studnt"),
            "mode: expected one of all, prepare, teacher, student, evaluate, export, got 'studnt'; "
            "nearest: 'student'",
        ),
        (
            lambda: dsmoe_jax.fit(make_log(), **{"train.max_epoch": 1}),
            "unknown field 'config.train.max_epoch'; nearest: 'config.train.max_epochs'",
        ),
        (
            lambda: dsmoe_jax.fit(make_log(), **{"data.time_zone": "Berlin"}),
            "got 'Berlin'; nearest: 'Europe/Berlin'",
        ),
        (
            lambda: dsmoe_jax.fit(make_log(), time="when"),
            "log: expected a column 'when', got user_id, item_id, timestamp, page",
        ),
        (lambda: dsmoe_jax.fit(make_log(), variant="dsssm"), "nearest: 'dssm'"),
    ],
)
def test_what_is_wrong_is_one_line(call, message):
    with pytest.raises(ValueError) as raised:
        call()
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
