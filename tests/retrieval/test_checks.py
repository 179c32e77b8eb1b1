"""Refusals of vectors, queries and filters, each in one line that names what is wrong."""

import re

import numpy as np
import pytest

from dsmoe_jax.retrieval import checks


@pytest.mark.parametrize(
    ("shape", "k", "message"),
    [((4, 8), 5, r"\[queries, interests, 8\]"), ((4, 1, 7), 5, "got"), ((4, 1, 8), 0, "k: exp")],
)
def test_wrong_queries_are_refused_in_one_line(shape, k, message):
    with pytest.raises(ValueError, match=message):
        checks.check_search(shape, 8, k)


def refusal(function, *arguments, **keywords):
    with pytest.raises(ValueError, match=r"expected .* got") as caught:
        function(*arguments, **keywords)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_good_vectors_pass_whatever_the_padding_holds():
    item_VD = np.array([[np.nan, 0], [1, 0], [0, 1e-30]], np.float32)
    checks.check_vectors(item_VD, np.array(["", "a", "b"]))
    checks.check_vectors(item_VD)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_vectors_that_are_not_finite_are_named_by_row_and_raw_id(bad, monkeypatch):
    monkeypatch.setattr(checks, "_CHUNK", 2)
    item_VD = np.ones((6, 2), np.float32)
    item_VD[[2, 5], 1] = bad
    raw_id_V = np.array(["", "a", "b", "c", "d", "e"])
    assert refusal(checks.check_vectors, item_VD, raw_id_V, name="video vectors") == (
        "video vectors: expected finite numbers, got nan or inf in row 2 (b), 5 (e)"
    )


def test_zero_vectors_are_named_and_counted():
    item_VD = np.ones((9, 2), np.float32)
    item_VD[3:8] = 0
    assert refusal(checks.check_vectors, item_VD) == (
        "item vectors: expected a norm above 0, got 0 in row 3, 4, 5 and 2 more"
    )


def test_repeated_raw_ids_are_named_with_their_rows():
    item_VD = np.ones((5, 2), np.float32)
    assert refusal(checks.check_vectors, item_VD, np.array([7, 8, 7, 9, 8])) == (
        "item vectors: expected one row per raw id, got 8 in rows 1 and 4"
    )
    assert refusal(checks.check_vectors, item_VD, np.array([0, 8, 8, 8, 9])).endswith(
        "8 in rows 1 and 2, and 1 more"
    )


def test_raw_ids_of_another_corpus_are_refused():
    item_VD = np.ones((5, 2), np.float32)
    message = refusal(checks.check_raw_ids, np.arange(4), len(item_VD), name="item vectors")
    assert message == "item vectors: expected 5 raw ids, got 4"


def test_queries_that_are_not_finite_are_named():
    query_QMD = np.ones((4, 2, 3), np.float32)
    query_QMD[2, 1, 0] = np.nan
    assert refusal(checks.check_queries, query_QMD, 3, 1) == (
        "queries: expected finite numbers, got nan or inf in query 2"
    )


@pytest.mark.parametrize(
    ("allowed_V", "removed", "message"),
    [
        (np.ones(5, bool), None, "allowed: expected 6 booleans, one per row, got [5] of bool"),
        (None, [np.array([1])], "removed: expected 2 lists of ids, got 1"),
        (
            None,
            [np.array([1]), np.array([2, 6])],
            "removed: expected ids in [0, 6), got 2 to 6 for query 1",
        ),
        (None, [np.array([-1]), np.array([], int)], "got -1 to -1 for query 0"),
    ],
)
def test_filters_that_do_not_fit_are_refused(allowed_V, removed, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        checks.check_filters(2, 6, allowed_V, removed)


def test_narrow_ids_are_taken():
    [removed_X] = checks.check_filters(1, 6, None, [np.array([3, 0], np.int32)])
    assert removed_X.dtype == np.int64
    assert removed_X.tolist() == [3, 0]
