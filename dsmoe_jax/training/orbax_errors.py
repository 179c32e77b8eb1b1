"""Errors of Orbax and TensorStore, which reach the user once and in one line.

They raise errors of any class at damaged files and full disks, `Exception` itself among them, and
tell of the same ones in logs, in the ends of their threads, and when Python collects what they left
behind.
"""

import contextlib
import gc
import logging
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import jax


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps their errors from the console inside the block: who waits for the work gets them."""
    logger = logging.getLogger("absl")
    # Stays: a task for whose end nobody waited is told of when Python collects it.
    logging.getLogger("asyncio").addFilter(_is_task_of_another)
    hooks: list[tuple[Any, str]] = [
        (sys, "excepthook"),
        (sys, "unraisablehook"),
        (threading, "excepthook"),
    ]
    with contextlib.ExitStack() as undo:
        # A block inside another leaves the other's in place.
        if _is_of_another not in logger.filters:
            logger.addFilter(_is_of_another)
            undo.callback(logger.removeFilter, _is_of_another)
        for module, name in hooks:
            undo.callback(_set_back, module, name, getattr(module, name), _wrap(module, name))
        yield


def _wrap(module: Any, name: str) -> Callable[..., None]:
    """Puts a hook in place that is called as before but for their errors."""
    hook = _but_for_theirs(getattr(module, name))
    setattr(module, name, hook)
    return hook


def _set_back(module: Any, name: str, before: Any, own: Any) -> None:
    # What took its place since stays, as that of a failed attempt.
    if getattr(module, name) is own:
        setattr(module, name, before)


class Attempt:
    """Turns what a block says of damaged files into one line.

    Attributes:
      failure: The first line of what went wrong; empty where nothing did.
    """

    def __init__(self) -> None:
        self.failure = ""
        self._quiet = contextlib.ExitStack()

    def __enter__(self) -> "Attempt":
        self._quiet.enter_context(quiet())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> bool:
        with self._quiet:
            # What says nothing of the files: signals, memory, and rights to read.
            others = (PermissionError, MemoryError, jax.errors.JaxRuntimeError)
            if not isinstance(error, Exception) or isinstance(error, others):
                return False
            lines = str(error).strip().splitlines() or [type(error).__name__]
            self.failure = lines[0][:200]
            # Its frames hold coroutines, of which Python tells when it collects them, now or later.
            warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
            traceback.clear_frames(error.__traceback__)
            error.__cause__ = error.__context__ = error.__traceback__ = None
            gc.collect()
        # Reads that were under way report to a loop that is closed, some only when all is said.
        _wrap(sys, "unraisablehook")
        return True


def _is_of_another(record: logging.LogRecord) -> bool:
    # That a folder is only read was asked for.
    is_told = record.levelno >= logging.ERROR or "read only" in record.getMessage()
    return not is_told or "orbax" not in record.pathname


def _is_task_of_another(record: logging.LogRecord) -> bool:
    return "orbax" not in record.getMessage()


def _but_for_theirs(hook: Callable[..., object]) -> Callable[..., None]:
    """A hook for uncaught errors, called as before but for those of Orbax."""

    def call(*arguments: Any) -> None:
        # `sys.excepthook` gets class, error and traceback, the others one object that holds them.
        one = len(arguments) == 1
        error = arguments[0].exc_value if one else arguments[1]
        trace = arguments[0].exc_traceback if one else arguments[2]
        # Where warnings are errors, that a coroutine was never awaited has no frame of its own.
        code = getattr(getattr(arguments[0], "object", None), "cr_code", None)
        is_theirs = "orbax" in getattr(code, "co_filename", "") or _passes_orbax(trace)
        if not (str(error) == "Event loop is closed" or is_theirs):
            hook(*arguments)

    return call


def _passes_orbax(trace: TracebackType | None) -> bool:
    return any("orbax" in frame.f_code.co_filename for frame, _ in traceback.walk_tb(trace))
