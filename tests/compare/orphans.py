"""A job whose runner was killed."""

import pathlib
import signal
import subprocess
import sys

from dsmoe_jax.compare import processes

_HOLDER = """
import pathlib, sys, time
from dsmoe_jax.compare import processes
with processes.lock(pathlib.Path(sys.argv[1])) as lock:
    processes.sign(lock, int(sys.argv[2]))
    print("begun", flush=True)
    time.sleep(3600)
"""
_STARTER = """
import os, pathlib, signal, subprocess, sys
holder, path, log = sys.argv[1:]
with open(log, "a") as file:
    command = [sys.executable, "-c", holder, path, str(os.getpid())]
    subprocess.Popen(command, stdout=file, start_new_session=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def leave(path: pathlib.Path, log: pathlib.Path) -> None:
    """Leaves a process that holds a lock and would outlive any test that waits for its end."""
    command = [sys.executable, "-c", _STARTER, _HOLDER, str(path), str(log)]
    starter = subprocess.run(command, check=False)
    assert starter.returncode == -signal.SIGKILL
    while processes.last_line(log) != "begun":
        pass
