"""Run log: console lines, progress bars, metrics.jsonl and TensorBoard.

Only process 0 logs. Nothing here decides anything.
"""

import contextlib
import json
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import tensorboardX
import tqdm

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
        tqdm.tqdm.write(text)
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
        self._board: tensorboardX.SummaryWriter | None = None
        if is_main:
            self._board = tensorboardX.SummaryWriter(str(workdir / "tensorboard"), max_queue=100)

    def line(self, text: str) -> None:
        """Prints one line above the progress bars."""
        if self._is_main:
            say(text)

    def forget_after(self, stage: str, step: int) -> None:
        """Drops logged points of a stage past the step that it resumes from."""
        if not self._is_main or not self._path.exists():
            return
        kept = [
            line
            for line in self._path.read_text().splitlines()
            if (point := json.loads(line))["stage"] != stage or point["step"] <= step
        ]
        replace_text(self._path, "".join(f"{line}\n" for line in kept))

    def metrics(self, stage: str, step: int, values: dict[str, float]) -> None:
        """Logs a point; keys are paths such as `train/loss_distill` or `eval/K1/recall@50`."""
        if self._board is None:
            return
        with self._path.open("a") as file:
            file.write(json.dumps({"stage": stage, "step": step, **values}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(f"{stage}/{name}", value, step)

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
        """Flushes the logs."""
        self.end_epoch()
        if self._board is not None:
            self._board.close()


def read_scores(workdir: pathlib.Path, stage: str, name: str) -> list[float]:
    """A score of every epoch that a stage of a run has done, even while it runs."""
    path = workdir / METRICS_FILE
    if not path.exists():
        return []
    scores: dict[int, float] = {}
    # The last line may be half written.
    for line in path.read_text().rpartition("\n")[0].splitlines():
        point = json.loads(line)
        if point["stage"] == stage and name in point:
            scores[point["step"]] = point[name]
    return [scores[step] for step in sorted(scores)]


def replace_text(path: pathlib.Path, text: str) -> None:
    """Writes a file beside its place, then renames it there."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
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
