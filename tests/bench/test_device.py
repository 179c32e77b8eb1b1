import itertools
import json

import jax
import numpy as np
import pytest

from dsmoe_jax import optional
from dsmoe_jax.bench import __main__ as command_line
from dsmoe_jax.bench import (
    device,
    device_search,
    device_timing,
    device_twins,
    device_work,
    kernels,
    measurements,
)
from dsmoe_jax.retrieval import faiss_index
from tests.bench import small_run


@pytest.fixture
def steps():
    """Every part of a step's measurement, in small."""
    return small_run.measure(device, "--small", "--parts", "peaks", "step", "dispatch")


def names(entries):
    return [(entry["part"], entry["name"]) for entry in entries]


def test_peaks_and_searches_are_timed_and_what_a_cpu_cannot_do_is_left_out(tmp_path, capsys):
    path = tmp_path / "device.json"
    flags = ["--small", "--parts", "peaks", "search", "twins"]
    assert command_line.main(["device", *flags, "--json", str(path)]) == 0
    found = json.loads(path.read_text())["found"]
    searched = "2,000 items, 40 queries, k = 5"
    assert names(found["entries"]) == [
        ("peaks", "GEMM f32 HIGHEST"),
        ("peaks", "GEMM f32 default"),
        ("peaks", "GEMM bf16"),
        ("peaks", "copy"),
        ("search", f"lax.top_k, {searched}"),
        ("search", f"reservoir, {searched}"),
        ("search", f"two_stage, {searched}"),
    ]
    for entry in found["entries"]:
        seconds = entry["seconds"]
        assert 0 < seconds["least"] <= seconds["median"] <= seconds["greatest"]
    assert names(found["left_out"]) == [
        ("search", f"FAISS flat, {searched}"),
        ("twins", "PyTorch compile, step 200 dense float32"),
        ("twins", f"PyTorch topk, {searched}"),
    ]
    said = capsys.readouterr()
    # Each row is shown as it is found, and all of them at the end.
    rows = [line for line in said.err.splitlines() if line.startswith("| ")]
    assert len(rows) == 10
    assert all(line in said.out.splitlines() for line in rows)
    assert "expected an NVIDIA GPU, got cpu" in said.out
    faiss = "FAISS for GPUs: not installed, FAISS here is for CPUs"
    assert f"| search | FAISS flat, {searched} | left out |  | {faiss} |  |" in rows


@pytest.mark.slow
def test_steps_have_their_operations_bytes_and_share_of_the_right_peak(steps):
    entries = {entry["name"]: entry for entry in steps["entries"] if entry["part"] != "peaks"}
    assert list(entries) == [
        "200 row_sparse float32",
        "200 distilled bfloat16",
        "200 dense, 2 steps a dispatch",
    ]
    peaks = {entry["name"]: entry for entry in steps["entries"] if entry["part"] == "peaks"}
    for name, peak in (("200 row_sparse float32", "GEMM f32 default"),
                       ("200 distilled bfloat16", "GEMM bf16")):  # fmt: skip
        entry = entries[name]
        # XLA counts element-wise work too.
        assert entry["flop"] >= entry["matmul_flop"] > 0
        assert entry["bytes"] > 0 and entry["state_bytes"] > 0
        assert len(entry["kernels"]) == 5
        rate = entry["flop"] / entry["seconds"]["median"]
        of = peaks[peak]
        assert entry["share"] == pytest.approx(rate * of["seconds"]["median"] / of["flop"])
    assert entries["200 dense, 2 steps a dispatch"]["steps_per_dispatch"] == 2


@pytest.mark.slow
def test_evaluation_counts_its_queries():
    found = small_run.measure(device, "--small", "--parts", "evaluation")
    [entry] = found["entries"]
    assert 0 < entry["queries"] <= 4 * 8
    assert "queries/s" in device.describe(found)[-1]


def test_the_full_plan_holds_every_step_dispatch_and_search():
    jobs = list(device_work.list_jobs(device_timing.Sizes(), device_work.PARTS))
    listed = names({"part": job.part, "name": job.name} for job in jobs)
    kinds = itertools.product(
        ("kuairand", "alimama"),
        ("dense", "row_sparse", "distilled"),
        ("float32", "bfloat16"),
    )
    assert [name for part, name in listed if part == "step"] == [" ".join(k) for k in kinds]
    assert [name for part, name in listed if part == "dispatch"] == [
        f"kuairand dense, {most} steps a dispatch" for most in (1, 8, 64)
    ]
    searched = [
        f"{way}, {case}"
        for case in (
            "1,000,000 items, 1,000 queries, k = 50",
            "1,000,000 items, 1,000 queries, k = 1,000",
            "7,583 items, 7,451 queries, k = 100",
        )
        for way in ("lax.top_k", "reservoir", "two_stage", "FAISS flat")
    ]
    assert [name for part, name in listed if part == "search"] == searched
    assert list(dict.fromkeys(part for part, _ in listed)) == list(device_work.PARTS)


