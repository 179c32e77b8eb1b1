import pathlib

import polars as pl
import pytest

from dsmoe_jax.data.prepare import columns

PATH = pathlib.Path("folder/t.csv")
FRAME = pl.DataFrame({"id": [5, 7, 5, 9], "x": [1, 2, None, 4], columns.ROW: [2, 3, 4, 5]})


def test_a_check_names_the_first_row_that_violates_it():
    columns.check(PATH, FRAME, pl.col("x") > 4, "x", "at most 4")
    with pytest.raises(ValueError) as caught:
        columns.check(PATH, FRAME.reverse(), pl.col("x") > 1, "x", "at most 1", "lower it")
    assert str(caught.value) == (
        "folder/t.csv: row 3, column 'x': expected at most 1, got 2; lower it"
    )


def test_a_repeated_id_is_named_with_both_rows():
    with pytest.raises(ValueError) as caught:
        columns.check_unique(PATH, FRAME, "id")
    assert str(caught.value) == (
        "folder/t.csv: row 4, column 'id': expected every id once, got 5 again (first in row 2); "
        "remove one of the two rows"
    )
    columns.check_unique(PATH, FRAME.tail(3), "id")


def test_an_unknown_id_is_named_with_the_file_that_lacks_it():
    columns.check_known(PATH, FRAME, "id", pl.Series([9, 5, 7]), "users.csv")
    with pytest.raises(ValueError) as caught:
        columns.check_known(PATH, FRAME, "id", pl.Series([9, 5]), "users.csv")
    assert str(caught.value) == (
        "folder/t.csv: row 3, column 'id': expected an id that is in users.csv, got 7; add it to "
        "users.csv or remove the row"
    )


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (columns.Column("a", "int"), "an integer"),
        (columns.Column("a", "int", low=0, high=1), "an integer from 0 to 1"),
        (columns.Column("a", "code", nullable=True, low=0), "a whole number >= 0 or nothing"),
        (columns.Column("a", "float", high=9), "a finite number <= 9"),
        (columns.Column("a", "yyyymmdd"), "a date as YYYYMMDD"),
    ],
)
def test_a_column_says_what_it_expects(column, expected):
    assert column.expected == expected
