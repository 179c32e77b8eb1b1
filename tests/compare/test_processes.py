"""How processes share a machine, and what they leave to see."""

import os
import sys

from dsmoe_jax.compare import processes
from tests.compare import orphans


def test_workers_share_the_cores():
    cores = os.sched_getaffinity(0)
    parts = [processes.cores_of(slot, 2) for slot in range(2)]
    assert all(part and part <= cores for part in parts)
    assert len(cores) < 2 or parts[0] | parts[1] == cores
    assert 1 <= processes.fit_workers(64) <= len(cores)


def test_a_process_keeps_its_lock_when_its_starter_gives_it_up(tmp_path):
    path, log = tmp_path / "lock", tmp_path / "log.txt"
    with processes.lock(path) as lock:
        program = "import time; print('begun', flush=True); time.sleep(600)"
        command = [sys.executable, "-c", program]
        process = processes.start(command, log, slot=0, workers=1, lock=lock)
    while processes.last_line(log) != "begun":
        pass
    with processes.lock(path) as lock:
        assert lock is None
    assert not processes.stop_orphan(path)
    processes.stop([process])
    assert process.returncode
    with processes.lock(path) as lock:
        assert lock is not None


def test_a_process_is_stopped_when_its_starter_is_gone(tmp_path):
    path = tmp_path / "cell-seed0.lock"
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
    path = tmp_path / "cell-seed0.lock"
    path.touch()
    assert not processes.stop_orphan(path)


def test_the_last_line_of_a_log(tmp_path):
    path = tmp_path / "log.txt"
    assert processes.last_line(path) == ""
    path.write_text("first\n" + "x" * 5000 + "\n last \n\n")
    assert processes.last_line(path) == "last"
