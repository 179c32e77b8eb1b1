"""Days of an own log: one wrong time must not become the days that test.

Owns that check. Does not own the split (`splits.py`).
"""

import datetime
import itertools

from dsmoe_jax import runlog
from dsmoe_jax.data.prepare import own_config, own_rows

# Days without a row before the held-out days, above which a time is taken to be wrong.
_LONGEST_GAP = 90


def check(section: own_config.LogConfig, found: own_rows.Rows) -> list[datetime.date]:
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
        pairs = itertools.pairwise(days)
        after = [b for a, b in pairs if first_held <= b <= last and b - a > longest]
        if not after:
            break
        late = {day: where for day, where in found.needed.items() if day >= after[0]}
        if late:
            _refuse(days, after[0], late)
        dropped = [day for day in days if day >= after[0]]
        days = [day for day in days if day < after[0]]
        runlog.say(
            f"log: {len(dropped)} days from {dropped[0]} on are left out: they have no positive, "
            f"and the day before them is {days[-1]}"
        )
    return days


def _refuse(
    days: list[datetime.date], first: datetime.date, late: dict[datetime.date, own_rows.Place]
) -> None:
    before = days[days.index(first) - 1]
    day = min(late)
    path, row, column = late[day]
    raise ValueError(
        f"{path}: row {row}, column {column!r}: expected a time near the others, got the day "
        f"{day}, {(day - before).days:,} days after {before}; correct the row, or set "
        "data.validation_days and data.test_days so that they hold the days between"
    )
