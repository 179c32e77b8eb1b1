"""The order of a run, without what it orders."""

import pathlib
import signal

import pytest

from dsmoe_jax.config import load
from dsmoe_jax.run import run
from dsmoe_jax.training import interrupt


class Session:
    """Stands for a session whose parts do nothing but be asked to stop."""

    needs_teacher = False

    def __init__(self, interrupted):
        self.interrupted, self.done = interrupted, []

    def describe(self):
        pass

    def train_student(self):
        self._do("student")

    def report(self):
        self._do("report")

    def _do(self, part):
        if part == self.interrupted:
            signal.raise_signal(signal.SIGINT)
        self.done.append(part)


@pytest.fixture
def start(monkeypatch, tmp_path):
    experiment = load.load_config("kuairand:sample,no_distill")

    def start(session, experiment=experiment, handle_signals=True):
        monkeypatch.setattr(run, "prepare", lambda *arguments: tmp_path / "store")
        monkeypatch.setattr(run.stages, "Stages", lambda *arguments: session)
        monkeypatch.setattr(run.report, "write", lambda of: of.report())
        run.run(experiment, tmp_path, "all", handle_signals=handle_signals)

    return start


def test_a_signal_ends_a_report_at_once(start):
    session = Session("report")
    with pytest.raises(KeyboardInterrupt):
        start(session)
    assert session.done == ["student"]


def test_a_signal_that_training_did_not_see_is_honoured_before_the_report(start):
    session = Session("student")
    with pytest.raises(interrupt.InterruptedRunError, match="resumes"):
        start(session)
    assert session.done == ["student"]


def test_without_a_signal_all_is_done(start):
    session = Session(None)
    start(session)
    assert session.done == ["student", "report"]


def test_without_handlers_a_signal_is_the_callers(start):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        start(Session("student"), handle_signals=False)
    assert signal.getsignal(signal.SIGINT) is before


def test_the_given_configuration_is_not_changed(start):
    experiment = load.load_config("kuairand:sample,no_distill", {"data.raw_dir": "~/raw"})
    start(Session(None), experiment)
    assert experiment.data.raw_dir == "~/raw"
    assert run.resolve(experiment).data.raw_dir == str(pathlib.Path("~/raw").expanduser())
