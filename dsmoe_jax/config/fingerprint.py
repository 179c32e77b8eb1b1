"""Fingerprints: the fields that a checkpoint or a record must share with a run, and of records.

Owns the flat view of a configuration; which of its fields decide numbers, the fields declare.
"""

import dataclasses
import hashlib
import json
import typing
from collections.abc import Mapping
from typing import Any

from dsmoe_jax.config import fields, schema


def as_dict(experiment: schema.Experiment) -> dict[str, Any]:
    """The experiment as JSON-ready nested dicts, each method and data section with its class."""

    def convert(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            found = {f.name: convert(getattr(value, f.name)) for f in dataclasses.fields(value)}
            if isinstance(value, schema.DataConfig | schema.MatcherConfig | schema.RankerConfig):
                return {"class": type(value).__name__, **found}
            return found
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


def of_stage(experiment: schema.Experiment, *, stage: str) -> dict[str, Any]:
    """The flat fields a checkpoint of a stage must share with the run that resumes from it.

    The student's are left out for `teacher`; any other stage depends on all.
    """
    named = {**_deciding_fields(experiment), "seed": experiment.stage_seed(stage)}
    roles = ("resumable", "student_only") if stage == "teacher" else ("resumable",)
    return _without(named, experiment, *roles)


def config_hash(experiment: schema.Experiment) -> str:
    """Twelve hexadecimal digits that name every field which decides a result."""
    named = _without(_deciding_fields(experiment), experiment, "unhashed")
    text = json.dumps(named, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def of_record(record: Mapping[str, Any], own: str) -> str:
    """64 hexadecimal digits that name what JSON keeps of a record, but for the entry `own`.

    That entry is where the record keeps them.
    """
    rest = json.loads(json.dumps({name: v for name, v in record.items() if name != own}))
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _deciding_fields(experiment: schema.Experiment) -> dict[str, Any]:
    """The flat fields without those that decide nothing, as all of `optim` for dense updates."""
    named = flatten(as_dict(experiment))
    if experiment.optim.embedding == "dense":
        named = {name: value for name, value in named.items() if not name.startswith("optim.")}
    for name, declared, value in fields.walk(experiment):
        if fields.is_usual(declared, value):
            del named[name]
        elif "formerly" in declared.metadata:
            named[name] = fields.hashed(declared, value)
    return named


def _without(named: dict[str, Any], experiment: schema.Experiment, *roles: str) -> dict[str, Any]:
    """The flat fields but those that have one of the roles, or whose section has."""
    free = [
        name
        for name, declared, _ in fields.walk(experiment)
        if any(declared.metadata.get(role) for role in roles)
    ]
    return {
        name: value
        for name, value in named.items()
        if not any(name == field or name.startswith(f"{field}.") for field in free)
    }
