"""Checkpoints of a stage: the latest state to resume from, the best state to keep.

Owns the layout on disk and the refusal of a checkpoint that another configuration or other data
wrote. Two managers, because one manager that keeps the best step would delete later progress:

    <workdir>/checkpoints/<stage>/latest/<step>/   state and progress; a resumed run starts here
    <workdir>/checkpoints/<stage>/best/<step>/     the state with the best validation recall

Writes are asynchronous and atomic (Orbax commits a step by renaming it).
"""

import dataclasses
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from dsmoe_jax.training import sharding, train_state


@dataclasses.dataclass
class Progress:
    """Where a stage stands, saved beside its state."""

    stage: str  # Name of the stage
    step: int = 0  # Steps taken; the next batch is number `step` of the stage
    epochs_evaluated: int = 0  # Epochs that are complete and evaluated
    best_score: float = -1.0  # Best macro validation recall so far; -1 before the first evaluation
    best_step: int = 0  # Step of the best state
    bad_epochs: int = 0  # Evaluations since the best one; patience compares with it
    # Seconds of training so far, evaluation included, before and after interruptions.
    train_s: float = 0.0
    example_s: float = 0.0  # Seconds of those spent in training steps


class Checkpoint:
    """A state in a folder; a save replaces the one before."""

    def __init__(self, directory: pathlib.Path, identity: dict[str, Any]):
        """Opens the folder, or makes it; see `StageCheckpoints` for the identity."""
        self._identity = identity
        # Two managers save at the same time; without a prefix of its own, a barrier of one could
        # meet another process's barrier of the other.
        name = f"{directory.parent.name}_{directory.name}"
        processes = ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=name)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=1, create=True, multiprocessing_options=processes
        )
        self.manager = ocp.CheckpointManager(
            directory, options=options, item_names=("state", "meta")
        )

    @property
    def step(self) -> int | None:
        """Step of the state that is there."""
        latest: int | None = self.manager.latest_step()
        return latest

    @property
    def path(self) -> pathlib.Path:
        """The folder."""
        return pathlib.Path(self.manager.directory)

    def save(self, state: train_state.TrainState, progress: Progress) -> None:
        """Replaces the state; returns before the write is complete."""
        if progress.step in self.manager.all_steps():
            # A run killed between its two saves evaluates the same epoch again; same content.
            self.manager.delete(progress.step)
        meta = {"progress": dataclasses.asdict(progress), "identity": self._identity}
        self.manager.save(
            progress.step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(_present(state)), meta=ocp.args.JsonSave(meta)
            ),
        )

    def restore(
        self, like: train_state.TrainState, mesh: jax.sharding.Mesh
    ) -> tuple[train_state.TrainState, Progress] | None:
        """The state in this mesh's layout, or None where there is none.

        Raises:
          ValueError: When another configuration or other data wrote it, with the difference.
        """
        progress = self.progress()
        if progress is None:
            return None
        wanted = _present(like)
        target = sharding.abstract(wanted, sharding.state_sharding(mesh, wanted))
        restored = self.manager.restore(
            self.step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target))
        )
        return train_state.TrainState(**restored["state"]), progress

    def progress(self) -> Progress | None:
        """Where the state stands, without reading it; None where there is none.

        Raises:
          ValueError: When another configuration or other data wrote it, with the difference.
        """
        if self.step is None:
            return None
        read = ocp.args.Composite(meta=ocp.args.JsonRestore())
        meta = self.manager.restore(self.step, args=read)["meta"]
        difference = describe_difference(meta["identity"], self._identity)
        if difference:
            raise ValueError(
                f"{self.path}: another run wrote this checkpoint ({difference}); "
                "change the fields back or choose a new --workdir"
            )
        return Progress(**meta["progress"])


class StageCheckpoints:
    """The checkpoints of one stage in a workdir: `latest` to resume from, `best` to keep."""

    def __init__(self, workdir: pathlib.Path, stage: str, identity: dict[str, Any]):
        """Opens the folders; a resumed run must share the identity: flat fields and a data hash."""
        root = workdir.absolute() / "checkpoints" / stage
        self.latest, self.best = (Checkpoint(root / name, identity) for name in ("latest", "best"))

    def wait(self) -> None:
        """Returns once every save is on disk."""
        self.latest.manager.wait_until_finished()
        self.best.manager.wait_until_finished()

    def close(self) -> None:
        """Waits and releases the managers' threads."""
        self.latest.manager.close()
        self.best.manager.close()


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
