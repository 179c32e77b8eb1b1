"""What names a run: which fields a checkpoint, a record or a finished cell must share with it.

Owns the flat view of a configuration and what in it decides numbers.
"""

import dataclasses
import hashlib
import json
import typing
from typing import Any

from dsmoe_jax.config import schema

# Fields that may change between the runs that share a workdir: they decide when a run stops, where
# it writes and how it is judged, not which numbers a step computes.
RESUMABLE_FIELDS = (
    "variant",
    "data.raw_dir",
    "data.store_dir",
    "train.max_epochs",
    "train.patience",
    "train.max_minutes",
    "train.steps_per_report",
    "teacher.max_epochs",
    "teacher.patience",
    "teacher.max_minutes",
    "teacher.from_workdir",
    "eval",
    "checkpoint",
)


def as_dict(experiment: schema.Experiment) -> dict[str, Any]:
    """The experiment as JSON-ready nested dicts, each method and data section with its class."""

    def convert(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {f.name: convert(getattr(value, f.name)) for f in dataclasses.fields(value)}
            if isinstance(value, schema.DataConfig | schema.MatcherConfig | schema.RankerConfig):
                return {"class": type(value).__name__, **fields}
            return fields
        if isinstance(value, dict):
            return {str(key): convert(entry) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [convert(entry) for entry in value]
        return value

    return typing.cast(dict[str, Any], convert(experiment))


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{path}."))
        else:
            flat[path] = value
    return flat


# Values that a field had before it was one.
_USUAL = (
    ("model.product_dtype", "float32"),
    ("train.steps_per_dispatch", 1),
    ("train.beta_2", 0.999),
    ("train.max_minutes", 0.0),
    ("teacher.max_minutes", 0.0),
    ("teacher.seed", -1),
    ("eval.mrr_depth", 0),
    ("features.history_encoder", "mean"),
)
# Fields that a teacher does not depend on.
STUDENT_FIELDS = (
    "model",
    "loss",
    "train.learning_rate",
    "train.weight_decay",
    "train.beta_2",
    "train.average_decay",
    "teacher.seed",
    "features.history_encoder",
)


def of_stage(experiment: schema.Experiment, *, stage: str) -> dict[str, Any]:
    """The flat fields a checkpoint of a stage must share with the run that resumes from it.

    Args:
      experiment: The run.
      stage: `teacher` leaves out the student's fields; any other stage depends on all.
    """
    free = RESUMABLE_FIELDS + (STUDENT_FIELDS if stage == "teacher" else ())
    fields = {**_deciding_fields(experiment), "seed": experiment.stage_seed(stage)}
    return {
        name: value
        for name, value in fields.items()
        if not any(name == field or name.startswith(f"{field}.") for field in free)
    }


def _deciding_fields(experiment: schema.Experiment) -> dict[str, Any]:
    """The flat fields without those that have no say.

    Dense updates leave nothing to choose; products of float32, steps one by one, no limit of time
    and a teacher of the run's seed are what there was before there was a choice.
    """
    fields = flatten(as_dict(experiment))
    if experiment.optim.embedding == "dense":
        fields = {name: value for name, value in fields.items() if not name.startswith("optim.")}
    for name, usual in _USUAL:
        if fields.get(name) == usual:
            del fields[name]
    return fields


def config_hash(experiment: schema.Experiment) -> str:
    """Twelve hexadecimal digits that name every field which decides a result."""
    fields = _deciding_fields(experiment)
    for name in (
        "checkpoint.every_steps",
        "data.raw_dir",
        "data.store_dir",
        "teacher.from_workdir",
        "train.steps_per_report",
        "variant",
    ):
        fields.pop(name, None)
    text = json.dumps(fields, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
