import bz2
import datetime
import gzip
import io
import lzma
import tarfile
import threading
import zipfile

import polars as pl
import pytest
import zstandard

from dsmoe_jax.data.prepare import columns, read

COLUMNS = (
    columns.Column("user", "int", low=0, high=100),
    columns.Column("code", "code", nullable=True, null="NULL"),
    columns.Column("name", "str", nullable=True),
    columns.Column("day", "yyyymmdd"),
    columns.Column("price", "float", nullable=True, low=0),
)
# The header has a column that nobody asks for and a name with a space after it.
HEADER = b"user,code ,other,name,price,day\n"
GOOD = b"1,2.0,q,x,1.5,20220401\n"


def write(path, content):
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def rows(path, **options):
    return pl.concat(list(read.iterate(path, COLUMNS, **options))).rows()


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
def test_cells_are_typed_and_rows_numbered_as_in_the_file(tmp_path, name):
    content = HEADER + b'7,2.0,q,"a,b",1e2,20220401\n8,NULL,"",,,20220402\r\n9,,,"",0,20220403'
    frame = read.read(write(tmp_path / name, content), COLUMNS)
    assert frame.columns == ["user", "code", "name", "day", "price", columns.ROW]
    assert frame.rows() == [
        (7, 2, "a,b", datetime.date(2022, 4, 1), 100.0, 2),
        (8, None, None, datetime.date(2022, 4, 2), None, 3),
        (9, None, None, datetime.date(2022, 4, 3), 0.0, 4),
    ]


def test_blocks_of_any_size_give_the_same_table(tmp_path):
    lines = [b'%d,%d.0,q,"n,%d",,20220401\n' % (i, i, i) for i in range(50)]
    path = write(tmp_path / "t.csv", HEADER + b"".join(lines))
    whole = rows(path)
    assert len(whole) == 50 and whole[49][-1] == 51
    for block_bytes, fewest in ((1, 50), (30, 20), (200, 5)):
        assert rows(path, block_bytes=block_bytes) == whole
        assert len(list(read.iterate(path, COLUMNS, block_bytes))) >= fewest


def test_a_byte_order_mark_and_empty_lines_at_the_end_do_not_count(tmp_path):
    path = write(tmp_path / "t.csv", b"\xef\xbb\xbf" + HEADER + GOOD + b"\n\r\n")
    assert len(rows(path)) == 1


def test_columns_that_nobody_asks_for_may_share_a_name(tmp_path):
    path = write(tmp_path / "t.csv", b"a,b,a\n1,2,3\n")
    assert read.read(path, [columns.Column("b", "int")]).rows() == [(2, 2)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"z,2,q,x,1,20220401", "row 3, column 'user': expected an integer from 0 to 100, got 'z'"),
        (b"1.0,2,q,x,1,20220401", "row 3, column 'user': expected an integer .*, got '1.0'"),
        (b"9" * 20 + b",2,q,x,1,20220401", "row 3, column 'user': .* got '9{20}'"),
        (b"101,2,q,x,1,20220401", "row 3, column 'user': expected .*0 to 100, got 101"),
        (b"-1,2,q,x,1,20220401", "row 3, column 'user': expected .*0 to 100, got -1"),
        (b",2,q,x,1,20220401", "row 3, column 'user': expected .*, got nothing"),
        (b"1,2.5,q,x,1,20220401", "row 3, column 'code': expected a whole number or nothing, got"),
        (b"1,2,q,x,-1,20220401", "row 3, column 'price': expected a finite number >= 0 or nothing"),
        (b"1,2,q,x,inf,20220401", "row 3, column 'price': expected a finite number .* got inf"),
        (b"1,2,q,x,1_0,20220401", "row 3, column 'price': expected a finite number .* got '1_0'"),
        (b"1,2,q,x,1,20220431", "row 3, column 'day': expected a date as YYYYMMDD, got 20220431"),
        (b"1,2,q,x,1,2022-04-01", "row 3, column 'day': expected a date .* got '2022-04-01'"),
        (b"1,2,q,x,1", "row 3: expected 6 columns, got 5: '1,2,q,x,1'"),
        (b"1,2,q,x,1,20220401,5", "row 3: expected 6 columns, got 7"),
        (b"", "row 3: expected 6 columns, got 0"),
        (b'1,2,q,"x,1,20220401', "row 3: expected every quoted field to end, got '1,2,q,"),
        (b'1,2,q,"x\ny"z,1,20220401', "row 3: expected a separator after the closing quote"),
        (b"1,2,q,\xff,1,20220401", "row 3: expected UTF-8 text"),
    ],
)
@pytest.mark.parametrize("block_bytes", [1, 1 << 20])
def test_a_bad_row_is_named_in_one_line(tmp_path, line, message, block_bytes):
    path = write(tmp_path / "t.csv", HEADER + GOOD + line + b"\n" + GOOD)
    with pytest.raises(ValueError, match=message) as caught:
        rows(path, block_bytes=block_bytes)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_short_row_is_found_although_its_missing_cells_may_be_empty(tmp_path):
    nullable = [columns.Column("a", "int"), columns.Column("b", "int", nullable=True)]
    path = write(tmp_path / "t.csv", b'x,a,b\n"p,q",1,2\nr,3,\ns,4\n')
    with pytest.raises(ValueError, match="row 4: expected 3 columns, got 2"):
        read.read(path, nullable)


