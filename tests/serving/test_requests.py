"""From raw values to what training saw, and what unknown and malformed values become."""

import datetime

import numpy as np
import pandas as pd
import polars as pl
import pytest

from dsmoe_jax import features
from dsmoe_jax.data import store as store_lib
from dsmoe_jax.data.prepare import kuairand
from dsmoe_jax.serving import bundle as bundle_lib
from dsmoe_jax.serving import frames, requests, state, values
from tests.serving import shop


class Prepared(bundle_lib.Bundle):
    """A store with what an encoder asks of a bundle."""

    def __init__(self, store):
        known = state.read_known(store)
        self.raw_spec, self.manifest = store.spec, dict(store.manifest)
        self.spec = features.select(
            store.spec, exclude=(), history_length=6, scenario_history_length=4
        )
        self.manifest["towers"] = {"kind": "stablehlo"}
        self.manifest["columns"] = store.manifest["columns"]["examples"]
        self._store, self._known = store, known

    def has(self, name):
        return (self._store.root / f"{name}.npy").is_file()

    def load(self, name):
        if name == "user_rows":
            return self._known.rows_UC
        for sequence, (ids_EF, time_E) in self._known.sequences.items():
            if name == f"sequence_{sequence}":
                return ids_EF
            if name == f"sequence_{sequence}_time":
                return time_E
        return np.asarray(self._store.load(name))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return shop.prepare(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def encoder(store):
    return requests.Encoder(Prepared(store))


def read(encoder, columns, scenario=0):
    encoded = encoder.encode(columns)
    rows = np.arange(len(encoded.rows_BC))
    return encoded.read(rows, np.full(len(rows), scenario, np.int32))


def test_raw_features_of_all_users_and_items_are_the_stores(store, encoder):
    raw = store.root.parent / "raw"
    users = pl.read_csv(raw / "users.csv")
    encoded = encoder.encode(frames.read_users(users.with_columns(user_id=None)))
    row_B = encoder.users.encode(users["user_id"].to_list(), "users")
    np.testing.assert_array_equal(encoded.state.users_sparse[:, 1:], store.users_sparse[row_B, 1:])
    np.testing.assert_array_equal(encoded.state.users_dense, store.users_dense[row_B])
    np.testing.assert_array_equal(
        encoded.state.users_bags["likes"], store.users_bags["likes"][row_B]
    )
    items = pl.read_csv(raw / "items.csv")
    got = encoder.encode_items(frames.read_users(items.drop("item_id")))
    row_N = encoder.items.encode(items["item_id"].to_list(), "items")
    np.testing.assert_array_equal(got.sparse_VF[:, 1:], store.items_sparse[row_N, 1:])
    np.testing.assert_array_equal(got.dense_VF, store.items_dense[row_N])
    np.testing.assert_array_equal(got.bags["colours"], store.items_bags["colours"][row_N])
    # Blanks around a value do not count, as in preparation.
    padded = items.drop("item_id").with_columns(
        pl.col("colours").str.replace_all("|", " | ", literal=True)
    )
    got = encoder.encode_items(frames.read_users(padded))
    np.testing.assert_array_equal(got.bags["colours"], store.items_bags["colours"][row_N])


def test_raw_features_of_every_packaged_row_are_the_stores(tmp_path):
    kuairand.KuaiRandConfig().prepare(str(tmp_path / "store"))
    store = store_lib.Store.open(tmp_path / "store")
    encoder = requests.Encoder(Prepared(store))
    folder = kuairand.SAMPLE_DIR
    users = pl.read_csv(folder / "user_features_pure.csv.gz", null_values=[""])
    known = [name for name in users.columns if name in encoder.user_features]
    assert len(known) == len(encoder.user_features)
    encoded = encoder.encode(frames.read_users(users.select(known).with_columns(user_id=None)))
    row_B = encoder.users.encode(users["user_id"].to_numpy(), "users")
    assert len(row_B) == len(store.users_sparse) - 1 and row_B.all()
    np.testing.assert_array_equal(encoded.state.users_sparse[:, 1:], store.users_sparse[row_B, 1:])
    np.testing.assert_array_equal(encoded.state.users_dense, store.users_dense[row_B])
    items = pl.read_csv(folder / "video_features_basic_pure.csv.gz", null_values=[""])
    names = [f.name for g in ("sparse", "dense", "bags") for f in getattr(store.spec, f"item_{g}")]
    # A range of durations is made of the raw number.
    got = encoder.encode_items(
        frames.read_users(items.select([n for n in names if n in items.columns]))
    )
    row_N = encoder.items.encode(items["video_id"].to_numpy(), "items")
    np.testing.assert_array_equal(got.sparse_VF[:, 1:], store.items_sparse[row_N, 1:])
    np.testing.assert_array_equal(got.dense_VF, store.items_dense[row_N])
    np.testing.assert_array_equal(got.bags["tag"], store.items_bags["tag"][row_N])


def test_users_without_a_test_query_know_what_came_before_it_too(store):
    known = state.read_known(store)
    queries, columns = store.queries("test"), store.columns
    of = store_lib.Windows("history")
    start_UW, stop_UW = of.read(known.rows_UC, columns)
    ids_EF, _ = known.sequences["history"]
    # By their queries, and by a search for the same moment.
    for rows_C in queries.rows_QC:
        user = rows_C[columns["user"]]
        window = slice(rows_C[columns["history_start"]], rows_C[columns["history_stop"]])
        expected = store.sequences["history"][0][window, 0]
        np.testing.assert_array_equal(ids_EF[start_UW[user, 0] : stop_UW[user, 0], 0], expected)
    asked = set(queries.rows_QC[:, columns["user"]].tolist())
    log = pl.read_csv(store.root.parent / "raw" / "log.csv").filter(pl.col("action") == "click")
    others = 0
    for user, raw in enumerate(store.users_raw_id.tolist()):
        if user and user not in asked:
            own = log.filter((pl.col("user_id") == raw) & (pl.col("time") < known.until_s))
            got = store.items_raw_id[ids_EF[start_UW[user, 0] : stop_UW[user, 0], 0]].tolist()
            assert got == own.sort("time")["item_id"].to_list()
            others += 1
    assert others > 3


def test_a_history_that_is_given_is_read_as_the_stored_one(store, encoder):
    known = encoder.encode({"user_id": ["u3", "u4"]})
    raw = store.items_raw_id
    histories = []
    for row in range(2):
        window = [
            known.rows_BC[row, encoder.columns[f"history_{end}"]] for end in ("start", "stop")
        ]
        ids_EF, time_E = known.state.sequences["history"]
        events = []
        for item, time in zip(ids_EF[slice(*window), 0], time_E[slice(*window)], strict=True):
            scenario = scenario_of(store, known, row, item, time)
            events.append({"item_id": str(raw[item]), "time": int(time), "scenario": scenario})
        histories.append(events)
    given = {"user_id": ["u3", "u4"], "history": histories}
    for s in range(3):
        stored, own = (
            read(encoder, {"user_id": ["u3", "u4"]}, s),
            read(encoder, given, s),
        )
        for name in ("history", "scenario_history", "exposures"):
            np.testing.assert_array_equal(
                own.sequences[name].ids_BLF, stored.sequences[name].ids_BLF
            )
            np.testing.assert_array_equal(
                own.sequences[name].time_BL, stored.sequences[name].time_BL
            )
    # Without times they are taken in the order that is given.
    shuffled = [[event["item_id"] for event in events] for events in histories]
    plain = read(encoder, {"history": shuffled, "user_id": ["u3", "u4"]})
    np.testing.assert_array_equal(
        plain.sequences["history"].ids_BLF, read(encoder, given).sequences["history"].ids_BLF
    )
    assert not plain.sequences["scenario_history"].ids_BLF.any()


def scenario_of(store, known, row, item, time):
    columns, (ids_EF, time_E) = store.columns, known.state.sequences["scenario_history"]
    for s, name in enumerate(store.spec.scenarios):
        start = known.rows_BC[row, columns[f"scenario_history_start_{s}"]]
        stop = known.rows_BC[row, columns[f"scenario_history_stop_{s}"]]
        if ((ids_EF[start:stop, 0] == item) & (time_E[start:stop] == time)).any():
            return name
    raise AssertionError((item, time))


def test_statuses_and_unknown_values(encoder):
    encoded = encoder.encode(
        {
            "user_id": ["u1", "nobody", "nobody", None],
            "history": [None, ["i2", "gone", "i3"], ["gone"], None],
            "age": ["unheard of", "30s", None, None],
        }
    )
    assert encoded.status_B.tolist() == [
        requests.KNOWN,
        requests.FROM_HISTORY,
        requests.COLD,
        requests.COLD,
    ]
    assert encoded.unknown_B.tolist() == [0, 1, 1, 0]
    users = encoded.read(np.arange(4), np.zeros(4, np.int32))
    assert users.sparse_BF[1, 1] > 0 and users.sparse_BF[[0, 2, 3], 1].tolist() == [0, 0, 0]
    ids = encoder.items.encode(["i2", "i3"], "items").tolist()
    assert users.sequences["history"].ids_BLF[1, :3, 0].tolist() == [*ids, 0]
    assert encoded.seen(1).tolist() == ids


def test_shown_and_seen_are_what_the_request_says_or_the_store_knows(store, encoder):
    stored = encoder.encode({"user_id": ["u5"]})
    queries = store.queries("test")
    table = {
        int(rows_C[store.columns["user"]]): queries.seen.items[
            slice(*queries.seen.indptr[q : q + 2])
        ]
        for q, rows_C in enumerate(queries.rows_QC)
    }
    for user, seen in table.items():
        raw = store.users_raw_id[user]
        own = encoder.encode({"user_id": [str(raw)]})
        assert sorted(set(own.seen(0).tolist())) == seen.tolist()
    assert set(stored.seen(0).tolist()) <= set(stored.shown(0).tolist())
    given = encoder.encode({"user_id": ["u5"], "history": [["i1"]], "shown": [["i2", "i9"]]})
    assert given.seen(0).tolist() == encoder.items.encode(["i1"], "").tolist()
    assert given.shown(0).tolist() == encoder.items.encode(["i1", "i2", "i9"], "").tolist()


@pytest.mark.parametrize(
    "columns, message",
    [
        ({"agee": ["30s"]}, "users: unknown field 'agee'; nearest: 'age'"),
        ({"orders": ["many"]}, "users: orders: expected a number, got 'many'"),
        ({"orders": [-1]}, "users: orders: expected a number >= 0, got -1.0"),
        ({"orders": [True]}, "users: orders: expected a number, got True"),
        ({"orders": [float("inf")]}, "users: orders: expected a finite number, got inf"),
        ({"age": [["30s"]]}, r"users: age: expected text or a number, got \['30s'\]"),
        ({"user_id": [{"a": 1}]}, "users: user_id: expected text or a number, got {'a': 1}"),
        ({"history": ["i1"]}, "users: history: expected a list, got 'i1'"),
        ({"history": [3]}, "users: history: expected a list, got 3"),
        ({"history": [[["i1"]]]}, r"users: history: expected text or a number, got \['i1'\]"),
        (
            {"history": [[{"item": 1}]]},
            "users: history: expected events with item_id, .*, got 'item'",
        ),
        ({"history": [[{"item_id": "i1", "time": -4}]]}, "users: history: time: expected unix"),
        (
            {"history": [[{"item_id": "i1", "scenario": "fed"}]]},
            "users: history: scenario: expected one of feed, .*, got 'fed'; nearest: 'feed'",
        ),
        ({"time": [0]}, "users: time: expected unix seconds from 1 to 2147483647"),
    ],
)
def test_what_cannot_be_a_value_is_refused_in_one_line(encoder, columns, message):
    with pytest.raises(ValueError, match=message) as caught:
        encoder.encode(columns)
    assert "\n" not in str(caught.value)


def test_texts_and_numbers_name_the_same_value():
    text = values.Vocabulary(np.array(["", "1", "2020-01-02", "a"]))
    raw = [1, 1.0, "1", datetime.date(2020, 1, 2), "a", None, float("nan"), "a" * 99, 2]
    assert text.encode(raw, "x").tolist() == [1, 1, 1, 2, 3, 0, 0, 0, 0]
    integer = values.Vocabulary(np.array([-1, -7, 3, 2**53 + 1]))
    raw = [3, "3", 3.0, -7, "-7", 3.5, "3.0", "x", None, 2**53, 2**53 + 1, 2**70, -1, True, pd.NA]
    assert integer.encode(raw, "x").tolist() == [2, 2, 2, 1, 1, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0]
    # An array at once as one by one.
    texts = [" 3", "3 ", "-7", "--7", "7-", "-", "", "3.0", "+3", "\uff13", "03", str(2**63 + 3)]
    texts += [str(2**53 + 1), str(-(2**63)), "9" * 19, "9" * 25, "-" + "9" * 18]
    expected = integer.encode(texts, "x").tolist()
    assert integer.encode(np.array(texts), "x").tolist() == expected
    assert expected == [2, 2, 1, *[0] * 6, 2, 2, 0, 3, *[0] * 4]
    digits = values.Vocabulary(np.array(["", "-7", "3"]))
    assert digits.encode(np.array([3, -7, 4]), "x").tolist() == [2, 1, 0]
    ids = values.Vocabulary(np.array([-1, 1]), of_ids=True)
    for wrong in (True, np.True_):
        with pytest.raises(ValueError, match="x: expected an id, got True"):
            ids.encode([wrong], "x")
    assert integer.decode(np.array([2, 0, 1])) == [3, None, -7]
    assert values.Vocabulary(np.array([-1])).encode([5], "x").tolist() == [0]


BIG = 2**63 + 5


@pytest.mark.parametrize(
    ("column", "raw", "echo"),
    [
        (pd.Series([3, None], dtype="Int64"), [3, None], "Int64"),
        (pd.Series([3, None], dtype="string"), ["3", None], "String"),
        (pd.Series([3.0, None]), [3.0, None], "Float64"),
        (pd.Series([BIG, 3], dtype="uint64"), [BIG, 3], "UInt64"),
        (pd.Series([BIG, None], dtype="UInt64"), [BIG, None], "UInt64"),
        (pd.Series([3, 4], dtype="Int64"), [3, 4], "Int64"),
        (pl.Series([BIG, 3], dtype=pl.UInt64), [BIG, 3], "UInt64"),
        (pl.Series([BIG, None], dtype=pl.UInt64), [BIG, None], "UInt64"),
        (pl.Series([3.0, float("nan")]), [3.0, None], "Float64"),
        (pl.Series([3, 4], dtype=pl.UInt8), [3, 4], "UInt8"),
    ],
    ids=lambda column: str(getattr(column, "dtype", "")),
)
def test_a_column_is_read_as_its_values_and_never_as_others(column, raw, echo):
    for users in (column, type(column.to_frame("user_id"))({"user_id": column})):
        columns = frames.read_users(users)
        assert list(columns["user_id"]) == raw
        named = frames.name_users(users, columns, 2, pl.Int64)
        assert (named.name, str(named.dtype)) == ("user_id", echo)
    for value in (pd.NA, pd.NaT, float("nan")):
        assert frames.read_users([value]) == {"user_id": [None]}
        assert frames.read_users([{"age": value}]) == {"user_id": [None], "age": [None]}


def test_pandas_gets_large_ids_beside_none_as_they_are():
    got = frames.to_pandas(pl.DataFrame({"user_id": [2**53 + 1, None]}))
    assert got["user_id"].tolist() == [2**53 + 1, pd.NA]
