"""Injected faults: runs that are killed, filled up, damaged or changed, and what they end with.

Owns the campaign. A trial is sound when the same command then gives the numbers of a run that
nothing happened to, or refuses in one line; all else is a fall: other numbers, a traceback.
Faults of processes run in processes of their own, faults of files and fields in this one.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import copy
import dataclasses
import io
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TextIO

from dsmoe_jax import main as command_line
from dsmoe_jax.bench import malformed
from dsmoe_jax.config import fields, fingerprint, load
from dsmoe_jax.run import results, run

CONFIG = "kuairand:synthetic,dssm"
FIELDS: dict[str, Any] = {
    "data.num_users": 300,
    "data.num_items": 250,
    "data.num_impressions": 12_000,
    "data.validation_days": 5,
    "data.test_days": 5,
    "model.hidden_dims": (8,),
    "model.output_dim": 8,
    "train.batch_size": 64,
    "train.max_epochs": 2,
    "train.steps_per_report": 1,
    "eval.validation_queries": 40,
    "loss.distill_weight": 0.0,
    "eval.references": False,
    "checkpoint.bundle": False,
    "checkpoint.every_steps": 20,
}
# What two runs of the same numbers may differ in.
_NOT_NUMBERS = ("time_s", "examples_per_s", "date", "device")
# Patches of a child process, before its command.
_LATE_BEST = """
import os, time
rename = os.rename
def late(source, target, **more):
    time.sleep(0.5 * ("/best/" in str(source)))
    rename(source, target, **more)
os.rename = late
"""
_LIMIT = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))
"""
_START = "import sys; from dsmoe_jax import main; sys.argv[0] = 'dsmoe'; main.entry_point()"


@dataclasses.dataclass
class Trial:
    """What a fault ended with.

    Attributes:
      what: The fault.
      end: `equal`, `refused` or, where it fell, what happened.
    """

    what: str
    end: str


