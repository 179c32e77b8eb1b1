"""What users were shown and what is no positive: which events are kept, and what sees them."""

import numpy as np
import pytest

from dsmoe_jax.data import statistics
from dsmoe_jax.data.prepare import later
from tests import clicks

# (user, scenario, item, day), at the second of its number; days 1, 2 train, 3 validates, 4 tests.
CLICKS = [
    (1, 0, 1, 1),
    (1, 1, 2, 2),
    (2, 0, 3, 1),
    (2, 1, 4, 2),
    (1, 0, 3, 3),
    (2, 1, 2, 3),
    (1, 0, 4, 4),
    (2, 1, 1, 4),
]
# (user, scenario, item, day, second)
SHOWN = [
    (1, 0, 5, 1, 0),
    (1, 0, 5, 1, 0),  # again
    (1, 0, 1, 1, 1),  # a click
    (1, 1, 1, 1, 1),  # the second of a click, in another scenario
    (1, 0, 4, 1, 1),  # the second of a click
    (1, None, 3, 2, 3),  # in no kept scenario
    (2, 1, 1, 3, 0),  # on the validation day
    (2, 0, 5, 4, 0),  # on the test day
    (2, 0, 5, 5, 0),  # after the last day
    (2, 0, 99, 1, 0),  # no item of the pool
    (3, 0, 1, 1, 0),  # a user without a click: counted, but nobody's past
    (9, 0, 1, 1, 0),  # no user of the table
]
EARLIER_SHOWN = [(1, 4), (2, 5), (1, 2), (2, 99), (3, 1)]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("exposures") / "store"
    return clicks.write_store(
        path, CLICKS, shown=SHOWN, earlier_shown=EARLIER_SHOWN, users=3, items=5
    )


def windows(store, rows_XC):
    bounds = (rows_XC[:, store.columns[f"exposures_{end}"]] for end in ("start", "stop"))
    ids_EF, _ = store.sequences["exposures"]
    return [ids_EF[start:stop, 0].tolist() for start, stop in zip(*bounds, strict=True)]


def test_events_are_kept_once_without_clicks_and_earlier_ones_open_the_sequence(store):
    ids_EF, time_E = store.sequences["exposures"]
    assert ids_EF.tolist() == [[4], [2], [5], [1], [4], [3], [5], [1], [5]]
    day = clicks.DAY_S
    expected = [0, 0, day, day + 1, day + 1, 2 * day + 3, 0, 3 * day, 4 * day]
    assert time_E.tolist() == expected
    assert ids_EF.dtype == time_E.dtype == np.int32
    assert store.manifest["counts"]["exposures"] == 9
    names = [sequence.name for sequence in store.spec.sequences]
    assert names == ["history", "scenario_history", "exposures"]


def test_windows_hold_nothing_of_the_same_second_or_later_nor_of_the_splits_days(store):
    assert windows(store, store.train_NC) == [[4, 2, 5], [4, 2, 5, 1, 4], [5], [5]]
    assert windows(store, store.queries("validation").rows_QC) == [[4, 2, 5, 1, 4, 3], [5]]
    assert windows(store, store.queries("test").rows_QC) == [[4, 2, 5, 1, 4, 3], [5, 1]]


def test_rows_are_counted_by_day_scenario_and_item_up_to_the_test_days(store):
    daily_RF = store.load("daily")
    assert daily_RF.dtype == np.int32
    day = clicks.DAY_S
    assert daily_RF.tolist() == [
        [day, 0, 1, 1, 1],  # a click, and shown to the user without one
        [day, 0, 3, 1, 0],
        [day, 0, 4, 0, 1],
        [day, 0, 5, 0, 1],
        [day, 1, 1, 0, 1],
        [2 * day, 1, 2, 1, 0],
        [2 * day, 1, 4, 1, 0],
        [3 * day, 0, 3, 1, 0],
        [3 * day, 1, 1, 0, 1],
        [3 * day, 1, 2, 1, 0],
    ]


def test_all_that_is_not_of_exposures_is_as_without_them(store, tmp_path):
    plain = clicks.write_store(tmp_path / "store", CLICKS, users=3, items=5)
    assert "exposures" not in {*plain.sequences, *plain.manifest["counts"]}
    files = plain.manifest["files"]
    new = set(store.manifest["files"]) - set(files)
    assert new == {
        f"{name}.npy" for name in ("sequence_exposures", "sequence_exposures_time", "daily")
    }
    same = {name for name in files if files[name] == store.manifest["files"][name]}
    assert set(files) - same == {"train.npy", "validation_queries.npy", "test_queries.npy"}
    width = len(plain.columns)
    assert list(store.columns)[:width] == list(plain.columns)
    np.testing.assert_array_equal(store.train_NC[:, :width], plain.train_NC)


