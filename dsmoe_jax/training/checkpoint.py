"""Checkpoints of a stage: the latest state to resume from, the best state to keep.

Owns the layout on disk, and the refusal of a checkpoint that another configuration or other data
wrote or that is damaged. Two managers, because one manager that keeps the best step would delete
later progress:

    <workdir>/checkpoints/<stage>/latest/<step>/   state and progress; a resumed run starts here
    <workdir>/checkpoints/<stage>/best/<step>/     the state with the best validation recall

Each keeps its two newest steps, so that there is one to fall back to. Writes are asynchronous and
atomic (Orbax commits a step by renaming it); the best state of an epoch is on disk before the
latest one that names it is written. A state's digests lie beside it and are compared when it is
read.
"""

import contextlib
import dataclasses
import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from dsmoe_jax import disk
from dsmoe_jax.config import fingerprint
from dsmoe_jax.training import digest, orbax_errors, sharding, train_state

Found = TypeVar("Found")

# The newest, and one to fall back to.
KEPT_STEPS = 2
# Where the metadata of a state keep a hash of the rest.
_OWN = "sha256"
# What a saved state takes beside its arrays.
_OVERHEAD_BYTES = 1 << 19
_WAY_OUT = (
    "; delete this folder and train again with the same --workdir, which continues from an older "
    "state where there is one"
)


class DamagedError(ValueError):
    """A checkpoint that is not what was written."""


@dataclasses.dataclass
class Progress:
    """Where a stage stands, saved beside its state."""

    stage: str  # Name of the stage
    step: int = 0  # Steps taken; the next batch is number `step` of the stage
    epochs_evaluated: int = 0  # Epochs that are complete and evaluated
    best_score: float = -1.0  # Best macro validation recall so far; -1 before the first evaluation
    best_step: int = 0  # Step of the best state that was saved; 0 before
    bad_epochs: int = 0  # Evaluations since the best one; patience compares with it
    # Seconds of training so far, evaluation included, before and after interruptions.
    train_s: float = 0.0
    example_s: float = 0.0  # Seconds of those spent in training steps
    # What the best score is: its metric, and the fields of evaluation that it depends on; empty in
    # checkpoints from before it was kept.
    judged_by: dict[str, Any] = dataclasses.field(default_factory=dict)


