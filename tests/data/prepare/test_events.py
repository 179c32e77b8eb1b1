import numpy as np
import polars as pl
import pytest

from dsmoe_jax.data import store as store_lib
from dsmoe_jax.data.prepare import clocks, entities, events, histories

NUM_USERS = 1_000  # raw ids 0, 10, 20, ...; more than one user in each of the partitions


@pytest.fixture(scope="module")
def encoded():
    users = entities.Table(pl.DataFrame({"id": np.arange(NUM_USERS) * 10}), "id")
    items = entities.Table(
        pl.DataFrame({"id": [1, 2], "category": [5, 6], "brand": ["x", "y"]}),
        "id",
        sparse=("category", "brand"),
    )
    return (
        entities.encode_table(users, "user_id", {}),
        entities.encode_table(items, "item_id", {}, frozenset({"category", "brand"})),
    )


def make_log(seed, num_events=5_000):
    rng = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "user": rng.integers(0, NUM_USERS // 4, num_events) * 40,
            "time_s": rng.integers(1, 5, num_events) * 86_400,
            "category": rng.integers(4, 7, num_events),  # 4 has no id
            "brand": rng.choice(["x", "y", "z"], num_events),
        }
    )


def write(path, encoded, rows, blocks, fields=("category", "brand")):
    users, items = encoded
    log = events.BehaviorLog("behavior", fields, lambda: iter(blocks))
    with pytest.raises(StopIteration), store_lib.StoreWriter(path) as writer:
        found = events.write_behavior(writer, log, users, items, rows, clock=clocks.UTC)
        for growing in writer._growing:
            growing.close()
        names = sorted(p.name for p in writer.partial.iterdir())
        arrays = [np.load(writer.partial / name) for name in names]
        raise StopIteration  # only the arrays are wanted, not a store
    return found, dict(zip(names, arrays, strict=True))


def test_a_log_is_sorted_by_user_and_time_without_repetitions(tmp_path, encoded):
    log = make_log(0)
    _, arrays = write(tmp_path / "s", encoded, [], [log[:1234], log[1234:], log[::7]])
    assert set(arrays) == {"sequence_behavior.npy", "sequence_behavior_time.npy"}
    brand_id = {"x": 1, "y": 2, "z": 0}
    expected = sorted(
        {(u, t, c - 4, brand_id[b]) for u, t, c, b in log.iter_rows() if c > 4}
    )  # ids ascend like the raw values
    assert len(expected) > 1_000
    np.testing.assert_array_equal(
        arrays["sequence_behavior.npy"], [(category, brand) for _, _, category, brand in expected]
    )
    np.testing.assert_array_equal(
        arrays["sequence_behavior_time.npy"], [time_s for _, time_s, _, _ in expected]
    )
    assert arrays["sequence_behavior.npy"].dtype == np.int32


def test_windows_point_into_the_whole_sequence(tmp_path, encoded):
    log = make_log(1)
    user_X = np.arange(0, NUM_USERS + 1, 3)
    time_X = np.resize(np.array([1, 2, 3, 4, 9]) * 86_400, len(user_X))
    zeros = np.zeros_like(user_X)
    rows = histories.Rows(user_X, zeros, zeros, time_X, before_X=time_X, day_X=time_X // 86_400)
    ((start_X, stop_X),), arrays = write(tmp_path / "s", encoded, [rows], [log])
    distinct = {tuple(row) for row in log.iter_rows() if row[2] > 4}
    seen = 0
    for user, time_s, start, stop in zip(user_X, time_X, start_X, stop_X, strict=True):
        raw = (user - 1) * 10
        past = sorted(row[1] for row in distinct if row[0] == raw and row[1] < time_s)
        # z has no id, so it is one more unknown brand.
        assert arrays["sequence_behavior_time.npy"][start:stop].tolist() == past
        seen += len(past)
    assert seen > 100


def test_events_of_users_outside_the_table_are_left_out(tmp_path, encoded):
    log = pl.DataFrame({"user": [40, 45, 99_999, None], "time_s": [9] * 4, "category": [5] * 4})
    _, arrays = write(tmp_path / "s", encoded, [], [log], fields=("category",))
    assert arrays["sequence_behavior.npy"].tolist() == [[1]]


def test_an_empty_log_gives_empty_windows(tmp_path, encoded):
    one = np.array([3])
    rows = histories.Rows(one, one, one, one, before_X=one, day_X=one)
    ((start_X, stop_X),), arrays = write(tmp_path / "s", encoded, [rows], [])
    assert (start_X[0], stop_X[0]) == (0, 0)
    assert arrays["sequence_behavior.npy"].shape == (0, 2)
