"""The short form of the campaign, and that it tells a sound end from a fall."""

import os
import random
import sys

import pytest

from dsmoe_jax.bench import faults
from tests.bench import small_run


def test_no_fault_changes_a_number_in_silence():
    flags = ("--kinds", "damage", "drift", "late_best", "--trials=2", "--seed=1")
    found = small_run.measure(faults, *flags)
    assert {kind: row["fell"] for kind, row in found.items()} == {
        "damage": [],
        "drift": [],
        "late_best": [],
    }
    assert [row["trials"] for row in found.values()] == [2, 2, 2]
    assert found["drift"]["ends"] == {"refused": 2}
    assert found["late_best"]["ends"] == {"equal": 2}


class Told(faults.Case):
    """A case with files, whose ends say in which process the command ended."""

    def __init__(self, folder, *files):
        self.folder, self.whole, self.random = folder, folder / "whole", random.Random(0)
        for file in files:
            (self.whole / file).parent.mkdir(parents=True, exist_ok=True)
            (self.whole / file).write_text("content")

    def again(self, workdir):
        return "in this process"

    def alone(self, workdir):
        return "in its own"


def test_what_may_train_again_ends_in_a_process_of_its_own(tmp_path):
    # This one may compile otherwise, as tests do, and sum in another order.
    files = "checkpoints/student/latest/114/state/x", "checkpoints/student/best/114/x", "store/x"
    found = list(faults.damage(Told(tmp_path, *files)))
    assert len(found) == 9
    assert {trial.end for trial in found if "checkpoints" in trial.what} == {"in its own"}
    assert {trial.end for trial in found if "store" in trial.what} == {"in this process"}


class Judged(faults.Case):
    """A case whose numbers are given."""

    def __init__(self, numbers):
        self.expected, self._found = 1, numbers

    def numbers(self, workdir):
        return self._found


@pytest.mark.parametrize(
    ("numbers", "status", "said", "end"),
    [
        (1, 0, "", "equal"),
        (2, 0, "", "OTHER NUMBERS"),
        (1, 2, "error: x: the store is damaged\n", "refused"),
        (1, 2, "warning\nerror: x\n", "status 2: 'warning\\nerror: x\\n'"),
        (1, 1, "", "status 1: ''"),
        (1, -9, "", "status -9: ''"),
    ],
)
def test_an_end_is_judged(tmp_path, numbers, status, said, end):
    assert Judged(numbers).judge(tmp_path, status, said) == end


def test_falls_are_listed_under_the_table():
    found = {
        "kill": {"trials": 2, "ends": {"equal": 1, "fell": 1}, "fell": ["SIGKILL: OTHER NUMBERS"]}
    }
    lines = faults.describe(found)
    assert lines[1].split() == ["kill", "2", "1", "0", "1"]
    assert lines[2] == "  kill: SIGKILL: OTHER NUMBERS"


def test_what_libraries_write_to_the_error_stream_is_kept():
    with faults._kept_errors() as file:
        os.write(2, b"by its number\n")
        print("by its name", file=sys.stderr, flush=True)
        file.seek(0)
        assert file.read() == "by its number\nby its name\n"
