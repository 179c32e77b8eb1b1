"""launch/compare.sbatch under an imitation of srun and scontrol."""

import os
import pathlib
import subprocess
from collections.abc import Callable

import pytest

SBATCH = pathlib.Path(__file__).parents[2] / "launch" / "compare.sbatch"


@pytest.fixture
def slurm(environment: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """Task 7 of an array; returns the file with the calls of scontrol."""
    # Process 1, since the recorder's status is a multiple of the id.
    srun = '#!/bin/sh\nSLURM_PROCID=1 exec "$@"\n'
    scontrol = '#!/bin/sh\necho "$@" >>"$RECORDS/scontrol"\n'
    for name, text in {"srun": srun, "scontrol": scontrol}.items():
        (environment / name).write_text(text)
        (environment / name).chmod(0o755)
    monkeypatch.setenv("SLURM_JOB_ID", str(os.getpid()))
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "7")
    return environment.parent / "records" / "scontrol"


def run_batch(*arguments: str) -> subprocess.CompletedProcess:
    command = ["bash", str(SBATCH), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_a_task_runs_its_cell_with_the_arguments_of_all(
    slurm: pathlib.Path, records: Callable
) -> None:
    assert run_batch("all", "--dir", "a b").returncode == 0
    [record] = records()
    expected = ["-m", "dsmoe_jax.compare", "run", "all", "--dir", "a b"]
    assert record["argv"] == [*expected, "--workers", "1", "--cell", "7"]
    assert not slurm.exists()


@pytest.mark.parametrize(("status", "requeued"), [("130", True), ("1", False)])
def test_only_a_saved_task_goes_back_to_the_queue(
    status: str, requeued: bool, slurm: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB_STATUS", status)
    assert run_batch("all").returncode == int(status)
    assert slurm.exists() == requeued


def test_options_come_before_the_first_command() -> None:
    lines = SBATCH.read_text().splitlines()
    first_command = next(i for i, line in enumerate(lines[1:], 1) if not line.startswith("#"))
    assert max(i for i, line in enumerate(lines) if line.startswith("#SBATCH")) < first_command
