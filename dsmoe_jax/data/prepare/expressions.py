"""Text as polars expressions: conditions that a configuration states, and ISO 8601 times.

Owns the two small grammars. Does not own where they are used (`custom.py`).
"""

import dataclasses
import operator
import re

import polars as pl

_CONDITION = re.compile(r"\s*(.+?)\s*(==|!=|>=|<=|>|<)\s*([^\s=<>!].*?)\s*")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_OPERATORS = {
    "==": operator.eq, "!=": operator.ne, ">=": operator.ge, "<=": operator.le,
    ">": operator.gt, "<": operator.lt,
}  # fmt: skip
_ISO_FORMATS = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%d")


@dataclasses.dataclass(frozen=True)
class Condition:
    """`column operator value`, which rows fulfil or not; the operator is of `_OPERATORS`."""

    column: str
    operator: str
    value: float | str

    @property
    def is_number(self) -> bool:
        """Whether the column is compared as numbers."""
        return isinstance(self.value, float)

    @property
    def expression(self) -> pl.Expr:
        """True in the rows that fulfil it; null cells do not."""
        column, value = pl.col(self.column), pl.lit(self.value)
        compared: pl.Expr = _OPERATORS[self.operator](column, value)
        return compared.fill_null(False)


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
    if _NUMBER.fullmatch(value):
        return Condition(column, symbol, float(value))
    if symbol not in ("==", "!="):
        raise ValueError(f"data.positive: expected a number after {symbol}, got {value!r}")
    return Condition(column, symbol, value)


def parse_iso(text: pl.Expr, utc_offset_s: int) -> pl.Expr:
    """Unix seconds of ISO 8601 times; null where the text is none.

    For instance `2024-05-01T12:30:00.5+02:00`, `2024-05-01 12:30` or `2024-05-01`; times without a
    zone are on the clock of the offset.
    """
    zone = text.str.extract(r"(Z|[+-]\d{2}:?\d{2})$")
    digits = zone.str.replace(":", "")
    minutes = digits.str.slice(1, 2).cast(pl.Int64, strict=False) * 60
    minutes += digits.str.slice(3, 2).cast(pl.Int64, strict=False)
    sign = pl.when(zone.str.starts_with("-")).then(-1).otherwise(1)
    offset_s = (
        pl.when(zone == "Z").then(0).when(zone.is_null()).then(utc_offset_s)
        .otherwise(sign * minutes * 60)
    )  # fmt: skip
    # The day of a bare date ("-01") is too short to be taken for a zone.
    clock = text.str.replace(r"(Z|[+-]\d{2}:?\d{2})$", "").str.replace("T", " ", literal=True)
    parsed = pl.coalesce(clock.str.to_datetime(f, strict=False) for f in _ISO_FORMATS)
    return parsed.dt.epoch("s") - offset_s