class Case:
    """A run that nothing happens to, and the same command after a fault."""

    def __init__(self, folder: pathlib.Path, seed: int):
        """Runs it once in a process of its own."""
        self.folder, self.random = folder, random.Random(seed)
        self.whole = folder / "whole"
        start_s = time.monotonic()
        process = self.start(self.whole)
        output, _ = process.communicate()
        self.duration_s = time.monotonic() - start_s
        if process.returncode:
            raise ValueError(f"expected a run without faults to end well, got: {output[-500:]}")
        self.expected = self.numbers(self.whole)

    def start(self, workdir: pathlib.Path, patch: str = "") -> subprocess.Popen[str]:
        """Starts the command in a process; its output is one stream."""
        flags = [f"--config.{name}={value}" for name, value in FIELDS.items()]
        return subprocess.Popen(
            [
                *(sys.executable, "-c", patch + _START, "train", f"--config={CONFIG}"),
                *(*flags, f"--workdir={workdir}"),
            ],
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def copy(self) -> pathlib.Path:
        """The workdir of the complete run, to be damaged."""
        shutil.rmtree(self.folder / "copy", ignore_errors=True)
        return pathlib.Path(shutil.copytree(self.whole, self.folder / "copy"))

    def empty(self) -> pathlib.Path:
        """A workdir in which nothing was run."""
        shutil.rmtree(self.folder / "copy", ignore_errors=True)
        return self.folder / "copy"

    def again(self, workdir: pathlib.Path, **fields: Any) -> str:
        """Ends the command in this process, with other fields where there are any."""
        with _kept_errors() as file, contextlib.redirect_stdout(io.StringIO()):
            status, error = _status(lambda: self._run(workdir, fields))
            file.seek(0)
            said = file.read()
        if error is not None:
            return f"a traceback: {error!r}"[:200]
        return self._judge_said(workdir, status, said)

    def alone(self, workdir: pathlib.Path) -> str:
        """Ends the command in a process of its own, as the run was that nothing happened to.

        What trains again has to be compiled as that was, and this process may do otherwise.
        """
        process = self.start(workdir)
        said, _ = process.communicate()
        return self._judge_said(workdir, process.returncode, said)

    def _judge_said(self, workdir: pathlib.Path, status: int, said: str) -> str:
        if "Traceback" in said:
            return f"a traceback: {said[-200:]!r}"
        return self.judge(
            workdir, status, said[said.index("error: ") :] if "error: " in said else said[-200:]
        )

    def judge(self, workdir: pathlib.Path, status: int, said: str) -> str:
        """`equal` or `refused`, or what is wrong with an end."""
        if status == 0:
            return "equal" if self.numbers(workdir) == self.expected else "OTHER NUMBERS"
        lines = said.splitlines()
        is_one_line = len(lines) == 1 and lines[0].startswith("error: ")
        return "refused" if status == 2 and is_one_line else f"status {status}: {said[-200:]!r}"

    def numbers(self, workdir: pathlib.Path) -> dict[str, Any]:
        """What a run's results hold, but for times."""
        found = json.loads((workdir / results.FILE).read_text())
        return {name: value for name, value in found.items() if name not in _NOT_NUMBERS}

    def _run(self, workdir: pathlib.Path, fields: dict[str, Any]) -> None:
        experiment = load.load_config(CONFIG, {**FIELDS, **fields})
        run.run(experiment, workdir, "all")


@contextlib.contextmanager
def _kept_errors() -> Iterator[TextIO]:
    """The error stream as a file, with what libraries write there that opened it before."""
    with tempfile.TemporaryFile("w+") as file, contextlib.ExitStack() as undo:
        before = os.dup(2)
        undo.callback(os.close, before)
        os.dup2(file.fileno(), 2)
        undo.callback(os.dup2, before, 2)
        with contextlib.redirect_stderr(file):
            yield file


def _status(work: Callable[[], None]) -> tuple[int, BaseException | None]:
    """The status of a command's work, and the error that it would show a traceback of."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        future = pool.submit(lambda: command_line.exit_status(work))
        error = future.exception()
        return (1, error) if error else (future.result(), None)


def kill(case: Case) -> Iterator[Trial]:
    """Kill -9 at random moments, from the imports to the report."""
    yield from _end(case, [signal.SIGKILL], "")


def late_best(case: Case) -> Iterator[Trial]:
    """Kill -9 while the best states are committed late."""
    yield from _end(case, [signal.SIGKILL], _LATE_BEST)


def stop(case: Case) -> Iterator[Trial]:
    """SIGTERM, and Ctrl-C once or twice."""
    for numbers in ([signal.SIGTERM], [signal.SIGINT], [signal.SIGINT, signal.SIGINT]):
        yield from _end(case, numbers, "", most=2)


def _end(
    case: Case, numbers: list[signal.Signals], patch: str, most: int = 10**6
) -> Iterator[Trial]:
    for _ in range(most):
        workdir, moment_s = case.empty(), case.random.uniform(0, case.duration_s)
        process = case.start(workdir, patch)
        said = ""
        try:
            process.wait(moment_s)
        except subprocess.TimeoutExpired:
            for number in numbers:
                process.send_signal(number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.3)
        said, _ = process.communicate()
        what = f"{' '.join(number.name for number in numbers)} at {moment_s:.1f} s"
        if "Traceback" in said:
            yield Trial(what, f"a traceback: {said[-200:]!r}")
        else:
            yield Trial(what, case.alone(workdir))


def full_disk(case: Case) -> Iterator[Trial]:
    """Files that may not grow past a limit, then may."""
    while True:
        size = int(10 ** case.random.uniform(2.5, 6))
        workdir = case.empty()
        process = case.start(workdir, _LIMIT.format(size=size))
        said, _ = process.communicate()
        errors = said[said.index("error: ") :] if "error: " in said else said[-200:]
        what = f"files of {size:,} bytes at most"
        if process.returncode == 0:
            yield Trial(what, case.judge(workdir, 0, ""))
        elif (end := case.judge(workdir, process.returncode, errors)) != "refused":
            yield Trial(what, end)
        else:
            yield Trial(what, case.alone(workdir))


def damage(case: Case) -> Iterator[Trial]:
    """A flipped bit, a cut and a loss of every file of store, checkpoints and records."""
    files = [path.relative_to(case.whole) for path in case.whole.rglob("*") if path.is_file()]
    changes = [(file, how) for file in sorted(files) for how in ("flip", "cut", "loss")]
    case.random.shuffle(changes)
    for file, how in changes:
        # What nothing reads: pictures and arrays for other programs.
        if file.parts[0] in ("figures", "tensorboard", "arrays.npz", "store.synthetic"):
            continue
        path = case.copy() / file
        content = bytearray(path.read_bytes())
        if how == "loss":
            path.unlink()
        elif how == "cut":
            path.write_bytes(content[: len(content) // 2])
        elif content:
            content[case.random.randrange(len(content))] ^= 1 << case.random.randrange(8)
            path.write_bytes(content)
        # Without its newest state, or that one's best, a run trains again from the one before.
        end = case.alone if file.parts[0] == "checkpoints" else case.again
        yield Trial(f"{how} of {file}", end(case.folder / "copy"))


def drift(case: Case) -> Iterator[Trial]:
    """Every field that decides numbers, changed on resume."""
    base = load.load_config(CONFIG, FIELDS)
    known, decides = load.field_names(base), fingerprint.of_stage(base, stage="student")
    found = [(name, own.metadata, v) for name, own, v in fields.walk(base) if name in known]
    case.random.shuffle(found)
    for name, stated, value in found:
        for other in _others(stated, value):
            changed = copy.deepcopy(base)
            try:
                load.override(changed, name, other)
                changed.validate()
            except (load.UsageError, ValueError):
                continue
            if fingerprint.of_stage(changed, stage="student") == decides:
                continue
            workdir = case.copy()
            before = (workdir / "config.json").read_bytes()
            end = case.again(workdir, **{name: other})
            if end == "refused" and (workdir / "config.json").read_bytes() != before:
                end = "refused, but config.json is overwritten"
            yield Trial(f"{name} changed", end)
            break


def _others(stated: Mapping[str, Any], value: Any) -> list[Any]:
    """Values that a field does not have; which of them are allowed is not known here."""
    if "choices" in stated:
        return [name for name in stated["choices"] if name != value]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [value + 1, value + 2, value / 2 if isinstance(value, float) else value - 1]
    if isinstance(value, tuple | list):
        return [(entry + 1, *value[1:]) for entry in value[:1] if not isinstance(entry, str)] + [
            (*value, more) for more in (*value[-1:], 1, 1.0, "user_id")
        ]
    return [f"{value}x"] if isinstance(value, str) else []


def two(case: Case) -> Iterator[Trial]:
    """Two runs at once in a workdir."""
    while True:
        workdir = case.empty()
        pair = [case.start(workdir) for _ in range(2)]
        ends = [(process.communicate()[0], process.returncode) for process in pair]
        refused = [said for said, status in ends if status == 2]
        is_sound = len(refused) == 1 and "another run works in this folder" in refused[0]
        yield Trial("two at once", case.alone(workdir) if is_sound else f"{ends!r}"[-200:])


def malformed_inputs(case: Case) -> Iterator[Trial]:
    """Own logs that are prepared or refused in one line, with nothing left behind."""
    for what, section in malformed.generate(case.folder / "malformed", case.random):
        yield Trial(what, malformed.judge(section))


KINDS: dict[str, Callable[[Case], Iterator[Trial]]] = {
    "kill": kill,
    "late_best": late_best,
    "stop": stop,
    "full_disk": full_disk,
    "damage": damage,
    "drift": drift,
    "two": two,
    "malformed": malformed_inputs,
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of this measurement."""
    parser.add_argument("--minutes", type=float, default=60.0, help="no trial begins after these")
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS), help="of faults")
    parser.add_argument("--trials", type=int, default=10**6, help="of a kind at most")
    parser.add_argument("--seed", type=int, default=0, help="of moments and places")
    parser.add_argument("--folder", type=pathlib.Path, help="keep the runs here")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Ends of the trials by kind, which take turns until the time is over."""
    end_s = time.monotonic() + 60 * options.minutes
    with contextlib.ExitStack() as stack:
        folder = options.folder or pathlib.Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="dsmoe_faults_"))
        )
        case = Case(folder, options.seed)
        left = {kind: KINDS[kind](case) for kind in options.kinds}
        trials: dict[str, list[Trial]] = {kind: [] for kind in left}
        while left and time.monotonic() < end_s:
            for kind in list(left):
                trial = next(left[kind], None)
                if trial is not None:
                    trials[kind].append(trial)
                if trial is None or len(trials[kind]) >= options.trials:
                    del left[kind]
                if time.monotonic() >= end_s:
                    break
    return {
        kind: {
            "trials": len(of),
            "ends": dict(collections.Counter(_end_of(trial) for trial in of)),
            "fell": [f"{trial.what}: {trial.end}" for trial in of if _end_of(trial) == "fell"],
        }
        for kind, of in trials.items()
    }


def _end_of(trial: Trial) -> str:
    return trial.end if trial.end in ("equal", "refused") else "fell"


def describe(found: dict[str, Any]) -> list[str]:
    """The table of kinds, and every trial that fell."""
    lines = [f"{'fault':<12} {'trials':>7} {'equal':>7} {'refused':>8} {'fell':>6}"]
    for kind, row in found.items():
        counts = [row["ends"].get(end, 0) for end in ("equal", "refused", "fell")]
        lines.append(f"{kind:<12} {row['trials']:>7} {counts[0]:>7} {counts[1]:>8} {counts[2]:>6}")
    falls = [f"  {kind}: {fall}" for kind, row in found.items() for fall in row["fell"]]
    return [*lines, *falls]
