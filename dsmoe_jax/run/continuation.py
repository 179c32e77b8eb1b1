"""Continuation: a run that goes on from the finished run of another folder, on a log that grew.

Owns what the new run keeps of the earlier one, in `continued.json`, and what makes it refuse to go
on. How states are carried over is in `training/warm_start.py`; the earlier folder is only read.
"""

import copy
import dataclasses
import json
import pathlib
from collections.abc import Collection
from typing import Any

from dsmoe_jax import runlog
from dsmoe_jax.config import fingerprint, load, schema
from dsmoe_jax.data import kept
from dsmoe_jax.data import manifest as manifest_lib
from dsmoe_jax.data.prepare import own_config, standard
from dsmoe_jax.run import lock, sizes
from dsmoe_jax.run import workdir as workdir_lib
from dsmoe_jax.training import checkpoint

FILE = "continued.json"
# Sections that say what a model is made of, and fields of theirs that say it by other means: which
# features there are is compared feature by feature.
_OF_MODEL = ("model.", "features.", "optim.")
_OF_TEACHER = ("teacher.model.",)
_COMPARED_OTHERWISE = ("features.exclude",)
_STUDENT = "student"


@dataclasses.dataclass(frozen=True)
class Continuation:
    """What a run keeps of the one that it goes on from.

    Attributes:
      folder: The earlier run's.
      checkpoint: Digest of the states that are carried over, 64 hexadecimal digits.
      folders: By stage, where its state lies: a teacher may be another run's.
      data_hash: Of the data that they were trained on.
      scenarios: Names of the earlier store's scenarios, in their order.
      standard: Moments and bounds of the earlier store.
    """

    folder: pathlib.Path
    checkpoint: str
    folders: dict[str, pathlib.Path]
    data_hash: str
    scenarios: tuple[str, ...]
    standard: standard.Standard

    def write(self, workdir: pathlib.Path) -> None:
        """Keeps it in the new run's folder."""
        record = {
            "from": str(self.folder),
            "checkpoint": self.checkpoint,
            "folders": {stage: str(folder) for stage, folder in self.folders.items()},
            "data_hash": self.data_hash,
            "scenarios": self.scenarios,
            standard.KEY: self.standard._asdict(),
        }
        runlog.replace_text(workdir / FILE, json.dumps(record, indent=1) + "\n")

    def apply(self, experiment: schema.Experiment, workdir: pathlib.Path) -> schema.Experiment:
        """The experiment with the fields that say what it goes on from."""
        data = dataclasses.replace(experiment.data, standard_file=str(workdir.absolute() / FILE))
        if isinstance(data, own_config.LogConfig) and data.scenario and not data.scenarios:
            # By default they are in the order of their positives, which changes from day to day.
            merges = data.rare_scenarios == "merge"
            data.scenarios = () if merges else self.scenarios
        return dataclasses.replace(experiment, data=data, continued_from=self.checkpoint)

    def is_there(self) -> bool:
        """Whether the states that are carried over are where they were, as they were."""
        return _digest(self.folders) == self.checkpoint


