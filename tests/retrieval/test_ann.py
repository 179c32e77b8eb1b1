"""Approximate search: exact scores, promised recall with and without filters, files refused."""

import faiss
import numpy as np
import pytest

from dsmoe_jax.retrieval import ann, host
from tests.retrieval import brute_force

K = 20
HNSW = {"k": K, "ef_search": 200}
IVF = {"k": K, "nprobe": 12, "widen": 8}
LEAST_RECALL = 0.95
ROWS = 12_000


@pytest.fixture(scope="module")
def corpus():
    return brute_force.make_clusters(ROWS, 16, 60, seed=3)


@pytest.fixture(scope="module")
def indexes(corpus):
    """Of each kind: the index, its searcher and the searcher's parameters."""
    found = {}
    kinds = {"HNSW32": HNSW, "IVF64,Flat": IVF, "IVF64,SQ8": IVF, "IVF64,PQ8x4fs": IVF}
    for factory, parameters in kinds.items():
        index = ann.make(corpus[0], factory, seed=0)
        found[factory] = index, ann.AnnIndex(corpus[0], index, parameters)
    return found


@pytest.fixture(autouse=True)
def dear_exact_search(monkeypatch):
    """The corpus is so small that little would go through a graph."""
    monkeypatch.setattr(ann, "_ROWS_PER_EF", 8)


def recall(item_QT, expected_QT):
    hits = [
        np.isin(expected_T, item_T) for item_T, expected_T in zip(item_QT, expected_QT, strict=True)
    ]
    return np.concatenate(hits)[expected_QT.ravel() > 0].mean()


def assert_scores_are_exact(item_VD, query_QMD, score_QT, item_QT):
    for query_MD, score_T, item_T in zip(query_QMD, score_QT, item_QT, strict=True):
        found = item_T > 0
        own_T = host.score_rows(query_MD, item_VD[item_T[found]])
        np.testing.assert_array_equal(score_T[found], own_T)
        assert (np.diff(own_T) <= 0).all()
        assert len(set(item_T[found])) == found.sum()


FACTORIES = ["HNSW32", "IVF64,Flat", "IVF64,SQ8", "IVF64,PQ8x4fs"]


@pytest.mark.parametrize("factory", FACTORIES)
def test_scores_are_exact_and_recall_is_high_on_clusters_of_unequal_norm(factory, corpus, indexes):
    item_VD, query_QMD = corpus
    index, searcher = indexes[factory]
    assert index.metric_type == faiss.METRIC_INNER_PRODUCT
    lists = searcher.search(query_QMD, K)
    _, expected_QT = host.HostIndex(item_VD).search(query_QMD, K)
    assert_scores_are_exact(item_VD, query_QMD, *lists)
    assert recall(lists[1], expected_QT) >= LEAST_RECALL
    assert (searcher.num_rows, searcher.num_candidates) == (ROWS, ROWS - 1)
    assert isinstance(searcher, host.Searcher)


@pytest.mark.parametrize("factory", ["HNSW32", "IVF64,SQ8"])
@pytest.mark.parametrize("share", [0.95, 0.7, *brute_force.SHARES])
def test_filtered_lists_are_whole_and_keep_the_recall(factory, share, corpus, indexes):
    item_VD, query_QMD = corpus
    rng = np.random.default_rng(5)
    allowed_V = rng.random(ROWS) < share
    _, best_QT = host.HostIndex(item_VD).search(query_QMD, 2 * K)
    removed = [np.concatenate([best_T[::2], rng.integers(0, ROWS, 5)]) for best_T in best_QT]
    exact = host.HostIndex(item_VD).search(query_QMD, K, allowed_V=allowed_V, removed=removed)
    lists = indexes[factory][1].search(query_QMD, K, allowed_V=allowed_V, removed=removed)
    assert_scores_are_exact(item_VD, query_QMD, *lists)
    np.testing.assert_array_equal(lists[1] > 0, exact[1] > 0)
    assert allowed_V[lists[1][lists[1] > 0]].all()
    assert not any(np.isin(*both).any() for both in zip(removed, lists[1], strict=True))
    if share < 0.5:
        brute_force.assert_same(lists, exact)
    elif share > 0:
        assert recall(lists[1], exact[1]) >= LEAST_RECALL


def test_filters_that_keep_most_go_through_faiss(corpus, indexes, monkeypatch):
    _, query_QMD = corpus

    def refuse(*arguments, **keywords):
        raise RuntimeError("searched exactly")

    monkeypatch.setattr(host.HostIndex, "search", refuse)
    allowed_V = np.arange(ROWS) % 10 > 0
    removed = [np.arange(1, 6)] * len(query_QMD)
    for _, searcher in indexes.values():
        searcher.search(query_QMD, K, allowed_V=allowed_V, removed=removed)
        with pytest.raises(RuntimeError, match="searched exactly"):
            searcher.search(query_QMD, K, allowed_V=~allowed_V)
        with pytest.raises(RuntimeError, match="searched exactly"):
            searcher.search(query_QMD, K, removed=[np.arange(1, 4001)] * len(query_QMD))


