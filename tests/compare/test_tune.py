"""A search of hyper-parameters whose trials take no time: a script stands for every run."""

import csv
import dataclasses
import functools
import importlib.util
import json
import signal
import sys
import threading
import time

import optuna
import pytest

from dsmoe_jax.compare import __main__ as command_line
from dsmoe_jax.compare import processes, search_results, search_space, tune
from dsmoe_jax.config import load, schema
from dsmoe_jax.data.prepare import kuairand
from dsmoe_jax.models import registry
from dsmoe_jax.training import interrupt

CONFIG = "configs/kuairand.py:sample,dssm"
# One field is left: 0.3, the configuration's own, then 0.0, 0.1 and 0.5.
FLAGS = (
    "--config.train.learning_rate=0.001",
    "--config.train.weight_decay=0.0",
    "--config.model.output_dim=64",
    "--config.model.hidden_dims=(64,)",
)
# Notes that it ran, then writes the scores of its epochs, one every so many seconds.
RUN = """
import json, pathlib, sys, time
log, behavior, *arguments = sys.argv[1:]
flags = dict(a.partition("=")[::2] for a in arguments)
dropout = flags.get("--config.model.input_dropout", "teacher")
scores, seconds, error = json.loads(behavior).get(dropout, ([0.2], 0, ""))
workdir = pathlib.Path(flags["--workdir"])
with open(log, "a") as file: file.write(json.dumps(flags) + "\\n")
if error: sys.exit(error)
done = workdir / "metrics.jsonl"
for step, score in enumerate(scores):
    time.sleep(seconds)
    point = {"stage": flags["--mode"], "step": step, "eval/macro/recall@50": score}
    with done.open("a") as file: file.write(json.dumps(point) + "\\n")
"""


class Search:
    """Makes searches whose trials are scripts."""

    def __init__(self, tmp_path, monkeypatch):
        self.folder, self.log = tmp_path / "tune", tmp_path / "log"
        self.behavior = {}

        def command(search, workdir):
            arguments = (*search._arguments, f"--workdir={workdir}")
            return [sys.executable, "-c", RUN, str(self.log), json.dumps(self.behavior), *arguments]

        monkeypatch.setattr(tune._Search, "_command", command)
        monkeypatch.setattr(kuairand.KuaiRandConfig, "prepare", lambda data, folder: None)

    def run(self, num_trials=4, workers=2, config=CONFIG, flags=FLAGS, stage="student"):
        request = tune.Request(config, num_trials, self.folder, workers, flags, stage=stage)
        return json.loads(tune.run(request).read_text())

    def ran(self):
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def dropouts(self):
        return [flags["--config.model.input_dropout"] for flags in self.ran()]

    def rows(self):
        with (self.folder / "trials.csv").open() as file:
            return list(csv.DictReader(file))


@pytest.fixture
def search(tmp_path, monkeypatch):
    return Search(tmp_path, monkeypatch)


def scores(*values, seconds=0.0, error=""):
    return values, seconds, error


@pytest.mark.parametrize("workers", [1, 2])
def test_different_settings_are_tried_the_own_one_first_and_the_best_is_kept(search, workers):
    search.behavior = {"0.1": scores(0.1, 0.4, 0.3), "0.5": scores(0.1, 0.3)}
    found = search.run(workers=workers)
    assert search.rows()[0]["model.input_dropout"] == "0.3"
    assert sorted(search.dropouts()) == ["0.0", "0.1", "0.3", "0.5"]
    assert all(flags["--mode"] == "student" for flags in search.ran())
    assert found["setting"] == {"model.input_dropout": "0.1"}
    assert found["score"] == {"validation macro recall@50": 0.4}
    assert found["flags"] == ["--config.model.input_dropout=0.1"]
    assert found["trials"] == 4
    row = next(row for row in search.rows() if row["model.input_dropout"] == "0.1")
    assert (row["score"], row["epochs"], row["end"]) == ("0.4", "3", "done")
    for ending in ("png", "svg"):
        assert (search.folder / f"trials.{ending}").stat().st_size > 1000


def test_more_trials_go_on_from_there_and_never_beyond_the_space(search):
    search.run(2)
    assert len(search.ran()) == 2
    search.run(2)
    assert len(search.ran()) == 2
    assert search.run(99)["trials"] == 4
    assert len(search.ran()) == len(set(search.dropouts())) == 4


def test_another_configuration_is_another_study_in_the_folder(search):
    search.run(1)
    search.run(1, flags=(*FLAGS, "--config.seed=3"))
    assert search.dropouts() == ["0.3", "0.3"]


def stop_when(condition):
    def wait():
        while not condition():
            time.sleep(0.02)
        signal.raise_signal(signal.SIGTERM)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_what_was_running_when_it_stopped_is_tried_again_in_its_folder(search):
    search.behavior = {"0.3": scores(0.1), "0.0": scores(0.2, seconds=60)}
    search.behavior |= dict.fromkeys(("0.1", "0.5"), search.behavior["0.0"])
    thread = stop_when(lambda: search.log.exists() and len(search.ran()) == 2)
    with pytest.raises(interrupt.InterruptedRunError, match="continues"):
        search.run(workers=1)
    thread.join()
    stopped = search.ran()[1]
    search.behavior = {}
    search.run(workers=1)
    assert search.ran()[2] == stopped
    assert len(search.ran()) == 5


