"""The order of a run, without what it orders."""

import pathlib
import signal

import pytest

from dsmoe_jax.config import load
from dsmoe_jax.run import run
from dsmoe_jax.training import interrupt


class Stages:
    """Stands for stages that do nothing but be asked to stop."""

    needs_teacher = False

    def __init__(self, interrupted):
        self.interrupted, self.done = interrupted, []

    def describe(self):
        pass

    def train_student(self):
        self._do("student")

    def report(self):
        self._do("report")

    def export(self):
        self._do("export")

    def _do(self, part):
        if part == self.interrupted:
            signal.raise_signal(signal.SIGINT)
        self.done.append(part)


@pytest.fixture
def start(monkeypatch, tmp_path):
    experiment = load.load_config("kuairand:sample,no_distill")

    def start(stages, experiment=experiment, handle_signals=True):
        monkeypatch.setattr(run, "prepare", lambda *arguments: tmp_path / "store")
        monkeypatch.setattr(run.stages, "Stages", lambda *arguments: stages)
        monkeypatch.setattr(run.report, "write", lambda of: of.report())
        monkeypatch.setattr(run.export, "write", lambda of: of.export())
        run.run(experiment, tmp_path, "all", handle_signals=handle_signals)

    return start


def test_a_signal_ends_a_report_at_once(start):
    stages = Stages("report")
    with pytest.raises(KeyboardInterrupt):
        start(stages)
    assert stages.done == ["student"]


def test_a_signal_that_training_did_not_see_is_honoured_before_the_report(start):
    stages = Stages("student")
    with pytest.raises(interrupt.InterruptedRunError, match="resumes"):
        start(stages)
    assert stages.done == ["student"]


def test_without_a_signal_all_is_done(start):
    stages = Stages(None)
    start(stages)
    assert stages.done == ["student", "report", "export"]


def test_without_handlers_a_signal_is_the_callers(start):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        start(Stages("student"), handle_signals=False)
    assert signal.getsignal(signal.SIGINT) is before


def test_the_given_configuration_is_not_changed(start):
    experiment = load.load_config("kuairand:sample,no_distill", {"data.raw_dir": "~/raw"})
    start(Stages(None), experiment)
    assert experiment.data.raw_dir == "~/raw"
    assert run.resolve(experiment).data.raw_dir == str(pathlib.Path("~/raw").expanduser())