@pytest.mark.parametrize(
    ("given", "kept"),
    [({"shown": SHOWN}, 6), ({"earlier_shown": EARLIER_SHOWN}, 3), ({"shown": []}, 0)],
)
def test_either_kind_may_be_missing(tmp_path, given, kept):
    store = clicks.write_store(tmp_path / "store", CLICKS, users=3, items=5, **given)
    assert len(store.sequences["exposures"][0]) == kept
    assert (store.load("daily")[:, 4].sum() > 0) == (kept == 6)


def test_queries_of_a_later_log_see_all_exposures_before_it(store):
    start_s = 4 * clicks.DAY_S
    positives = {
        "user": np.array([1, 2]),
        "item": np.array([5, 5]),
        "scenario": np.array(["A", "B"]),
        "time_s": np.array([start_s + 9, start_s]),
    }
    view = later.add_queries(store, positives)
    rows_QC = view.queries("later").rows_QC
    assert windows(view, rows_QC) == [[4, 2, 5, 1, 4, 3], [5, 1]]
    positives["time_s"] += 1
    view = later.add_queries(store, positives)
    assert windows(view, view.queries("later").rows_QC)[1] == [5, 1, 5]


def test_the_prior_counts_what_was_shown_at_the_scenarios_click_rate(store):
    log_SV = statistics.known_log_prior(store, "validation", half_life_days=None)
    # Two clicks in five rows of A, two in three of B.
    click_SV = np.array([[1, 0, 1, 0, 0], [0, 1, 0, 1, 0]])
    shown_SV = np.array([[2, 0, 1, 1, 1], [1, 1, 0, 1, 0]])
    check_prior(log_SV, click_SV + 3 * np.array([[2 / 5], [2 / 3]]) * shown_SV)


def test_the_prior_of_the_test_days_counts_the_validation_days_and_older_days_less(store):
    log_SV = statistics.known_log_prior(store, "test", half_life_days=1.0, exposure_weight=2.0)
    click_SV = np.array([[0.25, 0, 1.25, 0, 0], [0, 1.5, 0, 0.5, 0]])
    shown_SV = np.array([[0.5, 0, 1.25, 0.25, 0.25], [1.25, 1.5, 0, 0.5, 0]])
    rate_S1 = np.array([[1.5 / 2.25], [2 / 3.25]])
    check_prior(log_SV, click_SV + 2 * rate_S1 * shown_SV)


def test_a_day_of_23_hours_makes_those_before_it_no_younger(store, monkeypatch):
    usual_SV = statistics.known_log_prior(store, "test", half_life_days=1.0)
    daily_RF = store.load("daily").copy()
    daily_RF[daily_RF[:, 0] > 2 * clicks.DAY_S, 0] -= 3600
    load = store.load
    monkeypatch.setattr(store, "load", lambda name: daily_RF if name == "daily" else load(name))
    found_SV = statistics.known_log_prior(store, "test", half_life_days=1.0)
    np.testing.assert_array_equal(found_SV, usual_SV)


def check_prior(log_SV, count_SV):
    overall_V = count_SV.sum(axis=0) + 1
    smooth_SV = count_SV + 10 * overall_V / overall_V.sum()
    expected_SV = smooth_SV / smooth_SV.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(np.exp(log_SV[:, 1:]), expected_SV, rtol=1e-5)
    assert log_SV[0, 0] == log_SV[0].min()


def test_the_constant_of_a_split_is_what_was_known_then(store, tmp_path):
    shapes = {"known_log_prior_SV": (2, 6), "log_prior_SV": (2, 6)}
    changing = statistics.changing_constants(store, shapes)
    assert changing == {"known_log_prior_SV": (2, 6)}
    for split in ("validation", "test"):
        [found_SV] = statistics.make_constants(store, changing, split).values()
        np.testing.assert_array_equal(found_SV, statistics.known_log_prior(store, split))
    training = statistics.make_constants(store, shapes)
    np.testing.assert_array_equal(
        training["known_log_prior_SV"], statistics.known_log_prior(store, "validation")
    )
    np.testing.assert_array_equal(training["log_prior_SV"], statistics.log_prior(store))
    plain = clicks.write_store(tmp_path / "store", CLICKS, users=3, items=5)
    assert not statistics.changing_constants(plain, shapes)
    constants = statistics.make_constants(plain, shapes)
    for value_SV in constants.values():
        np.testing.assert_array_equal(value_SV, statistics.log_prior(plain))


def test_what_users_were_shown_before_the_validation_days_and_did_not_click(store, tmp_path):
    shown_UV = statistics.read_exposures(store).toarray()
    assert shown_UV.tolist() == [[0] * 6, [0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 1], [0] * 6]
    plain = clicks.write_store(tmp_path / "store", CLICKS, users=3, items=5)
    assert not statistics.read_exposures(plain).nnz
