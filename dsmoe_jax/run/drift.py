"""Drift of a configuration: a run that its own checkpoints refuse, found before it writes."""

import pathlib
from collections.abc import Collection, Iterator

from dsmoe_jax.config import fingerprint, schema
from dsmoe_jax.data import kept
from dsmoe_jax.run import workdir as workdir_lib
from dsmoe_jax.training import checkpoint


def check_fields(
    experiment: schema.Experiment,
    workdir: pathlib.Path,
    mode: str,
    *,
    unknown: Collection[str] = (),
) -> None:
    """Compares the configuration with those of the checkpoints that a run would go on with.

    Fields that are `unknown` so far are left out.

    Raises:
      ValueError: When one differs in a field that decides its numbers, with the difference.
    """
    for folder, stage in _stages(experiment, workdir, mode):
        saved = checkpoint.read_identity(folder, stage)
        if saved is not None:
            wanted = fingerprint.of_stage(experiment, stage=stage)
            for name in ("data_hash", *unknown):
                saved.pop(name, None)
                wanted.pop(name, None)
            _refuse(folder, stage, checkpoint.describe_difference(saved, wanted))


def check_data(
    experiment: schema.Experiment, workdir: pathlib.Path, mode: str, data_hash: str
) -> None:
    """Compares the prepared data with those that the checkpoints were trained on.

    Raises:
      ValueError: When they differ, with the folder of the data that were trained on.
    """
    for folder, stage in _stages(experiment, workdir, mode):
        saved = checkpoint.read_identity(folder, stage) or {}
        if saved.get("data_hash", data_hash) != data_hash:
            difference = f"data_hash: checkpoint {saved['data_hash']!r}, run {data_hash!r}"
            store = workdir_lib.store_folder(experiment, workdir)
            try:
                difference += f"; its data are in {kept.find(store, saved['data_hash'])}"
            except ValueError:
                difference += "; its data are gone"
            _refuse(folder, stage, difference)


def _stages(
    experiment: schema.Experiment, workdir: pathlib.Path, mode: str
) -> Iterator[tuple[pathlib.Path, str]]:
    """Workdir and name of every stage that the configuration has."""
    if experiment.loss.distill_weight > 0 or mode == "teacher":
        other = experiment.teacher.from_workdir
        yield pathlib.Path(other).expanduser() if other else workdir, "teacher"
    for stage in experiment.model.pretraining():
        yield workdir, stage.name
    yield workdir, "student"


def _refuse(workdir: pathlib.Path, stage: str, difference: str) -> None:
    if difference:
        raise ValueError(
            f"{checkpoint.stage_folder(workdir, stage)}: another run wrote this checkpoint "
            f"({difference}); change the fields back or choose a new --workdir"
        )
