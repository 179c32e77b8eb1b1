import datetime

import numpy as np
import polars as pl
import pytest

from dsmoe_jax import features
from dsmoe_jax.data.prepare import entities


def encode(frame, **features_of):
    return entities.encode_table(entities.Table(frame, "id", **features_of), "user_id", {})


def test_rows_follow_the_raw_id_and_row_0_is_unknown():
    table = encode(pl.DataFrame({"id": [30, 10, 20]}))
    np.testing.assert_array_equal(table.raw_id, [-1, 10, 20, 30])
    np.testing.assert_array_equal(table.sparse_XF, [[0], [1], [2], [3]])
    np.testing.assert_array_equal(table.rows(pl.Series([20, 99, None, 30])), [2, 0, 0, 3])
    assert table.sparse == (features.SparseFeature("user_id", 4),)


def test_text_ids_work_like_integers():
    table = encode(pl.DataFrame({"id": ["b", "a"], "c": ["x", "y"]}), sparse=("c",))
    assert table.raw_id.tolist() == ["", "a", "b"]
    np.testing.assert_array_equal(table.rows(pl.Series(["b", "", "a", None])), [2, 0, 1, 0])
    np.testing.assert_array_equal(table.sparse_XF[:, 1], [0, 2, 1])


def test_far_apart_ids_are_encoded_like_dense_ones():
    far = pl.Series([2**62, 5, -(2**62)])
    np.testing.assert_array_equal(entities.encode(far, far.sort()), [3, 2, 1])
    np.testing.assert_array_equal(
        entities.encode(pl.Series([4, 7, 9]), pl.Series([4, 9])), [1, 0, 2]
    )


def test_sparse_values_are_numbered_in_ascending_order_and_null_is_0():
    frame = pl.DataFrame(
        {
            "id": [1, 2, 3, 4],
            "code": [7, None, -2, 7],
            "text": ["b", "a", None, "b"],
            "day": [datetime.date(2022, 1, d) for d in (3, 1, 2, 3)],
            "flag": [True, False, None, True],
        }
    )
    table = encode(frame, sparse=("code", "text", "day", "flag"))
    np.testing.assert_array_equal(
        table.sparse_XF,
        [[0, 0, 0, 0, 0], [1, 2, 2, 3, 2], [2, 0, 1, 1, 1], [3, 1, 0, 2, 0], [4, 2, 2, 3, 2]],
    )
    assert [f.num_ids for f in table.sparse] == [5, 3, 3, 4, 3]
    assert entities.as_array(table.vocabularies["code"], "code").tolist() == [-1, -2, 7]
    assert entities.as_array(table.vocabularies["day"], "day").tolist()[1] == "2022-01-01"


def test_extra_values_get_ids_of_their_own():
    table = entities.encode_table(
        entities.Table(pl.DataFrame({"id": [1, 2], "brand": [5, 9]}), "id", sparse=("brand",)),
        "item_id",
        {"brand": pl.Series([7, None, 9])},
    )
    np.testing.assert_array_equal(table.sparse_XF[:, 1], [0, 1, 3])
    np.testing.assert_array_equal(table.encode("brand", pl.Series([7, 8, None])), [2, 0, 0])


def test_constant_columns_are_left_out():
    frame = pl.DataFrame(
        {
            "id": [1, 2],
            "same": [3, 3],
            "empty": pl.Series([None, None], dtype=pl.Int64),
            "known_or_not": [1, None],
            "flat": [2.0, 2.0],
            "no_tags": pl.Series([[], None], dtype=pl.List(pl.Int64)),
        }
    )
    table = encode(
        frame, sparse=("same", "empty", "known_or_not"), dense=("flat",), bags=("no_tags",)
    )
    assert [f.name for f in table.sparse] == ["user_id", "known_or_not"]
    assert table.dense == () and table.dense_XF.shape == (3, 0)
    assert table.bag == () and table.bags == {}


def test_kept_columns_stay_although_constant():
    table = entities.encode_table(
        entities.Table(pl.DataFrame({"id": [1, 2], "c": [3, 3]}), "id", sparse=("c",)),
        "item_id",
        {},
        frozenset({"c"}),
    )
    np.testing.assert_array_equal(table.sparse_XF[:, 1], [0, 1, 1])


def test_dense_columns_are_standardised_and_null_is_the_mean():
    frame = pl.DataFrame({"id": [1, 2, 3, 4], "x": [1.0, None, 3.0, float("nan")]})
    table = encode(frame, dense=("x",))
    np.testing.assert_array_equal(table.dense_XF[:, 0], np.float32([0, -1, 0, 1, 0]))
    assert table.moments["x"] == {"transform": "identity", "mean": 2.0, "std": 1.0}


def test_log_columns_are_standardised_after_log1p():
    frame = pl.DataFrame({"id": [1, 2], "x": [0, 7]})
    table = encode(frame, log_dense=("x",))
    np.testing.assert_allclose(table.dense_XF[:, 0], [0, -1, 1])
    np.testing.assert_allclose(table.moments["x"]["mean"], np.log(8) / 2)


def test_bags_keep_their_order_and_drop_repetitions():
    frame = pl.DataFrame({"id": [3, 1, 2, 4], "tag": [[40, 10, 40], None, [10], [30, None, 20]]})
    table = encode(frame, bags=("tag",))
    np.testing.assert_array_equal(table.bags["tag"], [[0, 0], [0, 0], [1, 0], [4, 1], [3, 2]])
    assert table.bag == (features.BagFeature("tag", 5, 2),)


def test_quantile_buckets_are_about_equally_full():
    value = pl.Series("x", [None, *range(100)])
    codes = entities.bucket(value, entities.quantile_edges(value, 4))
    assert codes[0] is None
    assert codes[1:].value_counts()["count"].to_list() == [25, 25, 25, 25]
    assert codes[1:].is_sorted()


def test_quantile_buckets_of_few_values_stay_apart():
    few = pl.Series("x", [5, 5, 5, 5, 9])
    assert entities.bucket(few, entities.quantile_edges(few, 20)).n_unique() == 2
    none = pl.Series("x", [None], dtype=pl.Int64)
    assert entities.bucket(none, entities.quantile_edges(none, 4)).to_list() == [None]


@pytest.mark.parametrize(
    ("frame", "features_of", "message"),
    [
        ({"id": [1, 1]}, {}, "'id': expected distinct ids"),
        ({"id": [1, None]}, {}, "'id': expected distinct ids"),
        ({"id": [1, 2], "x": [1, 2]}, {"sparse": ("x",), "dense": ("x",)}, "'x' twice"),
        ({"id": [1, 2], "x": [1.5, 2]}, {"sparse": ("x",)}, "'x': expected a categorical column"),
        ({"id": [1, 2], "x": [-1, 2]}, {"log_dense": ("x",)}, "'x': expected numbers >= 0"),
    ],
)
def test_what_cannot_be_encoded_is_refused(frame, features_of, message):
    with pytest.raises(ValueError, match=message):
        encode(pl.DataFrame(frame), **features_of)
