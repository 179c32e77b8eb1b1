"""Times of a log as unix seconds: numbers in a unit, dates, and the texts that databases write.

Owns units, ISO 8601 and how a wrong unit is told. Does not own which clock a time without a zone
is on (`clocks.py`), nor splits (`splits.py`).
"""

import re
from typing import Any

import polars as pl

from dsmoe_jax.data.prepare import clocks

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


def to_seconds(cells: pl.Series, unit: str, clock: clocks.Clock) -> pl.Series:
    """Unix seconds (int64) of times in a unit; null where a cell is none, or of another unit.

    Dates, and texts without a zone, are on the clock. Typed dates are times whatever the unit.
    """
    frame, value = cells.to_frame(), pl.col(cells.name)
    if cells.dtype == pl.Date:
        time_s = pl.lit(clock.midnights(cells), pl.Int64)
    elif cells.dtype.is_temporal():
        time_s = value.dt.epoch("s")
        if _is_naive(cells.dtype):
            time_s = clock.seconds(value)
    elif unit == "iso":
        # A number is no date, and nothing is no time.
        is_text = cells.dtype == pl.String
        nothing = pl.Series([None], dtype=pl.Int64).new_from_index(0, len(cells))
        time_s = pl.lit(parse_iso(cells, clock) if is_text else nothing)
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
    if dtype == pl.String:
        value = value.str.strip_chars()
    number = (value.cast(pl.Float64, strict=False) / per_s).floor()
    seconds = pl.when(number.abs() < 2.0**62).then(number).cast(pl.Int64, strict=False)
    if dtype != pl.String:
        return seconds
    return pl.coalesce(value.cast(pl.Int64, strict=False) // per_s, seconds)


def _is_naive(dtype: Any) -> bool:
    return bool(dtype == pl.Datetime) and dtype.time_zone is None


def count_twice(cells: pl.Series, time_s: pl.Series, unit: str, clock: clocks.Clock) -> int:
    """How many times without a zone the clock shows twice, of which the earlier was taken."""
    may_lack = _is_naive(cells.dtype) or (cells.dtype == pl.String and unit == "iso")
    if not clock.zone or not may_lack:
        return 0
    frame = pl.DataFrame({"cell": cells, "time_s": time_s})
    found = frame.filter(clock.is_twice(pl.col("time_s")))["cell"]
    if _is_naive(cells.dtype):
        return len(found)
    # What has a zone or an offset of its own is the same instant on every clock.
    moved = parse_iso(found, clocks.Clock(1)) != parse_iso(found, clocks.UTC)
    return int(moved.sum())


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


def say_twice(number: int, what: str, clock: clocks.Clock) -> str:
    """What `count_twice` found, as one line."""
    return (
        f"log: {number:,} {what} at a time that the clock of {clock} shows twice, as it is set "
        "back: the earlier is taken"
    )


def mend(cell: Any, unit: str, clock: clocks.Clock, otherwise: str) -> str:
    """What to do about a cell that is no time in a unit, or none on a clock."""
    guess = guess_unit(cell)
    if clock.zone and to_seconds(pl.Series("cell", [cell]), unit, clocks.UTC).is_not_null()[0]:
        return (
            f"the clock of {clock} never showed it, as it was set forward; if the log is written "
            "on another clock, set data.time_zone or data.utc_offset_hours"
        )
    if guess in ("", unit):
        return otherwise
    return f"this looks like {NAMES[guess]}: set data.time_unit={guess!r}"


def parse_iso(text: pl.Series, clock: clocks.Clock) -> pl.Series:
    """Unix seconds of ISO 8601 times and those of databases; null where the text is none.

    For instance `2024-05-01T12:30:00.5+02:00`, `2024-05-01 12:30`, `2024-05-01`, PostgreSQL's
    `2024-05-01 12:30:00+00` and BigQuery's `2024-05-01 12:30:00 UTC`; times without a zone are on
    the clock, and no offset is more than 18 hours.
    """
    # Nearly all times have a clock of one width; what follows it is mostly the same.
    text = text.alias("text")
    local = _parse(text.str.slice(0, _WIDTH).str.replace("T", " ", literal=True), _FORMATS[:1])
    after = text.str.slice(_WIDTH)
    if (tails := after.unique()).len() == 1:
        zones = pl.DataFrame(
            column.new_from_index(0, len(text)) for column in _find_zones(tails).get_columns()
        )
    else:
        zones = _find_zones(after)
    time_s = _on(local, zones, clock)
    other = time_s.is_null() & text.is_not_null()
    if not other.any():
        return time_s
    parts = text.filter(other).str.strip_chars().str.extract_groups(_CLOCK_AND_REST).struct
    clocked = parts.field("clock").str.replace("T", " ", literal=True)
    zones = _find_zones(parts.field("rest").fill_null(""))
    found = _on(_parse(clocked, _FORMATS[:2]), zones, clock)
    dates = _parse(parts.field("date"), _FORMATS[2:]).dt.date()
    found = found.zip_with(parts.field("date").is_null(), clock.midnights(dates))
    return time_s.scatter(other.arg_true(), found)


def _parse(local: pl.Series, formats: tuple[str, ...]) -> pl.Series:
    """Datetimes without a zone."""
    frame, value = local.alias("local").to_frame(), pl.col("local")
    parsed = pl.coalesce(value.str.to_datetime(f, strict=False) for f in formats)
    return frame.select(parsed).to_series()


def _on(local: pl.Series, zones: pl.DataFrame, clock: clocks.Clock) -> pl.Series:
    """Unix seconds of datetimes, by what `_find_zones` found, or on the clock."""
    value, is_own = pl.col("local"), pl.col("is_own")
    by_clock = pl.when(~is_own).then(value)
    time_s = pl.when(is_own).then(value.dt.epoch("s") - pl.col("ahead_s"))
    frame = zones.with_columns(local.alias("local"))
    return frame.select(time_s.otherwise(clock.seconds(by_clock))).to_series()


def _find_zones(rest: pl.Series) -> pl.DataFrame:
    """Of what follows a time, whether it is a zone, `is_own`, and how far that is ahead of UTC.

    Both are null where it is no zone.
    """
    groups = rest.str.extract_groups(_ZONE).struct
    hours, minutes, seconds = (
        groups.field(name).cast(pl.Int64).fill_null(0) for name in ("h", "m", "s")
    )
    ahead_s = 3600 * hours + 60 * minutes + seconds
    frame = pl.DataFrame(
        {"rest": rest, "sign": groups.field("sign"), "all": groups.field("all"), "s": ahead_s}
    )
    sign, zone = pl.col("sign"), pl.col("all")
    return frame.select(
        is_own=sign.is_not_null() | zone.str.contains("[A-Za-z]"),
        ahead_s=pl.when(sign == "-").then(-pl.col("s")).otherwise(pl.col("s")),
    )
