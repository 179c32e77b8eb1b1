"""Errors of Orbax: what is told once is not told again, however late."""

import asyncio
import gc
import logging
import sys
import types
import warnings

import pytest

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


@pytest.fixture
def own_filters(monkeypatch):
    """Filters of loggers that last until the test ends."""
    for name in ("absl", "asyncio"):
        monkeypatch.setattr(logging.getLogger(name), "filters", [])


def fail_unwatched(file):
    """A task that fails, of a function in the file, for whose end nobody waits."""
    names = {}
    exec(compile("async def read():\n    raise ValueError('cut')", file, "exec"), names)

    async def start():
        task = asyncio.ensure_future(names["read"]())
        await asyncio.sleep(0.01)
        del task

    asyncio.run(start())
    gc.collect()


def test_a_read_that_fails_beside_the_refused_one_says_nothing(own_filters, caplog):
    with orbax_errors.Attempt():
        raise ValueError("damaged")
    fail_unwatched("/lib/orbax/reads.py")
    assert caplog.messages == []
    fail_unwatched("/lib/another/reads.py")
    assert len(caplog.messages) == 1 and "never retrieved" in caplog.messages[0]


def forget(file):
    """A coroutine of a function in the file, collected before it began."""
    names = {}
    exec(compile("async def read():\n    pass", file, "exec"), names)
    names["read"]()
    gc.collect()


def test_a_read_that_never_began_says_nothing(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    with warnings.catch_warnings():
        with orbax_errors.quiet(), orbax_errors.Attempt():
            forget("/lib/another/reads.py")
            assert len(told) == 1
            forget("/lib/orbax/reads.py")
            raise ValueError("damaged")
        forget("/lib/orbax/reads.py")
    # Nor where warnings are errors again, as in the next test.
    forget("/lib/orbax/reads.py")
    assert len(told) == 1
    forget("/lib/another/reads.py")
    assert len(told) == 2


def test_an_attempt_inside_a_quiet_block_leaves_it_quiet(own_filters, caplog):
    record = logging.LogRecord("absl", logging.ERROR, "/lib/orbax/x.py", 1, "told", None, None)
    with orbax_errors.quiet():
        with orbax_errors.Attempt():
            pass
        logging.getLogger("absl").handle(record)
        assert caplog.messages == []
    logging.getLogger("absl").handle(record)
    assert caplog.messages == ["told"]
