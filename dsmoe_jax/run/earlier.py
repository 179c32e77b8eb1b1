"""Earlier run: its best states, as those of a new run's stages.

Owns what the ids of two stores have in common: the raw value. The earlier folder is only read.

Letters: N ids of a feature.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from dsmoe_jax import features
from dsmoe_jax.data import kept
from dsmoe_jax.data import store as store_lib
from dsmoe_jax.run import continuation, inputs
from dsmoe_jax.run import workdir as workdir_lib
from dsmoe_jax.training import (
    checkpoint,
    held,
    loop,
    optimizer,
    row_sparse,
    train_state,
    warm_start,
)

# Features whose vocabulary is the raw ids of a table.
_TABLE_OF = {"user_id": "users", "item_id": "items"}


class Earlier:
    """The run that another goes on from, opened to be carried over."""

    def __init__(self, known: continuation.Continuation, store: store_lib.Store):
        """Opens the earlier store; states are read when they are asked for.

        Args:
          known: What is gone on from.
          store: The new run's.

        Raises:
          ValueError: When the earlier run is not there any more as it was.
        """
        folder = known.folder
        if not known.is_there():
            raise ValueError(
                f"--continue_from {folder}: expected the checkpoint that this run goes on from, "
                f"digest {known.checkpoint[:12]}, found none or another; choose a new --workdir to "
                "go on from what is there now"
            )
        self._known, self._store = known, store
        self._ids: dict[str, Int[np.ndarray, "_"]] = {}
        self._experiment = workdir_lib.read_config(folder)
        place = workdir_lib.store_folder(self._experiment, folder)
        self._old_store = store_lib.Store.open(kept.find(place, known.data_hash))

    def carry_over(
        self, stage: loop.Stage, mesh: jax.sharding.Mesh, *, keeps_fresh: bool = True
    ) -> Callable[[train_state.TrainState], train_state.TrainState]:
        """What makes a stage's initial state that of the earlier run, see `warm_start.carry_over`.

        Raises:
          ValueError: When the new data have other features than the earlier run's.
        """
        sources = self.sources(stage)

        def carry(fresh: train_state.TrainState) -> train_state.TrainState:
            old = self._read_state(stage, mesh)
            return warm_start.carry_over(old, fresh, sources, keeps_fresh=keeps_fresh)

        return carry

    def sources(self, stage: loop.Stage) -> dict[str, warm_start.Sources]:
        """Where the rows of a stage's tables were before, see `warm_start.find_sources`.

        Raises:
          ValueError: When the new data have other features than the earlier run's.
        """
        old = self._make_model(stage.name)
        check_features(old.spec, stage.model.spec, self._known)
        blocks = warm_start.find_blocks(stage.model)
        ids = {block.feature: self._match(block.feature) for block in blocks.values()}
        rows = warm_start.count_rows(stage.model, stage.updater)
        return warm_start.find_sources(warm_start.find_blocks(old), blocks, ids, rows)

    def hold(self, stage: loop.Stage, mesh: jax.sharding.Mesh) -> held.Held:
        """What of a stage's state stays for the vectors of known items to stay, see `held.find`."""
        like = train_state.abstract_state(
            stage.model, stage.updater, mesh=mesh, averaged=stage.average_decay > 0
        )
        return held.find(stage.model, like, self.sources(stage))

    def _match(self, feature: str) -> Int[np.ndarray, "N"]:
        if feature not in self._ids:
            old, new = (_read_vocabulary(s, feature) for s in (self._old_store, self._store))
            self._ids[feature] = match_ids(old, new, feature)
        return self._ids[feature]

    def _make_model(self, stage: str) -> Any:
        is_teacher = stage == "teacher"
        spec = inputs.select_features(self._old_store, self._experiment, for_teacher=is_teacher)
        section = self._experiment.teacher if is_teacher else self._experiment
        return section.model.make(spec)

    def _read_state(self, stage: loop.Stage, mesh: jax.sharding.Mesh) -> train_state.TrainState:
        experiment, model = self._experiment, self._make_model(stage.name)
        chosen = experiment.teacher if stage.name == "teacher" else experiment.train
        _, decay_epochs = continuation.epochs(experiment, chosen)
        # Whether there is a schedule is all that a state's layout shows of it.
        updater = row_sparse.make_updater(
            experiment.optim,
            model.spec,
            mesh,
            optimizer.make_schedule(chosen.learning_rate, decay_epochs),
            chosen.weight_decay,
        )
        averaged = stage.average_decay > 0
        like = train_state.abstract_state(model, updater, mesh=mesh, averaged=averaged)
        folder = self._known.folders[stage.name]
        opened = checkpoint.StageCheckpoints(folder, stage.name, None, read_only=True)
        with contextlib.closing(opened) as checkpoints:
            progress = checkpoints.latest.progress()
            assert progress is not None
            return checkpoints.restore_best(like, mesh, progress)


def match_ids(old: np.ndarray, new: np.ndarray, feature: str) -> Int[np.ndarray, "N"]:
    """The earlier id of every new one, by raw value; 0 for unknown ones.

    Row 0 of both vocabularies stands for unknown.

    Raises:
      ValueError: When one holds numbers and the other text.
    """
    if (old.dtype.kind == "U") != (new.dtype.kind == "U"):
        kinds = ["text" if v.dtype.kind == "U" else "numbers" for v in (old, new)]
        raise ValueError(
            f"--continue_from: expected {feature!r} to hold {kinds[0]} as in the earlier run, got "
            f"{kinds[1]}; write its column as before"
        )
    order = np.argsort(old[1:], kind="stable") + 1
    found = np.zeros(len(new), np.int32)
    if len(order):
        place = np.minimum(np.searchsorted(old[order], new[1:]), len(order) - 1)
        id_N = order[place]
        found[1:] = np.where(old[id_N] == new[1:], id_N, 0)
    return found


def check_features(
    old: features.FeatureSpec, new: features.FeatureSpec, known: continuation.Continuation
) -> None:
    """Refuses data of other features or scenarios, whose parameters there are none of.

    Raises:
      ValueError: Naming the first that is missing or new.
    """
    for what in ("scenarios", *features.GROUPS, "sequences"):
        before, now = ([getattr(f, "name", f) for f in getattr(s, what)] for s in (old, new))
        if before == now:
            continue
        more, less = (sorted({*a} - {*b}) for a, b in ((now, before), (before, now)))
        found = (
            f"{more[0]!r} beside them" if more else f"no {less[0]!r}" if less else "another order"
        )
        raise ValueError(
            f"--continue_from {known.folder}: expected the {what.replace('_', ' ')} that the "
            f"earlier run was trained with, got {found}; leave new features out "
            "(features.exclude), or train anew without --continue_from"
        )


def _read_vocabulary(store: store_lib.Store, feature: str) -> np.ndarray:
    if feature in _TABLE_OF:
        return np.asarray(getattr(store, f"{_TABLE_OF[feature]}_raw_id"))
    return np.asarray(store.load(f"vocabulary_{feature}"))
