"""launch/local.sh: shares, signals and exit statuses of processes on one machine."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from tests import compilation

ROOT = pathlib.Path(__file__).parents[2]
LOCAL = str(ROOT / "launch" / "local.sh")
# A teacher that would train for hours on a few hundred generated users.
ENDLESS = (
    "--config=configs/kuairand.py:synthetic",
    "--mode=teacher",
    "--config.data.num_users=300",
    "--config.data.num_items=250",
    "--config.data.num_impressions=12000",
    # The smallest scenario needs queries in both splits.
    "--config.data.validation_days=5",
    "--config.data.test_days=5",
    "--config.train.batch_size=64",
    "--config.train.steps_per_report=1",
    "--config.teacher.max_epochs=100000",
    "--config.teacher.patience=100000",
    "--config.teacher.model.expert_dims=(8,8)",
    "--config.teacher.model.tower_dims=(8,)",
    "--config.teacher.model.collaborative_dim=8",
    "--config.eval.teacher_validation_queries=20",
)


def run_local(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([LOCAL, *arguments], capture_output=True, text=True, timeout=300)


def test_processes_get_ids_one_coordinator_and_the_flags(
    environment: pathlib.Path, records: Callable
) -> None:
    assert run_local("3", "--config", "a b.py", "--config.seed=1").returncode == 0
    first, second, third = records()
    for number, record in enumerate((first, second, third)):
        assert record["argv"] == ["-m", "dsmoe_jax.main", "--config", "a b.py", "--config.seed=1"]
        assert record["env"]["DSMOE_PROCESS_ID"] == str(number)
        assert record["env"]["DSMOE_NUM_PROCESSES"] == "3"
        assert record["env"]["DSMOE_COORDINATOR"] == first["env"]["DSMOE_COORDINATOR"]
    host, _, port = first["env"]["DSMOE_COORDINATOR"].partition(":")
    assert host == "127.0.0.1"
    assert 20000 <= int(port) < 32000


def test_gpus_are_shared_out_in_order(
    environment: pathlib.Path, records: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3,5,7")
    assert run_local("2").returncode == 0
    assert [record["env"]["CUDA_VISIBLE_DEVICES"] for record in records()] == ["2,3", "5,7"]


def test_gpus_of_the_machine_are_listed_by_nvidia_smi(
    environment: pathlib.Path, records: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    listing = environment / "nvidia-smi"
    listing.write_text("#!/bin/sh\necho 0\necho 1\n")
    listing.chmod(0o755)
    assert run_local("2").returncode == 0
    assert [record["env"]["CUDA_VISIBLE_DEVICES"] for record in records()] == ["0", "1"]


def test_driver_without_gpus_counts_as_none(
    environment: pathlib.Path, records: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    listing = environment / "nvidia-smi"
    listing.write_text("#!/bin/sh\necho NVIDIA-SMI has failed\nexit 9\n")
    listing.chmod(0o755)
    assert run_local("2").returncode == 0
    assert all("CUDA_VISIBLE_DEVICES" not in record["env"] for record in records())


def test_gpus_are_left_alone_where_jax_is_told_to_use_the_cpu(
    environment: pathlib.Path, records: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert run_local("2").returncode == 0
    assert [record["env"]["CUDA_VISIBLE_DEVICES"] for record in records()] == ["0,1,2"] * 2


def test_cores_are_shared_out_without_overlap(environment: pathlib.Path, records: Callable) -> None:
    available = sorted(os.sched_getaffinity(0))
    number = min(2, len(available))
    assert run_local(str(number)).returncode == 0
    shares = [record["cores"] for record in records()]
    size = len(available) // number
    assert shares == [available[i * size : (i + 1) * size] for i in range(number)]


def test_more_processes_than_cores_share_all(environment: pathlib.Path, records: Callable) -> None:
    available = sorted(os.sched_getaffinity(0))
    assert run_local(str(len(available) + 1)).returncode == 0
    assert [record["cores"] for record in records()] == [available] * (len(available) + 1)


@pytest.mark.parametrize("arguments", [[], ["0"], ["--config=x"], ["2.5"]])
def test_number_of_processes_is_required(environment: pathlib.Path, arguments: list[str]) -> None:
    done = run_local(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: launch/local.sh NUM_PROCESSES --config FILE")


def test_number_that_does_not_divide_the_gpus_is_refused(
    environment: pathlib.Path, records: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    done = run_local("2")
    assert done.returncode == 2
    assert "divides the 3 GPUs, got 2" in done.stderr
    assert records() == []


def test_worst_exit_status_is_returned(
    environment: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB_STATUS", "3")
    assert run_local("3").returncode == 6


@pytest.mark.parametrize(
    ("sent", "received"),
    [
        (signal.SIGTERM, signal.SIGTERM),
        (signal.SIGINT, signal.SIGINT),
        (signal.SIGHUP, signal.SIGTERM),
    ],
)
def test_signal_reaches_every_process_once_and_all_are_awaited(
    sent: signal.Signals,
    received: signal.Signals,
    environment: pathlib.Path,
    records: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STUB_WAIT", "1")
    # Under nohup a shell could not hear SIGHUP.
    command = ["env", "--default-signal=HUP", LOCAL, "3"]
    with subprocess.Popen(command, start_new_session=True) as local:
        while len(records()) < 3:
            assert local.poll() is None
            time.sleep(0.02)
        # To the whole group, as a terminal sends Ctrl-C.
        os.killpg(local.pid, sent)
        assert local.wait(timeout=300) == 130
    assert [record["signals"] for record in records()] == [[received]] * 3
    assert not any(record["ignores_ctrl_c"] for record in records())


def test_two_processes_form_one_jax_run(probe: list[str], tmp_path: pathlib.Path) -> None:
    done = run_local("2", *probe)
    assert done.returncode == 0, done.stderr
    for number in range(2):
        assert (tmp_path / f"{number}.txt").read_text() == "2 [0, 1] 2"


def test_training_processes_save_at_one_step_when_asked_to_stop(
    environment: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "PYTHON": sys.executable,
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
        "XLA_FLAGS": f"{compilation.XLA_FLAGS} --xla_force_host_platform_device_count=1",
    }.items():
        monkeypatch.setenv(name, value)
    workdir = tmp_path / "run"
    command = [LOCAL, "2", *ENDLESS, f"--workdir={workdir}"]
    with subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as local:
        curve = workdir / "metrics.jsonl"
        while local.poll() is None and not (curve.exists() and '"step": 3,' in curve.read_text()):
            time.sleep(0.05)
        local.send_signal(signal.SIGTERM)
        output, _ = local.communicate(timeout=600)
    assert local.returncode == 130, output
    steps = re.findall(r"^teacher: stopped at step (\d+), state saved", output, re.MULTILINE)
    assert len(steps) == 2
    assert steps[0] == steps[1]
    assert (workdir / "checkpoints" / "teacher" / "latest" / steps[0]).is_dir()
