"""Rows of own logs beside a reader of a few lines of plain Python."""

import csv
import datetime
import decimal
import gzip
import os
import re
import zoneinfo

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsmoe_jax.data.prepare import columns, custom, own_files, own_rows, tags

SECOND = 1_714_521_600
FIELDS = {"user_id": "user", "item_id": "item", "scenario": "page", "positive": "label == 7"}
NAMES = ("user", "item", "time", "page", "label")

IDS = st.sampled_from(["u1", "007", "7", "a,b", 'x "y"', "é", '12" disc', "line\nbreak", "u;2"])
PAGES = st.sampled_from(["home", "search", "$1/2", "", "NULL"])
LABELS = st.sampled_from(["7", "7.0", "007", "8", "", "7 ", "buy", "9007199254740993"])
SECONDS = st.integers(SECOND, SECOND + 10**6)
UNITS = {"s": 1, "ms": 1000, "us": 10**6, "ns": 10**9}


def read_rows(section, folder):
    """What `own_rows` makes of a folder's log: user, item, scenario, second and day."""
    section.raw_dir = str(folder)
    section.validate()
    logs, paths = own_files.find(section)
    found = own_rows.read_logs(section, logs, paths, {})
    return found.positives.rows()


def plainly(rows, *, per_s, offset_h, nulls=(), equal=lambda label: label in ("7", "7.0")):
    """The same by definition; rows that count for nothing may hold anything."""
    found = []
    for user, item, time, page, label in rows:
        if label in nulls or not equal(label) or page in ("", *nulls):
            continue
        second = int(time) // per_s
        zone = datetime.timezone(datetime.timedelta(hours=offset_h))
        day = datetime.datetime.fromtimestamp(second, zone).date()
        found.append((user, item, page, second, day))
    return found


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    rows=st.lists(st.tuples(IDS, IDS, SECONDS, PAGES, LABELS), min_size=1, max_size=30),
    broken=st.lists(
        st.tuples(st.just(""), IDS, st.sampled_from(["soon", "", "1e99"]), PAGES, st.just("8")),
        max_size=3,
    ),
    unit=st.sampled_from([*UNITS]),
    offset_h=st.integers(-12, 14),
    separator=st.sampled_from(",;\t|"),
    encoding=st.sampled_from(["utf-8", "utf-16", "latin-1"]),
    nulls=st.sampled_from([(), ("NULL",)]),
)
def test_positives_of_text_are_those_of_a_plain_reader(
    tmp_path_factory, rows, broken, unit, offset_h, separator, encoding, nulls
):
    folder, per_s = tmp_path_factory.mktemp("log"), UNITS[unit]
    rows = [(u, i, str(t * per_s + per_s // 2), p, label) for u, i, t, p, label in rows]
    written = [("u1", "u1", str(SECOND * per_s), "home", "7"), *rows, *broken]
    with (folder / "log.csv").open("w", newline="", encoding=encoding) as file:
        csv.writer(file, delimiter=separator).writerows([NAMES, *written])
    section = custom.CustomConfig(
        **FIELDS,
        time_unit=unit,
        utc_offset_hours=float(offset_h),
        encoding=encoding,
        null_values=nulls,
    )
    found = read_rows(section, folder)
    assert found == plainly(written, per_s=per_s, offset_h=offset_h, nulls=nulls)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    rows=st.lists(
        st.tuples(
            st.integers(1, 5), IDS, SECONDS, PAGES, st.sampled_from([7, 8, 2**53 + 1, 2**53, None])
        ),
        min_size=1,
        max_size=30,
    ),
    value=st.sampled_from([7, 2**53 + 1]),
    kinds=st.sampled_from(["plain", "decimal", "typed"]),
)
def test_positives_of_parquet_are_those_of_a_plain_reader(tmp_path_factory, rows, value, kinds):
    folder = tmp_path_factory.mktemp("log")
    written = [(1, "u1", SECOND, "home", value), *rows]
    frame = pl.DataFrame(written, NAMES, orient="row")
    if kinds == "decimal":
        ids = [decimal.Decimal(user) for user in frame["user"]]
        frame = frame.with_columns(user=pl.Series(ids, dtype=pl.Decimal(10, 0)))
    if kinds == "typed":
        time = pl.from_epoch("time").dt.replace_time_zone("UTC").dt.convert_time_zone("Asia/Tokyo")
        frame = frame.with_columns(pl.col("page").cast(pl.Categorical), time=time)
    frame.write_parquet(folder / "log.parquet")
    fields = FIELDS | {"positive": f"label == {value}"}
    section = custom.CustomConfig(**fields, log_files=("log.parquet",), utc_offset_hours=2.0)
    texts = [
        (str(u), i, t, p, "" if label is None else str(label)) for u, i, t, p, label in written
    ]
    expected = plainly(texts, per_s=1, offset_h=2, equal=str(value).__eq__)
    assert read_rows(section, folder) == expected


def write(folder, rows, name="log.csv", header=NAMES):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return folder


GOOD = ("u1", "i1", SECOND, "home", "7")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("", "i1", SECOND, "home", "7"), "row 3, column 'user': expected text, got nothing; .*"
         "data.unknown_users='drop'"),
        (("u1", "", SECOND, "home", "7"), "row 3, column 'item': expected text, got nothing; .*"
         "data.unknown_items='drop'"),
        (("u1", "i1", "", "home", "7"), "row 3, column 'time': expected unix .* got nothing"),
        (("u1", "i1", SECOND * 1000, "home", "7"), "milliseconds: set data.time_unit='ms'"),
    ],
)  # fmt: skip
def test_a_positive_has_to_be_whole_and_other_rows_have_not(row, message, tmp_path):
    write(tmp_path, [GOOD, row])
    with pytest.raises(ValueError, match=message):
        read_rows(custom.CustomConfig(**FIELDS), tmp_path)
    for left_out in ((*row[:4], "8"), (*row[:3], "", "7"), (*row[:3], "moon", "7")):
        write(tmp_path, [GOOD, left_out])
        section = custom.CustomConfig(**FIELDS, scenarios=("home",))
        assert len(read_rows(section, tmp_path)) == 1


