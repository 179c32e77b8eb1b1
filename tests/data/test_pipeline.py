import grain
import jax
import numpy as np
import pytest

from dsmoe_jax import features
from dsmoe_jax.data import pipeline
from tests import tiny


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tiny.write_store(tmp_path_factory.mktemp("pipeline") / "store")


def select(store, **changes):
    options = {"exclude": (), "history_length": 4, "scenario_history_length": 3, **changes}
    return features.select(store.spec, **options)


def make_source(store, **changes):
    options = {"seed": 3, "batch_size": 64, "max_epochs": 3, **changes}
    return pipeline.BatchSource(store, select(store), **options)


def test_window_is_the_last_events_in_order_padded_on_the_right():
    ids_EF = np.arange(1, 11, dtype=np.int32)[:, None]
    time_E = np.arange(100, 110, dtype=np.int32)
    window = pipeline.read_window(
        ids_EF, time_E, np.array([0, 2, 5, 9]), np.array([6, 4, 5, 10]), max_len=3
    )
    np.testing.assert_array_equal(
        window.ids_BLF[:, :, 0], [[4, 5, 6], [3, 4, 0], [0, 0, 0], [10, 0, 0]]
    )
    np.testing.assert_array_equal(
        window.time_BL, [[103, 104, 105], [102, 103, 0], [0, 0, 0], [109, 0, 0]]
    )


def test_window_of_an_empty_sequence_is_padding():
    window = pipeline.read_window(
        np.empty((0, 2), np.int32), np.empty(0, np.int32), np.zeros(3, int), np.zeros(3, int), 4
    )
    assert window.ids_BLF.shape == (3, 4, 2)
    assert not window.ids_BLF.any()


@pytest.mark.parametrize("num_events", [1, 4, 5, 6, 9, 10, 11])
def test_windows_near_the_end_of_the_events_are_as_any_other(num_events):
    max_len = 5
    rng = np.random.default_rng(num_events)
    ids_EF = rng.integers(1, 100, (num_events, 2), np.int32)
    time_E = rng.integers(1, 100, num_events, np.int32)
    bounds = [(a, b) for a in range(num_events + 1) for b in range(a, num_events + 1)]
    start_B, stop_B = np.array(bounds).T
    window = pipeline.read_window(ids_EF, time_E, start_B, stop_B, max_len)
    for row, (start, stop) in enumerate(bounds):
        kept = slice(max(start, stop - max_len), stop)
        count = kept.stop - kept.start
        np.testing.assert_array_equal(window.ids_BLF[row, :count], ids_EF[kept])
        np.testing.assert_array_equal(window.time_BL[row, :count], time_E[kept])
        assert not window.ids_BLF[row, count:].any()
        assert not window.time_BL[row, count:].any()


def test_histories_hold_only_what_came_before_the_example(store):
    rows = store.train_NC
    users = pipeline.UserReader(store, select(store)).read(rows)
    time_B = rows[:, store.columns["time_s"]]
    for sequence in users.sequences.values():
        assert (sequence.time_BL < time_B[:, None]).all()
        assert (sequence.ids_BLF > 0).any()


def test_histories_of_all_scenarios_lie_side_by_side(store):
    S = len(tiny.SCENARIOS)
    spec = select(store, scenario_histories=True)
    rows = store.train_NC[::7]
    users = pipeline.UserReader(store, spec).read(rows)
    every = users.sequences[features.SCENARIO_HISTORIES]
    assert every.ids_BLF.shape == (len(rows), S * 3, 1)
    columns = store.columns
    for s in range(S):
        # As the own history of an example in that scenario.
        there = rows.copy()
        there[:, columns["scenario"]] = s
        own = pipeline.UserReader(store, spec).read(there).sequences["scenario_history"]
        block = slice(3 * s, 3 * (s + 1))
        np.testing.assert_array_equal(every.ids_BLF[:, block], own.ids_BLF)
        np.testing.assert_array_equal(every.time_BL[:, block], own.time_BL)
    assert len({tuple(every.ids_BLF[:, 3 * s, 0]) for s in range(S)}) == S


def test_scenario_history_is_that_of_the_examples_own_scenario(store):
    rows = store.train_NC
    columns = store.columns
    users = pipeline.UserReader(store, select(store)).read(rows)
    for i in range(0, len(rows), 37):
        row = rows[i]
        before = rows[
            (rows[:, columns["user"]] == row[columns["user"]])
            & (rows[:, columns["scenario"]] == row[columns["scenario"]])
            & (rows[:, columns["time_s"]] < row[columns["time_s"]])
        ]
        expected = before[np.argsort(before[:, columns["time_s"]])][-3:, columns["item"]]
        got = users.sequences["scenario_history"].ids_BLF[i, :, 0]
        np.testing.assert_array_equal(got[got > 0], expected)


def test_excluded_features_leave_the_batch_and_order_follows_the_run(store):
    spec = select(store, exclude=("user_id", "scenario_history", "author"))
    users = pipeline.UserReader(store, spec).read(store.train_NC[:5])
    user_B = store.train_NC[:5, store.columns["user"]]
    np.testing.assert_array_equal(users.sparse_BF, store.users_sparse[user_B][:, 1:])
    assert list(users.sequences) == ["history"]
    assert pipeline.read_corpus(store, spec).sparse_VF.shape == (tiny.NUM_ITEMS + 1, 1)


