"""Times of a log as unix seconds: numbers in a unit, dates, and the texts that databases write.

Owns units, ISO 8601 and how a wrong unit is told. Does not own days and splits (`days.py`).
"""

import re
from typing import Any

import polars as pl

PER_S = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
UNITS = (*PER_S, "iso")
NAMES = {
    "s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds",
    "iso": "a date and time",
}  # fmt: skip
MOST_S = 2**31 - 2
# Logs are younger than 1990, and counts of seconds that are no dates mostly end before 1973.
_EARLIEST_S, _COUNTED_S = 631_152_000, 100_000_000
# Of 2024-05-01 12:30:00.
_WIDTH = 19
_ZONE = (
    r"^(?P<all>(?:[.,]\d+)? ?(?:Z|z|UTC|GMT|"
    r"(?P<sign>[+-])(?P<h>0\d|1[0-8])(?::?(?P<m>[0-5]\d)(?::?(?P<s>[0-5]\d))?)?)?)$"
)
# A date alone has no zone.
_CLOCK_AND_REST = (
    r"^(?:(?P<clock>\d{4}-\d{1,2}-\d{1,2}[T ]\d{1,2}:\d{2}(?::\d{2})?)"
    r"(?P<rest>$|[.,]\d+.*$| ?[A-Za-z+-].*$)|(?P<date>\d{4}-\d{1,2}-\d{1,2})$)"
)
_FORMATS = ("%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%d")


def expected(unit: str) -> str:
    """What a time should be, in words."""
    if unit == "iso":
        return "a time like 2024-05-01T12:30:00, from 1970 to 2037"
    per_s = PER_S[unit]
    return f"unix {NAMES[unit]} from {per_s} to {(MOST_S + 1) * per_s - 1}"


def to_seconds(cells: pl.Series, unit: str, utc_offset_s: int) -> pl.Series:
    """Unix seconds (int64) of times in a unit; null where a cell is none, or of another unit.

    Dates, and texts without a zone, are on the clock of the offset. Typed dates are times whatever
    the unit.
    """
    frame, value = cells.to_frame(), pl.col(cells.name)
    if cells.dtype.is_temporal():
        time_s = value.dt.epoch("s") if cells.dtype == pl.Datetime else _midnight(value)
        if getattr(cells.dtype, "time_zone", None) is None:
            time_s -= utc_offset_s
    elif unit == "iso":
        is_text = cells.dtype == pl.String
        time_s = pl.lit(parse_iso(cells, utc_offset_s) if is_text else None, pl.Int64)
    else:
        time_s = _count(value, cells.dtype, PER_S[unit])
        per_s = [n for n in PER_S.values() if n < PER_S[unit]]
        for n in per_s:
            would_be = _count(value, cells.dtype, n)
            is_other = (time_s < _COUNTED_S) & would_be.is_between(_EARLIEST_S, MOST_S)
            time_s = pl.when(~is_other).then(time_s)
    time_s = pl.when(time_s.is_between(1, MOST_S)).then(time_s)
    return frame.select(time_s.cast(pl.Int64).alias("time_s")).to_series()


def _count(value: pl.Expr, dtype: Any, per_s: int) -> pl.Expr:
    if dtype.is_integer():
        return value // per_s
    number = (value.cast(pl.Float64, strict=False) / per_s).floor()
    seconds = pl.when(number.abs() < 2.0**62).then(number).cast(pl.Int64, strict=False)
    if dtype != pl.String:
        return seconds
    return pl.coalesce(value.cast(pl.Int64, strict=False) // per_s, seconds)


def _midnight(value: pl.Expr) -> pl.Expr:
    return value.cast(pl.Datetime("us")).dt.epoch("s")


def guess_unit(cell: Any) -> str:
    """The unit in which a cell is a time of a log; "" where none is, or more than one."""
    text = str(cell).strip()
    if re.match(r"\d{4}-\d{1,2}-\d{1,2}", text):
        return "iso"
    try:
        number = float(text)
    except ValueError:
        return ""
    return next((u for u, n in PER_S.items() if _EARLIEST_S <= number / n <= MOST_S), "")


def mend(cell: Any, unit: str, otherwise: str) -> str:
    """What to do about a cell that is no time in a unit."""
    guess = guess_unit(cell)
    if guess in ("", unit):
        return otherwise
    return f"this looks like {NAMES[guess]}: set data.time_unit={guess!r}"


def parse_iso(text: pl.Series, utc_offset_s: int) -> pl.Series:
    """Unix seconds of ISO 8601 times and those of databases; null where the text is none.

    For instance `2024-05-01T12:30:00.5+02:00`, `2024-05-01 12:30`, `2024-05-01`, PostgreSQL's
    `2024-05-01 12:30:00+00` and BigQuery's `2024-05-01 12:30:00 UTC`; times without a zone are on
    the clock of the offset, and no clock is more than 18 hours from UTC.
    """
    # Nearly all times have a clock of one width; what follows it is mostly the same.
    text = text.alias("text")
    clock = text.str.slice(0, _WIDTH).str.replace("T", " ", literal=True)
    clock_s = _parse(clock, _FORMATS[:1])
    after = text.str.slice(_WIDTH)
    if (tails := after.unique()).len() == 1:
        ahead_s = _find_ahead(tails, utc_offset_s).new_from_index(0, len(text))
    else:
        ahead_s = _find_ahead(after, utc_offset_s)
    time_s = clock_s - ahead_s
    other = time_s.is_null() & text.is_not_null()
    if not other.any():
        return time_s
    parts = text.filter(other).str.strip_chars().str.extract_groups(_CLOCK_AND_REST).struct
    clock = parts.field("clock").str.replace("T", " ", literal=True)
    clock = clock.zip_with(clock.is_not_null(), parts.field("date"))
    rest = parts.field("rest").fill_null("")
    found = _parse(clock, _FORMATS) - _find_ahead(rest, utc_offset_s)
    return time_s.scatter(other.arg_true(), found)


def _parse(clock: pl.Series, formats: tuple[str, ...]) -> pl.Series:
    frame, value = clock.alias("clock").to_frame(), pl.col("clock")
    parsed = pl.coalesce(value.str.to_datetime(f, strict=False) for f in formats)
    return frame.select(parsed.dt.epoch("s")).to_series()


def _find_ahead(rest: pl.Series, utc_offset_s: int) -> pl.Series:
    """Seconds that the zones after a time are ahead of UTC; null where the rest is no zone."""
    groups = rest.str.extract_groups(_ZONE).struct
    hours, minutes, seconds = (
        groups.field(name).cast(pl.Int64).fill_null(0) for name in ("h", "m", "s")
    )
    ahead_s = 3600 * hours + 60 * minutes + seconds
    frame = pl.DataFrame(
        {"rest": rest, "sign": groups.field("sign"), "all": groups.field("all"), "s": ahead_s}
    )
    sign, zone = pl.col("sign"), pl.col("all")
    offset = (
        pl.when(zone.is_null()).then(None)
        .when(sign == "-").then(-pl.col("s")).when(sign == "+").then(pl.col("s"))
        .when(zone.str.contains("[A-Za-z]")).then(0).otherwise(utc_offset_s)
    )  # fmt: skip
    return frame.select(offset).to_series()