def test_a_filter_against_the_query_falls_back_to_the_exact_list(corpus, indexes):
    # Keeps most items, but none of the query's neighbours.
    item_VD, query_QMD = corpus
    query_QMD = query_QMD[:1]
    _, near_QT = host.HostIndex(item_VD).search(query_QMD, 4000)
    allowed_V = np.ones(ROWS, bool)
    allowed_V[near_QT[0]] = False
    expected = host.HostIndex(item_VD).search(query_QMD, K, allowed_V=allowed_V)
    for _, searcher in indexes.values():
        brute_force.assert_same(searcher.search(query_QMD, K, allowed_V=allowed_V), expected)


def test_interests_are_united(corpus, indexes):
    item_VD, query_QMD = corpus
    query_QMD = query_QMD.reshape(-1, 3, 16)
    _, expected_QT = host.HostIndex(item_VD).search(query_QMD, K)
    for _, searcher in indexes.values():
        lists = searcher.search(query_QMD, K)
        assert_scores_are_exact(item_VD, query_QMD, *lists)
        assert recall(lists[1], expected_QT) >= LEAST_RECALL


@pytest.mark.parametrize("factory", FACTORIES)
def test_a_file_is_opened_and_searched_the_same(factory, corpus, indexes, tmp_path):
    item_VD, query_QMD = corpus
    index, searcher = indexes[factory]
    path = tmp_path / "index.faiss"
    ann.write(index, path)
    assert path.stat().st_size == ann.count_bytes(index)
    assert [file.name for file in tmp_path.iterdir()] == ["index.faiss"]
    opened = ann.AnnIndex.open(path, item_VD, HNSW if "HNSW" in factory else IVF)
    brute_force.assert_same(opened.search(query_QMD, K), searcher.search(query_QMD, K))
    if factory == "IVF64,SQ8":
        lists = faiss.downcast_InvertedLists(opened._index.invlists)
        assert lists.prefetch_nthread == 0, "a search starts threads that read ahead"


@pytest.mark.parametrize("factory", ["HNSW32", "IVF64,SQ8"])
@pytest.mark.parametrize("kept", [0, 3, 60, 0.5, 0.99])
def test_a_damaged_file_is_refused_by_name(factory, kept, corpus, indexes, tmp_path):
    path = tmp_path / "index.faiss"
    ann.write(indexes[factory][0], path)
    whole = path.read_bytes()
    path.write_bytes(whole[: kept if isinstance(kept, int) else int(kept * len(whole))])
    with pytest.raises(ValueError, match=r"index\.faiss: expected a whole index of FAISS") as error:
        ann.AnnIndex.open(path, corpus[0], HNSW if "HNSW" in factory else IVF)
    assert "\n" not in str(error.value)


def test_a_corpus_of_padding_alone_has_no_lists():
    item_VD = np.ones((1, 4), np.float32)
    searcher = ann.AnnIndex(item_VD, ann.make(item_VD, "HNSW8", seed=0), HNSW)
    assert (searcher.search(np.ones((2, 1, 4), np.float32), 3)[1] == 0).all()


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"none\.faiss: expected a file of FAISS, found none"):
        ann.AnnIndex.open(tmp_path / "none.faiss", np.ones((5, 4), np.float32), HNSW)


def test_a_file_that_cannot_be_written_is_named(indexes, tmp_path):
    with pytest.raises(
        ValueError, match=r"index\.faiss: expected to write an index, got .*No such"
    ):
        ann.write(indexes["HNSW32"][0], tmp_path / "none" / "index.faiss")


@pytest.mark.parametrize(
    ("factory", "metric", "shape", "parameters", "message"),
    [
        ("HNSW8", faiss.METRIC_L2, (50, 4), HNSW, "expected a metric of inner product, got L2"),
        ("IVF2,Flat", faiss.METRIC_L2, (50, 4), IVF, "expected a metric of inner product, got L2"),
        ("HNSW8", faiss.METRIC_INNER_PRODUCT, (50, 5), HNSW, "expected a width of 5, got 4"),
        ("HNSW8", faiss.METRIC_INNER_PRODUCT, (52, 4), HNSW, "a number of rows of 51, got 49"),
        ("Flat", faiss.METRIC_INNER_PRODUCT, (50, 4), HNSW, "HNSW or IVF, got IndexFlat"),
        ("HNSW8", faiss.METRIC_INNER_PRODUCT, (50, 4), IVF, "expected k, ef_search, at least 1"),
        ("HNSW8", faiss.METRIC_INNER_PRODUCT, (50, 4), {"k": 5, "ef_search": 0}, "at least 1 each"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(
    factory, metric, shape, parameters, message, tmp_path
):
    vector_XD = np.random.default_rng(0).normal(size=(49, 4)).astype(np.float32)
    index = faiss.index_factory(4, factory, metric)
    if not index.is_trained:
        index.cp.min_points_per_centroid = 1
        index.train(vector_XD)
    index.add(vector_XD)
    path = tmp_path / "index.faiss"
    ann.write(index, path)
    with pytest.raises(ValueError, match=rf"index\.faiss: index.*{message}") as error:
        ann.AnnIndex.open(path, np.ones(shape, np.float32), parameters)
    assert "\n" not in str(error.value)
