import jax.numpy as jnp
import numpy as np
import pytest

from dsmoe_jax import features
from dsmoe_jax.nn import tables

SPARSE = (
    features.SparseFeature("a", 5000),
    features.SparseFeature("b", 3),
    features.SparseFeature("c", 4),
)
BAGS = (features.BagFeature("d", 6, 2), features.BagFeature("e", 7, 2))


@pytest.mark.parametrize(("ids", "rows"), [(1, 1), (4095, 4095), (4096, 4096), (4097, 5120)])
def test_large_tables_are_padded_to_a_multiple_of_1024_rows(ids, rows):
    assert tables.padded_rows(ids) == rows


def test_small_fields_share_a_table_and_the_others_have_their_own():
    layout = tables.FieldTables(SPARSE, BAGS, ("c", "e"), 2)
    assert layout.offsets == {"b": 0, "d": 3}
    assert layout.slots() == [
        tables.Slot("sparse", "b", 1, "small_fields", 0),
        tables.Slot("sparse", "a", 0, "a", 0),
        tables.Slot("sparse", "c", 2, "c", 0),
        tables.Slot("bag", "e", 0, "e", 0),
        tables.Slot("bag", "d", 0, "small_fields", 3),
    ]


def test_masked_mean_divides_by_what_is_in_the_mask():
    value_BLE = jnp.asarray([[[2.0], [4.0], [0.0]], [[0.0], [0.0], [0.0]]])
    mask_BL = jnp.asarray([[True, True, False], [False, False, False]])
    np.testing.assert_array_equal(tables.masked_mean(value_BLE, mask_BL), [[3.0], [0.0]])
