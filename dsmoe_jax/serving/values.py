"""Raw values: categories by a vocabulary, numbers, lists, and what cannot be one.

Owns which texts and numbers name the same value, and what a message says of one that is none.

Letters: X values.
"""

import datetime
import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

# Values of a field, None where it is not given.
Values = Sequence[Any] | np.ndarray
# Of all requests, one each.
Columns = Mapping[str, Values]
# How pandas calls a value that is not there; it need not be installed.
_NA = ("NAType", "NaTType")


class Vocabulary:
    """Raw values of a feature, ascending, and their ids."""

    def __init__(self, raw_X: np.ndarray, *, of_ids: bool = False):
        """Takes the values by id; row 0 is unknown.

        Args:
          raw_X: The values.
          of_ids: Whether they name users or items, which true and false cannot; a feature can have
            been of these, which preparation took for 1 and 0.
        """
        self._raw_X = raw_X[1:]
        self.is_integer = raw_X.dtype.kind == "i"
        self._of_ids = of_ids

    def __len__(self) -> int:
        return len(self._raw_X)

    def encode(self, values: Values, where: str) -> Int[np.ndarray, "X"]:
        """Ids, 0 where unknown or None.

        Args:
          values: Integers, texts, dates; an array of integers or texts is taken as it is.
          where: What a message calls the values.

        Raises:
          ValueError: On a value that is no category, such as a list.
        """
        if not isinstance(values, np.ndarray) or values.dtype.kind not in "iU":
            # What stands for None is found nowhere.
            kept = [self.plain(value, where) for value in values]
            known_X = np.array([value is not None for value in kept], bool)
            blank: Any = 0 if self.is_integer else ""
            raw_X = np.array([blank if value is None else value for value in kept])
        elif self.is_integer and values.dtype.kind == "U":
            raw_X, known_X = _integers(values)
        elif not self.is_integer and values.dtype.kind == "i":
            raw_X, known_X = values.astype(np.str_), np.ones(len(values), bool)
        else:
            raw_X, known_X = values, np.ones(len(values), bool)
        if not len(self._raw_X) or not len(raw_X):
            return np.zeros(len(raw_X), np.int32)
        if not self.is_integer and raw_X.dtype.itemsize > self._raw_X.dtype.itemsize:
            # Else the vocabulary would be copied to the width of the longest text.
            known_X = known_X & (np.strings.str_len(raw_X) <= self._raw_X.dtype.itemsize // 4)
            raw_X = raw_X.astype(self._raw_X.dtype)
        place_X = np.searchsorted(self._raw_X, raw_X)
        place_X = np.minimum(place_X, len(self._raw_X) - 1)
        found_X = (self._raw_X[place_X] == raw_X) & known_X
        return np.where(found_X, place_X + 1, 0).astype(np.int32)

    def plain(self, value: Any, where: str) -> int | str | None:
        """A value as the vocabulary writes it, None where it is none.

        Raises:
          ValueError: On a value that is no category, such as a list.
        """
        if self._of_ids and isinstance(value, bool | np.bool_):
            raise ValueError(f"{where}: expected an id, got {value}")
        return _integer(value, where) if self.is_integer else _text(value, where)

    def decode(self, ids_X: Int[np.ndarray, "X"]) -> list[Any]:
        """Raw values of ids; None for 0."""
        raw = self._raw_X[np.maximum(ids_X, 1) - 1].tolist() if len(self._raw_X) else []
        return [value if n else None for value, n in zip(raw, ids_X.tolist(), strict=True)]


def is_missing(value: Any) -> bool:
    """Whether a value says that there is none, as pandas or a library of numbers does."""
    return (
        value is None
        or (isinstance(value, float) and math.isnan(value))
        or type(value).__name__ in _NA
    )


def is_any_given(values: Values) -> bool:
    """Whether one of them is a value."""
    return any(value is not None for value in values)


def given(values: Values) -> np.ndarray:
    """Which of them are values."""
    return np.array([value is not None for value in values], bool)


def flatten(lists: Sequence[list[Any] | None]) -> tuple[list[Any], np.ndarray]:
    """The values of all lists, and the number of the list that each is from."""
    flat = [value for values in lists if values is not None for value in values]
    lengths = [0 if values is None else len(values) for values in lists]
    return flat, np.repeat(np.arange(len(lists)), lengths)


def read_list(value: Any, where: str) -> list[Any] | None:
    """A value that must be a list; None stays.

    Raises:
      ValueError: When it is something else.
    """
    if is_missing(value):
        return None
    if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__iter__"):
        raise ValueError(f"{where}: expected a list, got {show(value)}")
    return list(value)


def read_numbers(values: Values, where: str) -> Float[np.ndarray, "X"]:
    """Numbers, NaN where none is given.

    Raises:
      ValueError: On a value that is no finite number.
    """
    if isinstance(values, np.ndarray) and values.dtype.kind in "iuf":
        return values.astype(np.float64)
    found = np.full(len(values), np.nan)
    for n, value in enumerate(values):
        if is_missing(value):
            continue
        try:
            if isinstance(value, bool | Mapping):
                raise TypeError
            found[n] = float(value)
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"{where}: expected a number, got {show(value)}") from None
        if math.isinf(found[n]):
            raise ValueError(f"{where}: expected a finite number, got {show(value)}")
    return found


def _integer(value: Any, where: str) -> int | None:
    """A raw value as an integer that may be in a vocabulary, None where it cannot be."""
    if isinstance(value, str):
        text = value.strip()
        value = int(text) if text.removeprefix("-").isdecimal() and len(text) < 20 else None
    elif isinstance(value, float):
        value = int(value) if value.is_integer() else None
    elif is_missing(value):
        return None
    elif not isinstance(value, int | np.integer):
        raise ValueError(f"{where}: expected an integer or text, got {show(value)}")
    return int(value) if value is not None and abs(int(value)) < 2**63 else None


def _integers(text_X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What `_integer` makes of texts, all at once: integers, and which of the texts are some."""
    stripped_X = np.strings.strip(text_X)
    negative_X = np.strings.startswith(stripped_X, "-")
    digits_X = np.strings.lstrip(stripped_X, "-")
    known_X = (
        np.strings.isdecimal(digits_X)
        & (np.strings.count(stripped_X, "-") == negative_X)
        & (np.strings.str_len(stripped_X) < 20)
    )
    size_X = np.where(known_X, digits_X, "0").astype(np.uint64)
    known_X &= size_X < 2**63
    value_X = np.where(known_X, size_X, 0).astype(np.int64)
    return np.where(negative_X, -value_X, value_X), known_X


def _text(value: Any, where: str) -> str | None:
    """A raw value as text, None where there is none."""
    if is_missing(value):
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, str | int | float | np.integer | datetime.date):
        return str(value)
    raise ValueError(f"{where}: expected text or a number, got {show(value)}")


def read_ids(value: Any, where: str) -> list[Any]:
    """Raw ids.

    Raises:
      ValueError: When they are no list, but one of them or a frame.
    """
    if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__iter__"):
        raise ValueError(f"{where}: expected a list of item ids, got {show(value)}")
    # A frame is a list of its columns, or of their names.
    if hasattr(value, "columns"):
        raise ValueError(f"{where}: expected a list of item ids, got a frame; name its column")
    return list(value)


def hint(given: Any, known: Sequence[Any]) -> str:
    """The nearest of the known names, for the end of a message; nothing where none is near."""
    near = difflib.get_close_matches(str(given), [str(name) for name in known], n=1)
    return f"; nearest: {near[0]!r}" if near else ""


def show(value: Any) -> str:
    """A value in a message, on one line and cut where it is long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