def test_nothing_is_begun_once_the_budget_is_spent():
    found = small_run.measure(device, "--small", "--budget_s=0")
    assert found["entries"] == []
    assert {one["why"] for one in found["left_out"]} == {"the budget was spent"}
    every = device_work.list_jobs(device_timing.SMALL, device_work.PARTS)
    assert len(found["left_out"]) == len(list(every))
    assert device.describe(found)[-1].startswith("| command | dsmoe train --config=")
    assert device.describe(found)[-1].endswith(" | left out |  | the budget was spent |  |")


def make_jobs(*jobs):
    """Jobs that take so many seconds of a clock, which the budget reads."""
    now = [0.0]

    class Budget(device_timing.Budget):
        def elapsed_s(self):
            return now[0]

    def spend(seconds):
        now[0] += seconds
        return {}

    made = [
        device_timing.Job(part, name, lambda seconds=seconds: spend(seconds))
        for part, name, seconds in jobs
    ]
    return made, Budget


def test_later_parts_keep_their_time_and_what_waits_for_them_comes_last():
    jobs, budget = make_jobs(
        ("step", "first", 150), ("step", "second", 150), ("search", "third", 10)
    )
    ordered = device.order(jobs, device_work.PARTS, budget(400.0), 1.0)
    names = []
    for job in ordered:
        names.append(job.name)
        job.measure()
    assert names == ["first", "third", "second"]


def test_a_job_that_would_take_longer_than_is_left_is_not_begun(monkeypatch):
    begun = []

    def list_jobs(sizes, parts, budget):
        def work():
            begun.append(budget)
            budget.left_s = lambda: 1e-9
            return {"largest_batch": 0, "memory_bytes": 1}

        return [device_timing.Job("batch", name, work) for name in ("first", "second")]

    monkeypatch.setattr(device_work, "list_jobs", list_jobs)
    found = small_run.measure(device, "--small", "--parts", "batch")
    assert len(begun) == 1 and names(found["entries"]) == [("batch", "first")]
    [left] = found["left_out"]
    assert left["why"] == "0 s were left, fewer than such a row took before"


def test_a_step_without_a_profile_keeps_its_time(monkeypatch):
    def forbid(*arguments):
        raise RuntimeError("CUPTI: insufficient privileges\nmore")

    monkeypatch.setattr(kernels, "profile", forbid)
    found = device_work._profile(print, device_timing.SMALL, jax.jit(lambda: 1).lower().compile())
    assert found == {"why_no_kernels": "CUPTI: insufficient privileges"}
    entry = {
        "part": "step", "name": "kuairand", "first_s": 1.0,
        "seconds": {"median": 1.0, "least": 1.0, "greatest": 1.0}, **found,
    }  # fmt: skip
    assert [row[1] for row in device.rows(entry)] == [
        "kuairand",
        "kuairand: no kernels: CUPTI: insufficient privileges",
    ]


def test_a_kernel_s_row_is_short_and_ends_no_cell(monkeypatch):
    entry = {
        "part": "step", "name": "kuairand", "first_s": 1.0, "kernel_ms": 4.0,
        "seconds": {"median": 1.0, "least": 1.0, "greatest": 1.0},
        "kernels": [{"name": "a|" * 40, "ms": 3.0, "share": 0.75, "op": "jit(step)/tower/dot"}],
    }  # fmt: skip
    _, row = device.rows(entry)
    assert row == (
        "kernel", f"kuairand: {'a|' * 22}a...", "3.000", "",
        "75.0% of 4.000 ms in kernels; tower/dot", "",
    )  # fmt: skip
    assert device._line(row).count("|") == len(device.HEADS) + 1


@pytest.mark.parametrize(
    ("missing", "gpu_code", "why"),
    [
        (["faiss"], False, "not installed"),
        ([], False, "not installed, FAISS here is for CPUs"),
        ([], True, "installed, but sees no GPU"),
    ],
)
def test_faiss_that_cannot_search_on_a_gpu_says_what_is_missing(
    monkeypatch, missing, gpu_code, why
):
    monkeypatch.setattr(optional, "list_missing", lambda modules: missing)
    monkeypatch.setattr(faiss_index, "has_gpu_code", lambda: gpu_code)
    monkeypatch.setattr(faiss_index, "sees_gpu", lambda: False)
    with pytest.raises(ValueError, match=f"^FAISS for GPUs: {why}$"):
        device_search.require_faiss()