@pytest.mark.parametrize("block_bytes", [1, 7, 1 << 20])
def test_a_line_break_in_quotes_is_text_and_its_row_is_one(tmp_path, block_bytes):
    path = write(tmp_path / "t.csv", b'a,b\n"x",1\n"y\n\nz, ""w""",2\nv,3\n')
    wanted = [columns.Column("a", "str"), columns.Column("b", "int")]
    found = pl.concat(list(read.iterate(path, wanted, block_bytes)))
    assert found.rows() == [("x", 1, 2), ('y\n\nz, "w"', 2, 3), ("v", 3, 4)]


@pytest.mark.parametrize("block_bytes", [1, 7, 1 << 20])
def test_a_quote_inside_a_field_is_text(tmp_path, block_bytes):
    path = write(tmp_path / "t.csv", b'a,b\n12" disc,1\n"7"" disc",2\r\n5"6",3\n"a"b,4\n')
    wanted = [columns.Column("a", "str"), columns.Column("b", "int")]
    found = pl.concat(list(read.iterate(path, wanted, block_bytes)))
    assert found["a"].to_list() == ['12" disc', '7" disc', '5"6"', "ab"]
    assert found["b"].to_list() == [1, 2, 3, 4]


def test_a_short_and_a_long_row_do_not_hide_each_other(tmp_path):
    path = write(tmp_path / "t.csv", b"a,b,c\n1,2\n1,2,3,4\n")
    with pytest.raises(ValueError, match="row 2: expected 3 columns, got 2"):
        read.read(path, [columns.Column("a", "int")])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"user,name,day,price\n", "row 1, column 'code': expected it in the header"),
        (HEADER.replace(b"other", b"user"), "row 1, column 'user': expected it once"),
        (HEADER, "expected at least one row"),
        (b"", "row 1, column 'user': expected it in the header"),
    ],
)
def test_a_bad_header_or_empty_table_is_named(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        rows(write(tmp_path / "t.csv", content))


@pytest.mark.parametrize("end", ["", "\n"])
def test_blanks_around_numbers_do_not_count_on_either_side(tmp_path, end):
    lines = ["7, 2.0 ,q,x,\t1e2 ,20220401 ", " 8 ,NULL ,q,y,  , 20220402"]
    path = write(tmp_path / "t.csv", HEADER + "\n".join(lines).encode() + end.encode())
    assert rows(path) == [
        (7, 2, "x", datetime.date(2022, 4, 1), 100.0, 2),
        (8, None, "y", datetime.date(2022, 4, 2), None, 3),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (" 101 ,2,q,x,1,20220401", "row 3, column 'user': expected .*0 to 100, got 101; correct"),
        ("1,2,q,x, nan ,20220401", "row 3, column 'price': .* got nan; .* in data.null_values"),
        ("1,inf,q,x,1,20220401", "row 3, column 'code': .* got inf; .* in data.null_values"),
        ("1,2,q,x, 1 0 ,20220401", "row 3, column 'price': .* got ' 1 0 '; correct"),
        (" ,2,q,x,1,20220401", "row 3, column 'user': .*, got nothing; correct"),
        (
            "1,2,q,x, ?,20220401\nz,2,q,x,1,20220401",
            "row 3, column 'price': .* got ' \\?'; correct",
        ),
    ],
)
def test_a_cell_with_blanks_is_named_with_its_row(tmp_path, line, message):
    path = write(tmp_path / "t.csv", HEADER + GOOD + line.encode() + b"\n")
    with pytest.raises(ValueError, match=message):
        rows(path)


