"""Range checks of a method's hyper-parameters, made when the model is built."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def check_fields(
    config: Any,
    section: str,
    *,
    counts: Iterable[str] = (),
    widths: Iterable[str] = (),
    rates: Iterable[str] = (),
    shares: Iterable[str] = (),
    choices: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Checks fields of a method's config section.

    Args:
      config: The section.
      section: Its path on the command line, e.g. "model".
      counts: Fields that hold a number >= 1.
      widths: Fields that hold a sequence of numbers >= 1.
      rates: Fields in [0, 1).
      shares: Fields in (0, 1].
      choices: Fields that hold one of some names.

    Raises:
      ValueError: Naming the field, what was expected and what it holds.
    """

    def check(name: str, expected: str, holds: bool) -> None:
        if not holds:
            raise ValueError(
                f"{section}.{name}: expected {expected}, got {getattr(config, name)!r}"
            )

    for name in counts:
        check(name, "a number >= 1", getattr(config, name) >= 1)
    for name in widths:
        check(name, "widths >= 1", all(width >= 1 for width in getattr(config, name)))
    for name in rates:
        check(name, "a rate in [0, 1)", 0 <= getattr(config, name) < 1)
    for name in shares:
        check(name, "a number in (0, 1]", 0 < getattr(config, name) <= 1)
    for name, known in (choices or {}).items():
        check(name, f"one of {tuple(known)}", getattr(config, name) in known)
