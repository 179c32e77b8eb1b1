"""Loading of configuration files, and the names and types that overrides must have.

Owns: finding and loading the file, the names and types of its fields, and one-line messages for
what is wrong with either. Does not own: the flags of a run (`main`), ranges of values
(`schema.Experiment.validate`).
"""

import difflib
import importlib.util
import pathlib
import re
import sys
import typing
from collections.abc import Iterable
from typing import Any

from dsmoe_jax.config import fingerprint, schema


class UsageError(Exception):
    """The command line is wrong; the message is one line."""


def take_config(arguments: list[str]) -> tuple[str, str, list[str]]:
    """Separates `--config FILE[:variant]` from the other arguments; the last one counts.

    Returns:
      The file, the variant (empty without one) and the other arguments in their order.

    Raises:
      UsageError: Without a configuration.
    """
    text, rest, takes_value = "", [], False
    for argument in arguments:
        if takes_value:
            text, takes_value = argument, False
        elif argument in ("--config", "-config"):
            takes_value = True
        elif argument.startswith(("--config=", "-config=")):
            text = argument.split("=", 1)[1]
        else:
            rest.append(argument)
    if not text:
        flags = [argument.split("=")[0] for argument in rest if argument.startswith("--")]
        similar = difflib.get_close_matches("--config", flags, n=1, cutoff=0.8)
        if similar:
            raise UsageError(f"unknown flag {similar[0]!r}; nearest: '--config'")
        raise UsageError("expected --config FILE[:token,token], got none")
    path, _, variant = text.partition(":")
    return path, variant, rest


def load_experiment(path: str, variant: str) -> schema.Experiment:
    """Calls `get_config(variant)` of the Python file at `path`.

    Raises:
      UsageError: When the file is missing (with the nearest name beside it) or no configuration,
        or when it refuses the variant.
    """
    file = pathlib.Path(path)
    if not file.is_file():
        names = [str(entry) for entry in file.parent.glob("*.py")]
        raise UsageError(f"--config: no such file {path!r}{nearest(path, names)}")
    name = f"dsmoe_config_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"--config: expected a Python file, got {path!r}")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses that the file defines look their module up.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UsageError(f"--config {path}: {one_line(error)}") from error
    if not hasattr(module, "get_config"):
        raise UsageError(f"--config {path}: expected a function get_config(variant), found none")
    try:
        return typing.cast(schema.Experiment, module.get_config(variant))
    except ValueError as error:
        raise UsageError(f"--config {path}: {one_line(error)}") from error


def field_names(experiment: schema.Experiment) -> list[str]:
    """Every field that can be set, e.g. `train.learning_rate`."""
    names = fingerprint.flatten(fingerprint.as_dict(experiment))
    return [name for name in names if name.rpartition(".")[2] != "class"]


def check_names(arguments: list[str], fields: list[str]) -> None:
    """Refuses `--config.FIELD` where the configuration has no such field.

    Raises:
      UsageError: With the nearest field.
    """
    for argument in arguments:
        match = re.match(r"--?(?:no)?config\.([^=]*)", argument)
        if not match or match[1] in fields:
            continue
        inside = [field for field in fields if field.startswith(f"{match[1]}.")]
        if inside:
            raise UsageError(
                f"'config.{match[1]}' is a section; set its fields, e.g. --config.{inside[0]}=..."
            )
        raise UsageError(
            f"unknown field 'config.{match[1]}'{nearest(match[1], fields, prefix='config.')}"
        )


def check_elements(experiment: schema.Experiment, field: str, value: Any) -> None:
    """Refuses a tuple whose elements are not of the declared type; other values pass.

    Raises:
      UsageError: With the first wrong element.
    """
    arguments = typing.get_args(_type_of(experiment, field))
    if not isinstance(value, tuple) or arguments[1:] != (...,):
        return
    allowed = (int, float) if arguments[0] is float else arguments[:1]
    for entry in value:
        if type(entry) not in allowed:
            raise UsageError(
                f"config.{field}: expected elements of type {arguments[0].__name__}, got {entry!r}"
            )


def explain(error: Exception, experiment: schema.Experiment) -> str:
    """The flag library's complaint about a value as field, expected and got, in one line."""
    text = one_line(error)
    match = re.match(r"flag --config\.([\w.]+)=(.*?): ", text)
    if not match:
        return text
    declared = _type_of(experiment, match[1])
    name = declared.__name__ if isinstance(declared, type) else str(declared)
    return f"config.{match[1]}: expected {name}, got {match[2]!r}"


def nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """The end of a message about a wrong name: the most similar known one, if any is similar."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; nearest: {prefix + match[0]!r}" if match else ""


def one_line(error: BaseException) -> str:
    """The error's message without line breaks."""
    return " ".join(str(error).split())


def _type_of(experiment: schema.Experiment, field: str) -> Any:
    """The declared type of a field; inside a dict, the type of its value."""
    *parents, name = field.split(".")
    holder: Any = experiment
    for parent in parents:
        holder = holder[parent] if isinstance(holder, dict) else getattr(holder, parent)
    if isinstance(holder, dict):
        return type(holder[name])
    return typing.get_type_hints(type(holder))[name]
