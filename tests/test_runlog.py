import json

import jax.numpy as jnp
import pytest

from dsmoe_jax import runlog


@pytest.fixture
def log(tmp_path):
    opened = runlog.RunLog(tmp_path, is_main=True)
    yield opened
    opened.close()


def read(tmp_path):
    return [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]


def test_points_past_the_resumed_step_are_forgotten(log, tmp_path):
    for stage in ("teacher", "student"):
        for step in (1, 2, 3):
            log.metrics(stage, step, {"train/loss": 0.5})
    log.forget_after("student", 1)
    assert [(point["stage"], point["step"]) for point in read(tmp_path)] == [
        ("teacher", 1),
        ("teacher", 2),
        ("teacher", 3),
        ("student", 1),
    ]


def test_scores_are_read_by_epoch_while_the_run_writes(log, tmp_path):
    assert runlog.read_scores(tmp_path, "student", "eval/macro/recall@5") == []
    for step, score in ((4, 0.1), (8, 0.3), (4, 0.2)):
        log.metrics("student", step, {"train/loss": 1.0})
        log.metrics("student", step, {"eval/macro/recall@5": score})
        log.metrics("teacher", step, {"eval/macro/recall@5": 0.9})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "student", "ste')
    assert runlog.read_scores(tmp_path, "student", "eval/macro/recall@5") == [0.2, 0.3]


def test_metrics_reach_tensorboard(log, tmp_path):
    log.metrics("student", 1, {"train/loss": 0.5})
    log.close()
    events = list((tmp_path / "tensorboard").glob("events*"))
    assert len(events) == 1
    assert b"student/train/loss" in events[0].read_bytes()


def test_other_processes_are_silent(tmp_path, capsys):
    quiet = runlog.RunLog(tmp_path, is_main=False)
    quiet.line("hello")
    quiet.metrics("student", 1, {"train/loss": 0.5})
    quiet.start_epoch("student", 0, 10, 0)
    quiet.advance(1, "")
    quiet.close()
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


def test_replacing_text_leaves_no_partial_file(tmp_path):
    path = tmp_path / "a.json"
    runlog.replace_text(path, "old")
    runlog.replace_text(path, "new")
    assert path.read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_parameters_are_counted_with_their_moments():
    params = {
        "embedder": {"item_tables": jnp.zeros((1024, 16)), "dense": jnp.zeros(16)},
        "tower": {"kernel": jnp.zeros((8, 8))},
    }
    assert runlog.count_parameters(params) == {"dense": 80, "embedding": 16384}
    lines = runlog.describe_parameters("student", params)
    total = lines[-1].split()
    assert total[0] == "total"
    assert total[1] == "16,464"
    # Four bytes for the parameter and for each of Adam's two moments.
    assert float(total[2]) == round(16464 * 12 / 2**20, 2)
