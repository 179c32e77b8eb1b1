"""Choice of an index: the curve, the target, the record. No claim about times."""

import json

import faiss
import numpy as np
import pytest

from dsmoe_jax.retrieval import ann, choice, host
from tests.retrieval import brute_force

K = 10


@pytest.fixture(scope="module")
def corpus():
    return brute_force.make_clusters(4000, 16, 40, seed=1)


@pytest.fixture
def cheap_approximation(monkeypatch):
    """An exact search always looks dearer than an approximate one of little effort."""

    def cpu_ms(searcher, probe_QMD, k):
        if isinstance(searcher, host.HostIndex):
            return 1000.0
        return float(searcher._least_effort)

    monkeypatch.setattr(choice, "_measure_cpu_ms", cpu_ms)


def test_small_corpora_get_exact_search_and_graphs_alone(corpus):
    found = choice.choose(*corpus, k=K, min_recall=0.9, seed=0)
    assert {point.name for point in found.curve} == {"exact", "HNSW32"}
    assert found.point in found.curve
    assert min(found.point.recall, found.point.recall_removed) >= 0.9
    reaching = [p for p in found.curve if min(p.recall, p.recall_removed) >= 0.9]
    assert found.point.cpu_ms == min(point.cpu_ms for point in reaching)


def test_large_corpora_get_lists_too(corpus, monkeypatch, cheap_approximation):
    monkeypatch.setattr(choice, "_SMALL_CORPUS", 1000)
    found = choice.choose(*corpus, k=K, min_recall=0.97, seed=0, num_removed=2 * K)
    names = list(dict.fromkeys(point.name for point in found.curve))
    assert names == ["exact", "HNSW32", "IVF64,Flat", "IVF64,SQ8", "IVF64,PQ8x4fs"]
    for name in names[1:]:
        recalls = [point.recall for point in found.curve if point.name == name]
        assert len(recalls) == (10 if "PQ" in name else 5)
        assert recalls[4] >= recalls[0]
    assert found.index is not None
    # The promise holds for what is searched, on the probes.
    item_VD, probe_QMD = corpus
    _, truth_QT = host.HostIndex(item_VD).search(probe_QMD, 3 * K)
    searcher = found.make_searcher(item_VD)
    _, item_QT = searcher.search(probe_QMD, K)
    _, behind_QT = searcher.search(probe_QMD, K, removed=list(truth_QT[:, : 2 * K]))
    for mine_QT, true_QT in ((item_QT, truth_QT[:, :K]), (behind_QT, truth_QT[:, 2 * K :])):
        hits = [np.isin(true_T, mine_T) for mine_T, true_T in zip(mine_QT, true_QT, strict=True)]
        assert np.mean(hits) >= 0.97


def test_recall_behind_removed_items_is_that_of_the_index_alone(corpus):
    # A graph too thin for its lists, which the planner would search exactly in its place.
    item_VD, probe_QMD = corpus
    index = ann.make(item_VD, "HNSW4", seed=0)
    searcher = ann.AnnIndex(item_VD, index, {"k": K, "ef_search": 40})
    _, truth_QT = host.HostIndex(item_VD).search(probe_QMD, 8 * K)
    first, behind = choice._measure_recalls(searcher, probe_QMD, truth_QT, K)
    assert behind < first
    assert behind < 0.9


def test_recall_of_one_is_exact_where_nothing_else_reaches_it(corpus, monkeypatch):
    monkeypatch.setattr(choice, "_EF_SEARCH", (1,))
    found = choice.choose(*corpus, k=K, min_recall=1.0, seed=0)
    assert found.point.name == "exact"
    assert isinstance(found.make_searcher(corpus[0]), host.HostIndex)
    with pytest.raises(ValueError, match=r"x\.faiss: expected an approximate index to write"):
        found.write_index("x.faiss")


def test_record_and_file_open_again(corpus, tmp_path, cheap_approximation):
    item_VD, probe_QMD = corpus
    found = choice.choose(*corpus, k=K, min_recall=0.9, seed=0)
    record = json.loads(json.dumps(found.to_json()))
    assert record["name"] == "HNSW32"
    assert record["parameters"]["k"] == record["k"] == K
    assert (record["min_recall"], record["num_removed"], record["seed"]) == (0.9, K, 0)
    assert len(record["curve"]) == 6
    assert record["curve"][0]["name"] == "exact"
    assert record["curve"][1]["index_bytes"] > 0
    found.write_index(tmp_path / "index.faiss")
    opened = ann.AnnIndex.open(tmp_path / "index.faiss", item_VD, record["parameters"])
    brute_force.assert_same(
        opened.search(probe_QMD, K), found.make_searcher(item_VD).search(probe_QMD, K)
    )


def test_corpora_smaller_than_the_measured_depth_are_measured():
    item_VD, probe_QMD = brute_force.make_clusters(15, 4, 3, seed=1)
    found = choice.choose(item_VD, probe_QMD, k=K, min_recall=0.9, seed=0)
    assert found.curve[0].recall == 1
    tiny = choice.choose(item_VD[:8], probe_QMD, k=K, min_recall=0.9, seed=0)
    assert tiny.curve[-1].recall == tiny.curve[-1].recall_removed == 1


def test_threads_of_faiss_are_put_back(corpus):
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(3)
    try:
        choice.choose(*corpus, k=K, min_recall=0.9, seed=0)
        assert faiss.omp_get_max_threads() == 3
    finally:
        faiss.omp_set_num_threads(before)


@pytest.mark.parametrize(
    ("queries", "min_recall", "message"),
    [
        (3, 0.0, r"expected a number in \(0, 1\], got 0.0"),
        (3, 95.0, "got 95.0"),
        (0, 0.9, "got none"),
    ],
)
def test_targets_without_sense_are_refused(queries, min_recall, message, corpus):
    with pytest.raises(ValueError, match=message):
        choice.choose(corpus[0], corpus[1][:queries], k=K, min_recall=min_recall, seed=0)
