"""A search of hyper-parameters whose trials take no time: a stand-in trains."""

import contextlib
import csv
import dataclasses
import functools
import importlib.util
import json
import os
import pathlib
import signal
import sys
import threading
import time
import types

import optuna
import pytest

from dsmoe_jax import main
from dsmoe_jax.compare import __main__ as command_line
from dsmoe_jax.compare import processes, runner, search, tune
from dsmoe_jax.config import load, schema
from dsmoe_jax.models import registry
from dsmoe_jax.training import interrupt, loop

CONFIG = "configs/kuairand.py:sample,dssm"
# One field is left: 0.3, the configuration's own, then 0.0, 0.1 and 0.5.
FIXED = {
    "train.learning_rate": "0.001",
    "train.weight_decay": "0.0",
    "model.output_dim": "64",
    "model.hidden_dims": "(64,)",
}
# A worker in a process of its own.
WORKER = """
import json, sys
from dsmoe_jax.compare import job
from tests.compare import test_tune
log, behavior, file = sys.argv[1:]
test_tune.stand_in(log, lambda: json.loads(behavior))
sys.exit(job.main([file]))
"""


def stand_in(log, behavior, patch=setattr):
    """Makes trials note that they ran, then tell the scores of their epochs."""

    def train(experiment, workdir, stage, run_log):
        dropout = str(experiment.model.input_dropout)
        told, seconds, error = behavior().get(dropout, ([0.2], 0, ""))
        note = {
            "dropout": dropout,
            "workdir": str(workdir),
            "stage": stage,
            "from_workdir": experiment.teacher.from_workdir,
            "expert_dims": getattr(experiment.teacher.model, "expert_dims", None),
        }
        with open(log, "a") as file:
            file.write(json.dumps(note) + "\n")
        if error:
            raise loop.DivergedError(error) if "finite" in error else ValueError(error)
        for step, score in enumerate(told):
            run_log.metrics(stage, step, {"eval/macro/recall@50": score})
            time.sleep(seconds)

    patch(search, "train", train)


class Threads:
    """A machine whose jobs are threads of this process."""

    def __init__(self, workers):
        self.workers, self.cores, self.teachers = workers, 1, []

    def start(self, files):
        return [self._start(file) for file in files]

    def _start(self, file):
        task = json.loads(file.read_text())
        if task["kind"] == "teacher":
            self.teachers.append(str(file.parent))
            return Job(lambda: None, file)
        return Job(lambda: search.work(search.Request(**task["more"]), task["overrides"]), file)


class Job:
    def __init__(self, call, file):
        self._status = None

        def run():
            try:
                call()
                self._status = 0
            except ValueError as error:
                file.with_name("log.txt").write_text(f"error: {error}\n")
                self._status = 2

        self._thread = threading.Thread(target=run)
        self._thread.start()

    def poll(self):
        return self._status

    def terminate(self):
        pass

    def wait(self):
        self._thread.join()
        return self._status


class Search:
    """Makes searches whose trials are a stand-in."""

    def __init__(self, tmp_path, monkeypatch):
        self.folder, self.log = tmp_path / "tune", tmp_path / "log"
        self.behavior = {}
        self.teachers = []
        stand_in(self.log, lambda: self.behavior, monkeypatch.setattr)
        data = types.SimpleNamespace(root=tmp_path / "store", data_hash="d" * 64)
        monkeypatch.setattr(runner.Runner, "store", lambda work, job: data)
        monkeypatch.setattr(runner.queries, "keep", lambda folder, days, store: None)

    def run(
        self, num_trials=4, workers=2, config=CONFIG, fixed=FIXED, stage="student", machine=None
    ):
        request = search.Request(config, num_trials, str(self.folder), fixed, stage=stage)
        machine = machine or Threads(workers)
        found = json.loads(tune.run(request, machine).read_text())
        self.teachers = getattr(machine, "teachers", [])
        return found

    def ran(self):
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def dropouts(self):
        return [note["dropout"] for note in self.ran()]

    def rows(self):
        with (self.folder / "trials.csv").open() as file:
            return list(csv.DictReader(file))


