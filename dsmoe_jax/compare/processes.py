"""Job processes: started on cores of their own and stopped; file locks of those who work."""

import contextlib
import fcntl
import os
import pathlib
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

# Memory that one run on the packaged rows takes at its height, with room to spare.
RUN_BYTES = 4 << 30
# Exit status of a job that another process works on.
TAKEN = 75


@runtime_checkable
class Process(Protocol):
    """A started job, as far as the runner knows it; `subprocess.Popen` is one."""

    def poll(self) -> int | None:
        """The exit status, or None while it runs."""

    def terminate(self) -> None:
        """Asks it to save and end."""

    def wait(self) -> int:
        """Waits for its end."""


@runtime_checkable
class Machine(Protocol):
    """Where jobs run.

    Attributes:
      workers: Jobs at a time.
      cores: Cores of each.
    """

    workers: int
    cores: int

    def start(self, files: Sequence[pathlib.Path]) -> Sequence[Process]:
        """Starts the jobs of some files; their output is added to `log.txt` beside each."""


class ThisMachine:
    """Jobs as processes that share the cores of this machine."""

    def __init__(self, workers: int):
        """Starts nothing yet."""
        self.workers, self.cores = workers, len(cores_of(0, workers))
        self._slots: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, files: Sequence[pathlib.Path]) -> list[subprocess.Popen[bytes]]:
        """See `Machine`; there must be as many free workers."""
        return [self._start(file) for file in files]

    def _start(self, file: pathlib.Path) -> subprocess.Popen[bytes]:
        running = {slot for slot, process in self._slots.items() if process.poll() is None}
        slot = min(set(range(self.workers)) - running)
        environment = dict(os.environ)
        if self.workers > 1:
            environment.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{0.9 / self.workers:.2f}")
        self._slots[slot] = process = spawn(command(file), log_of(file), environment)
        if self.workers > 1:
            # Before the interpreter has started any thread.
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(process.pid, cores_of(slot, self.workers))
        return process


def command(file: pathlib.Path) -> list[str]:
    """The program of a job."""
    return [sys.executable, "-m", "dsmoe_jax.compare.job", str(file)]


def log_of(file: pathlib.Path) -> pathlib.Path:
    """Where the output of a job is added."""
    return file.with_name("log.txt")


def spawn(
    arguments: Sequence[str], log: pathlib.Path, environment: dict[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Starts a job's process."""
    with log.open("a") as output:
        return subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            # Ctrl-C reaches the runner alone, which asks every job once.
            start_new_session=True,
        )


def stop(running: Sequence[Process]) -> None:
    """Asks processes to save and end, and waits for them."""
    for process in running:
        if process.poll() is None:
            process.terminate()
    for process in running:
        process.wait()


def sign(lock: int, starter: int) -> None:
    """Writes into a lock that is held: the machine, the process that started the holder, and it."""
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{socket.gethostname()} {starter} {os.getpid()}\n".encode(), 0)


def stop_orphan(path: pathlib.Path) -> bool:
    """Asks the process that holds a lock to save and end, if the one that started it is gone.

    Says whether it was asked, as one on another machine or of another user is not. The lock's stem
    is in the process's command line.
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
    """A lock that ends with this process at the latest; None when it is taken."""
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
