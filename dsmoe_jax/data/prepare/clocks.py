"""Clocks by which days begin: an offset from UTC, or a named zone with daylight saving time.

Owns what a clock makes of an instant and of a local time, and the check of a zone's name. The rules
of the zones are those that polars ships; the machine's own are not read. Does not own how a time is
written (`times.py`).

A local time that a zone's clock shows twice, as it is set back, is the earlier of the two instants;
one that it never shows, as it is set forward, is none. A day begins with its first second, whatever
the clock shows then.
"""

import dataclasses
import datetime
from typing import Literal

import numpy as np
import polars as pl

from dsmoe_jax.data import store as store_lib
from dsmoe_jax.data.prepare import zone_names

# No clock is further from UTC, and no change of one is longer.
_FURTHEST_S, _LONGEST_CHANGE_S = 16 * 3600, 26 * 3600


@dataclasses.dataclass(frozen=True)
class Clock:
    """The clock on which days are calendar days and times without a zone are read.

    Attributes:
      offset_s: Seconds that it is ahead of UTC; 0 with a zone.
      zone: IANA name such as "Europe/Berlin"; empty for the offset.
    """

    offset_s: int = 0
    zone: str = ""

    def __str__(self) -> str:
        """As messages call it: "UTC+8 h" or "Europe/Berlin"."""
        return self.zone or f"UTC{self.offset_s / 3600:+g} h"

    def shown(self, time_s: pl.Expr) -> pl.Expr:
        """What it shows at unix seconds, as datetimes without a zone."""
        if not self.zone:
            return pl.from_epoch(time_s + self.offset_s, time_unit="s")
        utc = pl.from_epoch(time_s, time_unit="s").dt.replace_time_zone("UTC")
        return utc.dt.convert_time_zone(self.zone).dt.replace_time_zone(None)

    def seconds(self, local: pl.Expr) -> pl.Expr:
        """Unix seconds of datetimes without a zone; null where the clock never shows one."""
        return self._seconds(local, "earliest")

    def is_twice(self, time_s: pl.Expr) -> pl.Expr:
        """Whether what it shows at unix seconds it shows again later."""
        return self._seconds(self.shown(time_s), "latest") > time_s

    def midnights(self, date: pl.Series) -> pl.Series:
        """Unix seconds (int64) of the first second of dates; null where a date is.

        Of a date that the zone left out it is that of the next.
        """
        frame, value = date.alias("date").to_frame(), pl.col("date").cast(pl.Datetime("us"))
        found = frame.select(self.seconds(value)).to_series()
        never = frame["date"].filter(found.is_null()).drop_nulls().unique()
        if not len(never):
            return found
        first = [self._first_second(day) for day in never]
        shifted = frame["date"].replace_strict(never, first, default=None, return_dtype=pl.Int64)
        return found.zip_with(found.is_not_null(), shifted)

    def days(self, time_E: np.ndarray) -> np.ndarray:
        """Calendar days, as days since 1970-01-01, of unix seconds."""
        if not self.zone:
            return np.asarray((time_E + self.offset_s) // store_lib.DAY_S)
        dates = pl.DataFrame({"time": time_E}).select(self.shown(pl.col("time")).dt.date())
        return dates.to_series().to_physical().cast(pl.Int64).to_numpy()

    def day_starts(self, day_E: np.ndarray) -> np.ndarray:
        """Unix seconds of the first second of calendar days, given as days since 1970-01-01."""
        dates = pl.Series(np.asarray(day_E, np.int32)).cast(pl.Date)
        return self.midnights(dates).to_numpy()

    def _seconds(self, local: pl.Expr, which: Literal["earliest", "latest"]) -> pl.Expr:
        if not self.zone:
            return local.dt.epoch("s") - self.offset_s
        known = local.dt.replace_time_zone(self.zone, ambiguous=which, non_existent="null")
        return known.dt.epoch("s")

    def _first_second(self, day: datetime.date) -> int:
        """Of a day whose midnight the clock never shows."""
        midnight_s = (day - datetime.date(1970, 1, 1)).days * store_lib.DAY_S
        around = range(midnight_s - _FURTHEST_S, midnight_s + _FURTHEST_S + _LONGEST_CHANGE_S)
        times = pl.DataFrame({"time": np.arange(around.start, around.stop)})
        after = times.filter(self.shown(pl.col("time")).dt.date() >= day)
        return int(after["time"][0])


UTC = Clock()


def check_zone(zone: str) -> None:
    """Refuses a name that is none of a zone.

    Raises:
      ValueError: In one line, with the nearest names.
    """
    try:
        if zone[:1] in ("+", "-"):
            raise pl.exceptions.ComputeError("an offset, which the other field is for")
        pl.select(Clock(zone=zone).shown(pl.lit(0, pl.Int64)))
    except pl.exceptions.ComputeError:
        near = ", ".join(map(repr, zone_names.nearest(zone)))
        raise ValueError(
            "data.time_zone: expected the IANA name of a zone such as 'Europe/Berlin', or nothing "
            f"and an offset in data.utc_offset_hours, got {zone!r}"
            + (f"; nearest: {near}" if near else "")
        ) from None
