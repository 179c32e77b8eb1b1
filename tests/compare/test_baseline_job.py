"""One cell of a system without towers, from the command line to its record."""

import importlib.util
import json
import pathlib
import sys
import types

import pytest

from dsmoe_jax import main
from dsmoe_jax.baselines import catalogue, linear, selection
from dsmoe_jax.compare import baseline_job, plan, records, rows
from dsmoe_jax.compare.report import finished
from dsmoe_jax.data import store as store_lib
from dsmoe_jax.run import results
from tests import tiny

CONFIG = "configs/kuairand.py:sample"


def evaluate_references(store, config, *, seed):
    """A peer of one trial."""
    made = [({"a": 1}, linear.make_popularity(store))]
    return selection.evaluate_trials("popular", made, store, config, seed=seed)


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    """Of a finished cell of the system `mine`."""
    module = types.SimpleNamespace(evaluate_references=evaluate_references)
    monkeypatch.setitem(sys.modules, "made_up_system", module)
    # An installed library, so that the record says which version.
    mine = catalogue.System("made_up_system", "mine", ("numpy",))
    monkeypatch.setitem(catalogue.SYSTEMS, "mine", mine)
    arguments = [f"--config={CONFIG}", "--config.eval.k=(3,5)", f"--workdir={tmp_path / 'run'}"]
    options = main.parse(["dsmoe_jax", *arguments])
    monkeypatch.setattr(
        type(options.experiment.data),
        "prepare",
        lambda data, path: tiny.write_store(pathlib.Path(path)),
    )
    baseline_job.run("mine", options)
    return options.workdir


def test_a_cell_becomes_a_record_with_every_row_of_its_system(workdir, tmp_path):
    row = rows.Row("mine", "mine", CONFIG, kind="scored")
    cell = plan.Cell(row, 0, 0, ())
    identity = records.Identity("c", "d", {"data": 1})
    record = records.make(cell, identity, workdir, wall_s=1.0, cores=1, costs=None)
    (tmp_path / "mine-seed0.json").write_text(json.dumps(record))
    systems_found = finished.load(tmp_path, [row])
    assert [system.name for system in systems_found] == ["popular", "popular + scenario prior"]
    assert record["versions"]["numpy"] == results.versions()["numpy"]
    store = store_lib.Store.open(workdir / "store")
    for system in systems_found:
        [entry] = system.entries
        assert len(entry.queries().scenario_Q) == len(store.queries("test").rows_QC)
        assert 0 < entry.summary["validation"]["macro"]["recall@3"] < 1
        assert record["systems"][system.name]["settings"]["a"] == 1


def test_a_missing_library_ends_the_cell_in_one_line(monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "implicit" else find(name)
    )
    assert baseline_job.main(["--system=implicit", f"--config={CONFIG}", "--workdir=nowhere"]) == 2
    assert capsys.readouterr().err == (
        "error: implicit ALS and BPR: expected the library implicit, found none; "
        "pip install '.[peers]'\n"
    )


@pytest.mark.parametrize(
    ("arguments", "got"),
    [(["--system=svd"], "svd"), (["--system", "svd"], "svd"), (["--system"], "none"), ([], "none")],
)
def test_an_unknown_system_is_refused_with_the_names_there_are(arguments, got, capsys):
    assert baseline_job.main(arguments) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: --system: expected one of references, implicit, ")
    assert told.endswith(f"got {got}\n")
