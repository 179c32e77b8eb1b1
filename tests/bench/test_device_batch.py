import itertools

import jax
import pytest

from dsmoe_jax.bench import device, device_batch, device_timing
from dsmoe_jax.capacity import simulated
from tests.bench import small_run


def search(count, memory_bytes, *, unit=8, first=816, most=10**15, left_s=lambda: 1e9):
    return device_batch.search(
        count, memory_bytes, unit=unit, first=first, most=most, left_s=left_s
    )


@pytest.mark.parametrize("bend", [0.7, 1.0, 1.4])
@pytest.mark.parametrize("memory_bytes", [3_000_000, 80_000_000_000])
def test_the_largest_batch_is_found_where_bytes_are_no_straight_line(bend, memory_bytes):
    asked = []

    def count(batch_size):
        asked.append(batch_size)
        return int(500_000 + 90 * batch_size**bend)

    found = search(count, memory_bytes)
    # No batch is counted twice.
    assert found.is_narrow and len(asked) == len(found.bytes) < 24
    assert count(found.largest) <= memory_bytes < count(int(1.03 * found.largest) + 8)
    assert all(batch_size % 8 == 0 for batch_size in found.bytes)


def test_a_straight_line_takes_few_programs():
    found = search(lambda batch_size: 10**9 + 1000 * batch_size, 80 * 10**9)
    assert found.is_narrow and len(found.bytes) <= 7


def test_none_may_fit_or_only_one_smaller_than_the_first():
    assert search(lambda batch_size: 10**6, 10**5).largest == 0
    assert search(lambda batch_size: 1000 * batch_size, 10**5).largest in (96, 100)


def test_the_bound_of_a_batch_is_kept():
    found = search(lambda batch_size: batch_size, 10**9, most=10_003)
    assert found.largest == 10_000 and found.is_narrow


def test_what_a_compiler_refuses_does_not_fit():
    def count(batch_size):
        if batch_size > 20_000:
            raise RuntimeError("RESOURCE_EXHAUSTED")
        return 10 * batch_size

    found = search(count, 10**6)
    assert 0.97 * 20_000 <= found.largest <= 20_000


def test_a_search_that_runs_out_of_time_says_so_and_keeps_what_it_has():
    left = itertools.count(100, -20)
    found = search(lambda batch_size: batch_size, 10**6, left_s=lambda: next(left))
    assert found.largest == 4 * 816 and not found.is_narrow


def test_a_device_that_does_not_say_its_memory_has_no_largest_batch():
    with pytest.raises(ValueError, match="cpu does not say how much it has"):
        device_batch.find_memory()


def test_other_arrays_take_their_share_of_the_memory(monkeypatch):
    class Device:
        def memory_stats(self):
            return {"bytes_limit": 1000, "bytes_in_use": 300}

    monkeypatch.setattr(jax, "devices", lambda: [Device()])
    assert device_batch.find_memory() == 700


def test_a_plan_that_is_late_leaves_the_batch(monkeypatch):
    entry = {
        "part": "batch", "name": "kuairand dense float32", "largest_batch": 1000,
        "largest_bytes": 79 * 10**9, "memory_bytes": 80 * 10**9, "is_narrow": False,
        "why_not_run": "out of memory", "why_no_plan": "not done in 3 s",
    }  # fmt: skip
    [row] = device.rows(entry)
    assert row[4] == (
        "1,000 positives, 79 of 80 GB, not narrowed down in time; its step failed: out of memory; "
        "no plan: not done in 3 s"
    )
    with pytest.raises(ValueError, match="not done in 0 s"):
        simulated.run(device_batch.predict, (), devices=1, limit_s=0.0)


def test_every_shape_has_a_job():
    listed = device_batch.list_batches(device_timing.Sizes(), device_timing.Budget())
    assert [name for name, _ in listed] == ["kuairand dense float32", "alimama dense float32"]


@pytest.mark.slow
def test_the_largest_batch_of_a_given_memory_runs_and_is_near_the_plan_s():
    found = small_run.measure(device, "--small", "--parts", "batch")
    [entry] = found["entries"]
    assert entry["largest_bytes"] <= entry["memory_bytes"] == 64 << 20
    assert entry["is_narrow"] and entry["why_not_run"] == ""
    assert entry["plan"]["largest_batch"] == pytest.approx(entry["largest_batch"], rel=0.15)
    assert entry["plan"]["bytes"] == pytest.approx(entry["largest_bytes"], rel=0.15)
    assert "its step ran; plan: " in device.describe(found)[-1]
