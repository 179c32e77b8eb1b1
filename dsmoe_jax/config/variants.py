"""Variants of a configuration file: the tokens asked for, by axis, and assignment by name.

Owns the form `token,token` and the assignment of fields by name. Does not own the tokens: the
methods' are in `models/registry.py`, the others in each file of `configs/`.
"""

import dataclasses
from typing import Any

from dsmoe_jax.config import load


def parse(variant: str, axes: dict[str, tuple[str, ...]]) -> dict[str, str]:
    """The token of each axis in `token,token`, which has at most one per axis, in any order.

    Raises:
      ValueError: On an unknown token, with the nearest known one, or two of one axis.
    """
    axis_of = {token: axis for axis, tokens in axes.items() for token in tokens}
    chosen: dict[str, str] = {}
    for token in filter(None, variant.split(",")):
        if token not in axis_of:
            raise ValueError(
                f"variant: unknown token {token!r}{load.nearest(token, axis_of)}; "
                f"known: {', '.join(sorted(axis_of))}"
            )
        axis = axis_of[token]
        if axis in chosen:
            raise ValueError(
                f"variant: expected at most one token of the axis {axis!r}, "
                f"got {chosen[axis]!r} and {token!r}"
            )
        chosen[axis] = token
    return chosen


def assign(section: Any, values: dict[str, Any]) -> None:
    """Assigns fields of a section.

    Raises:
      ValueError: When it has no such field.
    """
    known = {field.name for field in dataclasses.fields(section)}
    for name, value in values.items():
        if name not in known:
            raise ValueError(
                f"{type(section).__name__}: expected fields among {', '.join(sorted(known))}, "
                f"got {name!r}"
            )
        setattr(section, name, value)
