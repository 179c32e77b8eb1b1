import contextlib
import json
import threading
import time

import pytest

from dsmoe_jax.bench import device, device_timing, first_command
from dsmoe_jax.run import run
from tests.bench import small_run


@pytest.fixture
def moments(monkeypatch):
    """A clock that a test moves."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def move(seconds):
        now[0] += seconds

    return move


def test_a_part_counts_without_those_inside_it(moments, tmp_path):
    clock = first_command.Clock(98.0, tmp_path / "parts.json")
    with clock.part("training"):
        moments(5)
        with clock.part("checkpoints"):
            moments(2)
        moments(1)
        with contextlib.suppress(OSError), clock.part("validation"):
            moments(4)
            raise OSError
    moments(3)
    with clock.part("checkpoints"):
        moments(1)
    expected = {first_command.REST: 5, "training": 6, "checkpoints": 3, "validation": 4}
    assert clock.seconds == expected
    assert json.loads((tmp_path / "parts.json").read_text()) == expected


def test_compilation_is_taken_from_the_part_that_it_lies_in_and_counts_once(moments):
    clock = first_command.Clock(100.0)
    trace, _, compilation = first_command._COMPILATION_EVENTS
    with clock.part("training"):
        moments(2)
        clock.hear(trace, 1.0)  # inside the next
        moments(1)
        clock.hear(trace, 3.0)
        moments(6)
        clock.hear(compilation, 5.0)
        clock.hear("/jax/compilation_cache/cache_hits", 9.0)
        other = threading.Thread(target=clock.hear, args=(compilation, 4.0))
        other.start()
        other.join()
    assert clock.seconds["training"] == pytest.approx(1)
    assert clock.seconds[first_command.COMPILATION] == pytest.approx(8)


def test_everything_that_is_wrapped_is_there_and_is_left_as_it_was(moments):
    before = run.prepare
    with contextlib.ExitStack() as stack:
        first_command.wrap(first_command.Clock(100.0), stack)
        assert run.prepare is not before
    assert run.prepare is before


def test_an_evaluation_outside_of_training_is_not_validation(moments):
    clock = first_command.Clock(100.0)
    evaluate = first_command._time(clock, "validation", moments)
    evaluate(3)
    with clock.part("training"):
        evaluate(2)
    assert clock.seconds["evaluation of the best states"] == 3
    assert clock.seconds["validation"] == 2


def test_a_run_without_time_is_cut_off_in_its_imports():
    with pytest.raises(ValueError, match=r"cut off in its imports, after 0 s"):
        first_command.time_command(("--config=kuairand:sample",), 0.1)


@pytest.mark.slow
def test_a_command_that_fails_says_why():
    with pytest.raises(ValueError, match=r"ended with 2: error: .*no_such"):
        first_command.time_command(("--config=no_such",), 300.0)


@pytest.mark.slow
def test_the_parts_of_a_whole_run_are_all_of_its_time():
    found = small_run.measure(device, "--small", "--parts", "command")
    [entry] = found["entries"]
    assert entry["ended"] == ""
    parts = {part for _, _, part in first_command.WRAPPED} - {"baselines"}
    parts |= {first_command.IMPORTS, first_command.COMPILATION, "evaluation of the best states"}
    assert parts <= set(entry["parts_s"])
    assert all(seconds >= 0 for seconds in entry["parts_s"].values())
    assert list(entry["parts_s"])[-2:] == [first_command.REST, first_command.EXIT]
    assert entry["parts_s"][first_command.EXIT] < 0.2 * entry["elapsed_s"]
    assert sum(entry["parts_s"].values()) == pytest.approx(entry["elapsed_s"], rel=0.01)
    rows = [line for line in device.describe(found) if line.startswith("| command")]
    assert len(rows) == 1 + len(entry["parts_s"])


def test_the_row_of_a_run_that_is_cut_off_says_so():
    entry = {
        "part": "command", "name": "dsmoe train", "elapsed_s": 4.0, "ended": "cut off after 4 s",
        "parts_s": {"imports": 1.0, "training": 3.0},
    }  # fmt: skip
    assert device.rows(entry) == [
        ("command", "dsmoe train, cut off after 4 s", "4,000", "", "", ""),
        ("command", "imports", "1,000", "", "25.0% of it", ""),
        ("command", "training", "3,000", "", "75.0% of it", ""),
    ]
    assert "--config=kuairand:sample" in device_timing.Sizes().command
