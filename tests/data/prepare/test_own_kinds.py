"""Dense columns, archives with empty parts and partitions of own logs, by plain Python."""

import bz2
import csv
import gzip
import io
import lzma
import math
import urllib.parse
import zipfile

import numpy as np
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsmoe_jax.data.prepare import custom, entities
from tests.data.prepare import test_own_rows

SECOND, FIELDS, NAMES = test_own_rows.SECOND, test_own_rows.FIELDS, test_own_rows.NAMES
HEADER = ",".join(NAMES).encode() + b"\n"
few = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))

NUMBERS = (
    st.floats(-1e6, 1e6, allow_subnormal=False)
    | st.integers(-(10**12), 10**12)
    | st.floats(-1e30, 1e30, allow_subnormal=False)
    | st.sampled_from([0, 1, 1e-200, -0.0, "", "NULL"])
)


@few
@given(
    cells=st.lists(NUMBERS, min_size=1, max_size=20),
    pads=st.lists(st.sampled_from(["", " ", "\t"]), min_size=2, max_size=2),
)
def test_dense_columns_are_standardised_as_numpy_does_it(tmp_path_factory, cells, pads):
    path = tmp_path_factory.mktemp("items") / "items.csv"
    with path.open("w", newline="") as file:
        rows = [(f"i{i:02}", f"{pads[0]}{cell}{pads[1]}") for i, cell in enumerate(cells)]
        csv.writer(file).writerows([("item", "x"), *rows])
    section = custom.CustomConfig(item_id="item", item_dense=("x",), null_values=("NULL",))
    table = section._read_table("item", path)
    known = np.array([math.nan if cell in ("", "NULL") else float(cell) for cell in cells])
    np.testing.assert_array_equal(table["x"].fill_null(math.nan).to_numpy(), known)
    value = known[~np.isnan(known)]
    encode = entities.Table(table, "item", dense=("x",), source="items.csv")
    if not len(value) or np.ptp(value) == 0:
        assert entities.encode_table(encode, "item_id", {}).dense == ()
        return
    with np.errstate(under="ignore"):
        # In units of the largest, so that no square is lost.
        unit = value / np.abs(value).max()
        spread = unit.std()
    if spread < 1e-14:
        return
    found = entities.encode_table(encode, "item_id", {}).dense_XF[1:, 0]
    expected = np.zeros(len(cells))
    expected[~np.isnan(known)] = (unit - unit.mean()) / spread
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def zipped(text):
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("part.csv", text)
        return file.getvalue()


PACK = {
    "plain": bytes, "gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress,
    "zstd": zstandard.compress, "zip": zipped,
}  # fmt: skip
PART = st.tuples(
    st.sampled_from([*PACK]),
    # The number of its rows, or a text without any.
    st.integers(0, 4) | st.sampled_from([b"", b"\n", b" \r\n", b"\xef\xbb\xbf", HEADER[:-1]]),
)


@few
@given(parts=st.lists(PART, min_size=2, max_size=5))
def test_parts_in_any_archive_are_their_rows_and_empty_ones_are_none(tmp_path_factory, parts):
    folder, expected = tmp_path_factory.mktemp("log"), []
    for i, (kind, part) in enumerate(parts):
        text = part
        if isinstance(part, int):
            rows = [(f"u{i}", f"i{j}", "home", SECOND + j) for j in range(part)]
            expected += rows
            lines = [f"{u},{item},{time},{page},7\n" for u, item, page, time in rows]
            text = HEADER + "".join(lines).encode()
        (folder / f"part_{i}").write_bytes(PACK[kind](text))
    section = custom.CustomConfig(**FIELDS, log_files=("part_*",))
    if not expected:
        with pytest.raises(ValueError, match="expected at least one row in the"):
            test_own_rows.read_rows(section, folder)
        return
    assert [row[:4] for row in test_own_rows.read_rows(section, folder)] == expected


VALUES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)


@few
@given(
    pages=st.lists(VALUES | st.none() | st.just("day"), min_size=1, max_size=4, unique=True),
    column=st.sampled_from(["page", "day", "a b", "__row__", "é=ü"]),
    written=st.booleans(),
)
def test_partitions_are_what_their_folders_say(tmp_path_factory, pages, column, written):
    """Whether the files have the column as well or not."""
    folder, expected = tmp_path_factory.mktemp("log"), []
    for i, page in enumerate(pages):
        value = "__HIVE_DEFAULT_PARTITION__" if page is None else urllib.parse.quote(page, safe="")
        name = urllib.parse.quote(column, safe="")
        part = folder / "log" / f"{name}={value}" / "part.csv"
        part.parent.mkdir(parents=True)
        with part.open("w", newline="", encoding="utf-8") as file:
            header, row = ["user", "item", "time", "label"], [f"u{i}", "i1", SECOND, 7]
            plain = page is not None and "\r" not in page and page == page.strip()
            if written and plain:
                header, row = [*header, column], [*row, page]
            csv.writer(file).writerows([header, row])
        if page is not None:
            expected.append((f"u{i}", "i1", page))
    section = custom.CustomConfig(**FIELDS | {"scenario": column}, log_files=("log",))
    if expected:
        assert sorted(row[:3] for row in test_own_rows.read_rows(section, folder)) == expected
