"""Running best of streams against NumPy's stable sort: ties, -inf, NaN, any chunks; memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsmoe_jax.retrieval import exact, reservoir

ADD = jax.jit(reservoir.add, static_argnames="k")
FINISH = jax.jit(reservoir.finish, static_argnames="k")


def stream(score_VN, candidate_V, k, chunk):
    best = reservoir.make(k, score_VN.shape[1])
    for start in range(0, len(score_VN), chunk):
        rows = slice(start, start + chunk)
        best = ADD(best, score_VN[rows], candidate_V[rows], jnp.int32(start), k=k)
    return FINISH(best, k=k)


def expected_lists(score_VN, candidate_V, k):
    score_VN = np.where(candidate_V[:, None] & (score_VN > -np.inf), score_VN, -np.inf)
    order_NT = np.argsort(-score_VN.T, axis=1, kind="stable")[:, :k]
    score_NT = np.take_along_axis(score_VN.T, order_NT, axis=1)
    return score_NT, np.where(np.isneginf(score_NT), 0, order_NT)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    k=st.sampled_from([1, 7, 90]),
    chunk=st.sampled_from([33, 700]),
    kind=st.sampled_from(["normal", "few values", "one value", "ascending", "mostly -inf"]),
)
def test_lists_equal_a_stable_sort(seed, k, chunk, kind):
    rng = np.random.default_rng(seed)
    score_VN = rng.normal(size=(1400, 3)).astype(np.float32)
    if kind == "few values":
        score_VN = np.round(score_VN)  # with zeros of both signs
    elif kind == "one value":
        score_VN[:] = -2.5
    elif kind == "ascending":
        score_VN.sort(axis=0)
    elif kind == "mostly -inf":
        score_VN[rng.random(score_VN.shape) < 0.97] = -np.inf
        score_VN[::50] = np.nan
    candidate_V = rng.random(len(score_VN)) < 0.9
    score_NT, item_NT = stream(score_VN, candidate_V, k, chunk)
    expected_score_NT, expected_item_NT = expected_lists(score_VN, candidate_V, k)
    np.testing.assert_array_equal(item_NT, expected_item_NT)
    np.testing.assert_array_equal(score_NT, expected_score_NT)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    interests=st.sampled_from([1, 3]),
    chunk=st.sampled_from([64, 200]),
    devices=st.sampled_from([1, 8]),
)
def test_search_of_whole_numbers_equals_a_stable_sort(seed, interests, chunk, devices):
    # Small whole numbers have exact products and many ties.
    rng = np.random.default_rng(seed)
    item_VD = rng.integers(-2, 3, (600, 3)).astype(np.float32)
    query_QMD = rng.integers(-2, 3, (5, interests, 3)).astype(np.float32)
    axes = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((devices,), ("data",), axis_types=axes, devices=jax.devices()[:devices])
    index = exact.ExactIndex(item_VD, mesh=mesh, item_chunk=chunk)
    score_QT, item_QT = index.search(query_QMD, 50)
    score_VQ = np.einsum("qmd,vd->qmv", query_QMD, item_VD).max(axis=1).T
    expected = expected_lists(score_VQ, np.arange(600) > 0, 50)
    np.testing.assert_array_equal(score_QT, expected[0])
    np.testing.assert_array_equal(item_QT, expected[1])


@pytest.mark.parametrize("num_rows", [40_000, 160_000])
def test_memory_of_a_search_is_a_chunk_and_its_reservoir_whatever_the_corpus(num_rows):
    k, chunk, queries = 100, 4096, 64
    shapes = [(queries, 1, 16), (num_rows, 16), ()]
    kinds = [jnp.float32, jnp.float32, jnp.int32]
    arguments = [jax.ShapeDtypeStruct(*both) for both in zip(shapes, kinds, strict=True)]
    settings = {"k": k, "chunk": chunk, "mesh": None, "keeper": "reservoir"}
    compiled = exact._search.lower(*arguments, **settings).compile()
    chunk_bytes = 4 * chunk * (queries + 16)
    reservoir_bytes = sum(leaf.nbytes for leaf in reservoir.make(k, queries))
    # Tests compile without most optimisations, so several copies live at once.
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * chunk_bytes + 8 * reservoir_bytes
