"""The first command's time by part: a run of the product with a clock on what it calls.

Owns the clock. The product runs unchanged in a process of its own, in which public functions are
wrapped; a part's time is what it spends outside of other parts, on the main thread. `python -m
dsmoe_jax.bench.first_command FILE START_S FLAG ...` is that process: it keeps FILE up to date, so
that a run that is cut off has said how far it came.
"""

import contextlib
import importlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from dsmoe_jax import runlog

REST, IMPORTS, COMPILATION = "all else", "imports", "tracing and compilation"
EXIT = "exit of the process"
# How long a run that was asked to end may take to save its state.
_GRACE_S = 20.0

# What is wrapped: module, name in it, part.
_TRAINING, _VALIDATION, _REPORT = "training", "validation", "report"
WRAPPED = (
    ("dsmoe_jax.run.run", "prepare", "preparation"),
    ("dsmoe_jax.run.stages", "Stages.__init__", "opening the store, corpus to the devices"),
    ("dsmoe_jax.training.loop", "train_stage", _TRAINING),
    ("dsmoe_jax.training.checkpoint", "Checkpoint.save", "checkpoints"),
    ("dsmoe_jax.training.checkpoint", "Checkpoint.restore", "checkpoints"),
    ("dsmoe_jax.training.checkpoint", "Checkpoint.wait", "checkpoints"),
    ("dsmoe_jax.training.checkpoint", "Checkpoint.close", "checkpoints"),
    ("dsmoe_jax.evaluation.evaluators", "MatcherEvaluator.__call__", _VALIDATION),
    ("dsmoe_jax.evaluation.evaluators", "RankerEvaluator.__call__", _VALIDATION),
    ("dsmoe_jax.baselines.builtin", "evaluate_baselines", "baselines"),
    ("dsmoe_jax.run.figures", "draw_all", "figures"),
    ("dsmoe_jax.run.report", "write", _REPORT),
    ("dsmoe_jax.run.export", "write", "bundle"),
)
# An evaluation outside of training is the report's.
_OUTSIDE = {_VALIDATION: "evaluation of the best states"}
_COMPILATION_EVENTS = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)


def time_command(flags: tuple[str, ...], limit_s: float) -> dict[str, Any]:
    """Runs `dsmoe train` with these flags from an empty compilation cache, so long at most.

    Returns:
      `parts_s`, seconds of each part in the order in which they began, `elapsed_s`, and `ended`,
      empty for a run that came to its end.

    Raises:
      ValueError: When it ends before its imports did, or fails.
    """
    with tempfile.TemporaryDirectory(prefix="dsmoe_jax_bench_") as name:
        folder = pathlib.Path(name)
        path, said = folder / "parts.json", folder / "said.txt"
        start_s = time.monotonic()
        command = [sys.executable, "-m", __spec__.name, str(path), str(start_s)]
        with said.open("w") as output:
            process = subprocess.Popen(
                [*command, *flags, f"--workdir={folder / 'run'}"],
                env={
                    **os.environ,
                    "JAX_COMPILATION_CACHE_DIR": str(folder / "xla"),
                    "TF_CPP_MIN_LOG_LEVEL": "3",
                    # The process that measures holds a large part of the device's memory already.
                    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
                },
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            ended = _wait(process, limit_s)
        elapsed_s = time.monotonic() - start_s
        if not ended and process.returncode:
            last = (said.read_text(errors="replace").strip().splitlines() or ["no word"])[-1]
            raise ValueError(f"the command ended with {process.returncode}: {last}")
        if not path.exists():
            raise ValueError(f"the command was cut off in its imports, after {limit_s:.0f} s")
        parts_s = json.loads(path.read_text())
    parts_s[REST] = parts_s.pop(REST)  # the last row
    if not ended:
        parts_s[EXIT] = max(0.0, elapsed_s - sum(parts_s.values()))
    return {"parts_s": parts_s, "elapsed_s": elapsed_s, "ended": ended, "flags": list(flags)}


def _wait(process: subprocess.Popen[bytes], limit_s: float) -> str:
    """Waits for a process, and ends it when it takes longer; says so, or nothing."""
    grace_s = min(_GRACE_S, limit_s / 4)
    try:
        process.wait(max(0.0, limit_s - grace_s))
        return ""
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(grace_s)
    process.kill()
    process.wait()
    return f"cut off after {limit_s - grace_s:.0f} s"


class Clock:
    """Seconds by part, each without those of the parts inside it."""

    def __init__(self, start_s: float, path: pathlib.Path | None = None):
        """Begins at a moment of `time.monotonic`; a path is kept up to date."""
        self.seconds: dict[str, float] = {}
        self._open, self._since_s, self._path = [REST], start_s, path
        self._compiled: list[tuple[float, float]] = []

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time inside the block is the part's."""
        self._settle()
        self._open.append(name)
        try:
            yield
        finally:
            self._settle()
            self._open.pop()
            self.write()

    def is_in(self, name: str) -> bool:
        """Whether a part has begun and not ended."""
        return name in self._open

    def take(self, name: str, seconds: float) -> None:
        """Seconds until now, of the part that is open, were another's."""
        self._settle()
        self.seconds[self._open[-1]] -= seconds
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def hear(self, event: str, duration_secs: float, **_: Any) -> None:
        """Takes what JAX says that it compiled; functions are traced inside of others."""
        if event not in _COMPILATION_EVENTS or not _is_main_thread():
            return
        begun_s, inner_s = time.monotonic() - duration_secs, 0.0
        while self._compiled and self._compiled[-1][0] >= begun_s:
            inner_s += self._compiled.pop()[1]
        self._compiled.append((begun_s, duration_secs))
        self.take(COMPILATION, max(0.0, duration_secs - inner_s))

    def write(self) -> None:
        """Keeps the file up to date."""
        self._settle()
        if self._path is not None:
            runlog.replace_text(self._path, json.dumps(self.seconds))

    def _settle(self) -> None:
        now_s, name = time.monotonic(), self._open[-1]
        self.seconds[name] = self.seconds.get(name, 0.0) + now_s - self._since_s
        self._since_s = now_s


def wrap(clock: Clock, stack: contextlib.ExitStack) -> None:
    """Sets the clock on everything in `WRAPPED`, until the stack is closed."""
    for module, name, part in WRAPPED:
        owner: Any = importlib.import_module(module)
        *classes, name = name.split(".")
        for attribute in classes:
            owner = getattr(owner, attribute)
        timed = _time(clock, part, getattr(owner, name))
        stack.enter_context(mock.patch.object(owner, name, timed))


def _time(clock: Clock, part: str, work: Callable[..., Any]) -> Callable[..., Any]:
    def timed(*arguments: Any, **named: Any) -> Any:
        if not _is_main_thread():
            return work(*arguments, **named)
        is_outside = part in _OUTSIDE and not clock.is_in(_TRAINING)
        with clock.part(_OUTSIDE[part] if is_outside else part):
            return work(*arguments, **named)

    return timed


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def main(argv: list[str]) -> int:
    """Runs the product under the clock; returns its exit status."""
    path, start_s, *flags = argv
    clock = Clock(float(start_s), pathlib.Path(path))
    with contextlib.ExitStack() as stack:
        wrap(clock, stack)  # imports everything
        import jax

        from dsmoe_jax import main as command_line

        jax.monitoring.register_event_duration_secs_listener(clock.hear)
        stack.callback(clock.write)
        clock.take(IMPORTS, time.monotonic() - float(start_s))
        with clock.part("start of the devices"):
            jax.devices()
        return command_line.main(["dsmoe", *flags])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