def test_every_epoch_holds_each_example_at_most_once_in_another_order(store):
    source = make_source(store)
    seen = []
    for epoch in range(2):
        items = [
            source[epoch * source.steps_per_epoch + i].users.time_B
            for i in range(source.steps_per_epoch)
        ]
        seen.append(np.concatenate(items))
    all_times = sorted(store.train_NC[:, store.columns["time_s"]])
    for times in seen:
        assert len(times) == source.steps_per_epoch * 64
        counts = dict(zip(*np.unique(times, return_counts=True), strict=True))
        assert all(all_times.count(t) >= c for t, c in counts.items())
    assert (seen[0] != seen[1]).any()


def test_a_batch_depends_on_seed_and_step_alone(store):
    first, again = make_source(store), make_source(store)
    again[5]
    np.testing.assert_array_equal(first[2].item_B, again[2].item_B)
    assert (first[2].item_B != make_source(store, seed=4)[2].item_B).any()


@pytest.mark.parametrize("processes", [2, 4])
def test_process_slices_join_to_the_global_batch(store, processes):
    whole = make_source(store)[4]
    parts = [
        make_source(store, process_index=i, process_count=processes)[4] for i in range(processes)
    ]
    np.testing.assert_array_equal(whole.item_B, np.concatenate([part.item_B for part in parts]))
    np.testing.assert_array_equal(
        whole.users.sequences["history"].ids_BLF,
        np.concatenate([part.users.sequences["history"].ids_BLF for part in parts]),
    )


def test_iterator_starts_at_any_step(store):
    source = make_source(store)
    batches = list(pipeline.make_train_iterator(source, start=5))
    assert len(batches) == len(source) - 5
    np.testing.assert_array_equal(batches[0].item_B, source[5].item_B)
    np.testing.assert_array_equal(batches[-1].item_B, source[len(source) - 1].item_B)


def test_grains_own_saved_position_agrees_with_the_step(store):
    source = make_source(store)
    iterator = pipeline.make_train_iterator(source, start=0)
    for _ in range(4):
        next(iterator)
    state = iterator.get_state()
    other = pipeline.make_train_iterator(source, start=0)
    other.set_state(state)
    assert isinstance(other, grain.DatasetIterator)
    np.testing.assert_array_equal(next(other).item_B, source[4].item_B)


def test_a_batch_larger_than_the_data_is_refused(store):
    with pytest.raises(ValueError, match=r"train.batch_size: expected at most the \d+ training"):
        make_source(store, batch_size=10_000)


def test_processes_that_do_not_divide_the_batch_are_refused(store):
    with pytest.raises(ValueError, match="expected a multiple of the 3 processes, got 64"):
        make_source(store, process_count=3)


def test_query_batches_pad_to_one_size_and_mark_padding(store):
    spec = select(store)
    total = len(store.queries("validation").rows_QC)
    batches = list(pipeline.query_batches(store, spec, "validation", np.arange(total), 16))
    assert {len(batch.query_Q) for batch in batches} == {16}
    ids = np.concatenate([batch.query_Q for batch in batches])
    np.testing.assert_array_equal(ids[ids >= 0], np.arange(total))
    assert (ids == -1).sum() == -total % 16


@pytest.mark.parametrize("processes", [1, 4])
def test_process_slices_join_to_the_query_batches(store, processes):
    spec = select(store)
    total = len(store.queries("validation").rows_QC)

    def read(**share):
        return list(
            pipeline.query_batches(store, spec, "validation", np.arange(total), 16, **share)
        )

    slices = [read(process_index=p, process_count=processes) for p in range(processes)]
    for parts, whole in zip(zip(*slices, strict=True), read(), strict=True):
        joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
        jax.tree.map(np.testing.assert_array_equal, joined, whole)


def test_query_histories_end_before_the_split_begins(store):
    spec = select(store, history_length=500, scenario_history_length=500)
    for split, day in (("validation", 8), ("test", 9)):
        total = len(store.queries(split).rows_QC)
        batch = next(pipeline.query_batches(store, spec, split, np.arange(total), total))
        for sequence in batch.users.sequences.values():
            assert sequence.time_BL.max() < day * 86_400
            assert sequence.time_BL.max() > (day - 1) * 86_400


@pytest.mark.parametrize("share", ["all", "scenario"])
def test_shares_of_items_are_those_of_the_examples(store, share):
    source = make_source(store, share=share)
    rows_NC, columns = np.asarray(store.train_NC), store.columns
    batch = source[1]
    for scenario, item, log_share in zip(
        batch.scenario_B, batch.item_B, batch.log_share_B, strict=True
    ):
        same = rows_NC[rows_NC[:, columns["scenario"]] == scenario]
        among = same if share == "scenario" else rows_NC
        expected = np.mean(among[:, columns["item"]] == item)
        assert np.exp(log_share) == pytest.approx(expected, rel=1e-5)
    assert make_source(store)[1].log_share_B is None
