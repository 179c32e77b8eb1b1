import datetime

import polars as pl
import pytest

from dsmoe_jax.data.prepare import clocks, times

HOUR_S = 3600
# 2024-05-01 00:00 UTC.
MAY_S = 1_714_521_600


@pytest.mark.parametrize(
    ("text", "offset_s", "seconds"),
    [
        ("2024-05-01T12:30:00Z", 0, MAY_S + 45_000),
        ("2024-05-01 12:30:00", 0, MAY_S + 45_000),
        ("2024-05-01T12:30", 0, MAY_S + 45_000),
        ("2024-05-01T12:30:00.999", 0, MAY_S + 45_000),
        ("2024-05-01T12:30:00+02:00", 0, MAY_S + 45_000 - 2 * HOUR_S),
        ("2024-05-01T12:30:00-0130", 8 * HOUR_S, MAY_S + 45_000 + HOUR_S + 1800),
        # Without a zone the clock is the data set's.
        ("2024-05-01T12:30:00", 8 * HOUR_S, MAY_S + 45_000 - 8 * HOUR_S),
        ("2024-05-01", 8 * HOUR_S, MAY_S - 8 * HOUR_S),
        # As PostgreSQL, BigQuery and others write them.
        ("2024-05-01 12:30:00+00", 8 * HOUR_S, MAY_S + 45_000),
        ("2024-05-01 12:30:00.123456+00", 0, MAY_S + 45_000),
        ("2024-05-01 12:30:00+05:30", 0, MAY_S + 45_000 - 5 * HOUR_S - 1800),
        ("2024-05-01 12:30:00+00:19:32", 0, MAY_S + 45_000 - 1172),
        ("2024-05-01 12:30:00 UTC", 8 * HOUR_S, MAY_S + 45_000),
        ("2024-05-01 12:30:00.123456 UTC", 8 * HOUR_S, MAY_S + 45_000),
        ("2024-05-01 12:30:00 +0000", 8 * HOUR_S, MAY_S + 45_000),
        ("2024-05-01T12:30:00,5Z", 8 * HOUR_S, MAY_S + 45_000),
        (" 2024-05-01T12:30:00z ", 8 * HOUR_S, MAY_S + 45_000),
        ("2024-05-01T12:30:00+14:00", 0, MAY_S + 45_000 - 14 * HOUR_S),
        ("2024-05-01T12:30:00+99:99", 0, None),
        ("2024-05-01T12:30:00+19:00", 0, None),
        ("2024-05-01T12:30:00+02:60", 0, None),
        ("2024-05-01T12:30:00 PST", 0, None),
        ("2024-05-01+02", 0, None),
        ("05/01/2024 04:00", 0, None),
        ("yesterday", 0, None),
        ("2024-13-01", 0, None),
        ("2024-05-01T25:00:00", 0, None),
        ("20240501", 0, None),
        ("1714521600", 0, None),
    ],
)
def test_iso_times_become_unix_seconds(text, offset_s, seconds):
    for others in ([], ["2024-05-01T00:00:00Z", None]):
        found = times.parse_iso(pl.Series([text, *others]), clocks.Clock(offset_s))
        assert found.to_list() == [seconds, *([MAY_S, None] if others else [])]


def test_times_in_several_notations_may_share_a_column():
    texts = ["2024-05-01", "2024-05-01T00:00:01Z", "2024-05-01 02:00:02+02:00"]
    assert times.parse_iso(pl.Series(texts), clocks.UTC).to_list() == [MAY_S, MAY_S + 1, MAY_S + 2]


SECOND = 1_714_536_000


@pytest.mark.parametrize(
    ("cells", "unit"),
    [
        (pl.Series([SECOND]), "s"),
        (pl.Series([SECOND * 1000 + 999]), "ms"),
        (pl.Series([SECOND * 10**6 + 999_999]), "us"),
        (pl.Series([SECOND * 10**9 + 1]), "ns"),
        (pl.Series([str(SECOND)]), "s"),
        (pl.Series([f"{SECOND}.75"]), "s"),
        (pl.Series([f" {SECOND}\t"]), "s"),
        (pl.Series([f"{SECOND}.5 "]), "s"),
        (pl.Series([SECOND + 0.75]), "s"),
        (pl.Series([f"{SECOND * 10**9 + 1}"]), "ns"),
        (pl.Series([datetime.datetime(2024, 5, 1, 4)]), "s"),
        (pl.Series([datetime.datetime(2024, 5, 1, 4, tzinfo=datetime.UTC)]), "iso"),
    ],
)
def test_numbers_and_typed_times_become_unix_seconds(cells, unit):
    assert times.to_seconds(cells.alias("t"), unit, clocks.UTC).to_list() == [SECOND]


def test_typed_times_without_a_zone_are_on_the_clock_of_the_offset():
    naive = pl.Series("t", [datetime.datetime(2024, 5, 1, 4), datetime.datetime(2024, 5, 1)])
    assert times.to_seconds(naive, "s", clocks.Clock(HOUR_S)).to_list() == [
        SECOND - HOUR_S,
        MAY_S - HOUR_S,
    ]
    dates = pl.Series("t", [datetime.date(2024, 5, 1)])
    assert times.to_seconds(dates, "s", clocks.Clock(HOUR_S)).to_list() == [MAY_S - HOUR_S]
    zoned = naive.dt.replace_time_zone("Asia/Tokyo")
    assert times.to_seconds(zoned, "s", clocks.Clock(HOUR_S))[0] == SECOND - 9 * HOUR_S