class Checkpoint:
    """The newest states in a folder."""

    def __init__(
        self, directory: pathlib.Path, identity: dict[str, Any] | None, *, read_only: bool = False
    ):
        """Opens the folder, or makes it unless it is only read; see `StageCheckpoints`."""
        self._identity = identity
        # Two managers save at the same time; without a prefix of its own, a barrier of one could
        # meet another process's barrier of the other.
        name = f"{directory.parent.name}_{directory.name}"
        processes = ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=name)
        options = ocp.CheckpointManagerOptions(
            # What Orbax sets itself of a folder that is only read, with a warning.
            max_to_keep=None if read_only else KEPT_STEPS,
            save_interval_steps=0 if read_only else 1,
            create=not read_only,
            read_only=read_only,
            multiprocessing_options=processes,
        )
        self.manager = ocp.CheckpointManager(
            directory, options=options, item_names=("state", "meta")
        )

    @property
    def step(self) -> int | None:
        """Step of the newest state that is there."""
        latest: int | None = self.manager.latest_step()
        return latest

    @property
    def steps(self) -> list[int]:
        """Steps of all states that are there, ascending."""
        return sorted(self.manager.all_steps())

    @property
    def path(self) -> pathlib.Path:
        """The folder."""
        return pathlib.Path(self.manager.directory)

    def save(self, state: train_state.TrainState, progress: Progress) -> None:
        """Adds the state and drops the oldest; returns before the write is complete."""
        if progress.step in self.manager.all_steps():
            # A run killed between its two saves evaluates the same epoch again; same content.
            self.manager.delete(progress.step)
        parts = _present(state)
        meta = {
            "progress": dataclasses.asdict(progress),
            "identity": self._identity,
            "digests": digest.of_tree(parts, sharding.own_shape),
        }
        self._check_room(progress.step, parts)
        with disk.Writing(self.path / str(progress.step)):
            self.manager.save(
                progress.step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(parts),
                    meta=ocp.args.JsonSave({**meta, _OWN: fingerprint.of_record(meta, _OWN)}),
                ),
            )

    def restore(
        self, like: train_state.TrainState, mesh: jax.sharding.Mesh, step: int | None = None
    ) -> tuple[train_state.TrainState, Progress] | None:
        """The state of a step, of the newest by default, in this mesh's layout; None without one.

        Raises:
          DamagedError: When it is not what was written, naming the folder and what to do.
          ValueError: When another configuration, another model or other data wrote it, with the
            difference.
        """
        step = self.step if step is None else step
        if step is None:
            return None
        meta = self._read_meta(step)
        wanted, digests = _present(like), meta.get("digests", {})
        self._check_types(wanted, digests, step)
        target = sharding.abstract(wanted, sharding.state_sharding(mesh, wanted))
        # Not strict: rows of padding are cut off or added; see `sharding.pad_tables`.
        restore = ocp.args.StandardRestore(target, strict=not digests)
        read = ocp.args.Composite(state=restore)
        restored = self._attempt(step, lambda: self.manager.restore(step, args=read)["state"])
        self._check(restored, digests, step)
        return train_state.TrainState(**restored), Progress(**meta["progress"])

    def progress(self, step: int | None = None) -> Progress | None:
        """Where the state of a step stands, without reading it; None where there is none.

        Raises:
          DamagedError: When it is not what was written.
          ValueError: When another configuration or other data wrote it, with the difference.
        """
        step = self.step if step is None else step
        return None if step is None else Progress(**self._read_meta(step)["progress"])

    def wait(self) -> None:
        """Returns once every save is on disk."""
        with disk.Writing(self.path):
            self.manager.wait_until_finished()

    def close(self) -> None:
        """Waits and releases the manager's threads."""
        with disk.Writing(self.path):
            self.manager.close()

    def drop_after(self, step: int) -> None:
        """Deletes the states past a step."""
        for later in self.steps:
            if later > step:
                self.manager.delete(later)

    def damaged(self, step: int, what: str) -> DamagedError:
        """The error of a state that is not what was written."""
        return DamagedError(f"{self.path / str(step)}: the checkpoint is damaged: {what}{_WAY_OUT}")

    def _read_meta(self, step: int) -> dict[str, Any]:
        """Progress, identity and digests of a step, which this run's identity may read."""
        meta, difference = self._attempt(step, lambda: self._parse_meta(step))
        if difference:
            raise ValueError(
                f"{self.path}: another run wrote this checkpoint ({difference}); "
                "change the fields back or choose a new --workdir"
            )
        return meta

    def _check_types(self, wanted: dict[str, Any], digests: dict[str, str], step: int) -> None:
        """Refuses a state of another model, whose arrays would be cut off or filled up to fit."""
        own = digest.types_of(wanted, sharding.own_shape)
        for path, saved in digests.items():
            found = saved.split()[0]
            if own.get(path, found) != found:
                raise ValueError(
                    f"{self.path / str(step)}: expected {path} as {own[path]}, got {found}; "
                    "another model wrote this checkpoint: choose a new --workdir"
                )

    def _check(self, state: dict[str, Any], expected: dict[str, str], step: int) -> None:
        """Compares a state's digests with those that were kept, if any were."""
        found = digest.of_tree(state, sharding.own_shape) if expected else {}
        for name in sorted({*expected, *found}):
            if expected.get(name) != found.get(name):
                raise self.damaged(
                    step, f"{name} is not as saved: {expected.get(name)} -> {found.get(name)}"
                )

    def _check_room(self, step: int, parts: dict[str, Any]) -> None:
        """Refuses a save for which there may be no room, before anything of it is written.

        Raises:
          FullDiskError: In all processes alike.
        """
        needed = _OVERHEAD_BYTES + sum(leaf.nbytes for leaf in jax.tree.leaves(parts))
        is_short = shutil.disk_usage(self.path).free < needed
        if jax.process_count() > 1:
            is_short = bool(multihost_utils.broadcast_one_to_all(np.int32(is_short)))
        if is_short:
            raise disk.full(self.path / str(step), needed)

    def _parse_meta(self, step: int) -> tuple[dict[str, Any], str]:
        """The metadata of a step, and how their identity differs from this run's."""
        if step not in self.steps:
            raise FileNotFoundError("expected this folder, found none")
        read = ocp.args.Composite(meta=ocp.args.JsonRestore())
        meta = dict(self.manager.restore(step, args=read)["meta"])
        if (found := fingerprint.of_record(meta, _OWN)) != meta.pop(_OWN, found):
            raise ValueError("its metadata have another hash")
        Progress(**meta["progress"])
        if self._identity is None:
            return meta, ""
        return meta, describe_difference(meta["identity"], self._identity)

    def _attempt(self, step: int, read: Callable[[], Found]) -> Found:
        """What is read; what goes wrong at damaged files is one line, in all processes alike."""
        found: list[Found] = []
        with orbax_errors.Attempt() as attempt:
            found.append(read())
        failed = not found
        if jax.process_count() > 1:
            failed = bool(multihost_utils.process_allgather(np.int32(failed)).any())
        if failed:
            raise self.damaged(step, attempt.failure or "another process could not read it")
        return found[0]


