"""Top-k in two stages against a stable sort in NumPy, and what an accelerator is told to do."""

import functools
import math
import re

import hypothesis
import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsmoe_jax.retrieval import exact, two_stage

# Few values, so that most are equal, and what has no order by itself.
VALUES = st.sampled_from([0.0, -0.0, 1.0, 1.0000001, -2.0, math.inf, -math.inf, math.nan])


def sort(score_NC, k):
    """Scores and positions of a stable sort; NaN is -inf, zeros are equal."""
    clean_NC = np.where(np.isnan(score_NC), -np.inf, score_NC)
    place_NT = np.argsort(-clean_NC, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(clean_NC, place_NT, axis=1), place_NT


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(
    arrays.arrays(
        np.float32, st.tuples(st.just(3), st.sampled_from([1, 7, 64, 257])), elements=VALUES
    ),
    st.sampled_from([1, 2, 5, 40]),
)
def test_it_is_a_stable_sort(score_NC, k):
    score_NT, place_NT = map(np.asarray, two_stage.top_k(jnp.asarray(score_NC), k))
    wanted_NT, wanted_place_NT = sort(score_NC, k)
    np.testing.assert_array_equal(score_NT, wanted_NT)
    real_NT = wanted_NT > -np.inf
    np.testing.assert_array_equal(place_NT[real_NT], wanted_place_NT[real_NT])


@pytest.mark.parametrize(("num_scores", "k"), [(100_000, 50), (100_000, 1000), (4097, 64)])
def test_near_ties_and_ties_in_many_groups(num_scores, k):
    """Every group holds the k-th best score, and scores one rounding apart."""
    rng = np.random.default_rng(0)
    assert two_stage.group_size(num_scores, k) > 1
    score_NC = np.float32(1) + rng.integers(-3, 3, (2, num_scores)) * np.float32(2**-23)
    score_NT, place_NT = two_stage.top_k(jnp.asarray(score_NC), k)
    wanted_NT, wanted_place_NT = sort(score_NC, k)
    np.testing.assert_array_equal(score_NT, wanted_NT)
    np.testing.assert_array_equal(place_NT, wanted_place_NT)


@pytest.mark.parametrize(
    ("num_scores", "k", "size"), [(10**6, 50, 128), (10**6, 1000, 32), (100, 100, 1), (90, 30, 1)]
)
def test_groups_are_near_the_root_of_scores_by_list(num_scores, k, size):
    assert two_stage.group_size(num_scores, k) == size


def test_an_accelerator_sorts_no_corpus_and_copies_no_table():
    """The program for CUDA, made on a CPU: what is sorted, and what is as large as the corpus."""
    V, D, N, k, chunk = 1 << 20, 64, 256, 50, 1 << 18
    shapes = (
        jax.ShapeDtypeStruct((N, 1, D), jnp.float32),
        jax.ShapeDtypeStruct((V, D), jnp.float32),
    )
    search = functools.partial(
        exact._search, num_rows=V, k=k, chunk=chunk, mesh=None, keeper="two_stage"
    )
    program = jax.jit(search).trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()
    sorted_sizes = [
        max(int(n) for n in re.findall(r"(\d+)x", operand))
        for operand in re.findall(r"(?:top_k|sort)[^\n]*?tensor<([\dx]+x)[fi]32>", program)
    ]
    assert len(sorted_sizes) >= 3
    # Groups of a chunk, members of the chosen groups: neither a chunk nor the corpus.
    size = two_stage.group_size(chunk, k)
    assert max(sorted_sizes) <= max(chunk // size, k * size) < chunk // 16
    # The corpus is an argument, sliced; no operation makes another array of its rows.
    made = re.findall(r"= \"?(?:stablehlo|chlo)\.(\w+)[^\n]*-> tensor<([\dx]+)x[fi]32>", program)
    large = {name for name, dims in made if str(V) in dims.split("x")}
    assert large == set()
    assert "precision = [HIGHEST, HIGHEST]" in program
