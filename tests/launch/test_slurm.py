"""launch/slurm.sbatch under an imitation of srun and scontrol."""

import os
import pathlib
import re
import subprocess
from collections.abc import Callable

import pytest

SBATCH = pathlib.Path(__file__).parents[2] / "launch" / "slurm.sbatch"

# Starts the step's tasks with the variables that SLURM sets; the largest exit status is srun's.
SRUN = """#!/usr/bin/env bash
for ((i = 0; i < SLURM_NTASKS; i++)); do
  SLURM_PROCID=$i SLURM_LOCALID=$i SLURM_STEP_NODELIST=localhost SLURM_STEP_NUM_NODES=1 "$@" &
  tasks+=($!)
done
worst=0
for task in "${tasks[@]}"; do
  wait "$task" || worst=$(($? > worst ? $? : worst))
done
exit $worst
"""

# Options of `sbatch` that the script uses (man sbatch, SLURM 23.11).
KNOWN_OPTIONS = {
    "job-name",
    "nodes",
    "ntasks-per-node",
    "gpus-per-node",
    "cpus-per-task",
    "time",
    "output",
    "open-mode",
    "signal",
    "requeue",
}


@pytest.fixture
def slurm(environment: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A batch job with two tasks; returns the file with the calls of scontrol."""
    for name, text in {
        "srun": SRUN,
        "scontrol": '#!/bin/sh\necho "$@" >>"$RECORDS/scontrol"\n',
    }.items():
        (environment / name).write_text(text)
        (environment / name).chmod(0o755)
    # JAX derives the port from the job's id: another one in every test process.
    monkeypatch.setenv("SLURM_JOB_ID", str(os.getpid()))
    monkeypatch.setenv("SLURM_NTASKS", "2")
    return environment.parent / "records" / "scontrol"


def run_batch(*arguments: str) -> subprocess.CompletedProcess:
    command = ["bash", str(SBATCH), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def options() -> dict[str, str]:
    """The #SBATCH options of the script; a flag has an empty value."""
    lines = re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", SBATCH.read_text(), re.MULTILINE)
    return dict(lines)


def test_options_exist_and_come_before_the_first_command() -> None:
    assert set(options()) == KNOWN_OPTIONS
    lines = SBATCH.read_text().splitlines()
    first_command = next(i for i, line in enumerate(lines[1:], 1) if not line.startswith("#"))
    last_option = max(i for i, line in enumerate(lines) if line.startswith("#SBATCH"))
    assert last_option < first_command


def test_tasks_and_not_the_script_are_warned_in_time() -> None:
    # A prefix `B:` would signal the script alone.
    assert options()["signal"] == "TERM@300"
    assert options()["requeue"] == ""
    assert options()["open-mode"] == "append"


def test_one_task_per_gpu_that_sees_all_of_its_node() -> None:
    assert options()["ntasks-per-node"] == options()["gpus-per-node"]
    assert "gpus-per-task" not in options()


def test_tasks_get_the_flags(slurm: pathlib.Path, records: Callable) -> None:
    assert run_batch("--config", "a b.py", "--config.seed=1").returncode == 0
    assert [record["argv"] for record in records()] == [
        ["-m", "dsmoe_jax.main", "--config", "a b.py", "--config.seed=1"]
    ] * 2
    assert all("JAX_LOCAL_DEVICE_IDS" not in record["env"] for record in records())


def test_cores_per_task_are_handed_on(
    slurm: pathlib.Path, records: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "8")
    assert run_batch().returncode == 0
    assert [record["env"]["SRUN_CPUS_PER_TASK"] for record in records()] == ["8", "8"]


@pytest.mark.parametrize(
    ("tasks_per_node", "gpus_on_node", "devices"),
    [("1", "4", "0,1,2,3"), ("4", "4", None), ("1", "1", None), ("1", None, None)],
)
def test_single_task_of_a_node_gets_all_its_gpus(
    tasks_per_node: str,
    gpus_on_node: str | None,
    devices: str | None,
    slurm: pathlib.Path,
    records: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", tasks_per_node)
    if gpus_on_node is not None:
        monkeypatch.setenv("SLURM_GPUS_ON_NODE", gpus_on_node)
    assert run_batch().returncode == 0
    assert [record["env"].get("JAX_LOCAL_DEVICE_IDS") for record in records()] == [devices] * 2


def test_saved_job_goes_back_to_the_queue(
    slurm: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB_STATUS", "130")
    assert run_batch().returncode == 130
    assert slurm.read_text() == f"requeue {os.getpid()}\n"


@pytest.mark.parametrize("status", ["0", "1", "2"])
def test_finished_or_failed_job_does_not(
    status: str, slurm: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB_STATUS", status)
    assert run_batch().returncode == int(status)
    assert not slurm.exists()


def test_tasks_find_each_other_through_slurm(
    slurm: pathlib.Path, probe: list[str], tmp_path: pathlib.Path
) -> None:
    done = run_batch(*probe)
    assert done.returncode == 0, done.stderr
    for number in range(2):
        assert (tmp_path / f"{number}.txt").read_text() == "2 [0, 1] 2"
