import json
import struct

import jax.numpy as jnp
import pytest
from tensorboardX import record_writer
from tensorboardX.proto import event_pb2

from dsmoe_jax import disk, runlog


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


@pytest.mark.parametrize(
    "tail",
    [
        b'{"stage": "student", "step": 3, "train/loss": 0.7',
        b'{"stage": "student", "step": 3}\0\0\0\0',
        b"\0" * 4096,
        b"\xff\xfe\n",
        b"7\n",
    ],
)
def test_a_torn_tail_is_left_out_and_cut_before_the_next_point(tmp_path, tail):
    path = tmp_path / "metrics.jsonl"
    whole = b'{"stage": "student", "step": 1, "eval/x": 0.5}\n{"stage": "student", "step": 2}\n'
    path.write_bytes(whole + tail)
    assert [point["step"] for point in runlog.read_points(path)] == [1, 2]
    assert runlog.read_scores(tmp_path, "student", "eval/x") == [0.5]
    log = runlog.RunLog(tmp_path, is_main=True)
    assert path.read_bytes() == whole
    log.metrics("student", 3, {"train/loss": 0.5})
    log.forget_after("student", 2)
    assert path.read_bytes() == whole
    log.close()


def test_a_whole_last_point_without_its_line_end_is_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"stage": "student", "step": 1}')
    log = runlog.RunLog(tmp_path, is_main=True)
    log.metrics("student", 2, {"train/loss": 0.5})
    assert [point["step"] for point in read(tmp_path)] == [1, 2]


def test_no_room_for_a_point_is_one_line(log, tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(disk.FullDiskError, match=r"metrics.jsonl: the disk is full") as caught:
        log.metrics("student", 1, {"train/loss": 0.5})
    assert "\n" not in str(caught.value)


def test_no_room_leaves_the_file_that_was_to_be_replaced(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    runlog.replace_text(path, "old")
    (tmp_path / "a.json.partial").symlink_to("/dev/full")
    with pytest.raises(disk.FullDiskError, match=r"a.json: the disk is full"):
        runlog.replace_text(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_metrics_reach_tensorboard(log, tmp_path):
    log.metrics("student", 1, {"train/loss": 0.5})
    log.metrics("student", 3, {"eval/macro/recall@5": 0.25})
    [path] = (tmp_path / "tensorboard").glob("events.out.tfevents.*")
    content, events = path.read_bytes(), []
    while content:
        size, size_check = struct.unpack("<QI", content[:12])
        record, check = content[12 : 12 + size], content[12 + size : 16 + size]
        assert size_check == record_writer.masked_crc32c(content[:8])
        assert struct.unpack("<I", check)[0] == record_writer.masked_crc32c(record)
        events.append(event_pb2.Event.FromString(record))
        content = content[16 + size :]
    assert events[0].file_version == "brain.Event:2"
    values = [(e.step, e.summary.value[0].tag, e.summary.value[0].simple_value) for e in events[1:]]
    assert values == [(1, "student/train/loss", 0.5), (3, "student/eval/macro/recall_5", 0.25)]


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
