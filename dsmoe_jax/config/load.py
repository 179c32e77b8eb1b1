"""Loading of configurations: where a file is found, its variant, and typed overrides of its fields.

Owns the text form `FILE:token,token`, the names and types of fields, and one-line messages for what
is wrong with either. Does not own: ranges of values (`schema.Experiment.validate`), flags (`main`).
"""

import ast
import difflib
import importlib.util
import pathlib
import re
import sys
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dsmoe_jax.config import fingerprint, schema

MODULE_PREFIX = "dsmoe_config_"
_PACKAGE = pathlib.Path(__file__).parents[1]
_BOOLS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


class UsageError(ValueError):
    """A wrong configuration, override or flag; the message is one line."""


def load_config(spec: str, overrides: Mapping[str, Any] | None = None) -> schema.Experiment:
    """The validated experiment of a configuration.

    Args:
      spec: `FILE:token,token` or `NAME:token,token`, where NAME is a packaged configuration, e.g.
        `kuairand:sample`; the tokens and their colon may be absent.
      overrides: Values of fields, e.g. `{"train.learning_rate": 3e-4}` or `{"train":
        {"learning_rate": 3e-4}}`; a value may also be the text that a command line would hold.

    Raises:
      UsageError: When the file, the variant, a field or a value's type is wrong, in one line.
      ValueError: When a value is out of its range.
    """
    experiment = load_experiment(*split(spec))
    for field, value in fingerprint.flatten(dict(overrides or {})).items():
        override(experiment, field, value)
    experiment.validate()
    return experiment


def split(spec: str) -> tuple[str, str]:
    """File or name, and tokens, of `FILE:token,token`."""
    path, _, variant = spec.partition(":")
    return path, variant


def extend(spec: str, tokens: str) -> str:
    """The configuration with more tokens; none are no change."""
    path, variant = split(spec)
    joined = ",".join(part for part in (variant, tokens) if part)
    return f"{path}:{joined}" if joined else path


def packaged() -> dict[str, pathlib.Path]:
    """The configurations that come with the package, by name."""
    # In a wheel they lie inside the package, in a checkout beside it.
    folders = (_PACKAGE / "configs", _PACKAGE.parent / "configs")
    folder = next((folder for folder in folders if folder.is_dir()), folders[0])
    return {file.stem: file for file in sorted(folder.glob("*.py"))}


def find(path: str) -> pathlib.Path:
    """The file of a path or of a packaged configuration's name.

    Raises:
      UsageError: When there is none, with the nearest name.
    """
    file, names = pathlib.Path(path), packaged()
    if file.is_file():
        return file
    if path in names:
        return names[path]
    if not path.endswith(".py"):
        raise UsageError(
            f"--config: expected a file or one of {', '.join(names)}, got {path!r}"
            f"{nearest(path, names)}"
        )
    beside = [str(entry) for entry in file.parent.glob("*.py")]
    raise UsageError(f"--config: no such file {path!r}{nearest(path, beside)}")


def load_module(path: str) -> types.ModuleType:
    """Runs a configuration's file.

    Raises:
      UsageError: When the file is missing or not Python.
    """
    file = find(path)
    name = f"{MODULE_PREFIX}{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UsageError(f"--config: expected a Python file, got {path!r}")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses that the file defines look their module up.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UsageError(f"--config {path}: {one_line(error)}") from error
    return module


def load_experiment(path: str, variant: str) -> schema.Experiment:
    """Calls `get_config(variant)` of a configuration; the result is not validated.

    Raises:
      UsageError: When the file is missing or no configuration, or when it refuses the variant.
    """
    module = load_module(path)
    if not hasattr(module, "get_config"):
        raise UsageError(f"--config {path}: expected a function get_config(variant), found none")
    try:
        return typing.cast(schema.Experiment, module.get_config(variant))
    except ValueError as error:
        raise UsageError(f"--config {path}: {one_line(error)}") from error


def override(experiment: schema.Experiment, field: str, value: Any) -> Any:
    """Sets one field to a value of its declared type, or to what a text says; returns the value.

    Raises:
      UsageError: When there is no such field, with the nearest, or the value has another type.
    """
    *parents, name = check_name(experiment, field).split(".")
    holder: Any = experiment
    for parent in parents:
        holder = holder[parent] if isinstance(holder, dict) else getattr(holder, parent)
    inside_dict = isinstance(holder, dict)
    declared = type(holder[name]) if inside_dict else typing.get_type_hints(type(holder))[name]
    typed = _convert(value, declared, field)
    if inside_dict:
        holder[name] = typed
    else:
        setattr(holder, name, typed)
    return typed


def field_names(experiment: schema.Experiment) -> list[str]:
    """Every field that can be set, e.g. `train.learning_rate`."""
    names = fingerprint.flatten(fingerprint.as_dict(experiment))
    return [name for name in names if name.rpartition(".")[2] != "class"]


def check_name(experiment: schema.Experiment, field: str) -> str:
    """The field's name, if the configuration has such a field.

    Raises:
      UsageError: With the nearest field.
    """
    fields = field_names(experiment)
    if field in fields:
        return field
    inside = [known for known in fields if known.startswith(f"{field}.")]
    if inside:
        raise UsageError(
            f"'config.{field}' is a section; set its fields, e.g. --config.{inside[0]}=..."
        )
    raise UsageError(f"unknown field 'config.{field}'{nearest(field, fields, prefix='config.')}")


def nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """The end of a message about a wrong name: the most similar known one, if any is similar."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; nearest: {prefix + match[0]!r}" if match else ""


def check_choice(what: str, name: str, known: Sequence[str]) -> None:
    """Refuses a name that is not known.

    Raises:
      UsageError: With the nearest name.
    """
    if name not in known:
        raise UsageError(
            f"{what}: expected one of {', '.join(known)}, got {name!r}{nearest(name, known)}"
        )


def one_line(error: BaseException) -> str:
    """The error's message without line breaks."""
    return " ".join(str(error).split())


def _convert(value: Any, declared: Any, field: str) -> Any:
    """The value as the type that a field declares: int, float, bool, str or a tuple of these."""
    element = typing.get_args(declared)[0] if typing.get_origin(declared) is tuple else None
    if element is None:
        typed = _parse(value, declared) if isinstance(value, str) else value
        if declared is float and type(typed) is int:
            typed = float(typed)
        if type(typed) is not declared:
            raise UsageError(f"config.{field}: expected {declared.__name__}, got {value!r}")
        return typed
    entries = _parse_tuple(value) if isinstance(value, str) else value
    if not isinstance(entries, tuple | list):
        raise UsageError(f"config.{field}: expected {declared}, got {value!r}")
    for entry in entries:
        if type(entry) not in ((int, float) if element is float else (element,)):
            raise UsageError(
                f"config.{field}: expected elements of type {element.__name__}, got {entry!r}"
            )
    return tuple(entries)


def _parse(text: str, declared: type) -> Any:
    """The value of a text; the text itself where it is none of the declared type."""
    if declared is bool:
        return _BOOLS.get(text.lower(), text)
    try:
        if declared is int and re.match(r"[+-]?0[xo]", text):
            return int(text, 0)
        return declared(text)
    except ValueError:
        return text


def _parse_tuple(text: str) -> Any:
    """`1,2` and `('a', 'b')` as written; a bare word is a tuple of itself; others stay a text."""
    try:
        value = ast.literal_eval(text)
    except ValueError:
        value = text
    except SyntaxError:
        # A path or a pattern.
        return text if "," in text or " " in text else (text,)
    return value if isinstance(value, tuple | list) else (value,)
