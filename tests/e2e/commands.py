"""Runs of the command line on small synthetic rows, in processes of their own."""

import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from tests import compilation

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Processes have one device, share compilations and skip the compiler's costly passes: numbers are
# compared between runs that are compiled alike.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": compilation.XLA_FLAGS,
    "JAX_COMPILATION_CACHE_DIR": compilation.CACHE,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
}

SMALL = (
    "--config.train.batch_size=64",
    "--config.train.max_epochs=2",
    "--config.train.steps_per_report=1",
    "--config.teacher.max_epochs=1",
    "--config.model.hidden_dim=8",
    "--config.model.output_dim=8",
    "--config.eval.validation_queries=40",
    "--config.eval.teacher_validation_queries=20",
    "--config.eval.teacher_test_queries=20",
    # Exports are tested in their own place.
    "--config.checkpoint.bundle=False",
)
# The built-in baselines are part of other runs.
NO_BASELINES = ("--config.eval.references=False",)
SMALL_MMOE = (
    "--config.teacher.model.expert_dims=(8,8)",
    "--config.teacher.model.tower_dims=(8,)",
    "--config.teacher.model.collaborative_dim=8",
)
SMALL_KUAIRAND = (
    "--config.data.num_users=300",
    "--config.data.num_items=250",
    "--config.data.num_impressions=12000",
    # The smallest scenario needs queries in both splits.
    "--config.data.validation_days=5",
    "--config.data.test_days=5",
)
SMALL_ALIMAMA = (
    "--config.data.num_users=1500",
    "--config.data.num_items=600",
    "--config.data.num_impressions=30000",
    "--config.data.num_behaviors=20000",
)


def start(*arguments: str, cwd: pathlib.Path = ROOT, **environment: str) -> subprocess.Popen:
    """Starts a run in a copy of the project, or in itself; its output is one stream of text."""
    return start_module("dsmoe_jax.main", *arguments, cwd=cwd, **environment)


def start_module(
    module: str, *arguments: str, cwd: pathlib.Path = ROOT, **environment: str
) -> subprocess.Popen:
    """Starts any module of the package in the same way."""
    env = {**os.environ, **ENVIRONMENT, "PYTHONUNBUFFERED": "1", **environment}
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=cwd,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish(process: subprocess.Popen, status: int = 0) -> str:
    """Waits for a run and returns what it said.

    Raises:
      AssertionError: When it ends with another status.
    """
    output, _ = process.communicate(timeout=900)
    assert process.returncode == status, output
    return output


def run(*arguments: str, status: int = 0, cwd: pathlib.Path = ROOT, **environment: str) -> str:
    """Starts a run and waits for it."""
    return finish(start(*arguments, cwd=cwd, **environment), status)


def interrupt_when(
    process: subprocess.Popen, condition: Callable[[], bool], number: signal.Signals
) -> str:
    """Sends a signal once the condition holds; returns what the process said until its end.

    Raises:
      AssertionError: When the process ends or much time passes before.
    """
    deadline = time.monotonic() + 900
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"nothing to interrupt\n{process.communicate()[0]}")
        time.sleep(0.02)
    process.send_signal(number)
    output, _ = process.communicate(timeout=900)
    return output
