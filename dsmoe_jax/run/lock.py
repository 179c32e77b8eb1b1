"""Lock of a workdir: one run at a time, and the second one is told of the first."""

import contextlib
import datetime
import fcntl
import json
import os
import pathlib
import socket
from collections.abc import Iterator

from dsmoe_jax import runlog

FILE = "run.lock"


@contextlib.contextmanager
def hold(workdir: pathlib.Path) -> Iterator[None]:
    """Keeps other runs out of a folder while the block runs.

    The system frees the lock when its process ends, however it ends: a killed run leaves a note
    behind, and no lock. A block that raises before it wrote anything leaves nothing.

    Raises:
      ValueError: When another run has it, with its process and host.
    """
    path = workdir / FILE
    is_new = not path.exists()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    with os.fdopen(descriptor, "r+", encoding="utf-8", errors="replace") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{workdir}: another run works in this folder: {_describe(file.read())}; wait for "
                "its end, end it, or choose another --workdir"
            ) from None
        if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
            raise ValueError(f"{workdir}: another run that was refused has just left; try again")
        if left := file.read().strip("\0 \n"):
            runlog.say(
                f"{workdir}: takes over from a run that did not end by itself, {_describe(left)}"
            )
        note = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.datetime.now().isoformat(" ", "seconds"),
        }
        _write(file.fileno(), json.dumps(note))
        try:
            with contextlib.ExitStack() as failed:
                if is_new:
                    failed.callback(_remove, path)
                yield
                failed.pop_all()
        finally:
            _write(file.fileno(), "")


def _remove(path: pathlib.Path) -> None:
    """Removes a lock that is the only file of its folder."""
    if [entry.name for entry in path.parent.iterdir()] == [path.name]:
        path.unlink()


def check_free(workdir: pathlib.Path) -> None:
    """Refuses a folder that a run works in; writes nothing, and keeps nobody out.

    Raises:
      ValueError: With the run's process and host.
    """
    path = workdir / FILE
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{workdir}: a run works in this folder: {_describe(file.read())}; wait for its end"
            ) from None


def _write(descriptor: int, text: str) -> None:
    os.ftruncate(descriptor, 0)
    # The lock counts, not the note: a full disk has no room for it.
    with contextlib.suppress(OSError):
        os.pwrite(descriptor, text.encode(), 0)


def _describe(text: str) -> str:
    """Process and host of a note, which may be half written."""
    try:
        note = json.loads(text)
        return f"process {note['pid']} on {note['host']} since {note['since']}"
    except (KeyError, TypeError, ValueError):
        return "process unknown"