@pytest.fixture(name="searching")
def make_search(tmp_path, monkeypatch):
    return Search(tmp_path, monkeypatch)


def scores(*values, seconds=0.0, error=""):
    return values, seconds, error


@pytest.mark.parametrize("workers", [1, 2])
def test_different_settings_are_tried_the_own_one_first_and_the_best_is_kept(searching, workers):
    searching.behavior = {"0.1": scores(0.1, 0.4, 0.3), "0.5": scores(0.1, 0.3)}
    found = searching.run(workers=workers)
    assert searching.rows()[0]["model.input_dropout"] == "0.3"
    assert sorted(searching.dropouts()) == ["0.0", "0.1", "0.3", "0.5"]
    assert all(note["stage"] == "student" for note in searching.ran())
    assert found["setting"] == {"model.input_dropout": "0.1"}
    assert found["score"] == {"validation macro recall@50": 0.4}
    assert found["flags"] == ["--config.model.input_dropout=0.1"]
    assert found["trials"] == 4
    row = next(row for row in searching.rows() if row["model.input_dropout"] == "0.1")
    assert (row["score"], row["epochs"], row["end"]) == ("0.4", "3", "done")
    for ending in ("png", "svg"):
        assert (searching.folder / f"trials.{ending}").stat().st_size > 1000


def test_more_trials_go_on_from_there_and_never_beyond_the_space(searching):
    searching.run(2)
    assert len(searching.ran()) == 2
    searching.run(2)
    assert len(searching.ran()) == 2
    assert searching.run(99)["trials"] == 4
    assert len(searching.ran()) == len(set(searching.dropouts())) == 4


def test_another_configuration_is_another_study_in_the_folder(searching):
    searching.run(1)
    searching.run(1, fixed={**FIXED, "seed": "3"})
    assert searching.dropouts() == ["0.3", "0.3"]


def stop_when(condition, act=lambda: signal.raise_signal(signal.SIGTERM)):
    def wait():
        while not condition():
            time.sleep(0.02)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.mark.parametrize("is_killed", [False, True])
def test_what_was_running_when_it_ended_is_tried_again_in_its_folder(
    searching, monkeypatch, is_killed
):
    slow = scores(0.1, 0.4, seconds=60)
    searching.behavior = {"0.3": scores(0.1), "0.0": slow, "0.1": slow, "0.5": slow}
    behavior = json.dumps(searching.behavior)
    monkeypatch.setattr(
        processes,
        "command",
        lambda file: [sys.executable, "-c", WORKER, str(searching.log), behavior, str(file)],
    )

    def kill():
        if not is_killed:
            return signal.raise_signal(signal.SIGTERM)
        [lock] = searching.folder.glob("jobs/worker0-seed0.lock")
        os.kill(int(lock.read_text().split()[2]), signal.SIGKILL)

    def is_slow():
        return any("0.1" in path.read_text() for path in metrics()[1:])

    def metrics():
        return sorted(searching.folder.glob("trials/*/metrics.jsonl"), key=os.path.getmtime)

    thread = stop_when(is_slow, kill)
    error = ValueError if is_killed else interrupt.InterruptedRunError
    with pytest.raises(error, match="worker0-seed0 failed" if is_killed else "continues"):
        searching.run(machine=processes.ThisMachine(1))
    thread.join()
    stopped = searching.ran()[1]
    searching.behavior = {stopped["dropout"]: scores(0.1, 0.4)}
    assert searching.run(workers=1)["score"] == {"validation macro recall@50": 0.4}
    assert searching.ran()[2] == stopped
    assert len(searching.ran()) == 5


def test_a_trial_whose_worker_is_gone_is_taken_up_by_another(searching):
    searching.folder.mkdir()
    study = search.Study(search.Request(CONFIG, 2, str(searching.folder), FIXED))
    with contextlib.ExitStack() as gone:
        trial = study.take(gone)
    assert (trial.params, searching.run(2)["trials"]) == ({"model.input_dropout": "0.3"}, 2)
    assert sorted(searching.dropouts())[-1] == "0.3"


