"""Exact search on the host against brute force, bit for bit."""

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsmoe_jax.retrieval import host
from tests.retrieval import brute_force


def random_corpus(num_rows=3000, dim=12, queries=4, interests=1, seed=0):
    rng = np.random.default_rng(seed)
    item_VD = rng.normal(size=(num_rows, dim)).astype(np.float32)
    return item_VD, rng.normal(size=(queries, interests, dim)).astype(np.float32), rng


def test_literal_lists():
    item_VD = np.array([[9, 9], [1, 0], [0, 2], [3, 0], [1, 0]], np.float32)
    query_QMD = np.array([[[1, 0]], [[0, 1]]], np.float32)
    index = host.HostIndex(item_VD)
    score_QT, item_QT = index.search(query_QMD, 3)
    assert item_QT.tolist() == [[3, 1, 4], [2, 1, 3]]
    assert score_QT.tolist() == [[3, 1, 1], [2, 0, 0]]
    score_QT, item_QT = index.search(
        query_QMD,
        3,
        allowed_V=np.array([True, True, True, False, True]),
        removed=[np.array([1]), np.array([], int)],
    )
    assert item_QT.tolist() == [[4, 2, 0], [2, 1, 4]]
    assert score_QT.tolist() == [[1, 0, -np.inf], [2, 0, 0]]
    assert (index.num_rows, index.num_candidates) == (5, 4)
    assert isinstance(index, host.Searcher)


@pytest.mark.parametrize("chunk", [700, 1 << 16])
@pytest.mark.parametrize("interests", [1, 3])
@pytest.mark.parametrize("share", brute_force.SHARES)
def test_filtered_lists_equal_brute_force(share, interests, chunk, monkeypatch):
    monkeypatch.setattr(host, "_CHUNK", chunk)
    monkeypatch.setattr(host, "_SCORE_BYTES", 4 * chunk * 2)  # blocks of at most two vectors
    item_VD, query_QMD, rng = random_corpus(interests=interests)
    allowed_V = rng.random(len(item_VD)) < share
    removed = [rng.integers(0, len(item_VD), size) for size in (0, 1, 40, 2000)]
    index = host.HostIndex(item_VD)
    for mask_V in (allowed_V, allowed_V | (rng.random(len(item_VD)) < 0.001)):
        for lists in (removed, None):
            found = index.search(query_QMD, 25, allowed_V=mask_V, removed=lists)
            expected = brute_force.search(item_VD, query_QMD, 25, mask_V, lists)
            brute_force.assert_same(found, expected)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    k=st.sampled_from([1, 9, 700]),
    share=st.sampled_from([None, 0.9, 0.3, 0.02]),
    interests=st.sampled_from([1, 2]),
)
def test_ties_come_in_ascending_order_of_id(seed, k, share, interests):
    # Few distinct vectors of long digits: a matrix product would tell equal rows apart.
    rng = np.random.default_rng(seed)
    item_VD = rng.normal(size=(5, 21)).astype(np.float32)[rng.integers(0, 5, 601)]
    query_QMD = rng.normal(size=(3, interests, 21)).astype(np.float32)
    allowed_V = None if share is None else rng.random(601) < share
    removed = [rng.integers(1, 601, 30) for _ in range(3)]
    found = host.HostIndex(item_VD).search(query_QMD, k, allowed_V=allowed_V, removed=removed)
    brute_force.assert_same(found, brute_force.search(item_VD, query_QMD, k, allowed_V, removed))


def test_a_query_of_zeros_ties_everything():
    item_VD, _, _ = random_corpus(50)
    _, item_QT = host.HostIndex(item_VD).search(np.zeros((1, 1, 12), np.float32), 4)
    assert item_QT.tolist() == [[1, 2, 3, 4]]


@pytest.mark.parametrize("allowed", [None, 0.5])
def test_a_query_has_one_list_alone_and_in_a_batch(allowed):
    item_VD, query_QMD, rng = random_corpus(queries=70, dim=33)
    item_VD[1500:] = item_VD[1:1501]
    allowed_V = None if allowed is None else rng.random(len(item_VD)) < allowed
    index = host.HostIndex(item_VD)
    together = index.search(query_QMD, 30, allowed_V=allowed_V)
    alone = [index.search(query_QMD[q : q + 1], 30, allowed_V=allowed_V) for q in range(70)]
    brute_force.assert_same(together, [np.concatenate(part) for part in zip(*alone, strict=True)])


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_lists_longer_than_the_corpus_end_in_padding(rows):
    item_VD = np.ones((rows, 3), np.float32)
    score_QT, item_QT = host.HostIndex(item_VD).search(np.ones((2, 1, 3), np.float32), 5)
    missing = 5 - (rows - 1)
    assert item_QT.tolist() == [[*range(1, rows), *[0] * missing]] * 2
    assert score_QT.tolist() == [[3.0] * (rows - 1) + [-np.inf] * missing] * 2


def test_no_queries_have_no_lists():
    score_QT, item_QT = host.HostIndex(np.ones((4, 3), np.float32)).search(
        np.empty((0, 1, 3), np.float32), 5
    )
    assert score_QT.shape == item_QT.shape == (0, 5)


def test_a_memory_map_is_searched_where_it_lies(tmp_path):
    item_VD, query_QMD, _ = random_corpus(40_000, dim=32)
    np.save(tmp_path / "item.npy", item_VD)
    index = host.HostIndex(np.load(tmp_path / "item.npy", mmap_mode="r"))
    tracemalloc.start()
    try:
        found = index.search(query_QMD, 10)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    brute_force.assert_same(found, brute_force.search(item_VD, query_QMD, 10))
    assert peak < item_VD.nbytes / 2


def test_half_precision_is_searched_as_single():
    item_VD, query_QMD, _ = random_corpus(300)
    half_VD = item_VD.astype(np.float16)
    found = host.HostIndex(half_VD).search(query_QMD.astype(np.float64), 10)
    brute_force.assert_same(found, brute_force.search(half_VD.astype(np.float32), query_QMD, 10))


def test_vectors_that_are_not_finite_are_refused_at_the_first_search():
    item_VD, query_QMD, _ = random_corpus(50)
    item_VD[7, 3] = np.nan
    with pytest.raises(ValueError, match="expected finite numbers, got nan or inf in row 7"):
        host.HostIndex(item_VD).search(query_QMD, 3)


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="expected at least the padding row, got no rows"):
        host.HostIndex(np.empty((0, 3), np.float32))


def test_serving_imports_no_jax():
    code = "import sys; from dsmoe_jax.retrieval import choice, delta; print('jax' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"