def test_a_trial_that_falls_behind_is_ended_early(search, monkeypatch):
    monkeypatch.setattr(tune, "_STARTUP_TRIALS", 1)
    monkeypatch.setattr(tune, "_WARMUP_EPOCHS", 1)
    good, bad = scores(0.3, 0.4, 0.5), scores(0.1, 0.1, *[0.1] * 600, seconds=0.1)
    search.behavior = {"0.3": good, "0.0": bad, "0.1": bad, "0.5": bad}
    assert search.run(2, workers=1)["score"] == {"validation macro recall@50": 0.5}
    behind = search.rows()[1]
    assert (behind["end"], behind["score"]) == ("ended early", "0.1")
    assert int(behind["epochs"]) < 100


def ended(score):
    choices = optuna.distributions.CategoricalDistribution(("1", "2"))
    return optuna.trial.create_trial(
        state=optuna.trial.TrialState.FAIL,
        params={"train.batch_size": "1"},
        distributions={"train.batch_size": choices},
        user_attrs={"end": "done", "seconds": 1.0},
        intermediate_values={0: score},
    )


def test_a_setting_that_ended_as_the_search_was_killed_is_one_row(tmp_path):
    # Its end was noted, its study was not told, and so it was tried again.
    space = {"train.batch_size": (1, 2)}
    found = search_results.write(
        tmp_path, [ended(0.1), ended(0.2)], space, config="a.py", score_name="macro recall@50"
    )
    assert json.loads(found.read_text())["trials"] == 1
    assert json.loads(found.read_text())["score"] == {"validation macro recall@50": 0.2}


def test_a_loss_that_is_not_finite_is_a_trial_without_a_score(search):
    search.behavior = {"0.5": scores(error="error: the loss is not finite")}
    search.run()
    row = next(row for row in search.rows() if row["model.input_dropout"] == "0.5")
    assert (row["end"], row["score"]) == ("diverged", "")


def test_a_trial_that_fails_otherwise_ends_the_search(search):
    search.behavior = {"0.3": scores(error="no such device")}
    with pytest.raises(ValueError, match=r"a trial failed: no such device \(see .*log\.txt\)"):
        search.run()


def test_trials_of_a_distilled_method_share_a_teacher(search):
    search.run(2, config="configs/kuairand.py:sample", flags=())
    teacher, *trials = search.ran()
    assert teacher["--mode"] == "teacher"
    assert teacher["--workdir"] == str(search.folder / "teacher")
    folders = {flags["--config.teacher.from_workdir"] for flags in trials}
    assert folders == {teacher["--workdir"]}


def test_a_teachers_own_values_are_searched_by_training_it_alone(search):
    fixed = (
        "--config.teacher.learning_rate=0.001",
        "--config.teacher.weight_decay=0.0",
        "--config.teacher.model.input_dropout=0.3",
        "--config.teacher.model.dropout=0.1",
        "--config.teacher.model.shared_experts=1",
    )
    config = "configs/kuairand.py:sample,teacher=ple"
    found = search.run(4, config=config, flags=fixed, stage="teacher")
    assert {flags["--mode"] for flags in search.ran()} == {"teacher"}
    assert not any("--config.teacher.from_workdir" in flags for flags in search.ran())
    assert list(found["setting"]) == ["teacher.model.expert_dims"]
    assert found["score"] == {"validation macro recall@50": 0.2}
    assert len({flags["--config.teacher.model.expert_dims"] for flags in search.ran()}) == 3


def test_only_one_search_works_on_a_folder(search):
    search.folder.mkdir()
    with (
        processes.lock(search.folder / "study.lock"),
        pytest.raises(ValueError, match="another search works on it"),
    ):
        search.run()


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


def test_without_optuna_the_extra_is_named(search, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install '\.\[tune\]'"):
        search.run()


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
    space = search_space.make(experiment, stage=stage)

    def read(experiment, field):
        return functools.reduce(getattr, field.split("."), experiment)

    for field, choices in space.items():
        assert len(set(choices)) == len(choices)
        assert read(experiment, field) == choices[0]
    # One command for the first value of every field, one for the second and so on.
    for number in range(max(map(len, space.values()))):
        setting = {field: values[min(number, len(values) - 1)] for field, values in space.items()}
        flags = search_space.as_flags(setting)
        command = ["", f"--config=configs/kuairand.py:{variant}", *flags]
        parsed = command_line.command_line.parse(command).experiment
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

    def run(request):
        asked.append(request)
        path = tmp_path / "best.json"
        path.write_text("{}")
        return path

    monkeypatch.setattr(tune, "run", run)
    assert command_line.main(["tune", f"--config={CONFIG}", *more]) == 0
    assert (asked[0].stage, asked[0].folder.name) == (stage, folder)


def test_the_size_of_a_space_is_a_product():
    assert search_space.count({"a": (1, 2), "b": (1, 2, 3)}) == 6


def test_a_field_that_a_method_lacks_is_not_searched():
    experiment = load.load_experiment("configs/kuairand.py", "sample,dssm")

    @dataclasses.dataclass
    class PlainConfig(schema.MatcherConfig):
        output_dim: int = 8

    experiment.model = PlainConfig()
    space = search_space.make(experiment)
    assert space["model.output_dim"] == (8, 32, 64, 128)
    assert "model.input_dropout" not in space


def test_a_space_without_fields_or_with_a_wrong_one_is_refused(monkeypatch):
    experiment = load.load_experiment("configs/kuairand.py", "sample,dssm")
    everything = tuple(search_space.make(experiment))
    with pytest.raises(ValueError, match="expected at least one field"):
        search_space.make(experiment, everything)
    monkeypatch.setattr(type(experiment.model), "search_space", {"widths": (1, 2)})
    with pytest.raises(ValueError, match="expected names of its fields, got 'widths'"):
        search_space.make(experiment)
