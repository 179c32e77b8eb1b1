"""Lists for a file of users: parts, a killed command goes on, one line for what is wrong."""

import os
import re
import signal
import subprocess
import sys
import time

import polars as pl
import pytest

from dsmoe_jax.serving import bulk, recommend_command, retriever
from tests.models import small
from tests.serving import shop, small_bundle


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("bulk")
    shop.Untrained(shop.prepare(root), small.SMALL_MATCHERS["fism"]).export(root / "bundle")
    return root / "bundle"


@pytest.fixture(scope="module")
def found(folder):
    return retriever.Retriever.load(folder)


@pytest.fixture
def users(tmp_path):
    frame = pl.DataFrame({"user_id": [f"u{n % 50}" for n in range(100)]})
    frame.write_csv(tmp_path / "users.csv")
    return frame


def test_lists_are_the_retrievers_in_the_order_of_the_users(found, users, tmp_path):
    expected = found.recommend(users, "all", 4)
    for suffix in ("csv", "parquet"):
        path = tmp_path / f"users.{suffix}"
        if suffix == "parquet":
            users.write_parquet(path)
        rows = bulk.recommend_file(found, path, tmp_path / "out.parquet", k=4, block_users=30)
        assert rows == len(expected)
        assert pl.read_parquet(tmp_path / "out.parquet").equals(expected)
    assert not list(tmp_path.glob("*.blocks")) and not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("block_users", [20, 8192])
def test_parts_are_disjoint_and_make_the_whole(found, users, tmp_path, block_users):
    expected = found.recommend(users, "feed", 3).with_row_index()
    rows = []
    for number in range(3):
        part = bulk.Part(number, 3)
        bulk.recommend_file(
            found,
            tmp_path / "users.csv",
            tmp_path / "out.parquet",
            scenario="feed",
            k=3,
            part=part,
            block_users=block_users,
        )
        rows.append(pl.read_parquet(tmp_path / f"out-0000{number}-of-00003.parquet"))
    assert sum(map(len, rows)) == len(expected) and all(map(len, rows))
    joined = pl.concat(rows).sort("user_id", "rank")
    assert joined.equals(expected.drop("index").sort("user_id", "rank"))


def test_histories_of_a_file_are_read(found, tmp_path):
    text = pl.DataFrame({"user_id": ["x", "u1"], "history": ["i1 i2", None]})
    lists = text.with_columns(pl.col("history").str.split(" "))
    text.write_csv(tmp_path / "users.csv")
    bulk.recommend_file(found, tmp_path / "users.csv", tmp_path / "out.parquet", k=5)
    assert pl.read_parquet(tmp_path / "out.parquet").equals(found.recommend(lists, "all", 5))


@pytest.fixture(scope="module")
def integer(tmp_path_factory):
    """A retriever whose users and items are integers."""
    folder = small_bundle.write_bundle(tmp_path_factory.mktemp("integer") / "bundle")
    return retriever.Retriever.load(folder)


def test_raw_ids_of_a_file_come_back_as_they_stand_there(integer, tmp_path):
    names = ["abc", "2.0", " 5", None, "5", "-3", str(2**63 + 3), "\uff13"]
    lines = ["user_id,age", *(f"{name or ''},20s" for name in names)]
    (tmp_path / "users.csv").write_text("\n".join(lines))
    users, out = tmp_path / "users.csv", tmp_path / "out.parquet"
    bulk.recommend_file(integer, users, out, scenario="feed", k=1, with_user=True, block_users=3)
    got = pl.read_parquet(out)
    assert got["user_id"].to_list() == names
    asked = [{"user_id": name, "age": "20s"} for name in names]
    expected = integer.recommend(asked, "feed", 1, with_user=True)
    assert got.equals(expected) and got["user"].to_list().count("known") == 3
    # A column of integers alone joins with the bundle's.
    pl.DataFrame({"user_id": ["7", None, "5"]}).write_csv(users)
    bulk.recommend_file(integer, users, out, scenario="feed", k=1)
    assert pl.read_parquet(out).equals(integer.recommend([7, None, 5], "feed", 1))


