"""The comparison from its command line: killed, continued, reused."""

import json
import os
import pathlib
import signal
import subprocess
import time

import pytest

from tests.e2e import commands

RUN = (
    "run",
    "fig4",
    "--config=configs/kuairand.py:synthetic",
    "--workers=1",
    *commands.SMALL,
    *commands.SMALL_MMOE,
    *commands.SMALL_KUAIRAND,
    "--config.train.max_epochs=1",
)


def start(*arguments: str) -> subprocess.Popen:
    return commands.start_module("dsmoe_jax.compare", *arguments)


def jobs_alive(folder: pathlib.Path) -> list[int]:
    """Processes that work in the folder."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().decode()
            except OSError:
                continue
            if "dsmoe_jax.compare.job" in line and str(folder) in line:
                found.append(int(entry.name))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """A comparison whose runner, and then whose job, was killed in its training."""
    folder = tmp_path_factory.mktemp("comparison")
    arguments = (*RUN, f"--dir={folder}", "--config.checkpoint.every_steps=2")
    first = start(*arguments)

    def is_training() -> bool:
        saved = folder.glob("jobs/teacher-seed0/*/checkpoints/teacher/latest/*")
        return any(path.name.isdigit() for path in saved)

    commands.interrupt_when(first, is_training, signal.SIGKILL)
    [job] = jobs_alive(folder)
    os.kill(job, signal.SIGKILL)
    while jobs_alive(folder):
        time.sleep(0.05)
    assert not list(folder.glob("records/*"))
    output = commands.finish(start(*arguments))
    assert "2 of 2 jobs done" in output
    return folder


def test_a_killed_runner_continues_inside_the_job_where_it_stopped(folder):
    [log] = folder.glob("jobs/teacher-seed0/*/log.txt")
    assert "teacher: resumes at step" in log.read_text()
    record = json.loads((folder / "records" / "dsmoe-seed0.json").read_text())
    assert record["teacher"]["macro"]["recall@50"] > 0
    assert record["costs"]["user"] > 0
    assert "scenario_coefficients/user/forward" in record["views"]


def test_finished_jobs_are_reused(folder):
    before = {path: path.stat().st_mtime_ns for path in folder.glob("records/*")}
    output = commands.finish(start(*RUN, f"--dir={folder}", "--config.checkpoint.every_steps=2"))
    assert "started" not in output
    assert {path: path.stat().st_mtime_ns for path in folder.glob("records/*")} == before


def test_the_list_is_shown_without_running_anything(folder):
    output = commands.finish(start(*RUN, f"--dir={folder}", "--list", "--seeds=2"))
    # checkpoint.every_steps is no part of what decides numbers.
    states = [line.split()[1:3] for line in output.splitlines() if line.startswith("   ")]
    assert states == [
        ["done", "teacher-seed0"],
        ["done", "dsmoe-seed0"],
        ["left", "dsmoe-seed1"],
    ]
