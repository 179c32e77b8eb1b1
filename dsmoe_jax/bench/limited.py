"""Calls in a process of their own that end in time: what lasts longer is killed.

Owns the process. What it computes on an accelerator is freed with it.
"""

import multiprocessing
import multiprocessing.connection
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def call(what: str, limit_s: float, function: Callable[..., T], *arguments: Any) -> T:
    """What a function, which pickle must know by name, returns in a new process.

    Raises:
      ValueError: When it raises one, its process ends, or `limit_s` seconds were not enough.
    """
    context = multiprocessing.get_context("spawn")
    pipe, remote = context.Pipe()
    # Not a daemon, which may not have the processes that PyTorch compiles in.
    process = context.Process(target=_serve, args=(remote, function, arguments))
    process.start()
    # Held open here, it would keep the end of the process from being noticed.
    remote.close()
    try:
        if not pipe.poll(max(0.0, limit_s)):
            raise ValueError(f"{what}: not done in the {limit_s:.0f} s that were left")
        kind, value = pipe.recv()
    except EOFError:
        raise ValueError(
            f"{what}: the process ended; its own message says why, or memory was short"
        ) from None
    finally:
        process.kill()
        process.join()
        pipe.close()
    if kind == "error":
        raise ValueError(f"{what}: {value}")
    found: T = value
    return found


def _serve(
    pipe: multiprocessing.connection.Connection,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    try:
        pipe.send(("found", function(*arguments)))
    except ValueError as error:
        pipe.send(("error", str(error)))