def test_faiss_is_timed_where_it_sees_a_gpu_once_its_lists_are_ours(monkeypatch):
    monkeypatch.setattr(device_search, "require_faiss", lambda: None)
    found = small_run.measure(device, "--small", "--parts", "search")
    assert found["left_out"] == []
    assert found["entries"][-1]["name"] == "FAISS flat, 2,000 items, 40 queries, k = 5"


def test_a_step_is_held_against_products_and_a_copy():
    second = {"median": 1.0, "least": 1.0, "greatest": 1.0}
    peaks = [
        {"part": "peaks", "name": "GEMM bf16", "seconds": second, "flop": 100.0},
        {"part": "peaks", "name": "copy", "seconds": second, "bytes": 50.0},
    ]
    step = {
        "part": "step", "name": "kuairand", "seconds": second, "first_s": 1.0, "flop": 20.0,
        "bytes": 40.0, "peak": "GEMM bf16",
    }  # fmt: skip
    [row] = device.rows(device.add_share(step, peaks))
    assert row[-1] == "20.0% of GEMM bf16, 80.0% of copy"


def test_a_job_that_the_device_refuses_leaves_the_others_alone(monkeypatch):
    def refuse(sizes, *arguments):
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory\nand a long trace")

    monkeypatch.setattr(device_work, "_measure_gemm", refuse)
    found = small_run.measure(device, "--small", "--parts", "peaks")
    assert names(found["entries"]) == [("peaks", "copy")]
    assert found["left_out"][0]["why"] == "RESOURCE_EXHAUSTED: out of memory"


def test_lists_that_differ_are_no_measurement(monkeypatch):
    def find_others(query_QD, item_VD, *, k, most):
        score_QT = np.zeros((len(query_QD), k), np.float32)
        return score_QT, np.ones((len(query_QD), k), np.int32)

    monkeypatch.setattr(device_search, "search_whole", find_others)
    found = small_run.measure(device, "--small", "--parts", "search")
    assert [one["why"] for one in found["left_out"]] == [
        "reservoir: expected our scores, got others",
        "two_stage: expected our scores, got others",
        "FAISS for GPUs: not installed, FAISS here is for CPUs",
    ]


@pytest.mark.parametrize("most", [1, 3, 7, 100])
def test_whole_rows_are_searched_in_blocks_of_any_size(most):
    item_VD, query_QD = device_twins.make_vectors(60, 7)
    score_QT, item_QT = device_search.search_whole(query_QD, item_VD, k=9, most=most)
    expected_QV = query_QD @ item_VD.T
    expected_QV[:, 0] = -np.inf
    expected_QT = np.argsort(-expected_QV, axis=1)[:, :9]
    np.testing.assert_array_equal(item_QT, expected_QT)
    np.testing.assert_allclose(
        score_QT, np.take_along_axis(expected_QV, expected_QT, axis=1), rtol=1e-5
    )


def test_the_page_shows_a_table_for_each_device_and_none_without(tmp_path):
    published = measurements.blocks(measurements.PUBLISHED)
    assert "python -m dsmoe_jax.bench device" not in published["measurements"]().text
    entry = {
        "part": "step",
        "name": "kuairand dense float32",
        "seconds": {"median": 0.002, "least": 0.001, "greatest": 0.004},
        "first_s": 3.0,
        "flop": 1e10,
        "bytes": 2e9,
        "peak": "GEMM f32 default",
    }
    peak = {**entry, "part": "peaks", "name": "GEMM f32 default", "flop": 4e10}
    about = {
        "kind": "Chip 9", "platform": "gpu", "devices": 1, "memory_bytes": 80 << 30,
        "driver": "cuda 13", "jax": "0.10.1", "jaxlib": "0.10.1",
    }  # fmt: skip
    found = {
        "device": about, "small": False, "elapsed_s": 9.0, "left_out": [],
        "entries": [device.add_share(entry, [peak])],
    }  # fmt: skip
    record = measurements.make("device", ["--budget_s=60"], found)
    (tmp_path / "a.json").write_text(json.dumps(record))
    lines = measurements.blocks(tmp_path)["device"]().text.splitlines()
    assert lines[0] == "### Chip 9"
    assert lines[2].startswith("`python -m dsmoe_jax.bench device --budget_s=60`, ")
    assert "1 x Chip 9 (gpu), 80 GiB for JAX; jax 0.10.1" in lines[2]
    assert lines[-1] == (
        "| step | kuairand dense float32 | 2.000 [1.000, 4.000] | 3.0 | "
        "5.00 TFLOP/s, 1,000 GB/s | 25.0% of GEMM f32 default |"
    )
    assert measurements.show_devices([]) == "No accelerator was measured yet."