@pytest.mark.parametrize("ids", [pl.Int64, pl.UInt64, pl.String, pl.Null, None])
def test_the_type_of_the_ids_is_that_of_the_file_whatever_a_block_lacks(integer, tmp_path, ids):
    frame = pl.DataFrame({"age": ["20s"] * 5})
    if ids is not None:
        raw = [None, None, None, 5, 3] if ids != pl.Null else [None] * 5
        frame = frame.with_columns(user_id=pl.Series(raw, dtype=pl.Int64).cast(ids))
    frame.write_parquet(tmp_path / "users.parquet")
    frame.head(0).write_parquet(tmp_path / "empty.parquet")
    types = []
    for name in ("users", "empty"):
        out = tmp_path / "out.parquet"
        bulk.recommend_file(
            integer, tmp_path / f"{name}.parquet", out, scenario="feed", k=1, block_users=2
        )
        lists = pl.read_parquet(out)
        types.append(lists.schema["user_id"])
        if name == "users" and ids is not None:
            assert lists["user_id"].to_list() == frame["user_id"].to_list()
    assert types == [pl.Int64 if ids in (pl.Null, None) else ids] * 2


def test_lists_that_are_joined_otherwise_than_by_blanks_are_refused(integer, tmp_path):
    users, out = tmp_path / "users.csv", tmp_path / "out.parquet"
    users.write_text('user_id,history\n1,1001 1002\n2,\n3,"1001,1002"\n')
    told = f"--users: {users}: row 3: history: expected item ids joined by blanks, got '1001,1002'"
    with pytest.raises(ValueError, match=re.escape(told)) as caught:
        bulk.recommend_file(integer, users, out, block_users=2)
    assert "\n" not in str(caught.value)
    # What is known beside it shows that it is an id.
    users.write_text('user_id,shown\n1," 1001  1,2 "\n')
    bulk.recommend_file(integer, users, out, scenario="feed", k=40, exclude="shown", with_user=True)
    lists = pl.read_parquet(out)
    assert 1001 not in lists["item_id"].to_list() and set(lists["unknown_events"]) == {0}


def test_a_killed_command_goes_on(folder, found, tmp_path):
    users = pl.DataFrame({"user_id": [f"u{n % 50}" for n in range(bulk._BLOCK_USERS * 6)]})
    users.write_parquet(tmp_path / "users.parquet")
    flags = ["--users", "users.parquet", "--out", "out.parquet", "--scenario", "feed", "--k", "5"]
    command = [sys.executable, "-m", "dsmoe_jax.main", "recommend", str(folder), *flags]
    process = subprocess.Popen(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": os.getcwd()})
    deadline = time.monotonic() + 120
    while not (done := list(tmp_path.glob("out.parquet.blocks/*.parquet"))):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out.parquet").exists()
    kept = {path: path.stat().st_mtime_ns for path in done}
    made = []
    original = bulk._recommend

    def count(found, frame, first, *more):
        made.append(first)
        return original(found, frame, first, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bulk, "_recommend", count)
        bulk.recommend_file(
            found, tmp_path / "users.parquet", tmp_path / "out.parquet", scenario="feed", k=5
        )
    assert kept and len(made) <= 6 - len(kept)
    whole, rest = divmod(len(users), 50)
    cycle, last = (found.recommend(users.head(count), "feed", 5) for count in (50, rest))
    got = pl.read_parquet(tmp_path / "out.parquet")
    assert got.equals(pl.concat([cycle] * whole + [last]))


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("users.txt", "u1", "--users: expected a file ending in .parquet or .csv, got"),
        ("users.parquet", "no", "--users: .*users.parquet cannot be read"),
        (
            "users.csv",
            "user_id,agee\nu1,3\n",
            "rows 1 to 1 of the users: users: unknown field 'agee'",
        ),
        ("none.csv", None, "--users: expected .*none.csv to exist, found no file"),
    ],
)
def test_what_is_wrong_is_one_line_and_writes_nothing(found, tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        bulk.recommend_file(found, tmp_path / name, tmp_path / "out.parquet")
    assert "\n" not in str(caught.value) and not (tmp_path / "out.parquet").exists()


def test_a_part_says_which_file_it_wrote(folder, tmp_path, capsys):
    pl.DataFrame({"user_id": ["u1", "u2"]}).write_parquet(tmp_path / "users.parquet")
    flags = ["--users", str(tmp_path / "users.parquet"), "--out", str(tmp_path / "out.parquet")]
    recommend_command.run(
        recommend_command.parse([str(folder), *flags, "--k", "3", "--part", "1/2"])
    )
    written = tmp_path / "out-00000-of-00002.parquet"
    assert capsys.readouterr().out == f"{written}: 9 rows\n"
    assert written.is_file() and not (tmp_path / "out.parquet").exists()


@pytest.mark.parametrize("part", ["0/3", "4/3", "x", "1"])
def test_a_part_that_is_none_is_refused(folder, tmp_path, part):
    arguments = [str(folder), "--users", "u.csv", "--out", "o.parquet", "--part", part]
    with pytest.raises(ValueError, match=f"--part: expected i/n with i from 1 to n, got '{part}'"):
        recommend_command.parse(arguments)
