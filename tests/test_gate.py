"""The gate: which steps it takes, and that none of them can fail unnoticed."""

import pathlib
import shutil
import subprocess
from collections.abc import Callable

import pytest

GATE = pathlib.Path(__file__).parents[1] / ".ci" / "run"

# Notes how it was called; fails when FAIL is part of that.
PROGRAM = """#!/bin/sh
echo "$(basename "$0") $*" >>"$CALLS"
case "$(basename "$0") $*" in *"$FAIL"*) exit 3 ;; esac
"""


@pytest.fixture
def run_gate(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[subprocess.CompletedProcess, list[str]]]:
    """Runs a copy of the gate with stand-ins for its tools, one of which may fail."""
    programs = tmp_path / "venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("python", "ruff", "lint-imports", "mypy", "mkdocs"):
        (programs / name).write_text(PROGRAM)
        (programs / name).chmod(0o755)
    (tmp_path / ".ci").mkdir()
    shutil.copy(GATE, tmp_path / ".ci" / "run")
    calls = tmp_path / "calls"
    monkeypatch.setenv("CALLS", str(calls))
    monkeypatch.setenv("DSMOE_VENV", str(tmp_path / "venv"))

    def run(failing: str, *arguments: str) -> tuple[subprocess.CompletedProcess, list[str]]:
        monkeypatch.setenv("FAIL", failing)
        command = ["bash", str(tmp_path / ".ci" / "run"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        return done, calls.read_text().splitlines()

    return run


CHECKS = ["ruff format", "ruff check", "lint-imports", "mypy"]
STEPS = [
    *CHECKS,
    "python -m pytest",
    "python -m dsmoe_jax.compare render --check",
    "python -m dsmoe_jax.bench render --check",
    "mkdocs build --strict",
]


def test_all_steps_are_taken_in_order_each_with_a_heading(run_gate: Callable) -> None:
    done, calls = run_gate("nothing")
    assert done.returncode == 0
    assert calls[0].startswith("python -m pip install")
    assert len(calls) == 1 + len(STEPS)
    headings = [line for line in done.stdout.splitlines() if line.startswith("== ")]
    said = [line.removeprefix("== ") for line in headings[1:]]
    for step, line in zip(STEPS, said, strict=True):
        assert line.startswith(step)
    # Some steps run side by side, so that either may be called first.
    assert sorted(said) == sorted(call.strip() for call in calls[1:])


def test_the_quick_part_runs_the_quick_tests_alone(run_gate: Callable) -> None:
    done, calls = run_gate("nothing", "quick")
    assert done.returncode == 0
    wanted = [*sorted(CHECKS), "python -m pytest -q -m unit"]
    for step, call in zip(wanted, [*sorted(calls[1:-1]), calls[-1]], strict=True):
        assert call.startswith(step)


def test_an_unknown_part_is_refused(run_gate: Callable, tmp_path: pathlib.Path) -> None:
    (tmp_path / "calls").write_text("")
    done, calls = run_gate("nothing", "fast")
    assert (done.returncode, calls) == (2, [])
    assert done.stderr == ".ci/run: expected quick or full, got fast\n"


@pytest.mark.parametrize("step", STEPS)
def test_failing_step_fails_the_gate_and_the_others_still_run(
    step: str, run_gate: Callable
) -> None:
    done, calls = run_gate(step)
    assert done.returncode == 1
    assert len(calls) == 1 + len(STEPS)
    assert done.stderr.startswith(f"failed: [{step}")


def test_failing_installation_ends_the_gate(run_gate: Callable) -> None:
    done, calls = run_gate("pip install")
    assert done.returncode == 1
    assert len(calls) == 1


def test_python_that_is_too_old_is_refused(
    run_gate: Callable, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "old"
    folder.mkdir()
    for name in ("python3", "python3.11", "python3.12", "python3.13"):
        (folder / name).write_text("#!/bin/sh\nexit 1\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    (tmp_path / "calls").write_text("")
    done, calls = run_gate("nothing")
    assert done.returncode == 1
    assert done.stderr.startswith(".ci/run: expected Python 3.11 or newer")
    assert calls == []
