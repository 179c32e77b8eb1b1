import decimal

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsmoe_jax.data.prepare import expressions


def kept(text, cells, dtype=None):
    series = pl.Series("c", cells, dtype=dtype)
    return series.filter(expressions.parse_condition(text).holds(series)).to_list()


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
    stars = pl.Series([1.0, 4.0, None, 5.0])
    condition = expressions.parse_condition(text)
    assert stars.filter(condition.holds(stars)).to_list() == kept
    texts = pl.Series(["1", "4.0", None, "5"])
    assert texts.filter(condition.holds(texts)).cast(pl.Float64).to_list() == kept


def test_conditions_on_text_compare_the_whole_cell():
    cells = ["buy", "buy now", None, "view"]
    assert kept("what == buy", cells) == ["buy"]
    assert kept("what != buy now", cells) == ["buy", "view"]


BIG = 9_007_199_254_740_993


@pytest.mark.parametrize("as_cell", [int, str])
@pytest.mark.parametrize(
    ("symbol", "expected"),
    [
        ("==", [BIG]),
        ("!=", [BIG - 1, BIG + 1]),
        (">=", [BIG, BIG + 1]),
        (">", [BIG + 1]),
        ("<=", [BIG - 1, BIG]),
        ("<", [BIG - 1]),
    ],
)
def test_integers_beyond_floating_point_are_told_apart(as_cell, symbol, expected):
    cells = [as_cell(BIG - 1), as_cell(BIG), as_cell(BIG + 1), None]
    assert kept(f"c {symbol} {BIG}", cells) == [as_cell(cell) for cell in expected]


@pytest.mark.parametrize(
    ("text", "cells", "expected"),
    [
        ("c == 007", ["7", "007", "07", "7.0"], ["007"]),
        ("c == 7", ["7", "007", "7.0", "7.00", "70", "7e0", "+7"], ["7", "7.0", "7.00", "7e0"]),
        ("c != 7", ["7", "007", None, "x"], ["007", "x"]),
        ("c == 007", [7, 8], []),
        ("c == 7.5", [7.5, 7.0], [7.5]),
        ("c == 4.1", ["4.1", "4.10", "4.2"], ["4.1", "4.10"]),
        ("c == 4.1", [4.1, 4.2], [4.1]),
        ("c >= 4.1", [4.1, 4.2, 4.0], [4.1, 4.2]),
        ("c == buy", [1, 2], []),
        ("c == true", [True, False, None], [True]),
        (f"c == {BIG}", [float(BIG)], []),
        ("c > 7", ["007", "8"], ["8"]),
        ("c >= 7", ["007", "8", "6"], ["007", "8"]),
        ("c >= 7", [" 7", "8 ", "\t6 "], [" 7", "8 "]),
        ("c == 7", [" 7", "7 ", "7"], ["7"]),
    ],
)
def test_equal_is_what_is_written_so_or_the_same_number(text, cells, expected):
    assert kept(text, cells) == expected


@pytest.mark.parametrize("dtype", [pl.Float32, pl.Float64])
def test_numbers_of_single_precision_are_those_that_are_written(dtype):
    cells = [3.9, 4.1, 4.2]
    for text, expected in (("==", [1]), (">=", [1, 2]), (">", [2]), ("<=", [0, 1]), ("!=", [0, 2])):
        series = pl.Series("c", cells, dtype=dtype)
        found = expressions.parse_condition(f"c {text} 4.1").holds(series)
        assert found.arg_true().to_list() == expected
    # Integers that single precision rounds are told apart still.
    assert kept(f"c == {2**24 + 1}", [2.0**24], dtype) == []
    assert kept(f"c < {2**24 + 1}", [2.0**24], dtype) == [2.0**24]
    assert kept("c < 1e300", [1.0, 3e38], pl.Float32)[0] == 1.0


HUGE = "1e99999999999999999999999"


def test_texts_with_exponents_beyond_numbers_are_codes():
    assert kept(f"c == {HUGE}", ["1", HUGE]) == [HUGE]
    assert kept(f"c != {HUGE}", ["1", HUGE, None]) == ["1"]
    assert kept("c == 0", ["0", f"0{HUGE[1:]}", "1e-99999999999999999999999"]) == [
        "0", f"0{HUGE[1:]}", "1e-99999999999999999999999"
    ]  # fmt: skip
    assert kept("c >= 1", [HUGE[:3], HUGE, "0"])[0] == HUGE[:3]


def test_decimals_compare_as_numbers():
    cells = [decimal.Decimal("4.00"), decimal.Decimal("4.01"), None]
    assert kept("c == 4", cells, pl.Decimal(10, 2)) == cells[:1]
    assert kept("c > 4", cells, pl.Decimal(10, 2)) == cells[1:2]


@pytest.mark.parametrize("cell", ["buy", "inf", "nan", "-", "1 0"])
def test_an_order_needs_numbers_and_equality_does_not(cell):
    cells = pl.Series([" 1 ", cell, None])
    assert expressions.parse_condition("c >= 1").is_bad(cells).to_list() == [False, True, False]
    assert not expressions.parse_condition("c == 1").is_bad(cells).any()


WHOLE = st.integers(-(2**62), 2**62) | st.integers(BIG - 3, BIG + 3) | st.integers(-3, 3)


@settings(max_examples=200, deadline=None)
@given(cells=st.lists(WHOLE, max_size=20), value=WHOLE, symbol=st.sampled_from(
    ["==", "!=", ">=", "<=", ">", "<"]), as_cell=st.sampled_from([int, str]))  # fmt: skip
def test_conditions_agree_with_exact_arithmetic(cells, value, symbol, as_cell):
    expected = [as_cell(cell) for cell in cells if eval(f"{cell} {symbol} {value}")]
    dtype = pl.Int64 if as_cell is int else pl.String
    assert kept(f"c {symbol} {value}", list(map(as_cell, cells)), dtype) == expected


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
        (f"what >= {HUGE}", f"expected a number below 1.8e308 after >=, got '{HUGE}'"),
    ],
)
def test_conditions_that_say_nothing_are_refused(text, match):
    with pytest.raises(ValueError, match=rf"data\.positive: {match}"):
        expressions.parse_condition(text)
