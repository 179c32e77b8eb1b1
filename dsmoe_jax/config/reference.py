"""Configuration reference: every field with its type, default, range and meaning, as Markdown.

    python -m dsmoe_jax.config.reference

Owns the page. A field's range is its declaration; its meaning is the entry under "Attributes:" in
the docstring of its class, or of the nearest base class that has one.
"""

import dataclasses
import inspect
import re
import typing
from collections.abc import Iterable, Iterator

from dsmoe_jax.config import fields, schema

_TABLE = ("| Field | Type | Default | Expected | Meaning |", "| --- | --- | --- | --- | --- |")


def render() -> str:
    """The page."""
    parts = [
        "# Configuration reference",
        "A field is set in the configuration file or on the command line. A class that extends "
        "another has its fields too: they are listed once, and again where their default differs.",
    ]
    for title, path, sections in list_sections():
        parts += [f"## {title}", f"Set by `--config.{path}FIELD=VALUE`."]
        for section, name in sections.items():
            parts += [f"### {name}"] if len(sections) > 1 else []
            parts += _render_class(section)
    return "\n\n".join(parts) + "\n"


def list_sections() -> Iterator[tuple[str, str, dict[type, str]]]:
    """Title and path of every section, and its possible classes with their headings."""
    # Here, so that reading declarations needs neither the methods nor JAX.
    from dsmoe_jax.data.prepare import alimama, custom, kuairand, movielens
    from dsmoe_jax.data.synthetic import alimama_rows, kuairand_rows, movielens_rows, world
    from dsmoe_jax.models import registry

    data_sets = (
        kuairand.KuaiRandConfig,
        kuairand_rows.SyntheticKuaiRandConfig,
        alimama.AlimamaConfig,
        alimama_rows.SyntheticAlimamaConfig,
        movielens.MovieLensConfig,
        movielens_rows.SyntheticMovieLensConfig,
        custom.CustomConfig,
        world.SyntheticWorldConfig,
    )
    yield "Run", "", {schema.Experiment: ""}
    yield "Data", "data.", _with_bases(dict.fromkeys(data_sets, ""))
    yield "Features", "features.", {schema.FeatureConfig: ""}
    matchers = {section: registry.LABELS.get(n, n) for n, section in registry.MATCHERS.items()}
    yield "Model", "model.", _with_bases(matchers)
    yield "Teacher", "teacher.", {schema.TeacherConfig: ""}
    rankers = {section: f"teacher={name}" for name, section in registry.RANKERS.items()}
    yield "Teacher's model", "teacher.model.", _with_bases(rankers)
    yield "Loss", "loss.", {schema.LossConfig: ""}
    yield "Training", "train.", {schema.TrainConfig: ""}
    yield "Optimiser", "optim.", {schema.OptimConfig: ""}
    yield "Evaluation", "eval.", {schema.EvalConfig: ""}
    yield "Checkpoints", "checkpoint.", {schema.CheckpointConfig: ""}


def own_fields(section: type) -> list[dataclasses.Field[typing.Any]]:
    """The fields that a class states itself, but those that hold a section."""
    stated, holders = vars(section).get("__annotations__", {}), typing.get_type_hints(section)
    return [
        own
        for own in dataclasses.fields(section)
        if own.name in stated and not dataclasses.is_dataclass(holders[own.name])
    ]


def find_meanings(section: type) -> dict[str, str]:
    """Meaning of each field of a class, from docstrings; of "a, b: text" it is that of both.

    Raises:
      ValueError: When a docstring explains what its class does not have.
    """
    found: dict[str, str] = {}
    for base in reversed(section.__mro__):
        _, _, text = inspect.cleandoc(vars(base).get("__doc__") or "").partition("\nAttributes:\n")
        for names, meaning in re.findall(r"^  ([a-z]\w*(?:, \w+)*): ((?:.|\n   +)+)", text, re.M):
            for name in names.split(", "):
                if name not in typing.get_type_hints(base):
                    raise ValueError(f"{base.__name__}: expected docs of its fields, got {name!r}")
                found[name] = " ".join(meaning.split())
    return found


def _with_bases(sections: dict[type, str]) -> dict[type, str]:
    """The classes with a heading each, after those that they extend."""
    found: dict[type, str] = {}
    for section in sections:
        for base in reversed(section.__mro__):
            if base in sections or (dataclasses.is_dataclass(base) and own_fields(base)):
                name = sections.get(base, "")
                found.setdefault(
                    base, f"{name}: `{base.__name__}`" if name else f"`{base.__name__}`"
                )
    return found


def _render_class(section: type) -> Iterable[str]:
    """What a class is, what it extends, and the table of its own fields."""
    first = inspect.cleandoc(section.__doc__ or "").split("\n\n")[0]
    yield " ".join(first.split())
    extended = [b for b in section.__mro__[1:] if dataclasses.is_dataclass(b) and own_fields(b)]
    if extended:
        yield f"Extends `{extended[0].__name__}`."
    meanings, types = find_meanings(section), typing.get_type_hints(section)
    declared = fields.declarations(section)
    rows = [
        (
            f"`{own.name}`",
            f"`{_type_name(types[own.name])}`",
            _render_default(own),
            fields.describe(declared[own.name]),
            _escape(meanings.get(own.name, "")),
        )
        for own in own_fields(section)
    ]
    if rows:
        yield "\n".join([*_TABLE, *(f"| {' | '.join(row)} |" for row in rows)])


def _type_name(declared: typing.Any) -> str:
    return declared.__name__ if type(declared) is type else str(declared)


def _escape(text: str) -> str:
    """Text as a table's cell shows it: what stands in backticks stays as it is."""
    parts = text.replace("|", "\\|").split("`")
    return "`".join(p if n % 2 else p.replace("<", "&lt;") for n, p in enumerate(parts))


def _render_default(own: dataclasses.Field[typing.Any]) -> str:
    if own.default is not dataclasses.MISSING:
        return f"`{own.default!r}`"
    if callable(own.default_factory):
        return f"`{own.default_factory()!r}`"
    return "required"


if __name__ == "__main__":
    print(render(), end="")
