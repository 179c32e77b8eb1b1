import numpy as np
import polars as pl
import pytest

from dsmoe_jax.data.synthetic import official_columns

RNG = np.random.default_rng


def test_counts_follow_the_shares_and_no_value_is_left_out():
    assert official_columns.counts_of(np.array([0.7, 0.2, 0.1]), 10).tolist() == [7, 2, 1]
    counts = official_columns.counts_of(np.array([1e6, 1.0, 1.0]), 100)
    assert counts.sum() == 100 and counts.tolist()[1:] == [1, 1]
    with pytest.raises(ValueError, match="expected at least 3, one per value, got 2"):
        official_columns.counts_of(np.ones(3), 2)


def test_dealt_codes_have_exact_shares_in_random_order():
    code = official_columns.deal(RNG(0), np.array([5.0, 3.0, 2.0]), 1000)
    assert np.bincount(code).tolist() == [500, 300, 200]
    assert np.abs(np.diff(code)).sum() > 300


def test_rows_with_close_scores_share_a_code():
    score = RNG(0).standard_normal(1000)
    code = official_columns.by_score(RNG(1), score, np.ones(10), noise=0.0)
    assert np.bincount(code).tolist() == [100] * 10
    ordered = code[np.argsort(score)]
    # Ten runs of one hundred equal codes.
    assert (ordered.reshape(10, 100) == ordered.reshape(10, 100)[:, :1]).all()
    noisy = official_columns.by_score(RNG(1), score, np.ones(10), noise=1.0)
    assert 0.15 < (noisy == code).mean() < 0.9


def test_steps_have_the_stated_shares_below_each_edge():
    edge = np.array([0.0, 1.0, 10.0, 100.0])
    value = official_columns.draw_steps(RNG(0), 40_000, edge, np.array([0, 0.1, 0.6, 1.0]))
    assert value.min() >= 0 and value.max() < 100
    np.testing.assert_allclose([(value < 1).mean(), (value < 10).mean()], [0.1, 0.6], atol=0.01)


def test_ranges_are_named_by_where_they_start():
    found = official_columns.to_ranges(np.array([0, 1, 9, 10]), np.array([0, 1, 10]), list("abc"))
    assert found.to_list() == ["a", "b", "b", "c"]


def test_with_nulls_hides_the_marked_rows():
    mask = np.array([False, True, False])
    assert official_columns.with_nulls(np.array([1.0, 2.0, 3.0]), mask).to_list() == [
        1.0,
        None,
        3.0,
    ]
    assert official_columns.with_nulls(pl.Series(["a", "b", "c"]), mask).to_list() == [
        "a",
        None,
        "c",
    ]