@pytest.mark.parametrize(
    ("cell", "unit", "setting"),
    [
        (SECOND * 1000, "s", "milliseconds: set data.time_unit='ms'"),
        (SECOND * 10**6, "s", "microseconds: set data.time_unit='us'"),
        (SECOND * 10**9, "ms", "nanoseconds: set data.time_unit='ns'"),
        (SECOND, "ms", "seconds: set data.time_unit='s'"),
        (SECOND * 1000, "us", "milliseconds: set data.time_unit='ms'"),
        (SECOND, "ns", "seconds: set data.time_unit='s'"),
        (str(SECOND), "iso", "seconds: set data.time_unit='s'"),
        ("2024-05-01 04:00:00", "s", "a date and time: set data.time_unit='iso'"),
    ],
)
def test_another_unit_is_no_time_and_named(cell, unit, setting):
    assert times.to_seconds(pl.Series("t", [cell]), unit, clocks.UTC).to_list() == [None]
    assert times.mend(cell, unit, clocks.UTC, "correct it") == f"this looks like {setting}"


@pytest.mark.parametrize("cells", [[SECOND] * 3, [1.5, None, 2.5], [None] * 3])
def test_numbers_are_no_dates(cells):
    found = times.to_seconds(pl.Series("t", cells), "iso", clocks.UTC)
    assert found.to_list() == [None] * 3


@pytest.mark.parametrize("cell", ["soon", "", "nan", "1e400", "2147483647", "0", "-5"])
def test_what_is_no_time_is_null(cell):
    assert times.to_seconds(pl.Series("t", [cell]), "s", clocks.UTC).to_list() == [None]
    assert times.mend(cell, "s", clocks.UTC, "correct it") == "correct it"


BERLIN = clocks.Clock(zone="Europe/Berlin")
# 2024-10-27 01:00 UTC, when Berlin's clock is set back from 3 to 2.
BACK_S = 1_729_990_800
ON_BERLIN = [
    ("2024-10-27 02:30:00", BACK_S - 1800),
    ("2024-10-27T02:30", BACK_S - 1800),
    (" 2024-10-27 02:30:00.5", BACK_S - 1800),
    ("2024-10-27 02:30:00+01:00", BACK_S + 1800),
    ("2024-10-27 00:30:00Z", BACK_S - 1800),
    ("2024-10-27 01:30:00 UTC", BACK_S + 1800),
    ("2024-10-27", BACK_S - 3 * HOUR_S),
    ("2024-10-28", BACK_S + 22 * HOUR_S),
    ("2024-03-31", 1_711_839_600),
    ("2024-03-31 02:30:00", None),
    ("2024-03-31 02:30:00Z", 1_711_852_200),
    ("2024-03-31 02:30:00 PST", None),
    ("soon", None),
]


@pytest.mark.parametrize(("text", "second"), ON_BERLIN)
def test_times_without_a_zone_are_on_the_clock_of_a_named_one(text, second):
    assert times.parse_iso(pl.Series([text]), BERLIN).to_list() == [second]


def test_times_of_all_kinds_on_a_named_clock_may_share_a_column():
    texts, expected = zip(*ON_BERLIN, (None, None), strict=True)
    cells = pl.Series("t", texts)
    found = times.to_seconds(cells, "iso", BERLIN)
    assert found.to_list() == list(expected)
    # What has its own zone is one instant, and a date begins before the change.
    assert times.count_twice(cells, found, "iso", BERLIN) == 3
    assert times.count_twice(cells, found, "iso", clocks.Clock(HOUR_S)) == 0


def test_typed_times_without_a_zone_are_on_a_named_clock():
    cells = pl.Series("t", [datetime.datetime(2024, 10, 27, 2, 30), None])
    found = times.to_seconds(cells, "s", BERLIN)
    assert found.to_list() == [BACK_S - 1800, None]
    assert times.count_twice(cells, found, "s", BERLIN) == 1
    zoned = pl.Series("t", [datetime.datetime(2024, 10, 27, 0, 30)]).dt.replace_time_zone("UTC")
    assert times.to_seconds(zoned, "s", BERLIN).to_list() == [BACK_S - 1800]
    assert times.count_twice(zoned, pl.Series([BACK_S - 1800]), "s", BERLIN) == 0
    numbers = pl.Series("t", [BACK_S - 1800])
    assert times.count_twice(numbers, numbers, "s", BERLIN) == 0
    dates = pl.Series("t", [datetime.date(2018, 11, 4), None])
    summer = clocks.Clock(zone="America/Sao_Paulo")
    assert times.to_seconds(dates, "s", summer).to_list() == [1_541_300_400, None]


@pytest.mark.parametrize("cell", ["2024-03-31 02:30:00", datetime.datetime(2024, 3, 31, 2, 30)])
def test_a_time_that_a_clock_never_showed_is_named_so(cell):
    assert times.to_seconds(pl.Series("t", [cell]), "iso", BERLIN).to_list() == [None]
    message = times.mend(cell, "iso", BERLIN, "correct it")
    assert message.startswith("the clock of Europe/Berlin never showed it, as it was set forward")
    assert times.mend("soon", "iso", BERLIN, "correct it") == "correct it"
