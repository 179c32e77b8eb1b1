import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsmoe_jax.nn import causal


def test_buckets_count_from_each_event_to_the_next_request():
    events_BL = jnp.asarray([[True, True, True, False], [False] * 4])
    time_BL = jnp.asarray([[100, 101, 111, 0], [0] * 4])
    timeline = causal.make_timeline(events_BL, time_BL, jnp.asarray([1111, 50]))
    np.testing.assert_array_equal(
        timeline.mask_BL, [[True, True, True, False], [True, False, False, False]]
    )
    # ln(seconds) / 0.301 of 1, 11 and 10, 1011, 1010 and 1000 s.
    assert timeline.bucket_BLL.dtype == jnp.uint8
    bucket_LL = np.asarray(timeline.bucket_BLL[0])
    assert bucket_LL[0, 0] == 0
    assert bucket_LL[1, :2].tolist() == [7, 7]
    assert bucket_LL[2, :3].tolist() == [22, 22, 22]
    # An empty history: the request's 50 s against a time of 0.
    assert timeline.bucket_BLL[1, 0, 0] == 12


def test_same_second_unknown_time_and_the_widest_gap_have_buckets():
    events_BL = jnp.ones((3, 1), bool)
    largest = 2**31 - 2
    timeline = causal.make_timeline(
        events_BL, jnp.asarray([[7], [0], [largest]]), jnp.asarray([7, 1_600_000_000, 1])
    )
    assert np.asarray(timeline.bucket_BLL).ravel().tolist() == [0, 70, 71]


def test_last_position_is_the_last_that_counts():
    value_BLE = jnp.arange(12.0).reshape(2, 3, 2)
    mask_BL = jnp.asarray([[True, False, False], [True, True, True]])
    np.testing.assert_array_equal(causal.last_position(value_BLE, mask_BL), [[0, 1], [10, 11]])


def test_what_follows_the_last_position_is_given():
    mask_BL = jnp.asarray([[True, True, False], [True, True, True]])
    value_BL = jnp.asarray([[1, 2, 0], [4, 5, 6]])
    got_BL = causal.follow(value_BL, jnp.asarray([7, 8]), mask_BL)
    np.testing.assert_array_equal(np.asarray(got_BL)[np.asarray(mask_BL)], [2, 7, 5, 6, 8])
    pair_BLE = jnp.stack([value_BL, -value_BL], axis=-1)
    pair_BE = jnp.asarray([[7, -7], [8, -8]])
    got_BLE = causal.follow(pair_BLE, pair_BE, mask_BL)
    np.testing.assert_array_equal(got_BLE[..., 1], -got_BL)


def test_norms_have_literal_values():
    x = jnp.asarray([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(causal.unit_norm(x), [[0.6, 0.8], [0, 0]], rtol=1e-6)
    np.testing.assert_allclose(causal.rms_norm(x), [[0.848528, 1.131371], [0, 0]], rtol=1e-5)
    np.testing.assert_allclose(causal.layer_norm(x), [[-1, 1], [0, 0]], rtol=1e-5)
    gradient = jax.grad(lambda x: causal.unit_norm(x).sum() + causal.layer_norm(x).sum())(x)
    assert np.isfinite(gradient).all()


def test_bias_of_positions_depends_on_their_distance():
    timeline = causal.make_timeline(
        jnp.ones((1, 3), bool), jnp.asarray([[1, 2, 3]]), jnp.asarray([4])
    )
    bias = causal.RelativeBias(max_len=4)
    params = {"position": jnp.arange(7.0), "time": jnp.arange(129.0) * 10}
    position_LL, time_BLL = bias.apply({"params": params}, timeline)
    np.testing.assert_array_equal(position_LL, [[3, 4, 5], [2, 3, 4], [1, 2, 3]])
    np.testing.assert_array_equal(time_BLL[0, 2], [30, 20, 0])


def test_input_is_zero_where_no_position_counts_and_takes_an_offset():
    layer = causal.Input(dim=4, max_len=3, dropout=0.0)
    event_BLE = jnp.ones((1, 2, 4))
    mask_BL = jnp.asarray([[True, False]])
    params = {"position": jnp.arange(12.0).reshape(3, 4)}
    input_BLE = layer.apply({"params": params}, event_BLE, mask_BL, train=True)
    np.testing.assert_array_equal(input_BLE, [[[2, 3, 4, 5], [0, 0, 0, 0]]])
    offset_B1E = jnp.full((1, 1, 4), 0.5)
    moved_BLE = layer.apply({"params": params}, event_BLE, mask_BL, offset_B1E, train=True)
    np.testing.assert_array_equal(moved_BLE, [[[2.5, 3.5, 4.5, 5.5], [0, 0, 0, 0]]])


def test_more_positions_than_the_table_holds_are_refused():
    layer = causal.Input(dim=4, max_len=3, dropout=0.0)
    with pytest.raises(ValueError, match="history: expected at most 3 positions, got 4"):
        layer.init(jax.random.key(0), jnp.ones((1, 4, 4)), jnp.ones((1, 4), bool), train=False)
