"""Processes that share a machine: a run of the command line each, on cores of its own."""

import contextlib
import fcntl
import os
import pathlib
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence

# Memory that one run on the packaged rows takes at its height, with room to spare.
RUN_BYTES = 4 << 30


def start(
    command: Sequence[str], log: pathlib.Path, *, slot: int, workers: int, lock: int
) -> subprocess.Popen:
    """Starts one of several workers.

    Args:
      command: Program and arguments.
      log: File that its output is added to.
      slot: Which worker it is, below `workers`.
      workers: How many share the machine.
      lock: Descriptor of a `lock`, held as long as the process lives, whatever becomes of this one;
        its file says who runs for whom.
    """
    environment = dict(os.environ)
    if workers > 1:
        environment.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{0.9 / workers:.2f}")
    with log.open("a") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            # Ctrl-C reaches this process alone, which asks every worker once.
            start_new_session=True,
            pass_fds=(lock,),
        )
    if workers > 1:
        # Before the interpreter has started any thread.
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(process.pid, cores_of(slot, workers))
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{socket.gethostname()} {os.getpid()} {process.pid}\n".encode(), 0)
    return process


def stop(running: Sequence[subprocess.Popen]) -> None:
    """Asks processes to save and end, and waits for them."""
    for process in running:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    for process in running:
        process.wait()


def stop_orphan(path: pathlib.Path) -> bool:
    """Asks the process that holds a lock to save and end, if the one that started it is gone.

    Args:
      path: Of the lock, whose stem is in the process's command line.

    Returns:
      Whether it was asked; not where it runs on another machine or for another user.
    """
    host, *pids = path.read_text().split() or [""]
    if host != socket.gethostname():
        return False
    starter, holder = (pathlib.Path("/proc") / pid for pid in pids)
    try:
        # A number may have gone to another process since.
        is_its_own = path.stem.encode() in (holder / "cmdline").read_bytes()
        if is_its_own and not starter.exists():
            os.kill(int(holder.name), signal.SIGTERM)
            return True
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        pass  # it ended meanwhile, or is somebody else's
    return False


def cores_of(slot: int, workers: int) -> set[int]:
    """The cores of one of several workers, of those that this process may use."""
    cores = sorted(os.sched_getaffinity(0))
    return set(cores[slot::workers]) or {cores[slot % len(cores)]}


def fit_workers(wanted: int) -> int:
    """At most as many workers as there are cores and as memory allows, at least one.

    Raises:
      ValueError: When none is wanted.
    """
    if wanted < 1:
        raise ValueError(f"--workers: expected a number >= 1, got {wanted}")
    lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
    [free_kib] = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return max(1, min(wanted, len(os.sched_getaffinity(0)), free_kib * 1024 // RUN_BYTES))


@contextlib.contextmanager
def lock(path: pathlib.Path, *, wait: bool = False) -> Iterator[int | None]:
    """A lock that processes which inherit its descriptor hold on to; None when it is taken."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield None
        else:
            yield descriptor
    finally:
        os.close(descriptor)


def last_line(path: pathlib.Path) -> str:
    """The last line of a log."""
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 2000))
        lines = file.read().decode(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else ""
