"""Jobs of the comparison on a cluster, through submitit.

Owns how a job is submitted: jobs that are ready together are one array, each starts the process
that `processes.spawn` starts on one machine. A job near its time limit, or preempted, asks its
process to save and goes back to the queue.
"""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dsmoe_jax import optional
from dsmoe_jax.compare import processes

if TYPE_CHECKING:
    import submitit

EXTRA = "cluster"
KINDS = ("slurm", "local")
# Jobs at a time, where not said.
WORKERS = 64
_OPTIONS: dict[str, Any] = {
    "name": "dsmoe-compare",
    "timeout_min": 24 * 60,
    "gpus_per_node": 1,
    "cpus_per_task": 8,
    # Long enough to save an epoch's state in.
    "slurm_signal_delay_s": 300,
}


class Cluster:
    """Jobs as submissions; at most `workers` are queued or run at a time."""

    def __init__(self, kind: str, folder: pathlib.Path, workers: int, options: dict[str, Any]):
        """Submits nothing yet.

        Args:
          kind: One of `KINDS`; local is for trying things out.
          folder: Of submitit's files.
          workers: Jobs at a time.
          options: Of `submitit.AutoExecutor.update_parameters`, e.g. `slurm_partition`.

        Raises:
          ValueError: Without submitit.
        """
        optional.require("submitit", extra=EXTRA, what=f"--cluster {kind}: ")
        import submitit

        chosen = {**_OPTIONS, **options}
        self.workers, self.cores = workers, chosen["cpus_per_task"]
        self._executor = submitit.AutoExecutor(folder=folder, cluster=kind)
        self._executor.update_parameters(**chosen)

    def start(self, files: Sequence[pathlib.Path]) -> list["Submission"]:
        """See `processes.Machine`."""
        with self._executor.batch():
            jobs = [
                self._executor.submit(Task(processes.command(file), processes.log_of(file)))
                for file in files
            ]
        return [Submission(job) for job in jobs]


class Task:
    """What a node runs: the job's process, which it asks to save before the node is taken away."""

    def __init__(self, command: list[str], log: pathlib.Path):
        """Nothing runs yet."""
        self._command, self._log = command, log
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """Runs the job to its end; returns its exit status."""
        self._process = processes.spawn(self._command, self._log)
        try:
            return self._process.wait()
        finally:
            processes.stop([self._process])

    def checkpoint(self) -> "submitit.helpers.DelayedSubmission":
        """Called by submitit before it puts the job back into the queue."""
        import submitit

        if self._process is not None:
            # Inside a signal handler, where another wait for the process holds its lock.
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(self._process.pid, signal.SIGTERM)
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        return submitit.helpers.DelayedSubmission(Task(self._command, self._log))


class Submission:
    """A submitted job, with the face of a process."""

    def __init__(self, job: "submitit.Job[int]"):
        """The job may still wait in the queue."""
        self._job = job

    def poll(self) -> int | None:
        """The exit status, or None while it waits or runs; 1 where there is none in the end."""
        if not self._job.done():
            return None
        # An error of submitit has no result: the node failed, or the job was cancelled.
        error = self._job.exception()
        if error is None:
            return int(self._job.result())
        print(f"{self._job.job_id}: {error}", file=sys.stderr)
        return 1

    def terminate(self) -> None:
        """Cancels it; its process saves and ends."""
        self._job.cancel()

    def wait(self) -> int:
        """Waits for its end."""
        self._job.wait()
        status = self.poll()
        return 1 if status is None else status