def test_empty_files_among_others_are_none_and_all_empty_are_refused(tmp_path):
    write(tmp_path, [GOOD], "log_1.csv")
    write(tmp_path, [], "log_2.csv")
    (tmp_path / "log_3.csv").touch()
    (tmp_path / "log_4.csv").write_bytes(gzip.compress(b"\n"))
    section = custom.CustomConfig(**FIELDS, log_files=("log_*.csv",))
    assert len(read_rows(section, tmp_path)) == 1
    (tmp_path / "log_1.csv").unlink()
    with pytest.raises(
        ValueError, match=r"data\.log_files: expected at least one row in the 3 files"
    ):
        read_rows(section, tmp_path)


def test_folders_of_partitions_are_columns(tmp_path):
    header = ("user", "item", "time", "label")
    for page in ("home", "a%2Fb", "__HIVE_DEFAULT_PARTITION__"):
        row = ("u1", "i1", SECOND, "7")
        write(tmp_path, [row], f"log/page={page}/part-0.csv", header)
    write(tmp_path, [], "log/page=home/_temporary/part-1.csv", header)
    (tmp_path / "log" / "_SUCCESS").touch()
    for pattern in ("log", "log/*/part-*.csv"):
        section = custom.CustomConfig(**FIELDS, log_files=(pattern,))
        assert [row[2] for row in read_rows(section, tmp_path)] == ["a/b", "home"]