def read(workdir: pathlib.Path) -> Continuation | None:
    """What a run goes on from; None where it goes on from none.

    Raises:
      ValueError: When the file is damaged.
    """
    path = workdir / FILE
    if not path.is_file():
        return None
    way_out = "delete this folder and continue anew"
    record = workdir_lib.read_record(path, way_out)
    try:
        return Continuation(
            pathlib.Path(record["from"]),
            record["checkpoint"],
            {stage: pathlib.Path(folder) for stage, folder in record["folders"].items()},
            record["data_hash"],
            tuple(record["scenarios"]),
            standard.Standard(**record[standard.KEY]),
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: the file is damaged: {error!r}; {way_out}") from error


def find(
    experiment: schema.Experiment,
    workdir: pathlib.Path,
    folder: pathlib.Path | None,
    given: Collection[str] = (),
) -> tuple[Continuation | None, schema.Experiment]:
    """What a run goes on from, and its experiment with what follows from that; writes nothing.

    Args:
      experiment: The run's.
      workdir: Its folder.
      folder: The earlier run's; None takes what the workdir keeps.
      given: Fields that somebody set; `by_size` takes the others from the earlier run.

    Raises:
      ValueError: When the earlier run has no trained model, or another one, in one line.
    """
    known = read(workdir)
    if folder is None and known is None:
        if experiment.train.hold_items:
            raise ValueError(
                "train.hold_items: expected False without --continue_from, where no index of items "
                "is deployed yet, got True"
            )
        return None, experiment
    if folder is not None and folder.resolve() == workdir.resolve():
        raise ValueError(
            f"--continue_from: expected another folder than --workdir, got {folder} for both; the "
            "earlier run is only read"
        )
    # Once it is begun, a run needs no other folder: what was carried over is its own.
    begun = checkpoint.read_identity(workdir, _STUDENT) is not None
    if known is None or not (
        folder is None or (begun and known.folder.resolve() == folder.resolve())
    ):
        assert folder is not None
        known = _open(experiment, folder)
    # The earlier folder may be gone by now; what was taken from it is in the run's own.
    for place in (known.folder, workdir):
        if (place / workdir_lib.CONFIG_FILE).is_file():
            earlier = workdir_lib.read_config(place)
            experiment = _take_sizes(experiment, earlier, given)
            check_model(experiment, earlier, place)
            break
    return known, known.apply(experiment, workdir)


def check_model(
    experiment: schema.Experiment, earlier: schema.Experiment, folder: pathlib.Path
) -> None:
    """Refuses another model than the earlier run's.

    Raises:
      ValueError: Naming the first field that differs.
    """
    sections = _OF_MODEL + (_OF_TEACHER if experiment.loss.distill_weight else ())
    before, now = (
        {
            name: value
            for name, value in fingerprint.of_stage(found, stage=_STUDENT).items()
            if name.startswith(sections) and name not in _COMPARED_OTHERWISE
        }
        | {"train.average_decay > 0": found.train.average_decay > 0}
        for found in (earlier, experiment)
    )
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            raise ValueError(
                f"--continue_from {folder}: expected {name} as there, {before.get(name)!r}, got "
                f"{now.get(name)!r}; change the field back, or train anew without --continue_from"
            )


def epochs(
    experiment: schema.Experiment, chosen: schema.TrainConfig | schema.TeacherConfig
) -> tuple[int, int]:
    """Most epochs of a stage, and over how many of them the step size falls, 0 for none."""
    decay = chosen.decay_epochs if isinstance(chosen, schema.TrainConfig) else 0
    if not experiment.continued_from:
        return chosen.max_epochs, decay
    most = experiment.train.continue_epochs
    return most, min(decay, most)


def _open(experiment: schema.Experiment, folder: pathlib.Path) -> Continuation:
    """What there is to go on from in a folder.

    Raises:
      ValueError: When it holds no trained model of the stages that are wanted, or is in use.
    """
    if not folder.is_dir():
        raise ValueError(f"--continue_from: expected the folder of a run, found none at {folder}")
    lock.check_free(folder)
    earlier = workdir_lib.read_config(folder)
    folders = {_STUDENT: folder.absolute()}
    if experiment.loss.distill_weight:
        other = earlier.teacher.from_workdir
        folders["teacher"] = (
            pathlib.Path(other).expanduser().absolute() if other else folders[_STUDENT]
        )
    for stage, place in folders.items():
        if checkpoint.read_best(place, stage) is None:
            raise ValueError(
                f"--continue_from {folder}: expected a trained {stage}, found none in "
                f"{checkpoint.stage_folder(place, stage)}; train it first, or continue from a run "
                "that did"
            )
    data_hash = (checkpoint.read_identity(folder, _STUDENT) or {}).get("data_hash", "")
    store = kept.find(workdir_lib.store_folder(earlier, folder), data_hash)
    digest = _digest(folders)
    assert digest is not None
    manifest = manifest_lib.read(store)
    return Continuation(
        folder.absolute(),
        digest,
        folders,
        data_hash,
        tuple(manifest["scenarios"]),
        standard.of_manifest(manifest),
    )


def _digest(folders: dict[str, pathlib.Path]) -> str | None:
    """The digest of the best states in these folders; None where one is missing."""
    digests = {}
    for stage, folder in folders.items():
        found = checkpoint.read_best(folder, stage)
        if found is None:
            return None
        digests[stage] = found[1]
    return fingerprint.of_record(digests, own="")


def _take_sizes(
    experiment: schema.Experiment, earlier: schema.Experiment, given: Collection[str]
) -> schema.Experiment:
    """The experiment with the earlier run's values where `by_size` would choose some."""
    if not experiment.by_size:
        return experiment
    filled: schema.Experiment = copy.deepcopy(experiment)
    before: Any = fingerprint.flatten(fingerprint.as_dict(earlier))
    for name in sizes.unset(experiment, given):
        if name in before:
            load.override(filled, name, before[name])
    filled.by_size = False
    return filled
