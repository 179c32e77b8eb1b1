import os
import re
import signal
import socket
import subprocess
import sys

import pytest

from dsmoe_jax.run import lock

HOLD = """
import pathlib, sys, time
from dsmoe_jax.run import lock
with lock.hold(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that has the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_the_first_process_and_its_host_are_named(other, tmp_path):
    with pytest.raises(ValueError) as caught, lock.hold(tmp_path):
        pass
    host = re.escape(socket.gethostname())
    assert re.fullmatch(
        rf"{tmp_path}: another run works in this folder: process {other.pid} on {host} since "
        r"[-\d]+ [:\d]+; wait for its end, end it, or choose another --workdir",
        str(caught.value),
    )


def test_the_lock_of_a_killed_process_is_taken_over_with_a_line(other, tmp_path, capsys):
    other.send_signal(signal.SIGKILL)
    other.wait()
    with lock.hold(tmp_path):
        pass
    assert f"takes over from a run that did not end by itself, process {other.pid} on " in (
        capsys.readouterr().out
    )
    with lock.hold(tmp_path):
        pass
    assert capsys.readouterr().out == ""


def test_a_half_written_note_locks_all_the_same(tmp_path, capsys):
    (tmp_path / lock.FILE).write_bytes(b'{"pid": 12\0\xff')
    with lock.hold(tmp_path):
        assert "process unknown" in capsys.readouterr().out
        with pytest.raises(ValueError, match=f"process {os.getpid()} on"), lock.hold(tmp_path):
            pass


def test_a_run_that_fails_frees_its_folder(tmp_path):
    with pytest.raises(KeyError), lock.hold(tmp_path):
        raise KeyError
    # It wrote nothing and leaves nothing; one that did, or a folder of runs before, keeps the file.
    assert list(tmp_path.iterdir()) == []
    with lock.hold(tmp_path):
        pass
    with pytest.raises(KeyError), lock.hold(tmp_path):
        raise KeyError
    (tmp_path / lock.FILE).unlink()
    with pytest.raises(KeyError), lock.hold(tmp_path):
        (tmp_path / "config.json").touch()
        raise KeyError
    assert (tmp_path / lock.FILE).is_file()


def test_a_lock_that_a_refused_run_took_away_is_none(tmp_path, monkeypatch):
    taken = os.open

    def open_late(path, *options):
        descriptor = taken(path, *options)
        (tmp_path / lock.FILE).unlink()
        return descriptor

    monkeypatch.setattr(os, "open", open_late)
    with pytest.raises(ValueError, match="try again"), lock.hold(tmp_path):
        pass