@pytest.mark.parametrize("where", ["log.csv", "items.csv"])
def test_a_pipe_a_loop_and_a_folder_are_refused_at_once(tmp_path, where):
    write(tmp_path, [GOOD])
    write(tmp_path, [("i1",)], "items.csv", ("item",))
    section = custom.CustomConfig(**FIELDS, items_file="items.csv", raw_dir=str(tmp_path))
    path = tmp_path / where
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match=rf"{where}: expected a file, got a named pipe"):
        own_files.find(section)
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(ValueError, match=rf"{where}: expected a file, got Too many levels"):
        own_files.find(section)
    path.unlink()
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=rf"{where}: expected a file, found a symbolic link"):
        own_files.find(section)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        (
            {"log_files": ("",)},
            r"log_files: expected names or patterns below data\.raw_dir, got ''$",
        ),
        ({"log_files": ("/etc/log.csv",)}, r"log_files: expected names or patterns below"),
        ({"log_files": ("a**",)}, r"log_files: expected names or patterns .* got 'a\*\*': Invalid"),
        ({"log_files": ("a" * 300,)}, r"log_files: .* got 'a{77}\.\.\.': File name too long$"),
        ({"users_file": "a" * 300}, r"users_file: expected names below .*: File name too long$"),
    ],
)
def test_what_is_no_name_or_pattern_below_the_folder_is_named(tmp_path, fields, match):
    write(tmp_path, [GOOD])
    section = custom.CustomConfig(**FIELDS, raw_dir=str(tmp_path), **fields)
    with pytest.raises(ValueError, match=rf"^data\.{match}"):
        own_files.find(section)


PARTS = st.lists(st.text(st.sampled_from("ab27 é'."), min_size=1, max_size=4), max_size=5)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    cells=st.lists(PARTS, min_size=1, max_size=8),
    form=st.sampled_from(["joined", "padded", "repr"]),
)
def test_tags_are_their_parts_however_they_are_joined(tmp_path, cells, form):
    cells = [[part.strip() for part in cell if part.strip()] for cell in cells]
    if form == "repr":
        texts = [repr(cell) for cell in cells]
        if any("\\" in text for text in texts):
            return
    else:
        padded = form == "padded"
        texts = [(" |  | " if padded else "|").join(cell) + " |" * padded for cell in cells]
    frame = pl.DataFrame({"tags": texts}, schema={"tags": pl.String}).with_row_index(columns.ROW, 2)
    found = tags.split(tmp_path / "items.csv", frame, "tags", "|", 0)
    assert found.to_list() == cells


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["[27, 9]", "[]", None], [["27", "9"], [], None]),
        (["{27,9}", '{"a b",c}'], [["27", "9"], ["a b", "c"]]),
        (["[0 1\n 2]", "[ 3 ]"], [["0", "1", "2"], ["3"]]),
        (["['a' 'b']", "[None, nan, 'c']"], [["a", "b"], ["c"]]),
        (['["a, b", "c"]', "('d',)"], [["a, b", "c"], ["d"]]),
        (["[Official]", "rock|pop"], [["[Official]"], ["rock", "pop"]]),
        (["[27|9]", "[3]", "[4, 5]"], [["27", "9"], ["3"], ["4", "5"]]),
        (["['a|b'|\"c\"| d, e ]", "['a|b', 'c']"], [["a|b", "c", "d, e"], ["a|b", "c"]]),
        (["array([1, 2])", "np.array([3, NULL], dtype=int64)"], [["1", "2"], ["3"]]),
        (["a|-9", "NULL", "NULL|b"], [["a"], [], ["b"]]),
        ([["-9", "a", None], ["NULL"]], [["a"], []]),
        (['{"a: b",c}', "{12:30,13:00}", "{}"], [["a: b", "c"], ["12:30", "13:00"], []]),
    ],
)
def test_lists_in_brackets_are_read_where_all_cells_are_some(tmp_path, cells, expected):
    frame = pl.DataFrame({"tags": cells}).with_row_index(columns.ROW, 2)
    found = tags.split(tmp_path, frame, "tags", "|", 0, ("NULL", "-9")).to_list()
    assert found == expected


@pytest.mark.parametrize("separator", ["::", ", ", "."])
def test_a_separator_of_several_characters_joins_in_brackets(tmp_path, separator):
    frame = pl.DataFrame({"tags": [f"[a{separator}b:c]", "['d']"]}).with_row_index(columns.ROW, 2)
    assert tags.split(tmp_path, frame, "tags", separator, 0).to_list() == [["a", "b:c"], ["d"]]


