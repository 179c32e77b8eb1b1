"""Field declarations: the range, the choices and the role of a field, stated beside its default.

Owns the words of a declaration, the one validator and the walk that every other reader of
declarations takes, and frozen copies of sections. Does not own rules across fields: they stand in
`schema.Experiment.validate` and in `schema.MethodConfig.check`.
"""

import dataclasses
import functools
import math
import numbers
from collections.abc import Iterator
from typing import Any, TypedDict, TypeVar, Unpack

T = TypeVar("T")


class Declaration(TypedDict, total=False):
    """Range and role of a field; what is not stated does not restrict.

    Attributes:
      at_least: Smallest number allowed; like the other bounds, of every element of a tuple.
      above: Largest number that is too small.
      at_most: Largest number allowed.
      below: Smallest number that is too large.
      nonempty: Whether a tuple has at least one element.
      ascending: Whether a tuple's elements ascend and are at least one.
      choices: The names allowed.
      search: Values that a search of hyper-parameters tries.
      student_only: Whether no teacher depends on it.
      resumable: Whether it may change between the runs that share a workdir: it decides when a run
        stops, where it writes or how it is evaluated, not which numbers a step computes.
      unhashed: Whether it is left out of the configuration's hash: it decides no result.
      added_later: Whether it is left out of the hash while it has its default, since the field was
        added when there were results without it.
      formerly: What each value that it had before now is called: the hash keeps the former one, and
        commands and records may.
    """

    at_least: float
    above: float
    at_most: float
    below: float
    nonempty: bool
    ascending: bool
    choices: tuple[str, ...]
    search: tuple[Any, ...]
    student_only: bool
    resumable: bool
    unhashed: bool
    added_later: bool
    formerly: dict[Any, Any]


def field(default: T, **declared: Unpack[Declaration]) -> T:
    """A dataclass field with its declaration.

    A subclass that only gives the field another default keeps the declaration.
    """
    return dataclasses.field(default=default, metadata=declared)


def is_usual(declared: dataclasses.Field[Any], value: Any) -> bool:
    """Whether a field was added later and holds its default, as if it were not there."""
    return bool(declared.metadata.get("added_later")) and value == declared.default


def renew(declared: dataclasses.Field[Any], value: Any) -> Any:
    """What a field's former value, or its text, now is called; any other value as it is."""
    formerly = declared.metadata.get("formerly", {})
    names = {str(former).lower(): name for former, name in formerly.items()}
    return names.get(str(value).lower(), value) if names else value


def hashed(declared: dataclasses.Field[Any], value: Any) -> Any:
    """A field's value as the hash knows it: the former one where there was one."""
    formerly = declared.metadata.get("formerly", {})
    return next((former for former, name in formerly.items() if name == value), value)


def rate(default: float = 0.0) -> Any:
    """A field in [0, 1)."""
    return field(default, at_least=0, below=1)


def share(default: float) -> Any:
    """A field in (0, 1]."""
    return field(default, above=0, at_most=1)


def widths(default: tuple[int, ...], search: tuple[tuple[int, ...], ...] = ()) -> Any:
    """A field of at least one number >= 1, and what a search tries of it."""
    declared = Declaration(at_least=1, nonempty=True)
    if search:
        declared["search"] = search
    return field(default, **declared)


def walk(section: Any, path: str = "") -> Iterator[tuple[str, dataclasses.Field[Any], Any]]:
    """Every field of a section and of the sections inside: its path, its declaration and its value.

    A declaration is a dataclass field, whose `metadata` is a `Declaration`. A section comes before
    its fields; its role is also theirs.
    """
    for name, declared in declarations(type(section)).items():
        value, here = getattr(section, name), f"{path}.{name}" if path else name
        yield here, declared, value
        inside = value if isinstance(value, dict) else {"": value}
        for key, entry in inside.items():
            if dataclasses.is_dataclass(entry):
                yield from walk(entry, f"{here}.{key}" if key else here)


def declarations(section: type) -> dict[str, dataclasses.Field[Any]]:
    """Declaration of each field of a section's class, from the nearest class that has one."""
    bases = [vars(base).get("__dataclass_fields__", {}) for base in section.__mro__]
    return {
        own.name: next((b[own.name] for b in bases if own.name in b and b[own.name].metadata), own)
        for own in dataclasses.fields(section)
    }


def validate(section: Any, path: str = "") -> None:
    """Checks that every field of a section and of those inside it is in its range.

    Raises:
      ValueError: Naming the field, what was expected and what it holds.
    """
    for name, declared, value in walk(section, path):
        if message := _find_fault(declared, value):
            raise ValueError(f"{name}: expected {message}")


def describe(declared: dataclasses.Field[Any]) -> str:
    """What a field must be, in a few words; empty where anything of its type goes."""
    stated = declared.metadata
    if "choices" in stated:
        return f"one of {stated['choices']}"
    low = stated.get("at_least", stated.get("above"))
    high = stated.get("at_most", stated.get("below"))
    if low is None:
        return ""
    sign = ">=" if "at_least" in stated else ">"
    if stated.get("ascending"):
        return f"ascending distinct cut-offs {sign} {low}"
    if isinstance(declared.default, tuple):
        return f"widths {sign} {low}"
    if high is None:
        return f"a number {sign} {low}"
    opening, closing = "[" if sign == ">=" else "(", "]" if "at_most" in stated else ")"
    noun = "rate" if opening + closing == "[)" else "number"
    return f"a {noun} in {opening}{low}, {high}{closing}"


def freeze(section: T) -> T:
    """A copy of a section that can be hashed and refuses assignment, for a model to hold.

    Lists become tuples. It is an instance of the section's class.
    """
    kind: Any = type(section)
    frozen: T = object.__new__(_frozen(kind))
    for name, value in vars(section).items():
        object.__setattr__(frozen, name, tuple(value) if isinstance(value, list) else value)
    return frozen


def _find_fault(declared: dataclasses.Field[Any], value: Any) -> str:
    stated, expected = declared.metadata, describe(declared)
    if not expected:
        return ""
    if "choices" in stated:
        holds = value in stated["choices"]
    elif isinstance(declared.default, tuple):
        holds = isinstance(value, list | tuple)
        if holds and stated.get("nonempty") and not value:
            return "at least one width, got none"
        holds = holds and all(_is_inside(stated, entry) for entry in value)
        if holds and stated.get("ascending"):
            holds = len(value) > 0 and list(value) == sorted(set(value))
    else:
        holds = _is_inside(stated, value)
    return "" if holds else f"{expected}, got {value!r}"


def _is_inside(stated: Any, value: Any) -> bool:
    """Whether a number is finite and within the bounds; bools are no numbers."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return False
    return (
        math.isfinite(value)
        and value >= stated.get("at_least", -math.inf)
        and value > stated.get("above", -math.inf)
        and value <= stated.get("at_most", math.inf)
        and value < stated.get("below", math.inf)
    )


@functools.cache
def _frozen(section: Any) -> Any:
    """The class of a section's frozen copies."""

    def refuse(self: Any, name: str, value: Any) -> None:
        raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")

    def digest(self: Any) -> int:
        return hash(tuple(getattr(self, own.name) for own in dataclasses.fields(self)))

    members = {"__setattr__": refuse, "__hash__": digest, "__module__": section.__module__}
    return type(section.__name__, (section,), members)
