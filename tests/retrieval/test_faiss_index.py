"""FAISS against the exact index: scores agree, ids may differ only among equal scores."""

import numpy as np
import pytest

from dsmoe_jax.retrieval import exact, faiss_index


@pytest.mark.parametrize("interests", [1, 3])
def test_scores_agree_with_exact_search(interests):
    rng = np.random.default_rng(4)
    query_QMD = rng.normal(size=(33, interests, 16)).astype(np.float32)
    item_VD = rng.normal(size=(500, 16)).astype(np.float32)
    item_VD[0] = 100.0
    item_VD[200:300] = item_VD[300:400]  # ties
    score_QT, item_QT = faiss_index.FaissIndex(item_VD).search(query_QMD, 40)
    expected_QT, _ = exact.ExactIndex(item_VD).search(query_QMD, 40)
    np.testing.assert_allclose(score_QT, expected_QT, rtol=1e-4, atol=1e-5)
    own_QT = np.einsum("qmd,qtd->qmt", query_QMD, item_VD[np.asarray(item_QT)]).max(axis=1)
    np.testing.assert_allclose(score_QT, own_QT, rtol=1e-4, atol=1e-5)
    assert (np.asarray(item_QT) > 0).all()


def test_lists_longer_than_the_corpus_end_in_padding():
    index = faiss_index.FaissIndex(np.eye(4, dtype=np.float32))
    score_QT, item_QT = index.search(np.ones((2, 1, 4), np.float32), 6)
    assert index.num_candidates == 3
    assert (np.asarray(item_QT)[:, 3:] == 0).all()
    assert np.isneginf(np.asarray(score_QT)[:, 3:]).all()


def test_queries_of_another_width_are_refused():
    index = faiss_index.FaissIndex(np.eye(4, dtype=np.float32))
    with pytest.raises(ValueError, match=r"expected shape \[queries, interests, 4\]"):
        index.search(np.ones((2, 1, 3), np.float32), 2)


def test_a_gpu_is_used_where_faiss_sees_one(monkeypatch):
    moved = []

    def move(resources, number, index):
        moved.append((resources, number))
        return index

    item_VD = np.eye(4, dtype=np.float32)
    assert not faiss_index.FaissIndex(item_VD).on_gpu  # faiss-cpu
    faiss = faiss_index.faiss
    monkeypatch.setattr(faiss, "StandardGpuResources", lambda: "resources", raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", move, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0, raising=False)
    assert faiss_index.has_gpu_code() and not faiss_index.sees_gpu()
    assert not faiss_index.FaissIndex(item_VD).on_gpu and not moved
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 2)
    index = faiss_index.FaissIndex(item_VD)
    assert index.on_gpu and moved == [("resources", 0)]
    with pytest.raises(ValueError, match="expected at most 2048, the limit of FAISS on a GPU"):
        index.search(np.ones((1, 1, 4), np.float32), 2049)
