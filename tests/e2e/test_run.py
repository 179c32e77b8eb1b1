import json
import pathlib
import shutil
import signal
import socket

import numpy as np
import pytest

from tests.e2e import commands

CONFIG = "--config=configs/kuairand.py:synthetic"
ARGUMENTS = (CONFIG, *commands.SMALL, *commands.SMALL_MMOE, *commands.SMALL_KUAIRAND)
# What two runs of the same numbers may differ in.
NOT_NUMBERS = ("time_s", "examples_per_s", "date", "device")


def numbers(workdir: pathlib.Path) -> dict:
    results = json.loads((workdir / "results.json").read_text())
    return {key: value for key, value in results.items() if key not in NOT_NUMBERS}


def losses(workdir: pathlib.Path, stage: str) -> dict[int, float]:
    points = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {
        point["step"]: point["train/loss"]
        for point in points
        if point["stage"] == stage and "train/loss" in point
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> pathlib.Path:
    """An uninterrupted run of everything."""
    workdir = tmp_path_factory.mktemp("whole")
    commands.run(*ARGUMENTS, f"--workdir={workdir}")
    return workdir


def test_a_run_leaves_results_in_the_published_schema(whole):
    results = json.loads((whole / "results.json").read_text())
    assert list(results) == [
        "dataset",
        "variant",
        "seed",
        "config_hash",
        "data_hash",
        "versions",
        "device",
        "date",
        "split",
        "candidates",
        "seen_items_removed",
        "remove_seen",
        "k",
        "scenarios",
        "macro",
        "cold",
        "validation",
        "teacher",
        "references",
        "params",
        "time_s",
        "examples_per_s",
    ]
    assert "synthetic" in results["dataset"]
    assert list(results["split"]) == ["train", "validation", "test"]
    assert all({"days", "examples"} <= set(entry) for entry in results["split"].values())
    for summary in (results, results["validation"], results["teacher"]):
        assert list(summary["scenarios"]) == ["K1", "K2", "K3", "K4"]
        for row in summary["scenarios"].values():
            assert {"share", "queries", "recall@50", "recall@50_se", "hit_rate@50"} <= set(row)
            assert {"ndcg@50", "recall@100", "recall@100_se"} <= set(row)
            assert row["queries"] == 0 or 0 <= row["recall@50"] <= row["recall@100"] <= 1
        assert {"recall@50", "recall@100"} <= set(summary["macro"])
    assert "log_loss" in results["teacher"]["scenarios"]["K1"]
    assert {"popularity", "popularity in scenario", "SVD"} <= set(results["references"])
    assert set(results["params"]) == {"dense", "embedding"}
    # This method has no stage before the main one.
    assert results["time_s"].pop("pretraining") == 0
    assert set(results["time_s"]) == {"prepare", "teacher", "student", "evaluate"}
    assert all(value > 0 for value in results["time_s"].values())


def test_a_run_leaves_figures_and_its_configuration(whole):
    assert len(list((whole / "figures").glob("*.png"))) >= 3
    config = json.loads((whole / "config.json").read_text())
    assert config["config"]["train"]["batch_size"] == 64
    assert config["overrides"]["train.batch_size"] == 64


def test_a_run_leaves_the_hits_of_every_query_and_the_tables_of_fig_4(whole):
    results = json.loads((whole / "results.json").read_text())
    with np.load(whole / "arrays.npz") as arrays:
        relevant_Q, scenario_Q = arrays["relevant"], arrays["scenario"]
        for k in results["k"]:
            recall_Q = arrays[f"hits@{k}"] / relevant_Q
            for scenario, row in enumerate(results["scenarios"].values()):
                mine = recall_Q[scenario_Q == scenario]
                assert len(mine) == row["queries"]
                assert np.mean(mine) == pytest.approx(row[f"recall@{k}"])
        # Scenarios, and the rank of the configuration.
        assert arrays["scenario_coefficients/user/forward"].shape == (4, 2)
        assert arrays["gate_weights/item"].shape == (4, 3)


def test_without_an_epoch_teacher_and_student_of_another_run_say_the_same(whole, tmp_path):
    flags = (f"--continue_from={whole}", f"--workdir={tmp_path}")
    output = commands.run(
        *ARGUMENTS, *flags, *commands.NO_BASELINES, "--config.train.continue_epochs=0"
    )
    before, after = (
        json.loads((folder / "results.json").read_text()) for folder in (whole, tmp_path)
    )
    for name in ("scenarios", "macro", "validation", "teacher", "data_hash"):
        assert after[name] == before[name], name
    assert after["continued"]["yesterday"]["macro"] == before["macro"]
    assert "  yesterday's model  " in output and "read only" not in output


def test_interrupted_killed_and_taken_in_parts_equals_uninterrupted(whole, tmp_path):
    arguments = (*ARGUMENTS, f"--workdir={tmp_path}", "--config.checkpoint.every_steps=3")
    for mode in ("prepare", "teacher"):
        commands.run(*arguments, f"--mode={mode}")
    latest = tmp_path / "checkpoints" / "student" / "latest"

    def last_saved() -> int:
        # A step still being written has a longer name.
        names = [path.name for path in latest.iterdir()] if latest.exists() else []
        return max((int(name) for name in names if name.isdigit()), default=0)

    # All parts at once take up what single ones left.
    process = commands.start(*arguments)
    output = commands.interrupt_when(process, lambda: last_saved() > 0, signal.SIGINT)
    assert process.returncode == 130
    assert "state saved; the same command resumes" in output
    assert "student: resumes" not in output
    step = last_saved()
    process = commands.start(*arguments)
    output = commands.interrupt_when(process, lambda: last_saved() > step, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert f"student: resumes at step {step}" in output
    assert not (tmp_path / "results.json").exists()
    output = commands.run(*arguments, "--mode=student")
    assert "student: resumes at step" in output
    assert not (tmp_path / "results.json").exists()
    commands.run(*arguments, "--mode=evaluate")
    assert numbers(tmp_path) == numbers(whole)
    for stage in ("teacher", "student"):
        assert losses(tmp_path, stage) == losses(whole, stage)


def test_a_report_may_leave_the_teacher_out(whole, tmp_path):
    copy = shutil.copytree(whole, tmp_path / "copy")
    flags = ("--mode=evaluate", "--config.eval.teacher_test_queries=0", *commands.NO_BASELINES)
    commands.run(*ARGUMENTS, f"--workdir={copy}", *flags)
    found, full = (json.loads((folder / "results.json").read_text()) for folder in (copy, whole))
    assert found["teacher"] is None
    assert found["time_s"]["teacher"] == full["time_s"]["teacher"]
    assert found["macro"] == full["macro"]


def test_a_part_without_the_one_before_says_what_to_run(tmp_path):
    arguments = (*ARGUMENTS, f"--workdir={tmp_path}")
    output = commands.run(*arguments, "--mode=student", status=2)
    assert output.splitlines()[-1] == (
        f"error: {tmp_path}: expected a trained teacher, found none; run --mode teacher first"
    )


def test_another_configuration_is_refused_in_one_line_and_writes_nothing(whole):
    before = (whole / "config.json").read_bytes()
    output = commands.run(
        *ARGUMENTS, f"--workdir={whole}", "--config.model.rank=4", "--mode=student", status=2
    )
    line = output.splitlines()[-1]
    assert line.startswith("error: ")
    assert "model.rank: checkpoint 2, run 4" in line
    assert "store " not in output
    assert (whole / "config.json").read_bytes() == before


def run_two_processes(*arguments: str, status: int = 0) -> list[str]:
    """Runs one command in two processes; returns what each said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        commands.start(
            *arguments,
            f"--coordinator=127.0.0.1:{port}",
            "--num_processes=2",
            f"--process_id={i}",
        )
        for i in range(2)
    ]
    return [commands.finish(process, status) for process in processes]


def test_two_processes_give_the_losses_of_one(whole, tmp_path):
    # One teacher for both: training amplifies float error, and this is about the loop.
    run_two_processes(
        *ARGUMENTS,
        f"--workdir={tmp_path}",
        f"--config.teacher.from_workdir={whole}",
        "--config.train.max_epochs=1",
        "--config.eval.teacher_test_queries=0",
        *commands.NO_BASELINES,
    )
    expected, got = losses(whole, "student"), losses(tmp_path, "student")
    # One epoch of the whole run's two.
    assert list(got) == list(expected)[: len(expected) // 2]
    first = list(expected)[:20]
    np.testing.assert_allclose(
        [got[step] for step in first], [expected[step] for step in first], rtol=1e-5
    )
    assert (tmp_path / "results.json").exists()


def test_two_processes_both_end_when_the_data_cannot_be_prepared(tmp_path):
    first, second = run_two_processes(
        "--config=configs/kuairand.py:sample",
        f"--workdir={tmp_path / 'run'}",
        f"--config.data.raw_dir={tmp_path / 'nowhere'}",
        status=2,
    )
    assert "nowhere" in first.splitlines()[-1]
    assert "process 0 could not prepare the data" in second
