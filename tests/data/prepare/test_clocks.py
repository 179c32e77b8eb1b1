"""Clocks beside literal instants around their changes, and beside the standard library's reader."""

import datetime
import os
import subprocess
import sys
import zoneinfo

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsmoe_jax.data.prepare import clocks, zone_names

BERLIN, NEW_YORK = clocks.Clock(zone="Europe/Berlin"), clocks.Clock(zone="America/New_York")
HOUR_S = 3600
EPOCH = datetime.date(1970, 1, 1)
# Zones of whole, half and quarter hours, on both halves of the globe, that changed at midnight, by
# half an hour, around Ramadan, or left out a day.
ZONES = (
    "Europe/Berlin", "America/New_York", "America/Sao_Paulo", "Asia/Beirut", "Asia/Kathmandu",
    "Australia/Lord_Howe", "Africa/Casablanca", "Pacific/Apia", "America/Havana", "Asia/Tokyo",
)  # fmt: skip
# Around the changes of Berlin and New York in 2024, each an hour in UTC.
BERLIN_FORWARD_S = 1_711_846_800  # 2024-03-31 01:00
BERLIN_BACK_S = 1_729_990_800  # 2024-10-27 01:00
NEW_YORK_FORWARD_S = 1_710_054_000  # 2024-03-10 07:00
NEW_YORK_BACK_S = 1_730_613_600  # 2024-11-03 06:00


def seconds(clock, *texts):
    local = pl.Series("t", [datetime.datetime.fromisoformat(text) for text in texts])
    return local.to_frame().select(clock.seconds(pl.col("t"))).to_series().to_list()


def shown(clock, *times):
    frame = pl.DataFrame({"t": times}, schema={"t": pl.Int64})
    return [str(value) for value in frame.select(clock.shown(pl.col("t"))).to_series()]


@pytest.mark.parametrize(
    ("clock", "change_s", "before", "after"),
    [
        (BERLIN, BERLIN_FORWARD_S, "2024-03-31 01:59:59", "2024-03-31 03:00:00"),
        (BERLIN, BERLIN_BACK_S, "2024-10-27 02:59:59", "2024-10-27 02:00:00"),
        (NEW_YORK, NEW_YORK_FORWARD_S, "2024-03-10 01:59:59", "2024-03-10 03:00:00"),
        (NEW_YORK, NEW_YORK_BACK_S, "2024-11-03 01:59:59", "2024-11-03 01:00:00"),
        (clocks.Clock(5400), BERLIN_BACK_S, "2024-10-27 02:29:59", "2024-10-27 02:30:00"),
    ],
)
def test_a_clock_is_set_in_the_second_of_its_change(clock, change_s, before, after):
    assert shown(clock, change_s - 1, change_s) == [before, after]


@pytest.mark.parametrize(
    ("clock", "text", "second"),
    [
        (BERLIN, "2024-03-31 01:59:59", BERLIN_FORWARD_S - 1),
        (BERLIN, "2024-03-31 02:00:00", None),
        (BERLIN, "2024-03-31 02:59:59", None),
        (BERLIN, "2024-03-31 03:00:00", BERLIN_FORWARD_S),
        # From 2 to 3 all is shown twice; the earlier is an hour before.
        (BERLIN, "2024-10-27 01:59:59", BERLIN_BACK_S - HOUR_S - 1),
        (BERLIN, "2024-10-27 02:00:00", BERLIN_BACK_S - HOUR_S),
        (BERLIN, "2024-10-27 02:59:59", BERLIN_BACK_S - 1),
        (BERLIN, "2024-10-27 03:00:00", BERLIN_BACK_S + HOUR_S),
        (NEW_YORK, "2024-03-10 02:30:00", None),
        (NEW_YORK, "2024-03-10 03:30:00", NEW_YORK_FORWARD_S + 1800),
        (NEW_YORK, "2024-11-03 01:30:00", NEW_YORK_BACK_S - 1800),
        (NEW_YORK, "2024-11-03 02:30:00", NEW_YORK_BACK_S + HOUR_S + 1800),
        (clocks.Clock(3600), "2024-03-31 02:30:00", BERLIN_FORWARD_S + 1800),
    ],
)
def test_a_local_time_is_the_earlier_instant_and_none_where_the_clock_skipped_it(
    clock, text, second
):
    assert seconds(clock, text) == [second]


def test_what_is_shown_twice_is_told_of_the_earlier_instant_alone():
    times = [BERLIN_BACK_S + hours * HOUR_S for hours in (-2, -1, 0, 1)] + [BERLIN_FORWARD_S, None]
    frame = pl.DataFrame({"t": times}, schema={"t": pl.Int64})
    found = frame.select(BERLIN.is_twice(pl.col("t"))).to_series().to_list()
    assert found == [False, True, False, False, False, None]
    assert not frame.select(clocks.Clock(7200).is_twice(pl.col("t"))).to_series().any()