@pytest.mark.parametrize("cell", ["{'a': 1}", '{"a":1,"b":2}', "{1: 2}"])
def test_dictionaries_are_refused(tmp_path, cell):
    frame = pl.DataFrame({"tags": ["{b}", cell]}).with_row_index(columns.ROW, 2)
    with pytest.raises(ValueError, match=r"row 3, column 'tags': expected a flat list, no dict"):
        tags.split(tmp_path / "items.csv", frame, "tags", "|", 0)


@pytest.mark.parametrize(
    "cell",
    ["[27, 9]", "[27]", "[[1], [2]]", "['a\\\\'b']", "array([1, 2])", "set(['a'])"],
)
def test_lists_beside_other_cells_are_refused(tmp_path, cell):
    frame = pl.DataFrame({"tags": ["a|b", cell]}).with_row_index(columns.ROW, 2)
    with pytest.raises(ValueError, match=r"row 3, column 'tags': .*set data\.bag_separator"):
        tags.split(tmp_path / "items.csv", frame, "tags", "|", 0)


def test_the_first_tags_of_a_long_cell_can_be_kept(tmp_path):
    frame = pl.DataFrame({"tags": [["a", "", " b ", None, "c"]]}).with_row_index(columns.ROW, 1)
    assert tags.split(tmp_path, frame, "tags", ",", 2).to_list() == [["a", "b"]]


ZONES = ("Europe/Berlin", "America/New_York", "America/Sao_Paulo", "Australia/Lord_Howe")
# Seconds around the changes of 2018, the last year in which all of these had some.
CHANGES = [
    int(change.timestamp())
    for change in (
        datetime.datetime(2018, month, day, hour, tzinfo=datetime.UTC)
        for month, day, hour in (
            (3, 25, 1), (10, 28, 1), (3, 11, 7), (11, 4, 6), (2, 18, 2), (11, 4, 3), (3, 31, 15),
            (10, 6, 15),
        )
    )
]  # fmt: skip


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    zone=st.sampled_from(ZONES),
    rows=st.lists(
        st.tuples(
            st.sampled_from(CHANGES), st.integers(-30 * 3600, 30 * 3600),
            st.sampled_from(["number", "local", "zoned"]),
        ),
        min_size=1, max_size=30,
    ),
)  # fmt: skip
def test_days_of_a_named_zone_are_those_of_the_standard_library(tmp_path_factory, zone, rows):
    own, written, expected = zoneinfo.ZoneInfo(zone), [], []
    for change_s, moved_s, form in rows:
        local = datetime.datetime.fromtimestamp(change_s + moved_s, own)
        if form == "local":
            local = local.replace(fold=0)
        text = local.isoformat() if form != "local" else str(local.replace(tzinfo=None))
        written.append(("u1", "i1", text, "home", "7"))
        expected.append(("u1", "i1", "home", int(local.timestamp()), local.date()))
    folder = write(tmp_path_factory.mktemp("log"), written)
    section = custom.CustomConfig(**FIELDS, time_unit="iso", time_zone=zone)
    assert read_rows(section, folder) == expected


def test_a_time_that_a_clock_shows_twice_is_counted_in_one_line(tmp_path, capsys):
    rows = [
        ("u1", "i1", "2024-10-27T02:30:00", "home", "7"),
        ("u1", "i2", "2024-10-27T02:30:00", "home", "8"),
        ("u1", "i3", "2024-10-27T02:30:00+02:00", "home", "7"),
        ("u1", "i4", "2024-10-27 02:59", "home", "7"),
        ("u1", "i5", "2024-10-27 03:00", "home", "7"),
    ]
    section = custom.CustomConfig(**FIELDS, time_unit="iso", time_zone="Europe/Berlin")
    read_rows(section, write(tmp_path, rows))
    assert capsys.readouterr().out.splitlines() == [
        "log: 2 positives at a time that the clock of Europe/Berlin shows twice, as it is set "
        "back: the earlier is taken"
    ]
    read_rows(section, write(tmp_path, rows[-1:]))
    assert capsys.readouterr().out == ""


