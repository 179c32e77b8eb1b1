"""The runner with jobs that take no time: a script stands for every run."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest

from dsmoe_jax.baselines import catalogue
from dsmoe_jax.compare import hits, numerics, plan, processes, runner
from dsmoe_jax.training import interrupt
from tests.compare import orphans

CONFIG = "configs/kuairand.py:sample"
SUMMARY = {"scenarios": {"K1": {"queries": 2, "recall@5": 0.5, "ndcg@5": 1}}, "macro": {}}
RESULTS = {"k": [5], **SUMMARY, "validation": SUMMARY, "teacher": None, "params": {"dense": 1}}
# Writes what a run would, after a note of having run.
RUN = """
import json, pathlib, shutil, sys, time
template, log, seconds, failing, file = sys.argv[1:]
workdir = str(pathlib.Path(file).parent)
with open(log, "a") as file_: file_.write(workdir + "\\n")
time.sleep(float(seconds))
if json.loads(pathlib.Path(file).read_text())["system"] in failing.split(","):
    sys.exit("error: it went wrong")
shutil.copytree(template, workdir, dirs_exist_ok=True)
"""


@pytest.fixture
def comparison(tmp_path, monkeypatch):
    return Comparison(tmp_path, monkeypatch)


class Comparison:
    """Makes runners of Table 4 whose jobs are scripts."""

    def __init__(self, tmp_path, monkeypatch):
        self.folder, self.log = tmp_path / "comparison", tmp_path / "log"
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

        def command(file):
            arguments = (template, self.log, self.seconds, ",".join(self.failing), file)
            return [sys.executable, "-c", RUN, *map(str, arguments)]

        data = types.SimpleNamespace(root=tmp_path, data_hash="d" * 64)
        monkeypatch.setattr(processes, "command", command)
        monkeypatch.setattr(runner.Runner, "store", lambda work, job: data)
        monkeypatch.setattr(runner.costs, "count", lambda experiment, store: {"user": 7})
        # No store, and so no queries of which something is known.
        self.kept = []
        monkeypatch.setattr(
            runner.queries, "keep", lambda folder, days, store: self.kept.append((folder, days))
        )

    def make(self, **overrides):
        jobs = plan.make_jobs(["table4"], CONFIG, plan.BUDGETS["small"], overrides=overrides)
        return runner.Runner(jobs[:4], self.folder)

    def run(self, workers, **overrides):
        return self.make(**overrides).run(processes.ThisMachine(workers))

    def ran(self):
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line.split("/")[-2] for line in lines]


ALL = ["teacher-seed0", "dsmoe-seed0", "no_sap-seed0", "no_distill-seed0"]


@pytest.mark.parametrize("workers", [1, 2])
def test_every_job_runs_once_a_teacher_before_its_students(comparison, workers):
    comparison.run(workers)
    assert sorted(comparison.ran()) == sorted(ALL)
    assert comparison.ran().index("teacher-seed0") < comparison.ran().index("dsmoe-seed0")
    again = comparison.make()
    assert [state.state for state in again.states] == ["done"] * 4
    again.run(processes.ThisMachine(workers))
    assert len(comparison.ran()) == 4


def test_a_record_holds_what_tables_need(comparison):
    comparison.run(1)
    record = json.loads((comparison.folder / "records" / "dsmoe-seed0.json").read_text())
    assert record["teacher_job"] == "teacher-seed0"
    assert record["costs"] == {"user": 7}
    assert (comparison.folder / "records", 0) in comparison.kept
    assert record["views"]["gate_weights/user"][0] == [0.33333] * 3
    system = record["systems"]["dsmoe"]
    assert system["scenarios"]["K1"] == {"queries": 2, "recall@5": 0.5}
    assert len(hits.load(comparison.folder / "records")["dsmoe-seed0", "dsmoe"].hits[5]) == 3
    teacher = json.loads((comparison.folder / "records" / "teacher-seed0.json").read_text())
    assert teacher["wall_s"] >= 0
    for kept, epochs in ((record, 2), (teacher, 1)):
        assert [kept[name] for name in ("epochs", "max_epochs", "max_minutes")] == [epochs, 15, 3.0]


def test_another_configuration_or_version_of_a_component_is_run_again(comparison, monkeypatch):
    comparison.run(1)
    changed = comparison.make(**{"train.num_negatives": 5})
    assert [state.state for state in changed.states] == ["left"] * 4
    changed.run(processes.ThisMachine(1))
    assert len(comparison.ran()) == 8
    # The workdirs of before are gone.
    assert len(list((comparison.folder / "jobs" / "dsmoe-seed0").iterdir())) == 1
    monkeypatch.setitem(numerics.VERSIONS, "dsmoe", numerics.VERSIONS["dsmoe"] + 1)
    flags = {"train.num_negatives": 5}
    teacher, *students = [state.state for state in comparison.make(**flags).states]
    assert students == ["left"] * 3
    assert teacher == "done", "it does not depend on its students' method"
    monkeypatch.setitem(numerics.VERSIONS, "training", numerics.VERSIONS["training"] + 1)
    assert {state.state for state in comparison.make(**flags).states} == {"left"}


def test_versions_of_components_that_it_does_not_use_are_not_a_records_concern(
    comparison, monkeypatch
):
    comparison.run(1)
    for name in ("perscen", "ple", "baselines"):
        monkeypatch.setitem(numerics.VERSIONS, name, numerics.VERSIONS[name] + 1)
    monkeypatch.setattr(numerics, "code_hash", lambda: "other")
    assert {state.state for state in comparison.make().states} == {"done"}


def test_a_failed_job_is_told_and_tried_again_and_stops_no_other(comparison):
    comparison.failing = {"no_sap"}
    work = comparison.make()
    work.run(processes.ThisMachine(2))
    assert [state.state for state in work.states] == ["done", "done", "failed", "done"]
    assert work.states[2].note.startswith("error: it went wrong (see ")
    comparison.failing = set()
    again = comparison.make()
    assert again.states[2].state == "failed"
    again.run(processes.ThisMachine(1))
    assert [state.state for state in again.states] == ["done"] * 4
    assert list((comparison.folder / "failed").iterdir()) == []


def test_students_of_a_failed_teacher_are_not_run(comparison):
    comparison.failing = {"teacher"}
    work = comparison.make()
    work.run(processes.ThisMachine(1))
    assert [state.state for state in work.states] == ["failed", "failed", "failed", "done"]
    assert work.states[1].note == "its teacher teacher-seed0 failed"
    assert comparison.ran() == ["teacher-seed0", "no_distill-seed0"]


def test_one_job_is_run_with_its_teacher(comparison):
    work = comparison.make()
    states = work.run(processes.ThisMachine(1), only=2)
    assert comparison.ran() == ["teacher-seed0", "no_sap-seed0"]
    assert [(state.name, state.state) for state in states] == [
        (n, "done") for n in comparison.ran()
    ]


def test_one_job_does_not_fail_for_another(comparison):
    comparison.failing = {"no_distill"}
    comparison.run(1)
    states = comparison.make().run(processes.ThisMachine(1), only=1)
    assert [(state.name, state.state) for state in states] == [("dsmoe-seed0", "done")]


def test_a_job_that_runs_elsewhere_is_waited_for(comparison):
    work = comparison.make()
    holder = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); "
    holder += "print('held', flush=True); time.sleep(1.5)"
    lock = comparison.folder / "jobs" / "no_distill-seed0.lock"
    other = subprocess.Popen(
        [sys.executable, "-c", holder, str(lock)], stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "held\n"
    work.run(processes.ThisMachine(1))
    assert other.wait() == 0
    other.stdout.close()
    assert comparison.ran()[-1] == "no_distill-seed0"


def test_what_another_runner_finished_is_not_run_again(comparison):
    late = comparison.make()
    comparison.run(1)
    late.run(processes.ThisMachine(1))
    assert len(comparison.ran()) == 4
    assert [state.state for state in late.states] == ["done"] * 4


def test_a_peer_without_its_library_is_left_out_unless_it_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "list_missing", lambda: ["lightfm"])
    data = types.SimpleNamespace(root=tmp_path, data_hash="d" * 64)
    monkeypatch.setattr(runner.Runner, "store", lambda work, job: data)
    jobs = plan.make_jobs(["table2"], CONFIG, plan.BUDGETS["small"])
    [job] = [job for job in jobs if job.name == "lightfm-seed1"]
    work = runner.Runner([job], tmp_path)
    assert work.states[0].state == "left out"
    assert work.run(processes.ThisMachine(1))[0].state == "left out", "nothing is started"
    record = {**dataclasses.asdict(work.identity(job)), "wall_s": 1.0}
    (work.records / "lightfm-seed1.json").write_text(json.dumps(record))
    assert runner.Runner([job], tmp_path).states[0].state == "done"


def test_results_whose_runner_was_killed_are_kept(comparison):
    comparison.run(1)
    for name in ("no_sap-seed0", "no_distill-seed0"):
        (comparison.folder / "records" / f"{name}.json").unlink()
    comparison.run(1)
    assert len(comparison.ran()) == 4


def test_a_teacher_of_which_only_the_record_is_left_is_trained_again_for_who_needs_it(comparison):
    comparison.run(1)
    shutil.rmtree(comparison.folder / "jobs")
    assert [state.state for state in comparison.make().states] == ["done"] * 4
    (comparison.folder / "records" / "no_sap-seed0.json").unlink()
    early, work = comparison.make(), comparison.make()
    assert [state.state for state in work.states] == ["left", "done", "left", "done"]
    work.run(processes.ThisMachine(1))
    assert comparison.ran()[4:] == ["teacher-seed0", "no_sap-seed0"]
    assert {state.state for state in comparison.make().states} == {"done"}
    early.run(processes.ThisMachine(1))
    assert len(comparison.ran()) == 6


def test_while_such_a_teacher_is_trained_no_runner_takes_it_for_done(comparison):
    comparison.run(1)
    shutil.rmtree(comparison.folder / "jobs")
    (comparison.folder / "records" / "no_sap-seed0.json").unlink()
    comparison.failing = {"teacher"}
    comparison.run(1)
    again = comparison.make()
    assert [state.state for state in again.states] == ["failed", "done", "left", "done"]
    assert again.run(processes.ThisMachine(1), only=1)[0].name == "dsmoe-seed0"
    comparison.failing = set()
    comparison.run(1)
    assert comparison.ran()[4:] == ["teacher-seed0", "teacher-seed0", "no_sap-seed0"]


def test_a_job_that_a_killed_runner_left_running_is_stopped_and_goes_on(comparison):
    work = comparison.make()
    path = comparison.folder / "jobs" / "no_sap-seed0.lock"
    orphans.leave(path, comparison.log.with_name("orphan.txt"))
    work.run(processes.ThisMachine(2))
    assert sorted(comparison.ran()) == sorted(ALL)


def test_asked_to_stop_it_asks_its_jobs_and_ends(comparison):
    comparison.seconds = 60
    work = comparison.make()
    parent = os.getpid()
    killer = subprocess.Popen(
        [sys.executable, "-c", f"import os, time; time.sleep(1); os.kill({parent}, 15)"]
    )
    start_s = time.monotonic()
    with pytest.raises(interrupt.InterruptedRunError, match="the same command continues"):
        work.run(processes.ThisMachine(1))
    assert killer.wait() == 0
    assert time.monotonic() - start_s < 30
    assert list((comparison.folder / "records").iterdir()) == []
    assert list((comparison.folder / "failed").iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_job_that_another_process_took_first_is_left_until_it_is_free(comparison, monkeypatch):
    work, started = comparison.make(), []
    command = processes.command

    def taken_once(file):
        started.append(file)
        taken = [sys.executable, "-c", f"raise SystemExit({processes.TAKEN})"]
        return taken if len(started) == 1 else command(file)

    monkeypatch.setattr(processes, "command", taken_once)
    work.run(processes.ThisMachine(1))
    assert [state.state for state in work.states] == ["done"] * 4
    assert started[0] == started[1]
    assert list((comparison.folder / "failed").iterdir()) == []
