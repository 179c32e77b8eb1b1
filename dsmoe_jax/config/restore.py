"""Restoring of an experiment from the record that its run left.

Owns how classes are named in the record, also those that a configuration file defines.
"""

import dataclasses
import functools
import importlib
import sys
import typing
from collections.abc import Mapping
from typing import Any

from dsmoe_jax.config import fields, load, schema

_SECTIONS = (schema.DataConfig, schema.MatcherConfig, schema.RankerConfig)


def class_names(section: Any, path: str = "") -> dict[str, str]:
    """Where the class of every section that has a choice is found, by the section's path.

    `MODULE:CLASS` or, where a configuration file defines it, `FILE:CLASS`.
    """
    names = {}
    if isinstance(section, _SECTIONS):
        module = sys.modules[type(section).__module__]
        of_file = module.__name__.startswith(load.MODULE_PREFIX)
        origin = module.__file__ if of_file else module.__name__
        names[path] = f"{origin}:{type(section).__qualname__}"
    entries = vars(section) if dataclasses.is_dataclass(section) else section
    for name, value in entries.items():
        if dataclasses.is_dataclass(value) or isinstance(value, dict):
            names |= class_names(value, f"{path}.{name}".strip("."))
    return names


def restore(config: Mapping[str, Any], classes: Mapping[str, str]) -> schema.Experiment:
    """The experiment of `fingerprint.as_dict` and `class_names`.

    Raises:
      UsageError: When a class is not where it was.
    """
    return typing.cast(schema.Experiment, _build(schema.Experiment, config, "", classes))


def _build(declared: Any, value: Any, path: str, classes: Mapping[str, str]) -> Any:
    found = _find(classes[path]) if path in classes else declared
    if typing.get_origin(found) is tuple:
        return tuple(value)
    if not isinstance(value, dict):
        return value
    if isinstance(found, type) and dataclasses.is_dataclass(found):
        types, declared = typing.get_type_hints(found), fields.declarations(found)
        value = {
            name: fields.renew(declared[name], entry)
            for name, entry in value.items()
            if name != "class"
        }
    else:
        # Members by name; each has a class of its own.
        found, types = dict, dict.fromkeys(value, Any)
    return found(
        **{
            name: _build(types[name], entry, f"{path}.{name}".strip("."), classes)
            for name, entry in value.items()
        }
    )


def _find(name: str) -> Any:
    origin, _, qualified = name.rpartition(":")
    try:
        is_file = origin.endswith(".py")
        module = load.load_module(origin) if is_file else importlib.import_module(origin)
        return functools.reduce(getattr, qualified.split("."), module)
    except (ImportError, AttributeError, load.UsageError) as error:
        raise load.UsageError(
            f"{name}: expected the class of a section, found none; give the run's experiment"
        ) from error