class StageCheckpoints:
    """The checkpoints of one stage in a workdir: `latest` to resume from, `best` to keep."""

    def __init__(
        self,
        workdir: pathlib.Path,
        stage: str,
        identity: dict[str, Any] | None,
        *,
        read_only: bool = False,
    ):
        """Opens the folders; with `read_only` nothing is made, written or deleted in them.

        A resumed run must share the identity: flat fields and a data hash. None takes any.
        """
        self.root = stage_folder(workdir, stage)
        self._closing = contextlib.ExitStack()
        # Every failed save is told of by the next call.
        self._closing.enter_context(orbax_errors.quiet())
        self.latest, self.best = (
            self._closing.enter_context(
                contextlib.closing(Checkpoint(self.root / name, identity, read_only=read_only))
            )
            for name in ("latest", "best")
        )

    def resume(
        self, like: train_state.TrainState, mesh: jax.sharding.Mesh, say: Callable[[str], None]
    ) -> tuple[train_state.TrainState, Progress] | None:
        """The newest state that is whole, as its best state is there; None where there is none.

        Later steps are deleted: they are damaged, or of a time that is trained again. Of damage,
        `say` is told in one line.

        Raises:
          DamagedError: When there are states and none is whole.
          ValueError: When another configuration or other data wrote them, with the difference.
        """
        damages: list[str] = []
        for step in reversed(self.latest.steps):
            try:
                found = self._restore_latest(like, mesh, step)
            except DamagedError as error:
                damages.append(str(error).partition(_WAY_OUT)[0])
                continue
            if damages:
                say(f"{damages[0]}; falls back to step {step}")
            self.latest.drop_after(step)
            self.best.drop_after(step)
            return found
        if damages:
            raise DamagedError(
                f"{damages[0]}, and there is no older state to fall back to; delete {self.root} "
                "and train again with the same --workdir"
            )
        return None

    def restore_best(
        self, like: train_state.TrainState, mesh: jax.sharding.Mesh, progress: Progress
    ) -> train_state.TrainState:
        """The best state of a progress.

        Raises:
          DamagedError: When it is not there or not what was written.
          ValueError: When another configuration or other data wrote it.
        """
        found = self.best.restore(like, mesh, progress.best_step)
        assert found is not None
        return found[0]

    def _restore_latest(
        self, like: train_state.TrainState, mesh: jax.sharding.Mesh, step: int
    ) -> tuple[train_state.TrainState, Progress] | None:
        progress = self.latest.progress(step)
        # Without a score there is no best state, or only one at the stage's end.
        if progress is not None and progress.best_score >= 0:
            self.best.progress(progress.best_step)
        return self.latest.restore(like, mesh, step)

    def wait(self) -> None:
        """Returns once every save is on disk."""
        self.latest.wait()
        self.best.wait()

    def close(self) -> None:
        """Waits and releases the managers' threads."""
        self._closing.close()


def stage_folder(workdir: pathlib.Path, stage: str) -> pathlib.Path:
    """Where the checkpoints of a stage lie."""
    return workdir.absolute() / "checkpoints" / stage


def read_identity(workdir: pathlib.Path, stage: str) -> dict[str, Any] | None:
    """The identity that the newest readable checkpoint of a stage was written with; None without.

    Nothing is opened or made: the metadata are JSON.
    """
    folder = stage_folder(workdir, stage) / "latest"
    steps = [path for path in folder.glob("*") if path.name.isdigit()]
    for path in sorted(steps, key=lambda path: int(path.name), reverse=True):
        try:
            return dict(json.loads((path / "meta" / "metadata").read_text())["identity"])
        except (KeyError, OSError, TypeError, ValueError):
            continue
    return None


def read_best(workdir: pathlib.Path, stage: str) -> tuple[int, str] | None:
    """The step of a finished stage's best state and a digest of it, read from the metadata alone.

    None where there is no such state. The digest is of 64 hexadecimal digits.
    """
    progress, root = None, stage_folder(workdir, stage)
    folder = root / "latest"
    steps = [path for path in folder.glob("*") if path.name.isdigit()]
    for path in sorted(steps, key=lambda path: int(path.name), reverse=True):
        with contextlib.suppress(KeyError, OSError, TypeError, ValueError):
            progress = Progress(**json.loads((path / "meta" / "metadata").read_text())["progress"])
            break
    if progress is None or not is_trained(progress):
        return None
    with contextlib.suppress(KeyError, OSError, TypeError, ValueError):
        path = root / "best" / str(progress.best_step) / "meta" / "metadata"
        meta = json.loads(path.read_text())
        # Of states from before digests were kept, where they stand has to do.
        content = {"digests": meta.get("digests") or meta["progress"], "stage": stage}
        return progress.best_step, fingerprint.of_record(content, "")
    return None


def is_trained(progress: Progress) -> bool:
    """Whether a stage has a best state; a continued one may keep what it started from."""
    return progress.best_step > 0 or progress.best_score >= 0


def describe_difference(saved: dict[str, Any], wanted: dict[str, Any]) -> str:
    """`field: checkpoint X, run Y` for every flat field that differs; empty when none does."""
    missing = "absent"
    names = sorted(set(saved) | set(wanted))
    return ", ".join(
        f"{name}: checkpoint {saved.get(name, missing)!r}, run {wanted.get(name, missing)!r}"
        for name in names
        if saved.get(name, missing) != wanted.get(name, missing)
    )


def _present(state: train_state.TrainState) -> dict[str, Any]:
    """The parts that a state has, by name."""
    return {name: part for name, part in state._asdict().items() if part is not None}
