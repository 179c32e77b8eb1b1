"""A process whose starter was killed."""

import pathlib
import signal
import subprocess
import sys

from dsmoe_jax.compare import processes

_STARTER = """
import os, pathlib, signal, sys
from dsmoe_jax.compare import processes
path, log = map(pathlib.Path, sys.argv[1:])
program = "import time; print('begun', flush=True); time.sleep(3600)"
with processes.lock(path) as lock:
    command = [sys.executable, "-c", program, path.stem]
    processes.start(command, log, slot=0, workers=1, lock=lock)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def leave(path: pathlib.Path, log: pathlib.Path) -> None:
    """Leaves a process that holds a lock and would outlive any test that waits for its end."""
    starter = subprocess.run([sys.executable, "-c", _STARTER, str(path), str(log)], check=False)
    assert starter.returncode == -signal.SIGKILL
    while processes.last_line(log) != "begun":
        pass