def test_a_trial_that_falls_behind_is_ended_early(searching, monkeypatch):
    monkeypatch.setattr(search, "STARTUP_TRIALS", 1)
    monkeypatch.setattr(search, "WARMUP_EPOCHS", 1)
    good, bad = scores(0.3, 0.4, 0.5), scores(*[0.1] * 600)
    searching.behavior = {"0.3": good, "0.0": bad, "0.1": bad, "0.5": bad}
    assert searching.run(2, workers=1)["score"] == {"validation macro recall@50": 0.5}
    behind = searching.rows()[1]
    assert (behind["end"], behind["score"]) == ("ended early", "0.1")
    assert int(behind["epochs"]) < 10


def ended(score):
    choices = optuna.distributions.CategoricalDistribution(("1", "2"))
    return optuna.trial.create_trial(
        state=optuna.trial.TrialState.FAIL,
        params={"train.batch_size": "1"},
        distributions={"train.batch_size": choices},
        user_attrs={"end": "done", "seconds": 1.0},
        intermediate_values={0: score},
    )


def test_a_setting_that_ended_as_the_search_was_killed_is_one_row(tmp_path, monkeypatch):
    # Its end was noted, its study was not told, and so it was tried again.
    study = search.Study(search.Request(CONFIG, 2, str(tmp_path)))
    study.space = {"train.batch_size": (1, 2)}
    monkeypatch.setattr(study, "trials", lambda: [ended(0.1), ended(0.2)])
    found = search.write_results(study)
    assert json.loads(found.read_text())["trials"] == 1
    assert json.loads(found.read_text())["score"] == {"validation macro recall@50": 0.2}


def test_a_loss_that_is_not_finite_is_a_trial_without_a_score(searching):
    searching.behavior = {"0.5": scores(error="the loss is not finite")}
    searching.run()
    row = next(row for row in searching.rows() if row["model.input_dropout"] == "0.5")
    assert (row["end"], row["score"]) == ("diverged", "")


def test_a_trial_that_fails_otherwise_ends_the_search(searching):
    searching.behavior = {"0.3": scores(error="no such device")}
    message = r"worker0-seed0 failed: error: no such device \(see .*log\.txt\)"
    with pytest.raises(ValueError, match=message):
        searching.run(workers=1)


def test_trials_of_a_distilled_method_share_a_teacher(searching):
    searching.run(2, config="configs/kuairand.py:sample", fixed={})
    [teacher] = searching.teachers
    assert pathlib.Path(teacher).parent == searching.folder / "jobs" / "teacher-seed0"
    assert {note["from_workdir"] for note in searching.ran()} == {teacher}


def test_a_teachers_own_values_are_searched_by_training_it_alone(searching):
    fixed = {
        "teacher.learning_rate": "0.001",
        "teacher.weight_decay": "0.0",
        "teacher.model.input_dropout": "0.3",
        "teacher.model.dropout": "0.1",
        "teacher.model.shared_experts": "1",
    }
    config = "configs/kuairand.py:sample,teacher=ple"
    found = searching.run(4, config=config, fixed=fixed, stage="teacher")
    assert searching.teachers == []
    assert {note["stage"] for note in searching.ran()} == {"teacher"}
    assert {note["from_workdir"] for note in searching.ran()} == {""}
    assert list(found["setting"]) == ["teacher.model.expert_dims"]
    assert found["score"] == {"validation macro recall@50": 0.2}
    assert len({str(note["expert_dims"]) for note in searching.ran()}) == 3


def test_a_trial_that_ends_while_another_worker_looks_is_done(searching, monkeypatch):
    searching.folder.mkdir()
    request = search.Request(CONFIG, 3, str(searching.folder), FIXED)
    ours, others = search.Study(request), search.Study(request)
    with contextlib.ExitStack() as running, contextlib.ExitStack() as stack:
        ending = others.take(running)
        read = ours.trials

        def read_late():
            found = read()
            monkeypatch.setattr(ours, "trials", read)
            others.tell(ending, "done", 0.2, 1.0)
            running.close()
            return found

        monkeypatch.setattr(ours, "trials", read_late)
        taken = ours.take(stack)
    assert taken.params != ending.params
    assert [trial.state.name for trial in ours.trials()] == ["COMPLETE", "RUNNING"]


