"""Days of an own log: one wrong time must not become the days that test.

Owns these checks. Does not own the split (`splits.py`).
"""

import datetime
import itertools

import polars as pl

from dsmoe_jax import runlog
from dsmoe_jax.data.prepare import own_config, own_rows

# Days without a row before the held-out days, above which a time is taken to be wrong.
_LONGEST_GAP = 90
# Days without a positive that a refusal of the split points at, where they outnumber the held-out
# days.
_TOLD_GAP = 30
# Of all days with positives, those after a gap that may be wrong; and how often such a gap is as
# long as most.
_FEW, _UNUSUAL = 0.1, 10


def check(section: own_config.LogConfig, found: own_rows.Tally) -> list[datetime.date]:
    """The days of the log, without those after a gap that hold no positive.

    Raises:
      ValueError: When positives come after a gap that is longer than the held-out days and 90.
    """
    days = sorted(found.days)
    held_out = section.validation_days + section.test_days
    longest = datetime.timedelta(days=max(_LONGEST_GAP, held_out))
    while len(days) > 1:
        last = days[-1] - datetime.timedelta(days=section.drop_last_days)
        first_held = last - datetime.timedelta(days=held_out - 1)
        first_test = last - datetime.timedelta(days=section.test_days - 1)
        # Days that are dropped may leave the test days in the gap before them.
        after = [
            b
            for a, b in itertools.pairwise(days)
            if b - a > longest and first_held <= b and (b <= last or a < first_test)
        ]
        if not after:
            break
        late = {day: where for day, where in found.needed.items() if day >= after[0]}
        if late:
            before = days[days.index(after[0]) - 1]
            _refuse(before, min(late), late[min(late)])
        dropped = [day for day in days if day >= after[0]]
        days = [day for day in days if day < after[0]]
        runlog.say(
            f"log: {len(dropped)} days from {dropped[0]} on are left out: they have no positive, "
            f"and the day before them is {days[-1]}"
        )
    return days


def _refuse(before: datetime.date, day: datetime.date, place: own_rows.Place) -> None:
    raise ValueError(
        f"{place.path}: row {place.row}, column {place.column!r}: expected a time near the others, "
        f"got the day {day}, {(day - before).days:,} days after {before}; correct the row, or set "
        "data.validation_days and data.test_days so that they hold the days between"
    )


def without_far_times(
    events: pl.DataFrame, needed: pl.Series, section: own_config.LogConfig
) -> pl.DataFrame:
    """A log with seconds, without the times of rows that are far from those that are needed.

    Those are before or after a gap of more than 90 days, with no needed row beyond it, and must not
    decide how many days there are.
    """
    day = events.select(section.clock.shown(pl.col(section.time)).dt.date()).to_series()
    of_needed = day.filter(needed).drop_nulls()
    if not len(of_needed):
        return events
    days = day.drop_nulls().unique().sort().to_list()
    start, stop = days.index(of_needed.min()), days.index(of_needed.max())
    longest = datetime.timedelta(days=_LONGEST_GAP)
    while start > 0 and days[start] - days[start - 1] <= longest:
        start -= 1
    while stop + 1 < len(days) and days[stop + 1] - days[stop] <= longest:
        stop += 1
    for left_out, words, near in (
        (days[:start], f"up to {days[start - 1]}", f"after them is {days[start]}"),
        (days[stop + 1 :], f"from {days[min(stop + 1, len(days) - 1)]} on",
         f"before them is {days[stop]}"),
    ):  # fmt: skip
        if left_out:
            runlog.say(
                f"log: {len(left_out)} days {words} are left out: they have no positive, and the "
                f"day {near}"
            )
    far = ~day.is_between(days[start], days[stop])
    return events.with_columns(pl.when(~far).then(pl.col(section.time)).alias(section.time))


def explain(section: own_config.LogConfig, found: own_rows.Tally) -> str:
    """What a refusal of the split adds: the row after the longest gap between positives, if long.

    With leave-one-out a gap before few days is told at once, as it tests without being refused.
    """
    days = sorted(found.needed)
    gaps = [(b - a, a, b) for a, b in itertools.pairwise(days)]
    gap, before, day = max(gaps, default=(datetime.timedelta(0), None, None))
    if before is None or day is None:
        return ""
    path, row, column = found.needed[day]
    text = (
        f"{path}: row {row}, column {column!r} is of {day}, {gap.days:,} days after {before}: "
        "correct it if it is wrong"
    )
    if section.split != "days":
        few = sum(d >= day for d in days) <= max(1, _FEW * len(days))
        usual = sorted(gaps)[len(gaps) // 2][0]
        if gap > max(_UNUSUAL * usual, datetime.timedelta(days=_LONGEST_GAP)) and few:
            runlog.say(text)
        return ""
    held_out = section.validation_days + section.test_days
    return f"; {text}" if gap.days > max(_TOLD_GAP, held_out) else ""
