"""Errors of Orbax: what is told once is not told again, however late."""

import sys
import types

from dsmoe_jax.training import orbax_errors


def report(error):
    """What Python says of an error that nobody can catch."""
    event = types.SimpleNamespace(exc_value=error, exc_traceback=error.__traceback__)
    sys.unraisablehook(event)
    return event


def test_reads_that_report_after_a_refusal_say_nothing(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    with orbax_errors.quiet():
        with orbax_errors.Attempt() as attempt:
            raise ValueError("damaged\nand more")
        assert attempt.failure == "damaged"
    report(RuntimeError("Event loop is closed"))
    assert told == []
    other = report(RuntimeError("another"))
    assert told == [other]


def test_where_nothing_fails_the_hooks_are_what_they_were():
    before = sys.unraisablehook, sys.excepthook
    with orbax_errors.quiet(), orbax_errors.Attempt() as attempt:
        assert sys.unraisablehook is not before[0]
    assert not attempt.failure and (sys.unraisablehook, sys.excepthook) == before