def test_a_positive_at_a_time_that_never_was_is_refused_and_other_rows_are_left_out(tmp_path):
    never = ("u1", "i1", "2024-03-31 02:30:00", "home", "7")
    good = ("u1", "i1", "2024-03-31 03:30:00", "home", "7")
    section = custom.CustomConfig(**FIELDS, time_unit="iso", time_zone="Europe/Berlin")
    match = (
        r"log\.csv: row 3, column 'time': expected a time .*, got '2024-03-31 02:30:00'; the clock "
        r"of Europe/Berlin never showed it"
    )
    with pytest.raises(ValueError, match=match):
        read_rows(section, write(tmp_path, [good, never]))
    section.exposures = True
    found = read_rows(section, write(tmp_path, [good, (*never[:4], "8")]))
    assert [row[3] for row in found] == [1_711_848_600]


BARE = {"log_columns": NAMES, "log_files": ("u.data",)}


def bare(folder, text, encoding="utf-8"):
    (folder / "u.data").write_bytes(text.encode(encoding))
    return folder


@pytest.mark.parametrize("separator", ["\t", "|", ";", ","])
def test_files_without_a_header_have_the_columns_that_are_named(tmp_path, separator):
    rows = [("é", "i1", str(SECOND), "home", "7"), ("u2", "i2", str(SECOND + 1), "home", "8")]
    text = "\n".join(separator.join(row) for row in [*rows, rows[0]])
    for encoding, end in (("utf-8", "\n"), ("latin-1", ""), ("utf-16", "\r\n")):
        section = custom.CustomConfig(**FIELDS, **BARE, encoding=encoding)
        found = read_rows(section, bare(tmp_path, text + end, encoding))
        assert [row[:4] for row in found] == [("é", "i1", "home", SECOND)] * 2


def test_parts_without_a_header_are_numbered_from_row_1(tmp_path):
    text = f"u1,i1,{SECOND},home,7\nu1,,{SECOND},home,7\n"
    with pytest.raises(ValueError, match=r"u\.data: row 2, column 'item': expected text"):
        read_rows(custom.CustomConfig(**FIELDS, **BARE), bare(tmp_path, text))


@pytest.mark.parametrize(
    ("fields", "text", "message"),
    [
        ({"log_columns": ()}, "u1\ti1\t5\thome\t7\n",
         "row 1, column 'user': expected it in the header, got u1, i1, 5, home, 7; check that this "
         "is the right file, or, if it has no header, set data.log_columns"),
        ({"log_columns": NAMES[:4]}, "u1\ti1\t5\thome\t7\n",
         "row 1: expected the 4 columns of data.log_columns, got 1: 'u1\\ti1\\t5\\thome\\t7'; name "
         "all of them in order, or set data.separator"),
        ({"log_columns": ("a", *NAMES[1:])}, "u1,i1,5,home,7\n",
         "data.log_columns: expected a column 'user', got a, item, time, page, label"),
        ({"log_columns": ("user", "user")}, "u1,i1\n",
         "data.log_columns: expected the distinct names of all columns, got 'user', 'user'"),
        ({}, "", "expected at least one row"),
        ({}, "user,item,time,page,label\n", "u.data: row 1: expected values of the columns "
         "data.log_columns, got their names; the file has a header: leave data.log_columns empty"),
        ({"positive": ""}, "uid,iid,ts,page,label\n", "row 1, column 'time': expected unix seconds "
         "from 1 to 2147483646, got 'ts'; correct or remove the row; if row 1 is a header, leave "
         "data.log_columns empty"),
        ({}, f"u1,i1,{SECOND},home,7\nu1\n", "row 2: expected 5 columns, got 1: 'u1'"),
        ({"log_columns": (), "log_files": ("log.csv",)}, "u1\n",
         "log.csv to exist, found no file; the folder holds u.data"),
    ],
)  # fmt: skip
def test_what_is_wrong_without_a_header_is_named(tmp_path, fields, text, message):
    section = custom.CustomConfig(**{**FIELDS, **BARE, **fields})
    with pytest.raises(ValueError, match=re.escape(message)):
        read_rows(section, bare(tmp_path, text))