def zipped(*members):
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w") as archive:
            for name in members:
                archive.writestr(name, "")
        return file.getvalue()


EMPTY = [
    b"", b"\n", b"\r\n\n", b"  \n", b"\xef\xbb\xbf", b"\xff\xfe", gzip.compress(b""),
    bz2.compress(b""), zstandard.compress(b"\n \n"), lzma.compress(b""), zipped("a.csv"),
    zipped(), b"\n" * 99 + b" ",
]  # fmt: skip


@pytest.mark.parametrize("content", EMPTY)
def test_a_part_of_nothing_or_blanks_is_empty_and_a_file_alone_is_not(tmp_path, content):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    assert list(read.iterate(path, COLUMNS, 8, may_be_empty=True)) == []
    with pytest.raises(ValueError, match="row 1, column 'user': expected it in the header"):
        list(read.iterate(path, COLUMNS))


def test_a_part_that_begins_with_blank_lines_is_not_empty(tmp_path):
    path = write(tmp_path / "t.csv", b"\n" * 20 + HEADER + GOOD)
    with pytest.raises(ValueError, match="row 1, column 'user': expected it in the header"):
        list(read.iterate(path, COLUMNS, 8, may_be_empty=True))


def test_a_parquet_part_without_columns_is_empty(tmp_path):
    path = tmp_path / "t.parquet"
    pl.DataFrame().write_parquet(path)
    assert list(read.iterate(path, COLUMNS, may_be_empty=True)) == []
    with pytest.raises(ValueError, match="column 'user': expected it in the file, got no columns"):
        rows(path)


def tar(content):
    with io.BytesIO() as file:
        with tarfile.open(fileobj=file, mode="w") as archive:
            entry = tarfile.TarInfo("t.csv")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(gzip.compress(GOOD * 99)), "a gzip file inside a gzip file; unpack it"),
        (gzip.compress(tar(GOOD)), "a tar file inside a gzip file; unpack it"),
        (tar(GOOD), "a tar file; unpack it"),
        (zstandard.compress(b"PAR1" + bytes(9)), "a Parquet file inside a zstd file; unpack it"),
        (b"SQLite format 3\0" + bytes(9), "an SQLite file; export it as CSV or Parquet"),
    ],
)
def test_another_kind_of_file_is_named(tmp_path, content, message):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"t\.csv: expected text, got {message}"):
        rows(path)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("constants", "message"),
    [
        ({"name": "x", "user": "1"}, ""),
        ({"name": "y"}, r"row \d, column 'name': expected 'y' as the path says, got 'x'; .*folder"),
        ({"name": None}, r"column 'name': expected nothing, by the path, got 'x'"),
        ({"code": "z"}, r"column 'code': expected 'z' as the path says, got 2"),
    ],
)
def test_a_cell_that_the_path_contradicts_is_refused(tmp_path, kind, constants, message):
    path = tmp_path / f"t.{kind}"
    if kind == "csv":
        write(path, HEADER + GOOD)
    else:
        parquet(path, user=[1, 1], name=["x", "x"], code=[2.0, 2.0])
    if not message:
        assert list(read.iterate(path, COLUMNS, constants=constants))
        return
    with pytest.raises(ValueError, match=message):
        list(read.iterate(path, COLUMNS, constants=constants))


def test_a_truncated_archive_is_named(tmp_path):
    path = write(tmp_path / "t.csv.gz", HEADER + GOOD * 10_000)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"t\.csv\.gz: expected a whole gzip file, .*ends early"):
        rows(path)


