"""The work list with cells that take no time: a script stands for every run."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from dsmoe_jax.baselines import catalogue
from dsmoe_jax.compare import budget, numerics, plan, runner
from dsmoe_jax.training import interrupt
from tests.compare import orphans

CONFIG = "configs/kuairand.py:sample"
SUMMARY = {"scenarios": {"K1": {"queries": 2, "recall@5": 0.5, "ndcg@5": 1}}, "macro": {}}
RESULTS = {"k": [5], **SUMMARY, "validation": SUMMARY, "teacher": None, "params": {"dense": 1}}
# Writes what a run would, after a note of having run.
RUN = """
import pathlib, shutil, sys, time
template, workdir, log, seconds, status = sys.argv[1:]
with open(log, "a") as file: file.write(workdir + "\\n")
time.sleep(float(seconds))
if int(status): sys.exit("error: it went wrong")
shutil.copytree(template, workdir, dirs_exist_ok=True)
"""


@pytest.fixture
def suite(tmp_path, monkeypatch):
    return Suite(tmp_path, monkeypatch)


class Suite:
    """Makes work lists of Table 4 whose cells are scripts."""

    def __init__(self, tmp_path, monkeypatch):
        self.folder, self.log = tmp_path / "suite", tmp_path / "log"
        self.seconds, self.failing = 0.0, set()
        template = tmp_path / "template"
        template.mkdir()
        summary = {**SUMMARY, "macro": {"recall@5": 0.5}}
        found = {**RESULTS, **summary, "validation": summary}
        (template / "results.json").write_text(json.dumps(found))
        points = [("teacher", 4), ("student", 5), ("student", 10)]
        (template / "metrics.jsonl").write_text(
            "".join(
                json.dumps({"stage": stage, "step": step, "eval/macro/recall@50": 0.1}) + "\n"
                for stage, step in points
            )
        )
        column = np.arange(3, dtype=np.int32)
        np.savez(
            template / "arrays.npz",
            **{"query": column, "scenario": 0 * column, "relevant": 1 + 0 * column},
            **{"hits@5": 0 * column, "gate_weights/user": np.full((4, 3), 1 / 3)},
        )

        def command(work, cell):
            arguments = (template, work.workdir(cell), self.log, self.seconds)
            status = int(cell.row.name in self.failing)
            return [sys.executable, "-c", RUN, *map(str, arguments), str(status)]

        data = runner._Store(tmp_path, "d" * 64)
        monkeypatch.setattr(runner.WorkList, "command", command)
        monkeypatch.setattr(runner.WorkList, "_store", lambda work, cell: data)
        monkeypatch.setattr(runner.costs, "count", lambda experiment, folder: {"user": 7})

    def make(self, *flags):
        cells = plan.make_cells(["table4"], CONFIG, budget.BUDGETS["small"], flags=flags)
        return runner.WorkList(cells[:4], self.folder)

    def ran(self):
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line.split("/")[-2] for line in lines]


ALL = ["teacher-seed0", "dsmoe-seed0", "no_sap-seed0", "no_distill-seed0"]


@pytest.mark.parametrize("workers", [1, 2])
def test_every_cell_runs_once_a_teacher_before_its_students(suite, workers):
    suite.make().run(workers)
    assert sorted(suite.ran()) == sorted(ALL)
    assert suite.ran().index("teacher-seed0") < suite.ran().index("dsmoe-seed0")
    again = suite.make()
    assert [state.state for state in again.states] == ["done"] * 4
    again.run(workers)
    assert len(suite.ran()) == 4


def test_a_record_holds_what_tables_need(suite):
    suite.make().run(1)
    record = json.loads((suite.folder / "records" / "dsmoe-seed0.json").read_text())
    assert record["teacher_cell"] == "teacher-seed0"
    assert record["costs"] == {"user": 7}
    assert record["views"]["gate_weights/user"][0] == [0.33333] * 3
    system = record["systems"]["dsmoe"]
    assert system["scenarios"]["K1"] == {"queries": 2, "recall@5": 0.5}
    assert {"query", "scenario", "relevant", "hits@5"} == set(system["queries"])
    teacher = json.loads((suite.folder / "records" / "teacher-seed0.json").read_text())
    assert teacher["wall_s"] >= 0
    for kept, epochs in ((record, 2), (teacher, 1)):
        assert [kept[name] for name in ("epochs", "max_epochs", "max_minutes")] == [epochs, 15, 3.0]


def test_another_configuration_or_version_of_a_component_is_run_again(suite, monkeypatch):
    suite.make().run(1)
    changed = suite.make("--config.train.num_negatives=5")
    assert [state.state for state in changed.states] == ["left"] * 4
    changed.run(1)
    assert len(suite.ran()) == 8
    # The workdirs of before are gone.
    assert len(list((suite.folder / "cells" / "dsmoe-seed0").iterdir())) == 1
    monkeypatch.setitem(numerics.VERSIONS, "dsmoe", numerics.VERSIONS["dsmoe"] + 1)
    flags = "--config.train.num_negatives=5"
    teacher, *students = [state.state for state in suite.make(flags).states]
    assert students == ["left"] * 3
    assert teacher == "done", "it does not depend on its students' method"
    monkeypatch.setitem(numerics.VERSIONS, "training", numerics.VERSIONS["training"] + 1)
    assert {state.state for state in suite.make(flags).states} == {"left"}


def test_versions_of_components_that_it_does_not_use_are_not_a_records_concern(suite, monkeypatch):
    suite.make().run(1)
    for name in ("perscen", "ple", "baselines"):
        monkeypatch.setitem(numerics.VERSIONS, name, numerics.VERSIONS[name] + 1)
    monkeypatch.setattr(numerics, "code_hash", lambda: "other")
    assert {state.state for state in suite.make().states} == {"done"}


def test_a_failed_cell_is_told_and_tried_again_and_stops_no_other(suite):
    suite.failing = {"no_sap"}
    work = suite.make()
    work.run(2)
    assert [state.state for state in work.states] == ["done", "done", "failed", "done"]
    assert work.states[2].note.startswith("error: it went wrong (see ")
    suite.failing = set()
    again = suite.make()
    assert again.states[2].state == "failed"
    again.run(1)
    assert [state.state for state in again.states] == ["done"] * 4
    assert list((suite.folder / "failed").iterdir()) == []


def test_students_of_a_failed_teacher_are_not_run(suite):
    suite.failing = {"teacher"}
    work = suite.make()
    work.run(1)
    assert [state.state for state in work.states] == ["failed", "failed", "failed", "done"]
    assert work.states[1].note == "its teacher teacher-seed0 failed"
    assert suite.ran() == ["teacher-seed0", "no_distill-seed0"]


def test_one_cell_is_run_with_its_teacher(suite):
    work = suite.make()
    states = work.run(1, only=2)
    assert suite.ran() == ["teacher-seed0", "no_sap-seed0"]
    assert [(state.name, state.state) for state in states] == [(n, "done") for n in suite.ran()]


def test_one_cell_does_not_fail_for_another(suite):
    suite.failing = {"no_distill"}
    suite.make().run(1)
    states = suite.make().run(1, only=1)
    assert [(state.name, state.state) for state in states] == [("dsmoe-seed0", "done")]


def test_a_cell_that_runs_elsewhere_is_waited_for(suite):
    work = suite.make()
    holder = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); "
    holder += "print('held', flush=True); time.sleep(1.5)"
    lock = suite.folder / "cells" / "no_distill-seed0.lock"
    other = subprocess.Popen(
        [sys.executable, "-c", holder, str(lock)], stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "held\n"
    work.run(1)
    assert other.wait() == 0
    other.stdout.close()
    assert suite.ran()[-1] == "no_distill-seed0"


def test_what_another_list_finished_is_not_run_again(suite):
    late = suite.make()
    suite.make().run(1)
    late.run(1)
    assert len(suite.ran()) == 4
    assert [state.state for state in late.states] == ["done"] * 4


def test_a_peer_without_its_library_is_left_out_unless_it_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "list_missing", lambda: ["lightfm"])
    data = runner._Store(tmp_path, "d" * 64)
    monkeypatch.setattr(runner.WorkList, "_store", lambda work, cell: data)
    cells = plan.make_cells(["table2"], CONFIG, budget.BUDGETS["small"])
    [cell] = [cell for cell in cells if cell.name == "lightfm-seed1"]
    work = runner.WorkList([cell], tmp_path)
    assert work.states[0].state == "left out"
    assert work.run(1)[0].state == "left out", "nothing is started"
    record = {**dataclasses.asdict(work.identity(cell)), "wall_s": 1.0}
    (work.records / "lightfm-seed1.json").write_text(json.dumps(record))
    assert runner.WorkList([cell], tmp_path).states[0].state == "done"


def test_results_whose_list_was_killed_are_kept(suite):
    suite.make().run(1)
    for name in ("no_sap-seed0", "no_distill-seed0"):
        (suite.folder / "records" / f"{name}.json").unlink()
    suite.make().run(1)
    assert len(suite.ran()) == 4


def test_a_teacher_of_which_only_the_record_is_left_is_trained_again_for_who_needs_it(suite):
    suite.make().run(1)
    shutil.rmtree(suite.folder / "cells")
    assert [state.state for state in suite.make().states] == ["done"] * 4
    (suite.folder / "records" / "no_sap-seed0.json").unlink()
    early, work = suite.make(), suite.make()
    assert [state.state for state in work.states] == ["left", "done", "left", "done"]
    work.run(1)
    assert suite.ran()[4:] == ["teacher-seed0", "no_sap-seed0"]
    assert {state.state for state in suite.make().states} == {"done"}
    early.run(1)
    assert len(suite.ran()) == 6


def test_while_such_a_teacher_is_trained_no_list_takes_it_for_done(suite):
    suite.make().run(1)
    shutil.rmtree(suite.folder / "cells")
    (suite.folder / "records" / "no_sap-seed0.json").unlink()
    suite.failing = {"teacher"}
    suite.make().run(1)
    again = suite.make()
    assert [state.state for state in again.states] == ["failed", "done", "left", "done"]
    assert again.run(1, only=1)[0].name == "dsmoe-seed0"
    suite.failing = set()
    suite.make().run(1)
    assert suite.ran()[4:] == ["teacher-seed0", "teacher-seed0", "no_sap-seed0"]


def test_a_cell_that_a_killed_list_left_running_is_stopped_and_goes_on(suite):
    work = suite.make()
    path = suite.folder / "cells" / "no_sap-seed0.lock"
    orphans.leave(path, suite.log.with_name("orphan.txt"))
    work.run(2)
    assert sorted(suite.ran()) == sorted(ALL)


def test_asked_to_stop_it_asks_its_cells_and_ends(suite):
    suite.seconds = 60
    work = suite.make()
    parent = os.getpid()
    killer = subprocess.Popen(
        [sys.executable, "-c", f"import os, time; time.sleep(1); os.kill({parent}, 15)"]
    )
    start_s = time.monotonic()
    with pytest.raises(interrupt.InterruptedRunError, match="the same command continues"):
        work.run(1)
    assert killer.wait() == 0
    assert time.monotonic() - start_s < 30
    assert list((suite.folder / "records").iterdir()) == []
    assert list((suite.folder / "failed").iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