@pytest.mark.parametrize(
    ("clock", "first", "hours"),
    [
        (BERLIN, "2024-03-30", [24, 23, 24]),
        (BERLIN, "2024-10-26", [24, 25, 24]),
        (NEW_YORK, "2024-03-09", [24, 23, 24]),
        (NEW_YORK, "2024-11-02", [24, 25, 24]),
        (clocks.Clock(3600), "2024-03-30", [24, 24, 24]),
    ],
)
def test_days_have_the_hours_that_the_clock_gives_them(clock, first, hours):
    day = (datetime.date.fromisoformat(first) - EPOCH).days
    starts = clock.day_starts(np.arange(day, day + 4))
    np.testing.assert_array_equal(np.diff(starts) / HOUR_S, hours)
    np.testing.assert_array_equal(clock.days(starts), np.arange(day, day + 4))
    np.testing.assert_array_equal(clock.days(starts - 1), np.arange(day - 1, day + 3))


@pytest.mark.parametrize(
    ("zone", "day", "second"),
    [
        # Midnight of a summer's first day was one o'clock.
        ("America/Sao_Paulo", "2018-11-04", 1_541_300_400),
        ("Asia/Beirut", "2024-03-31", 1_711_836_000),
        # A day that was none begins with the next.
        ("Pacific/Apia", "2011-12-30", 1_325_239_200),
        ("Pacific/Apia", "2011-12-31", 1_325_239_200),
        # Midnight came twice.
        ("America/Havana", "2024-11-03", 1_730_606_400),
        ("Europe/Berlin", "2024-05-01", 1_714_514_400),
    ],
)
def test_a_day_begins_with_its_first_second(zone, day, second):
    dates = pl.Series([datetime.date.fromisoformat(day), None])
    assert clocks.Clock(zone=zone).midnights(dates).to_list() == [second, None]


# Up to the last second that a log may hold; the rules of later years are the same in both readers.
INSTANTS = st.integers(1, 2**31 - 2)


@settings(max_examples=300, deadline=None)
@given(zone=st.sampled_from(ZONES), times=st.lists(INSTANTS, min_size=1, max_size=20))
def test_instants_are_shown_as_by_the_standard_library(zone, times):
    own = zoneinfo.ZoneInfo(zone)
    expected = [datetime.datetime.fromtimestamp(t, own).replace(tzinfo=None) for t in times]
    clock = clocks.Clock(zone=zone)
    assert shown(clock, *times) == [str(value) for value in expected]
    days = [(value.date() - EPOCH).days for value in expected]
    assert clock.days(np.array(times)).tolist() == days


@settings(max_examples=300, deadline=None)
@given(
    zone=st.sampled_from(ZONES),
    local=st.datetimes(datetime.datetime(1971, 1, 1), datetime.datetime(2037, 12, 1)),
)
def test_local_times_are_read_as_by_the_standard_library(zone, local):
    local, own = local.replace(microsecond=0), zoneinfo.ZoneInfo(zone)
    first = local.replace(tzinfo=own, fold=0)
    back = first.astimezone(datetime.UTC).astimezone(own).replace(tzinfo=None)
    expected = int(first.timestamp()) if back == local else None
    assert seconds(clocks.Clock(zone=zone), str(local)) == [expected]


@settings(max_examples=100, deadline=None)
@given(
    zone=st.sampled_from(ZONES),
    day=st.dates(datetime.date(1971, 1, 1), datetime.date(2037, 12, 1)),
)
def test_days_begin_as_by_the_standard_library(zone, day):
    own = zoneinfo.ZoneInfo(zone)
    [start_s] = clocks.Clock(zone=zone).day_starts(np.array([(day - EPOCH).days]))
    at, before = (datetime.datetime.fromtimestamp(int(start_s) - i, own).date() for i in (0, 1))
    assert before < day <= at


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("Europe/Berln", "'Europe/Berlin'"),
        ("europe/berlin", "'Europe/Berlin'"),
        ("Berlin", "'Europe/Berlin'"),
        ("New York", "'America/New_York'"),
        ("Kiev", "'Europe/Kyiv'"),
    ],
)
def test_an_unknown_zone_is_refused_with_the_nearest(wrong, near):
    match = rf"^data\.time_zone: expected the IANA name .*, got '{wrong}'; nearest: {near}"
    with pytest.raises(ValueError, match=match):
        clocks.check_zone(wrong)


@pytest.mark.parametrize("wrong", ["+02:00", "-3", "qqqqq", "Mars/Base"])
def test_what_is_like_no_zone_is_refused_without_a_name(wrong):
    with pytest.raises(ValueError, match=r"data\.utc_offset_hours, got '[^']*'$"):
        clocks.check_zone(wrong)


def test_every_name_that_is_advised_is_valid():
    for name in (*zone_names.NAMES, "UTC", "US/Eastern", "Asia/Calcutta"):
        clocks.check_zone(name)
    assert len(zone_names.NAMES) > 400


def test_the_machines_own_database_is_not_needed():
    code = (
        "import sys; sys.modules['tzdata'] = None\n"
        "import numpy as np\n"
        "from dsmoe_jax.data.prepare import clocks\n"
        "clocks.check_zone('Europe/Berlin')\n"
        "print(clocks.Clock(zone='Europe/Berlin').day_starts(np.array([19813, 19814])))\n"
        "import zoneinfo\n"
        "print(len(zoneinfo.available_timezones()))\n"
    )
    environment = {**os.environ, "PYTHONTZPATH": os.devnull}
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.splitlines() == ["[1711839600 1711922400]", "0"]