@pytest.mark.parametrize("damage", [b"no archive", None])
def test_a_damaged_archive_is_named(tmp_path, damage):
    path = tmp_path / "t.csv.gz"
    content = bytearray(gzip.compress(HEADER + GOOD * 10_000))
    content[len(content) // 2] ^= 255
    path.write_bytes(damage or bytes(content))
    with pytest.raises(ValueError, match="expected a whole gzip file, got damaged content"):
        rows(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"absent\.csv: expected a file, found none"):
        rows(tmp_path / "absent.csv")


def test_find_prefers_the_plain_file(tmp_path):
    assert read.find(tmp_path, "t.csv") is None
    write(tmp_path / "t.csv.gz", HEADER)
    assert read.find(tmp_path, "t.csv") == tmp_path / "t.csv.gz"
    write(tmp_path / "t.csv", HEADER)
    assert read.find(tmp_path, "t.csv") == tmp_path / "t.csv"


def parquet(path, **replaced):
    values = {
        "user": [1, 2],
        "code": [2.0, None],
        "name": ["x", None],
        "price": [1, 2],
        "day": [20220401, 20220402],
    }
    pl.DataFrame({**values, **replaced}).write_parquet(path)
    return path


def test_parquet_gives_the_same_types_and_counts_records_from_1(tmp_path):
    assert read.read(parquet(tmp_path / "t.parquet"), COLUMNS).rows() == [
        (1, 2, "x", datetime.date(2022, 4, 1), 1.0, 1),
        (2, None, None, datetime.date(2022, 4, 2), 2.0, 2),
    ]


@pytest.mark.parametrize(
    ("values", "texts"),
    [([7, None], ["7", None]), ([datetime.date(2022, 4, 1)] * 2, ["2022-04-01"] * 2)],
)
def test_parquet_values_of_one_text_each_can_be_read_as_text(tmp_path, values, texts):
    assert (
        read.read(parquet(tmp_path / "t.parquet", name=values), COLUMNS)["name"].to_list() == texts
    )


@pytest.mark.parametrize(
    ("dtype", "texts"),
    [
        (pl.List(pl.Decimal(10, 0)), ["1", "2"]),
        (pl.Array(pl.Int64, 2), ["1", "2"]),
        (pl.List(pl.Decimal(10, 1)), None),
    ],
)
def test_lists_of_whole_numbers_are_lists_of_texts(tmp_path, dtype, texts):
    path = tmp_path / "t.parquet"
    pl.DataFrame({"tags": pl.Series([[1, 2]], dtype=pl.List(pl.Int64)).cast(dtype)}).write_parquet(
        path
    )
    column = [columns.Column("tags", "list")]
    if texts:
        assert read.read(path, column)["tags"].to_list() == [texts]
        return
    with pytest.raises(ValueError, match=r"'tags': expected text or a list of texts, got the type"):
        read.read(path, column)


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"user": [1, 101]}, "row 2, column 'user': expected an integer from 0 to 100, got 101"),
        ({"user": [1, None]}, "row 2, column 'user': .* got nothing"),
        ({"user": ["1", "2"]}, "column 'user': expected an integer .*, got the type String"),
        ({"user": [1.0, 2.0]}, "column 'user': expected an integer .*, got the type Float64"),
        ({"name": [1.5, 2]}, "column 'name': expected text or nothing, got the type Float64"),
        ({"code": [2.5, 1]}, "row 1, column 'code': expected a whole number or nothing, got 2.5"),
    ],
)
def test_parquet_errors_name_file_record_and_column(tmp_path, replaced, message):
    with pytest.raises(ValueError, match=message) as caught:
        rows(parquet(tmp_path / "t.parquet", **replaced))
    assert "\n" not in str(caught.value)


def test_parquet_without_a_column_or_broken_is_named(tmp_path):
    path = tmp_path / "t.parquet"
    pl.DataFrame({"user": [1]}).write_parquet(path)
    with pytest.raises(ValueError, match="column 'code': expected it in the file, got user"):
        rows(path)
    path.write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=r"t\.parquet: expected a Parquet file"):
        rows(path)


def count(upto, made, closed):
    try:
        for i in range(upto):
            made.append(i)
            yield i
        if upto == 3:
            raise ValueError("row 3: broken")
    finally:
        closed.append(True)


def test_values_come_in_order_from_another_thread():
    threads = []

    def values():
        for i in range(5):
            threads.append(threading.current_thread())
            yield i

    assert list(read.one_ahead(values())) == [0, 1, 2, 3, 4]
    assert threading.current_thread() not in threads


def test_at_most_one_value_is_made_ahead():
    made, closed = [], []
    values = read.one_ahead(count(100, made, closed))
    for expected in range(4):
        assert next(values) == expected
        assert len(made) <= expected + 2
    values.close()
    assert len(made) <= 5
    assert closed == [True]


def test_closing_joins_no_thread(monkeypatch):
    """What is collected in a thread that just starts holds the lock that joining takes."""
    joined, closed = [], []
    values = read.one_ahead(count(100, [], closed))
    assert next(values) == 0
    monkeypatch.setattr(threading.Thread, "join", lambda self, timeout=None: joined.append(self))
    values.close()
    assert closed == [True] and not joined


def test_an_error_comes_after_the_values_before_it():
    made, closed = [], []
    values = read.one_ahead(count(3, made, closed))
    assert [next(values) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="row 3: broken"):
        next(values)
    assert closed == [True]
