"""How processes share a machine, and what they leave to see."""

import os
import subprocess
import sys

from dsmoe_jax.compare import processes
from tests.compare import orphans


def test_workers_share_the_cores():
    cores = os.sched_getaffinity(0)
    parts = [processes.cores_of(slot, 2) for slot in range(2)]
    assert all(part and part <= cores for part in parts)
    assert len(cores) < 2 or parts[0] | parts[1] == cores
    assert 1 <= processes.fit_workers(64) <= len(cores)


def test_a_holder_keeps_its_lock_while_its_starter_lives(tmp_path):
    path = tmp_path / "lock"
    program = """
import pathlib, sys, time
from dsmoe_jax.compare import processes
with processes.lock(pathlib.Path(sys.argv[1])) as lock:
    processes.sign(lock, int(sys.argv[2]))
    print("begun", flush=True)
    time.sleep(600)
"""
    command = [sys.executable, "-c", program, str(path), str(os.getpid())]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "begun\n"
    with processes.lock(path) as lock:
        assert lock is None
    assert not processes.stop_orphan(path)
    processes.stop([process])
    process.stdout.close()
    assert process.returncode
    with processes.lock(path) as lock:
        assert lock is not None


def test_more_jobs_at_a_time_are_on_different_cores(tmp_path, monkeypatch):
    program = "import os; print(sorted(os.sched_getaffinity(0)), flush=True)"
    monkeypatch.setattr(processes, "command", lambda file: [sys.executable, "-c", program])
    files = [tmp_path / name / "job.json" for name in ("a", "b")]
    for file in files:
        file.parent.mkdir()
    machine = processes.ThisMachine(2)
    for process in machine.start(files):
        assert process.wait() == 0
    assert all(file.with_name("log.txt").read_text().startswith("[") for file in files)
    assert machine.cores == len(processes.cores_of(0, 2))


def test_a_process_is_stopped_when_its_starter_is_gone(tmp_path):
    path = tmp_path / "job-seed0.lock"
    orphans.leave(path, tmp_path / "log.txt")
    with processes.lock(path) as lock:
        assert lock is None
    text = path.read_text()
    host, starter, holder = text.split()
    path.write_text(f"another-{host} {starter} {holder}\n")
    assert not processes.stop_orphan(path)
    path.write_text(f"{host} {starter} {os.getpid()}\n")
    assert not processes.stop_orphan(path)
    path.write_text(text)
    assert processes.stop_orphan(path)
    with processes.lock(path, wait=True) as lock:
        assert lock is not None


def test_a_lock_that_nobody_wrote_into_names_no_process(tmp_path):
    path = tmp_path / "job-seed0.lock"
    path.touch()
    assert not processes.stop_orphan(path)


def test_the_last_line_of_a_log(tmp_path):
    path = tmp_path / "log.txt"
    assert processes.last_line(path) == ""
    path.write_text("first\n" + "x" * 5000 + "\n last \n\n")
    assert processes.last_line(path) == "last"
