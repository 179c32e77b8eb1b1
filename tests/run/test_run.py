"""The order of a run, without what it orders."""

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
    experiment = load.load_experiment("configs/kuairand.py", "sample,no_distill")

    def start(session):
        monkeypatch.setattr(run, "_prepare", lambda *arguments: None)
        monkeypatch.setattr(run.session_lib, "Session", lambda *arguments: session)
        monkeypatch.setattr(run.final_report, "write", lambda of: of.report())
        run.run(experiment, {}, tmp_path, "all")

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
