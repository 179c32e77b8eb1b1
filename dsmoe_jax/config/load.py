"""Loading of configurations: where a file is found, its variant, and typed overrides of its fields.

Owns the text form `FILE:token,token`, the names and types of fields, and one-line messages for what
is wrong with either. Does not own: ranges of values (`schema.Experiment.validate`), or what flags
beside the fields mean (`main`).
"""

import difflib
import importlib.util
import pathlib
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from dsmoe_jax.config import fields as fields_lib
from dsmoe_jax.config import fingerprint, schema

MODULE_PREFIX = "dsmoe_config_"
_PACKAGE = pathlib.Path(__file__).parents[1]
# Flags of a command line beside the fields.
FLAGS = ("workdir", "mode", "coordinator", "num_processes", "process_id", "continue_from")
SWITCHES = ("traceback", "anew")


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
        experiment: schema.Experiment = module.get_config(variant)
    except ValueError as error:
        raise UsageError(f"--config {path}: {one_line(error)}") from error
    for field, declared, value in list(fields_lib.walk(experiment)):
        if "formerly" in declared.metadata:
            override(experiment, field, value)
    return experiment


def override(experiment: schema.Experiment, field: str, value: Any) -> Any:
    """Sets one field to a value of its declared type, or to what a text says; returns the value.

    Raises:
      UsageError: When there is no such field, with the nearest, or the value has another type.
    """
    holder, declared, name = _place(experiment, check_name(experiment, field))
    if not isinstance(holder, dict):
        value = fields_lib.renew(fields_lib.declarations(type(holder))[name], value)
    if isinstance(value, str) and declared is not str:
        changed, _ = read_texts(experiment, [f"--config.{field}={value}"])
        return changed[field]
    typed = _convert(value, declared, field)
    if isinstance(holder, dict):
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
        typed = float(value) if declared is float and type(value) is int else value
        if type(typed) is not declared:
            raise UsageError(f"config.{field}: expected {declared.__name__}, got {value!r}")
        return typed
    if not isinstance(value, tuple | list):
        raise UsageError(f"config.{field}: expected {declared}, got {value!r}")
    for entry in value:
        if type(entry) not in ((int, float) if element is float else (element,)):
            raise UsageError(
                f"config.{field}: expected elements of type {element.__name__}, got {entry!r}"
            )
    return tuple(value)


def read_texts(experiment: schema.Experiment, arguments: list[str]) -> tuple[dict[str, Any], Any]:
    """Sets fields to what `--config.FIELD=TEXT` says, among other flags.

    Args:
      experiment: Its fields are set.
      arguments: Of a command line, without the program's name and `--config`.

    Returns:
      The fields that were set, with their values, and absl's values of the flags in `FLAGS`.

    Raises:
      UsageError: In one line, with the nearest name where a flag or a field is not known.
    """
    # Neither `--help` nor a wrong command needs them.
    from absl import flags
    from ml_collections import config_flags

    for argument in arguments:
        if match := re.match(r"--?(?:no)?config\.([^=]*)", argument):
            check_name(experiment, match[1])
    former = {
        name: declared.metadata.get("formerly", {})
        for name, declared, _ in fields_lib.walk(experiment)
    }
    for i, argument in enumerate(arguments):
        # A field that was a switch is still switched on and off without a value.
        match = re.fullmatch(r"--?(no)?config\.([^=]*)", argument)
        if match and (value := not match[1]) in former.get(match[2], {}):
            arguments = [*arguments[:i], f"--config.{match[2]}={value}", *arguments[i + 1 :]]
    # absl leaves the constructor without annotations.
    new_values: Callable[[], flags.FlagValues] = flags.FlagValues
    values = new_values()
    try:
        # The library reads sys.argv unless it is told which arguments there are.
        config_flags.DEFINE_config_dataclass(
            "config", experiment, flag_values=values, sys_argv=["", *arguments]
        )
        for flag in FLAGS:
            flags.DEFINE_string(flag, None, "", flag_values=values)
        for flag in SWITCHES:
            flags.DEFINE_boolean(flag, False, "", flag_values=values)
        positional = values(["", *arguments])[1:]
    except flags.UnrecognizedFlagError as error:
        known = [*FLAGS, *SWITCHES, *(f"config.{field}" for field in field_names(experiment))]
        raise UsageError(
            f"unknown flag '--{error.flagname}'{nearest(error.flagname, known, prefix='--')}"
        ) from error
    except flags.Error as error:
        raise UsageError(_explain(error, experiment)) from error
    if positional:
        raise UsageError(
            f"expected only flags, got {positional[0]!r}; write a value as --name=value"
        )
    given = config_flags.get_override_values(values["config"])
    return {field: override(experiment, field, value) for field, value in given.items()}, values


def _explain(error: Exception, experiment: schema.Experiment) -> str:
    """The flag library's complaint about a value as field, expected and got, in one line."""
    text = one_line(error)
    match = re.match(r"flag --config\.([\w.]+)=(.*?): ", text)
    if not match:
        return text
    _, declared, _ = _place(experiment, match[1])
    name = declared.__name__ if isinstance(declared, type) else str(declared)
    return f"config.{match[1]}: expected {name}, got {match[2]!r}"


def _place(experiment: schema.Experiment, field: str) -> tuple[Any, Any, str]:
    """The section or dict that holds a field, the field's declared type and its name there."""
    *parents, name = field.split(".")
    holder: Any = experiment
    for parent in parents:
        holder = holder[parent] if isinstance(holder, dict) else getattr(holder, parent)
    inside_dict = isinstance(holder, dict)
    declared = type(holder[name]) if inside_dict else typing.get_type_hints(type(holder))[name]
    return holder, declared, name
