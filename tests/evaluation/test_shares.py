"""Processes that share an evaluation, as threads: they find what one finds, and end together.

Letters: Q queries, V rows of the corpus (row 0 is padding).
"""

import dataclasses
import threading

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from dsmoe_jax.config import schema
from dsmoe_jax.evaluation import evaluators, metrics, protocol, shares
from tests import tiny

CONFIG = schema.EvalConfig(k=(2, 5), query_batch=8, mrr_depth=3)
WAIT_S = 60


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tiny.write_store(tmp_path_factory.mktemp("shares") / "store")


@pytest.fixture
def run_processes(monkeypatch):
    """Runs work(process) in several processes; returns what each gave or raised."""

    def run(count, work):
        here, barrier = threading.local(), threading.Barrier(count)
        given, ends = [None] * count, [None] * count

        def allgather(value):
            given[here.index] = np.asarray(value)
            barrier.wait(WAIT_S)
            gathered = np.stack(given)
            barrier.wait(WAIT_S)
            return gathered

        def start(index):
            here.index = index
            try:
                ends[index] = work(index)
            except (ValueError, OSError) as error:
                ends[index] = error

        monkeypatch.setattr(jax, "process_count", lambda: count)
        monkeypatch.setattr(jax, "process_index", lambda: here.index)
        monkeypatch.setattr(multihost_utils, "process_allgather", allgather)
        threads = [threading.Thread(target=start, args=(index,)) for index in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        monkeypatch.undo()
        return ends

    return run


def make_scores(store):
    size = (len(store.queries("test").rows_QC), store.spec.num_items)
    return np.random.default_rng(0).normal(size=size).astype(np.float32)


def evaluate(store, query_Q=None, config=CONFIG, scores=None):
    score_QV = make_scores(store)
    return evaluators.evaluate_scores(
        store,
        config,
        "test",
        np.arange(len(score_QV)) if query_Q is None else query_Q,
        scores or score_QV.__getitem__,
        num_negatives=4,
        seed=3,
    )


def evaluate_rows(store):
    """Every process evaluates its rows of every batch, as it does those of a model."""
    score_QV, size = make_scores(store), CONFIG.query_batch
    share = shares.Share(size)
    rules = protocol.Protocol(store, CONFIG, "test", share)
    for start in range(0, len(score_QV), size):
        ids = np.arange(start, min(start + size, len(score_QV)))
        with share:
            score_AV = score_QV[ids[share.rows]]
            rules.add_log_loss(ids, score_AV, 4, 3)
            rules.add_scores(ids, score_AV)
    return rules.finish()


def assert_equal(found, expected):
    """Every number and its type."""
    for got, want in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(got, want)
        assert np.asarray(got).dtype == np.asarray(want).dtype


def test_batches_are_split_into_rows_whether_or_not_processes_divide_them(run_processes):
    assert shares.Share(7).rows == slice(None)
    rows = run_processes(3, lambda _: np.arange(7)[shares.Share(7).rows].tolist())
    assert rows == [[0, 1, 2], [3, 4, 5], [6]]
    rows = run_processes(3, lambda _: np.arange(2)[shares.Share(2).rows].tolist())
    assert rows == [[0], [1], []]


@pytest.mark.parametrize("processes", [2, 3, 4])
@pytest.mark.parametrize("remove_seen", ["positives", "none"])
def test_every_process_has_the_evaluation_of_one_to_the_bit(
    store, run_processes, processes, remove_seen
):
    config = dataclasses.replace(CONFIG, remove_seen=remove_seen)
    expected = evaluate(store, config=config)
    assert len(expected.query_Q) % processes and len(expected.query_Q) % CONFIG.query_batch
    for found in run_processes(processes, lambda _: evaluate(store, config=config)):
        assert_equal(found, expected)


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_rows_that_are_split_give_the_evaluation_of_one_to_the_bit(store, run_processes, processes):
    for found in run_processes(processes, lambda _: evaluate_rows(store)):
        assert_equal(found, evaluate(store))


def test_every_batch_is_scored_by_one_process(store, run_processes):
    asked, score_QV = {}, make_scores(store)

    def work(process):
        def scores(ids):
            asked.setdefault(process, []).append(ids)
            return score_QV[ids]

        return evaluate(store, scores=scores)

    run_processes(3, work)
    firsts = {
        process: [ids[0] // CONFIG.query_batch for ids in own] for process, own in asked.items()
    }
    batches = -(-len(score_QV) // CONFIG.query_batch)
    assert firsts == {process: list(range(process, batches, 3)) for process in range(3)}


def test_there_may_be_fewer_queries_than_processes(store, run_processes):
    some = np.array([9, 2])
    for found in run_processes(4, lambda _: evaluate(store, some)):
        assert_equal(found, evaluate(store, some))
    for end in run_processes(2, lambda _: evaluate(store, some[:0])):
        assert "expected at least one query" in str(end)


def test_ndcg_is_computed_at_the_row_s_place_in_its_batch(store, run_processes, monkeypatch):
    def places(hit_QT, relevant_Q, k):
        assert relevant_Q.min() >= 1
        return hit_QT[:, :k].sum(axis=1) / relevant_Q + np.arange(len(hit_QT))

    with monkeypatch.context() as patched:
        patched.setattr(metrics, "ndcg_at_k", places)
        expected = evaluate(store)
        several = run_processes(3, lambda _: evaluate_rows(store))
    assert expected.ndcg[2].max() >= CONFIG.query_batch - 1
    for found in several:
        assert_equal(found, expected)


@pytest.mark.parametrize("failing_batch", [1, 4])
def test_a_failure_in_one_process_ends_all_of_them(store, run_processes, failing_batch):
    score_QV = np.zeros((len(store.queries("test").rows_QC), store.spec.num_items), np.float32)

    def work(process):
        def scores(ids):
            if process == 1 and ids[0] == failing_batch * CONFIG.query_batch:
                raise OSError("scores.npy: input/output error")
            return score_QV[ids]

        return evaluate(store, scores=scores)

    first, second, third = run_processes(3, work)
    assert isinstance(second, OSError) and str(second) == "scores.npy: input/output error"
    for other in (first, third):
        assert str(other) == (
            "test: process 1 could not evaluate its share of the queries: OSError: scores.npy: "
            "input/output error"
        )


@pytest.mark.parametrize("reason", ["", "several\nlines", "\N{SNOWMAN}" * 400])
def test_the_others_hear_any_reason_in_one_line(run_processes, reason):
    def work(process):
        share = shares.Share(8)
        with share:
            if process == 0:
                raise OSError(reason)
        share.check("test")

    said = str(run_processes(2, work)[1])
    assert said.startswith("test: process 0 could not evaluate its share of the queries: OSError:")
    assert "\n" not in said and len(said.encode()) < 500


def test_no_process_waits_for_one_that_cannot_open_its_queries(store, run_processes, monkeypatch):
    opened, read_removed = [], protocol.read_removed

    def fail_once(*arguments):
        opened.append(arguments)
        if len(opened) == 1:
            raise OSError("queries: input/output error")
        return read_removed(*arguments)

    monkeypatch.setattr(protocol, "read_removed", fail_once)
    ends = run_processes(2, lambda _: evaluate(store))
    assert sorted(type(end).__name__ for end in ends) == ["OSError", "ValueError"]
    assert all("queries: input/output error" in str(end) for end in ends)


def test_one_process_fails_at_once(store):
    asked = []

    def scores(ids):
        asked.append(ids)
        raise OSError("scores.npy: input/output error")

    with pytest.raises(OSError, match="input/output"):
        evaluate(store, scores=scores)
    assert len(asked) == 1


def test_columns_are_joined_with_all_their_bits(run_processes):
    whole = {
        "query": np.array([2**53 + 1, 5, -1, 8]),
        "value": np.array([np.pi, np.nextafter(1.0, 2.0), -0.0, 1e-300]),
        "cold": np.array([True, False, True, True]),
        "short": np.array([1, 2, 3, 4], np.int16),
    }
    cuts = (0, 1, 1, 4)  # the second has none

    def work(process):
        own = slice(cuts[process], cuts[process + 1])
        return shares.Share(3).gather({name: value[own] for name, value in whole.items()})

    for found in run_processes(3, work):
        assert list(found) == list(whole)
        assert_equal(found, whole)
