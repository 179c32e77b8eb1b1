"""Processes of jobs, from their file to their record."""

import importlib.util
import json
import pathlib
import sys
import types

import pytest

from dsmoe_jax.baselines import catalogue, linear, selection
from dsmoe_jax.compare import job, plan, processes, records
from dsmoe_jax.compare.report import finished
from dsmoe_jax.config import load
from dsmoe_jax.data import store as store_lib
from dsmoe_jax.run import results, run
from tests import tiny

CONFIG = "configs/kuairand.py:sample"


def evaluate_baselines(store, config, *, seed):
    """A baseline of one trial."""
    made = [({"a": 1}, linear.make_popularity(store))]
    return selection.evaluate_trials("popular", made, store, config, seed=seed)


def make_task(folder, **fields):
    task = {
        "name": "mine-seed0",
        "kind": "scored",
        "system": "mine",
        "config": CONFIG,
        "overrides": {"eval.k": [3, 5], "data.store_dir": str(folder / "store")},
        "lock": str(folder / "mine.lock"),
        "starter": 1,
        "more": {},
    }
    return job.Task(**{**task, **fields})


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    """Of a finished job of the system `mine`."""
    module = types.SimpleNamespace(evaluate_baselines=evaluate_baselines)
    monkeypatch.setitem(sys.modules, "made_up_system", module)
    # An installed library, so that the record says which version.
    mine = catalogue.System("made_up_system", "mine", ("numpy",))
    monkeypatch.setitem(catalogue.SYSTEMS, "mine", mine)
    monkeypatch.setattr(
        type(load.load_config(CONFIG).data),
        "prepare",
        lambda data, path: tiny.write_store(pathlib.Path(path)),
    )
    job.execute(make_task(tmp_path), tmp_path)
    return tmp_path


def test_a_job_becomes_a_record_with_every_system_of_its_own(workdir, tmp_path):
    system = plan.System("mine", "mine", CONFIG, kind="scored")
    identity = records.Identity("c", "d", {"data": 1})
    made = plan.Job(system, 0, {})
    record = records.make(made, identity, workdir, wall_s=1.0, cores=1, costs=None)
    (tmp_path / "mine-seed0.json").write_text(json.dumps(record))
    records.keep_hits(made, workdir, tmp_path / "mine-seed0.parquet")
    systems_found = finished.load(tmp_path, [system])
    assert [system.name for system in systems_found] == ["popular", "popular + scenario prior"]
    assert record["versions"]["numpy"] == results.versions()["numpy"]
    store = store_lib.Store.open(workdir / "store")
    for found in systems_found:
        [entry] = found.entries
        assert len(entry.queries().scenario_Q) == len(store.queries("test").rows_QC)
        assert 0 < entry.summary["validation"]["macro"]["recall@3"] < 1
        assert record["systems"][found.name]["settings"]["a"] == 1


@pytest.mark.parametrize(("kind", "mode"), [("run", "all"), ("teacher", "teacher")])
def test_a_run_is_a_call_of_the_library(tmp_path, monkeypatch, kind, mode):
    asked = []
    monkeypatch.setattr(run, "run", lambda *arguments, **options: asked.append(arguments))
    task = make_task(tmp_path, kind=kind, overrides={"seed": 3, "train.max_epochs": 2})
    job.execute(task, tmp_path / "here")
    [(experiment, workdir, wanted)] = asked
    assert (experiment.seed, experiment.train.max_epochs) == (3, 2)
    assert (workdir, wanted) == (tmp_path / "here", mode)


def start(folder, monkeypatch, **fields):
    # Signals are this process's.
    monkeypatch.setattr(job.signal, "signal", lambda number, handler: None)
    path = folder / job.FILE
    job.write(path, make_task(folder, **fields))
    return job.main([str(path)])


def test_a_missing_library_ends_the_job_in_one_line(tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "implicit" else find(name)
    )
    assert start(tmp_path, monkeypatch, system="implicit") == 2
    assert capsys.readouterr().err == (
        "error: implicit ALS and BPR: expected the library implicit, found none; "
        "pip install '.[baselines]'\n"
    )


def test_a_wrong_field_ends_the_job_in_one_line(tmp_path, monkeypatch, capsys):
    assert start(tmp_path, monkeypatch, kind="run", overrides={"train.epoch": 1}) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "nearest: 'config.train.max_epochs'" in line


def test_a_job_that_another_process_works_on_is_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr(job, "execute", lambda task, workdir: pytest.fail("run"))
    with processes.lock(tmp_path / "mine.lock"):
        assert start(tmp_path, monkeypatch) == processes.TAKEN


def test_a_job_says_in_its_lock_who_started_it(tmp_path, monkeypatch):
    monkeypatch.setattr(job, "execute", lambda task, workdir: None)
    assert start(tmp_path, monkeypatch, starter=7) == 0
    assert (tmp_path / "mine.lock").read_text().split()[1] == "7"
