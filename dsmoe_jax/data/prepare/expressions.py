"""Conditions that a configuration states, such as `rating >= 4`, exactly as they are written.

Owns the small grammar and what fulfils it. Does not own where it is used (`own_rows.py`).
"""

import dataclasses
import decimal
import math
import operator
import re
from typing import Any

import polars as pl

_CONDITION = re.compile(r"\s*(.+?)\s*(==|!=|>=|<=|>|<)\s*([^\s=<>!].*?)\s*", re.DOTALL)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
# Numbers as programs write them: 007 is a code, and +7 is not how a 7 is stored.
_WRITTEN = re.compile(r"-?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_OPERATORS = {
    "==": operator.eq, "!=": operator.ne, ">=": operator.ge, "<=": operator.le,
    ">": operator.gt, "<": operator.lt,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Condition:
    """`column operator value`, which cells fulfil or not; the operator is of `_OPERATORS`.

    Equal is what is written the same, or is the same number: 4 and 4.0, but neither 007 and 7 nor
    integers that only their 64-bit floating-point numbers share. Blanks around a number count for
    equality and not for an order.
    """

    column: str
    operator: str
    value: str

    @property
    def is_ordered(self) -> bool:
        """Whether it compares sizes, so that every cell has to be a number."""
        return self.operator not in ("==", "!=")

    def is_bad(self, cells: pl.Series) -> pl.Series:
        """Of each cell, whether it should be a finite number and is none; an empty one may be."""
        if not self.is_ordered:
            return pl.Series([False]).new_from_index(0, len(cells))
        number = _floats(_stripped(cells))
        return cells.is_not_null() & ~number.is_finite().fill_null(False)

    def holds(self, cells: pl.Series) -> pl.Series:
        """Of each cell, whether it fulfils the condition; empty ones do not."""
        if not cells.dtype.is_numeric() and cells.dtype != pl.String:
            cells = cells.cast(pl.String)
        is_text = cells.dtype == pl.String
        is_number = bool(_WRITTEN.fullmatch(self.value)) and math.isfinite(float(self.value))
        if not (is_number or self.is_ordered):
            equal = cells.cast(pl.String) == self.value
            return (equal if self.operator == "==" else ~equal).fill_null(False)
        if is_text and self.is_ordered:
            cells = _stripped(cells)
        number = _exact(self.value)
        # Rounding keeps the order, so only what rounds to the same may have been compared wrongly.
        near, value = _floats(cells), float(number)
        if cells.dtype.is_float():
            value = pl.Series([value]).cast(cells.dtype).cast(pl.Float64)[0]
        close = cells.filter((near == value).fill_null(False)).unique()
        compare: Any = _OPERATORS[self.operator]
        right = [cell for cell in close.to_list() if self._holds_exactly(cell, number)]
        found: pl.Series = compare(near, value) & (near != value)
        found |= cells.is_in(pl.Series(right, dtype=cells.dtype).implode())
        if self.operator == "!=" and is_text:
            found |= near.is_null() & cells.is_not_null()
        return found.fill_null(False)

    def _holds_exactly(self, cell: Any, number: decimal.Decimal) -> bool:
        """Whether a cell does that is `number` to floating-point precision."""
        compare: Any = _OPERATORS[self.operator]
        if isinstance(cell, float) and number != number.to_integral_value():
            # 4.1 is stored as the nearest floating-point number.
            return bool(compare(number, number))
        if isinstance(cell, str):
            cell = cell.strip()
            if not self.is_ordered and not _WRITTEN.fullmatch(cell):
                return self.operator == "!="
        exact = _exact(cell) if isinstance(cell, str) else decimal.Decimal(cell)
        return bool(compare(exact, number))


def _stripped(cells: pl.Series) -> pl.Series:
    """Texts without the blanks around them, which do not count for a number."""
    return cells.str.strip_chars() if cells.dtype == pl.String else cells


def _floats(cells: pl.Series) -> pl.Series:
    return cells.cast(pl.Float64, strict=False).fill_nan(None)


def _exact(text: str) -> decimal.Decimal:
    """The number of a text; what has more digits than a decimal may have is as good as rounded."""
    try:
        return decimal.Decimal(text)
    except decimal.InvalidOperation:
        return decimal.Decimal(float(text))


def parse_condition(text: str) -> Condition | None:
    """Reads `rating >= 4` or `event == click` (`CustomConfig.positive`); None when empty.

    Raises:
      ValueError: When it is not a column, an operator and a value.
    """
    if not text.strip():
        return None
    match = _CONDITION.fullmatch(text)
    if not match:
        raise ValueError(
            "data.positive: expected a column, one of == != >= <= > < and a value, such as "
            f"'rating >= 4', got {text!r}"
        )
    column, symbol, value = match.groups()
    condition = Condition(column, symbol, value)
    if condition.is_ordered and not _NUMBER.fullmatch(value):
        raise ValueError(f"data.positive: expected a number after {symbol}, got {value!r}")
    if condition.is_ordered and not math.isfinite(float(value)):
        raise ValueError(
            f"data.positive: expected a number below 1.8e308 after {symbol}, got {value!r}"
        )
    return condition
