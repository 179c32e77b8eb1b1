import polars as pl
import pytest

from dsmoe_jax.data.prepare import expressions

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
        ("yesterday", 0, None),
        ("2024-13-01", 0, None),
        ("2024-05-01T25:00:00", 0, None),
        ("20240501", 0, None),
        ("1714521600", 0, None),
    ],
)
def test_iso_times_become_unix_seconds(text, offset_s, seconds):
    frame = pl.DataFrame({"time": [text]})
    assert frame.select(expressions.parse_iso(pl.col("time"), offset_s)).item() == seconds


def test_times_in_several_notations_may_share_a_column():
    frame = pl.DataFrame({"t": ["2024-05-01", "2024-05-01T00:00:01Z", "2024-05-01 02:00:02+02:00"]})
    found = frame.select(expressions.parse_iso(pl.col("t"), 0)).to_series()
    assert found.to_list() == [MAY_S, MAY_S + 1, MAY_S + 2]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("stars >= 4", [4.0, 5.0]),
        ("stars>4", [5.0]),
        ("stars == 1", [1.0]),
        ("stars != 1", [4.0, 5.0]),
        ("stars < 4.5", [1.0, 4.0]),
        ("stars <= 1e0", [1.0]),
    ],
)
def test_conditions_on_numbers_keep_rows_and_never_nulls(text, kept):
    frame = pl.DataFrame({"stars": [1.0, 4.0, None, 5.0]})
    condition = expressions.parse_condition(text)
    assert condition.is_number
    assert frame.filter(condition.expression)["stars"].to_list() == kept


def test_conditions_on_text_compare_the_whole_cell():
    frame = pl.DataFrame({"what": ["buy", "buy now", None, "view"]})
    condition = expressions.parse_condition("what == buy")
    assert not condition.is_number
    assert frame.filter(condition.expression)["what"].to_list() == ["buy"]
    other = expressions.parse_condition("what != buy now")
    assert frame.filter(other.expression)["what"].to_list() == ["buy", "view"]


def test_column_names_may_hold_spaces_and_nothing_means_every_row():
    assert expressions.parse_condition("my stars >= 4").column == "my stars"
    assert expressions.parse_condition("  ") is None


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("stars", "expected a column, one of == != >= <= > < and a value.*got 'stars'"),
        ("stars = 4", "expected a column"),
        (">= 4", "expected a column"),
        ("stars >=", "expected a column"),
        ("what > buy", "expected a number after >, got 'buy'"),
    ],
)
def test_conditions_that_say_nothing_are_refused(text, match):
    with pytest.raises(ValueError, match=rf"data\.positive: {match}"):
        expressions.parse_condition(text)
