"""Jobs submitted with submitit, to its executor on this machine."""

import importlib.util
import json
import sys
import time

import pytest

from dsmoe_jax.compare import cluster, processes
from tests.e2e import commands

# Stands for a job; asked to stop, it saves.
RUN = """
import pathlib, signal, sys, time
file, seconds = pathlib.Path(sys.argv[1]), float(sys.argv[2])
def save(number, frame):
    file.with_name("saved").touch()
    sys.exit(130)
signal.signal(signal.SIGTERM, save)
print("begun", flush=True)
if not file.with_name("saved").exists(): time.sleep(seconds)
if file.parent.name == "bad": sys.exit("error: it went wrong")
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Submits jobs by their names."""

    def run(*names, seconds=0, **more):
        monkeypatch.setattr(
            processes, "command", lambda file: [sys.executable, "-c", RUN, str(file), str(seconds)]
        )
        files = [tmp_path / name / "job.json" for name in names]
        for file in files:
            file.parent.mkdir()
        options = {"gpus_per_node": 0, "cpus_per_task": 1, **more}
        machine = cluster.Cluster("local", tmp_path / "submitted", 2, options)
        machine._executor._executor.parameters["signal_delay_s"] = 48
        return machine.start(files)

    return run


def wait_for(condition):
    while not condition():
        time.sleep(0.05)


def test_jobs_are_submitted_and_their_status_comes_back(start, tmp_path):
    good, bad = start("good", "bad")
    assert (good.wait(), bad.wait()) == (0, 1)
    assert processes.last_line(tmp_path / "good" / "log.txt") == "begun"
    assert processes.last_line(tmp_path / "bad" / "log.txt") == "error: it went wrong"


def test_a_cancelled_job_saves(start, tmp_path):
    [job] = start("long", seconds=600)
    log = tmp_path / "long" / "log.txt"
    wait_for(lambda: processes.last_line(log) == "begun")
    assert job.poll() is None
    processes.stop([job])
    wait_for((tmp_path / "long" / "saved").exists)


def test_a_job_near_its_time_limit_saves_and_goes_back_to_the_queue(start, tmp_path):
    # The limit is a minute, of which twelve seconds are over when the job is told.
    [job] = start("long", seconds=600, timeout_min=1)
    assert job.wait() == 0
    assert (tmp_path / "long" / "saved").exists()
    assert (tmp_path / "long" / "log.txt").read_text().split() == ["begun", "begun"]


def test_without_submitit_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"--cluster slurm: .* pip install '\.\[cluster\]'"):
        cluster.Cluster("slurm", tmp_path, 1, {})


# Submission, cancelling and time limits are tested above.
@pytest.mark.slow
def test_a_comparison_runs_on_a_cluster(tmp_path):
    """Two jobs of the real program, as small as they are; a teacher comes before its student."""
    arguments = (
        *("run", "fig4", "--config=configs/kuairand.py:synthetic", f"--dir={tmp_path}"),
        *("--cluster=local", "--submit=gpus_per_node=0", "--submit=cpus_per_task=1"),
        *commands.SMALL,
        *commands.SMALL_MMOE,
        *commands.SMALL_KUAIRAND,
        "--config.train.max_epochs=1",
    )
    output = commands.finish(commands.start_module("dsmoe_jax.compare", *arguments))
    assert "2 of 2 jobs done" in output
    record = json.loads((tmp_path / "records" / "dsmoe-seed0.json").read_text())
    assert record["teacher_job"] == "teacher-seed0"
    assert record["cores"] == 1
