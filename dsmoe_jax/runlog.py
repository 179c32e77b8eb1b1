"""Run log: console lines, progress bars, metrics.jsonl and TensorBoard.

Only process 0 logs. Nothing here decides anything.
"""

import contextlib
import json
import os
import pathlib
import socket
import struct
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import tqdm
from tensorboardX import record_writer, summary
from tensorboardX.proto import event_pb2

from dsmoe_jax import disk, terminal

METRICS_FILE = "metrics.jsonl"
# Calls that want no console output and have not ended; in all threads, since work has threads.
_quiet_calls: list[bool] = []


@contextlib.contextmanager
def quiet(is_quiet: bool = True) -> Iterator[None]:
    """Console lines and progress bars are left out inside the block, if asked for."""
    _quiet_calls.extend([True] * is_quiet)
    try:
        yield
    finally:
        del _quiet_calls[:is_quiet]


def say(text: str) -> None:
    """Prints one line above the progress bars."""
    if not _quiet_calls:
        tqdm.tqdm.write(terminal.one_line(text))
        sys.stdout.flush()


def bar(*values: Any, shown: bool = True, **options: Any) -> tqdm.tqdm:
    """A progress bar with tqdm's arguments; hidden when the output is no terminal."""
    disable = None if shown and not _quiet_calls else True
    return tqdm.tqdm(*values, disable=disable, leave=False, **options)


class RunLog:
    """Writes the metrics of a run and shows its progress."""

    def __init__(self, workdir: pathlib.Path, *, is_main: bool):
        """Opens the log files of the workdir in the main process; the others log nothing."""
        self._is_main = is_main
        self._bar: tqdm.tqdm | None = None
        self._path = workdir / METRICS_FILE
        self._board: _Board | None = None
        if is_main:
            mend_points(self._path)
            self._board = _Board(workdir / "tensorboard")

    def line(self, text: str) -> None:
        """Prints one line above the progress bars."""
        if self._is_main:
            say(text)

    def forget_after(self, stage: str, step: int) -> None:
        """Drops logged points of a stage past the step that it resumes from."""
        if not self._is_main or not self._path.exists():
            return
        points = read_points(self._path)
        kept = [point for point in points if point["stage"] != stage or point["step"] <= step]
        _write_points(self._path, kept)

    def metrics(self, stage: str, step: int, values: dict[str, float]) -> None:
        """Logs a point; keys are paths such as `train/loss_distill` or `eval/K1/recall@50`."""
        if self._board is None:
            return
        line = json.dumps({"stage": stage, "step": step, **values}) + "\n"
        with disk.Writing(self._path, len(line)), self._path.open("a") as file:
            file.write(line)
        self._board.add(stage, step, values)

    def start_epoch(self, stage: str, epoch: int, steps: int, done: int) -> None:
        """Shows a progress bar of one epoch; none when the output is no terminal."""
        if self._is_main:
            self._bar = bar(
                total=steps,
                initial=done,
                desc=f"{stage} epoch {epoch + 1}",
                unit="step",
                dynamic_ncols=True,
            )

    def advance(self, steps: int, note: str) -> None:
        """Moves the bar and shows losses and speed beside it."""
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(steps)

    def end_epoch(self) -> None:
        """Removes the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def close(self) -> None:
        """Ends the display; every point is written when it is logged."""
        self.end_epoch()


class _Board:
    """TensorBoard's event file, written by whoever logs, who is told when it cannot be."""

    def __init__(self, folder: pathlib.Path):
        """Nothing is written before the first point."""
        self._folder = folder
        self._path: pathlib.Path | None = None

    def add(self, stage: str, step: int, values: dict[str, float]) -> None:
        """Adds the values of a step."""
        now_s = time.time()
        events = []
        if self._path is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            name = f"events.out.tfevents.{now_s:.6f}.{socket.gethostname()}.{os.getpid()}"
            self._path = self._folder / name
            events.append(event_pb2.Event(wall_time=now_s, file_version="brain.Event:2"))
        for name, value in values.items():
            scalar = summary.scalar(f"{stage}/{name}", value)
            events.append(event_pb2.Event(wall_time=now_s, step=step, summary=scalar))
        content = b"".join(_record(event.SerializeToString()) for event in events)
        with disk.Writing(self._path, len(content)), self._path.open("ab") as file:
            file.write(content)


def _record(content: bytes) -> bytes:
    """A record of TensorFlow's files: length and content, each with its checksum."""
    size = struct.pack("<Q", len(content))
    checks = [struct.pack("<I", record_writer.masked_crc32c(part)) for part in (size, content)]
    return size + checks[0] + content + checks[1]


def read_points(path: pathlib.Path) -> list[dict[str, Any]]:
    """The points of a metrics.jsonl, also while a run writes it; none where there is no file.

    Lines that are no points are left out: a full disk and a loss of power leave half of one.
    """
    points = []
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    for line in lines:
        try:
            point = json.loads(line)
        except ValueError:
            continue
        if isinstance(point, dict) and {"stage", "step"} <= point.keys():
            points.append(point)
    return points


def mend_points(path: pathlib.Path) -> None:
    """Removes from a metrics.jsonl what is no point, so that whole lines can follow."""
    if path.exists():
        content = path.read_bytes()
        points = read_points(path)
        whole = content.endswith(b"\n") or not content
        if not whole or content.count(b"\n") != len(points):
            _write_points(path, points)


def read_scores(workdir: pathlib.Path, stage: str, name: str) -> list[float]:
    """A score of every epoch that a stage of a run has done, even while it runs."""
    scores = {
        point["step"]: point[name]
        for point in read_points(workdir / METRICS_FILE)
        if point["stage"] == stage and name in point
    }
    return [scores[step] for step in sorted(scores)]


def _write_points(path: pathlib.Path, points: list[dict[str, Any]]) -> None:
    replace_text(path, "".join(f"{json.dumps(point)}\n" for point in points))


def replace_text(path: pathlib.Path, text: str) -> None:
    """Writes a file beside its place, then renames it there."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        with disk.Writing(path, len(text)):
            partial.write_text(text)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    os.replace(partial, path)


def describe_parameters(title: str, params: Any) -> list[str]:
    """A table of the parameters and of the bytes they and their moments take on each device."""
    rows: dict[str, tuple[int, int]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = [str(getattr(part, "key", part)) for part in path]
        group = "/".join(names[:2])
        on_device = int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        count, size = rows.get(group, (0, 0))
        rows[group] = (count + leaf.size, size + 3 * on_device)
    counts, sizes = zip(*rows.values(), strict=True)
    rows["total"] = (sum(counts), sum(sizes))
    return [
        f"{title}: parameters, and MiB on each device with both Adam moments",
        *(f"  {name:<40} {n:>13,} {size / 2**20:>10.2f}" for name, (n, size) in rows.items()),
    ]


def count_parameters(params: Any) -> dict[str, int]:
    """Numbers of dense and of embedding-table parameters."""
    counts = {"dense": 0, "embedding": 0}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        kind = "embedding" if "table" in jax.tree_util.keystr(path) else "dense"
        counts[kind] += int(leaf.size)
    return counts
