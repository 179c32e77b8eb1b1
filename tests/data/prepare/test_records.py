"""Separated text as Python's `csv` reads it, whatever the blocks."""

import csv
import io

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsmoe_jax.data.prepare import columns, forms, read, records

CELLS = st.text(st.sampled_from('ab ",;\n|é'), max_size=6)
TEXTS = [columns.Column(name, "str", nullable=True) for name in "xyz"]


@pytest.fixture(autouse=True, scope="module", params=[3, 1 << 18])
def parts_looked_at(request):
    """Texts are looked at in parts of any size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "_COUNTED_AT_ONCE", request.param)
        yield


def by_csv(text, separator=","):
    """Rows of a text by the standard library, in the header's width, or None."""
    rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator))
    return rows if all(len(row) == 3 for row in rows) else None


def by_us(path, **options):
    frame = pl.concat(list(read.iterate(path, TEXTS, **options)))
    return [
        ["" if cell is None else cell for cell in row] for row in frame.select("x", "y", "z").rows()
    ]


@settings(max_examples=300, deadline=None)
@given(
    rows=st.lists(st.lists(CELLS, min_size=3, max_size=3), min_size=1, max_size=8),
    separator=st.sampled_from(",;\t|"),
    style=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    line_end=st.sampled_from(["\n", "\r\n"]),
    block_bytes=st.sampled_from([1, 5, 64, 1 << 20]),
)
def test_what_csv_writes_is_read_as_it_was(
    tmp_path_factory, rows, separator, style, line_end, block_bytes
):
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=separator, quoting=style, lineterminator=line_end)
        writer.writerows([("x", "y", "z"), *rows])
    found = by_us(path, block_bytes=block_bytes, form=forms.Form(separator=""))
    assert found == rows


@settings(max_examples=500, deadline=None)
@given(
    body=st.lists(
        st.lists(st.text(st.sampled_from('ab"" \n'), max_size=5), min_size=3, max_size=3).map(
            ",".join
        ),
        min_size=1,
        max_size=5,
    ).map("\n".join),
    block_bytes=st.sampled_from([1, 5, 1 << 20]),
)
def test_whatever_is_read_is_what_csv_reads(tmp_path_factory, body, block_bytes):
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    text = "x,y,z\n" + body + "\n"
    path.write_text(text, newline="")
    try:
        found = by_us(path, block_bytes=block_bytes)
    except ValueError as error:
        assert "\n" not in str(error)
        return
    expected = by_csv(text.rstrip("\n"))
    assert expected is not None
    assert found == expected[1:]


def test_a_short_row_beside_a_very_long_cell_is_named(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("x,y,z\n" + "a" * 200_000 + ",b,c\nd,e\n")
    with pytest.raises(ValueError, match="row 3: expected 3 columns, got 2: 'd,e'"):
        by_us(path)


def test_a_row_without_end_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "LONGEST_RECORD", 1000)
    path = tmp_path / "t.csv"
    path.write_text('x,y,z\na,b,c\nd,"e' + "f,g\n" * 1000)
    with pytest.raises(ValueError, match="row 3: expected every quoted field to end, got 'd,"):
        by_us(path, block_bytes=100)