def test_only_one_search_works_on_a_folder(searching):
    searching.folder.mkdir()
    with (
        processes.lock(searching.folder / "study.lock"),
        pytest.raises(ValueError, match="another search works on it"),
    ):
        searching.run()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--config", CONFIG, "--trials", "0"), "--trials: expected a number >= 1, got 0"),
        (("--config", CONFIG, "--workers", "0"), "--workers: expected a number >= 1, got 0"),
        (("--config", CONFIG, "--stage", "teacher"), "learns from a teacher, got configs/kuai"),
        (("--config", "configs/kuairan.py"), "no such file"),
        (("--config", CONFIG, "--config.train.learning_rat=1"), "nearest: 'config.train.learn"),
    ],
)
def test_a_wrong_request_is_refused_in_one_line(capsys, tmp_path, arguments, message):
    assert command_line.main(["tune", *arguments, "--dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_without_optuna_the_extra_is_named(searching, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install '\.\[tune\]'"):
        searching.run()


@pytest.mark.parametrize(
    ("stage", "token"),
    [
        *(("student", token) for token in ("", *registry.METHOD_TOKENS)),
        *(("teacher", token) for token in registry.TEACHER_TOKENS),
    ],
)
def test_every_value_of_a_space_is_a_flag_that_means_it(stage, token):
    variant = f"sample,{token}"
    experiment = load.load_experiment("configs/kuairand.py", variant)
    space = search.make_space(experiment, stage=stage)

    def read(experiment, field):
        return functools.reduce(getattr, field.split("."), experiment)

    for field, choices in space.items():
        assert len(set(choices)) == len(choices)
        assert read(experiment, field) == choices[0]
    # One command for the first value of every field, one for the second and so on.
    for number in range(max(map(len, space.values()))):
        setting = {field: values[min(number, len(values) - 1)] for field, values in space.items()}
        flags = [f"--config.{f}={search.as_text(value)}" for f, value in setting.items()]
        command = ["", f"--config=configs/kuairand.py:{variant}", *flags]
        parsed = main.parse(command).experiment
        assert {field: read(parsed, field) for field in space} == setting


@pytest.mark.parametrize(
    ("more", "stage", "folder"),
    [
        ((), "student", "tune-kuairand-sample-dssm"),
        (("--stage=teacher",), "teacher", "tune-kuairand-sample-dssm-teacher"),
    ],
)
def test_a_teachers_search_has_a_folder_of_its_own(monkeypatch, tmp_path, more, stage, folder):
    asked = []

    def run(request, machine):
        asked.append(request)
        path = tmp_path / "best.json"
        path.write_text("{}")
        return path

    monkeypatch.setattr(tune, "run", run)
    assert command_line.main(["tune", f"--config={CONFIG}", *more]) == 0
    assert (asked[0].stage, pathlib.Path(asked[0].folder).name) == (stage, folder)


def test_a_field_that_a_method_lacks_is_not_searched():
    experiment = load.load_experiment("configs/kuairand.py", "sample,dssm")

    @dataclasses.dataclass
    class PlainConfig(schema.MatcherConfig):
        output_dim: int = 8

    experiment.model = PlainConfig()
    space = search.make_space(experiment)
    assert space["model.output_dim"] == (8, 32, 64, 128)
    assert "model.input_dropout" not in space


def test_a_space_without_fields_or_with_a_wrong_one_is_refused(monkeypatch):
    experiment = load.load_experiment("configs/kuairand.py", "sample,dssm")
    everything = tuple(search.make_space(experiment))
    with pytest.raises(ValueError, match="expected at least one field"):
        search.make_space(experiment, everything)
    monkeypatch.setattr(type(experiment.model), "search_space", {"widths": (1, 2)})
    with pytest.raises(ValueError, match="expected names of its fields, got 'widths'"):
        search.make_space(experiment)
