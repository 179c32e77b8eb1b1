import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsmoe_jax.nn import causal, fuxi_encoder
from tests.nn import histories

E, N = 8, 7


@functools.cache
def make(**changes):
    fields = {"num_blocks": 2, "ffn_multiple": 2, "max_len": N, **changes}
    encoder = fuxi_encoder.Encoder(E, **fields)
    event_BLE, timeline = histories.make(E)
    return encoder, histories.make_params(encoder, event_BLE, timeline), event_BLE, timeline


@functools.partial(jax.jit, static_argnums=0)
def run(encoder, variables, event_BLE, timeline):
    return encoder.apply(variables, event_BLE, timeline, train=False)[0]


def naive_mixture(experts, params, y_LE, kept):
    """What the experts of each position say, one position and one expert at a time."""
    if len(experts) == 1:
        return experts[0]
    out = np.zeros_like(experts[0])
    for i, y in enumerate(y_LE):
        logit = y @ params["router"]["kernel"]
        share = np.exp(logit - logit.max()) / np.exp(logit - logit.max()).sum()
        best = np.argsort(-share)[:kept]
        for k in best:
            out[i] += share[k] / share[best].sum() * experts[k][i]
    return out


def naive_ffn(params, y_LE, kept):
    kernels = zip(params["first"], params["third"], params["second"], strict=True)
    experts = [(histories.silu(y_LE @ a) * (y_LE @ b)) @ c for a, b, c in kernels]
    return naive_mixture(experts, params, y_LE, kept)


def naive_projection(params, x_LE, kept):
    return naive_mixture([x_LE @ kernel for kernel in params["kernel"]], params, x_LE, kept)


def naive_block(params, x_LE, bucket_LL, num_heads, kept=1):
    """FuXi-alpha's block as printed, with loops over heads and pairs of positions."""
    n, width = x_LE.shape
    joint = histories.silu(naive_projection(params["uvqk"], histories.rms(x_LE), kept))
    u, v, q, k = np.split(joint, (3 * width, 4 * width, 5 * width), axis=1)
    head = width // num_heads
    mixed = np.zeros((n, num_heads, 3, head))
    for h in range(num_heads):
        part = slice(h * head, (h + 1) * head)
        for i in range(n):
            for j in range(i + 1):
                mixed[i, h, 0] += params["bias"]["position"][N - 1 + j - i] * v[j, part]
                mixed[i, h, 1] += params["bias"]["time"][bucket_LL[i, j]] * v[j, part]
                mixed[i, h, 2] += histories.silu(q[i, part] @ k[j, part]) / N * v[j, part]
    gated = u * histories.rms(mixed.reshape(n, -1))
    y_LE = x_LE + naive_projection(params["output"], gated, kept) + params["output_bias"]
    return y_LE + naive_ffn(params["ffn"], histories.rms(y_LE), kept)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_heads": 2},
        {"num_subspaces": 2},
        {"num_experts": 3, "experts_per_token": 2},
        {"num_subspaces": 2, "num_heads": 2, "num_experts": 3, "experts_per_token": 1},
        {"num_subspaces": 2, "subspace_token": True},
        {"num_experts": 3, "experts_per_token": 2, "expert_projections": True},
    ],
)
def test_encoder_equals_the_printed_block_sub_space_by_sub_space(changes):
    encoder, variables, event_BLE, timeline = make(**changes)
    got_BLE = run(encoder, variables, event_BLE, timeline)
    params = jax.tree.map(np.asarray, variables["params"])
    width = E // encoder.num_subspaces
    for b, length in enumerate(histories.LENGTHS):
        n = max(length, 1)
        for m in range(encoder.num_subspaces):
            part = slice(m * width, (m + 1) * width)
            x = histories.start(params["input"], np.asarray(event_BLE)[b, :n, part])
            if encoder.subspace_token:
                x = x + params["subspace"][m]
            for block in ("block_0", "block_1"):
                x = naive_block(
                    params[block],
                    x,
                    np.asarray(timeline.bucket_BLL)[b],
                    encoder.num_heads,
                    encoder.experts_per_token,
                )
            np.testing.assert_allclose(got_BLE[b, :n, part], x, rtol=3e-4, atol=3e-5)


def test_equal_experts_are_one():
    encoder, variables, event_BLE, timeline = make()
    several = fuxi_encoder.Encoder(E, ffn_multiple=2, max_len=N, num_experts=3, experts_per_token=2)
    params = dict(variables["params"])
    for block in ("block_0", "block_1"):
        ffn = {n: jnp.tile(leaf, (3, 1, 1)) for n, leaf in params[block]["ffn"].items()}
        router_EK = np.random.default_rng(0).normal(size=(E, 3))
        ffn["router"] = {"kernel": jnp.asarray(router_EK, jnp.float32)}
        params[block] = {**params[block], "ffn": ffn}
    np.testing.assert_allclose(
        run(several, {"params": params}, event_BLE, timeline),
        run(encoder, variables, event_BLE, timeline),
        rtol=1e-5,
        atol=1e-6,
    )


def test_sub_spaces_are_apart():
    encoder, variables, event_BLE, timeline = make(num_subspaces=2)
    before_BLE = run(encoder, variables, event_BLE, timeline)
    after_BLE = run(encoder, variables, event_BLE.at[..., E // 2 :].add(1.0), timeline)
    np.testing.assert_array_equal(after_BLE[3, :, : E // 2], before_BLE[3, :, : E // 2])
    assert np.abs(after_BLE - before_BLE)[3, :, E // 2 :].min() > 0


def test_an_event_changes_no_position_before_it():
    encoder, variables, event_BLE, timeline = make(
        num_subspaces=2, num_experts=3, experts_per_token=2
    )
    before_BLE = run(encoder, variables, event_BLE, timeline)
    after_BLE = run(encoder, variables, event_BLE.at[:, 3].add(jnp.arange(E)), timeline)
    np.testing.assert_array_equal(after_BLE[3, :3], before_BLE[3, :3])
    assert (np.abs(after_BLE - before_BLE)[3, 3:].max(axis=-1) > 1e-3).all()


def test_padding_changes_nothing():
    encoder, variables, event_BLE, timeline = make()
    long_BLE, long_timeline = histories.make(E, length=N)
    short_BLE = run(encoder, variables, event_BLE, timeline)
    padded_BLE = run(encoder, variables, long_BLE, long_timeline)
    for b, length in enumerate(histories.LENGTHS):
        n = max(length, 1)
        np.testing.assert_allclose(padded_BLE[b, :n], short_BLE[b, :n], rtol=1e-5, atol=1e-6)


def test_the_request_time_reaches_the_last_position_alone():
    encoder, variables, event_BLE, _ = make()
    events_BL = jnp.ones(event_BLE.shape[:2], bool)
    time_BL = jnp.broadcast_to(jnp.arange(5)[None] * 1000 + 1, events_BL.shape)
    outputs = [
        run(
            encoder,
            variables,
            event_BLE,
            causal.make_timeline(events_BL, time_BL, jnp.full(4, time, jnp.int32)),
        )
        for time in (5000, 5_000_000)
    ]
    np.testing.assert_array_equal(outputs[0][:, :4], outputs[1][:, :4])
    assert np.abs(outputs[0][:, 4] - outputs[1][:, 4]).max() > 1e-3


@pytest.mark.parametrize(
    ("dim", "num_heads", "ffn_multiple", "num_blocks", "expected"),
    [
        (50, 1, 1, 1, 30_600),
        # ML-1M base and large, ML-20M base: blocks alone, then with positions.
        (50, 1, 1, 2, 61_200),
        (50, 2, 1, 8, 8 * 30_600),
        (256, 8, 4, 2, 2_754_124),
    ],
)
def test_blocks_have_the_published_number_of_parameters(
    dim, num_heads, ffn_multiple, num_blocks, expected
):
    encoder = fuxi_encoder.Encoder(
        dim, num_blocks=num_blocks, num_heads=num_heads, ffn_multiple=ffn_multiple, max_len=211
    )
    _, timeline = histories.make(1)
    event_BLE = jax.ShapeDtypeStruct((4, 5, dim), jnp.float32)
    shapes = jax.eval_shape(
        lambda event_BLE: encoder.init(jax.random.key(0), event_BLE, timeline, train=False),
        event_BLE,
    )["params"]
    positions = histories.count(shapes["input"])
    assert positions == 211 * dim
    assert histories.count(shapes) - positions == expected
    if (dim, num_blocks) == (50, 2):
        assert histories.count(shapes) + 3953 * 50 == 269_400


def test_experts_are_narrow_copies_with_a_router():
    _, variables, _, _ = make(num_subspaces=2, num_experts=3, experts_per_token=2)
    width = E // 2
    ffn = 3 * (3 * width * 2 * width) + width * 3
    block = width * 6 * width + 3 * width * width + width + (2 * N - 1) + 129 + ffn
    assert histories.count(variables) == 2 * block + N * width
    _, projected, _, _ = make(
        num_subspaces=2, num_experts=3, experts_per_token=2, expert_projections=True
    )
    more = 2 * (6 + 3) * width * width + width * 3 + 3 * width * 3
    assert histories.count(projected) == 2 * (block + more) + N * width


def balance_of(router_EK, mask_BL, kept):
    """Of one block's experts on the unit vectors, which choose their own row of the router."""
    ffn = fuxi_encoder.ExpertFFN(hidden_dim=2, num_experts=2, experts_per_token=kept)
    y_BMLE = jnp.eye(2)[None, None]
    variables = ffn.init(jax.random.key(0), y_BMLE, mask_BL)
    params = {**variables["params"], "router": {"kernel": jnp.asarray(router_EK, jnp.float32)}}
    return float(ffn.apply({"params": params}, y_BMLE, mask_BL)[1])


def test_balance_is_one_when_even_and_grows_towards_the_number_of_experts():
    both = jnp.ones((1, 2), bool)
    assert balance_of([[9, -9], [-9, 9]], both, 1) == pytest.approx(1.0, abs=1e-5)
    assert balance_of([[9, -9], [9, -9]], both, 1) == pytest.approx(2.0, abs=1e-5)
    assert balance_of([[9, -9], [9, -9]], both, 2) == pytest.approx(1.0, abs=1e-5)
    # Padding does not count.
    first = jnp.asarray([[True, False]])
    assert balance_of([[9, -9], [-9, 9]], first, 1) == pytest.approx(2.0, abs=1e-5)


def test_balance_of_mixed_projections_is_the_mean_over_all_routers():
    fields = {"num_blocks": 1, "num_experts": 3, "experts_per_token": 1, "expert_projections": True}
    encoder, variables, event_BLE, timeline = make(**fields)
    _, aux = encoder.apply(variables, event_BLE, timeline, train=True)
    found = []

    def keep(next_fun, args, kwargs, context):
        out = next_fun(*args, **kwargs)
        if isinstance(context.module, fuxi_encoder.Router) and context.method_name == "__call__":
            found.append(float(out[1]))
        return out

    with nn.intercept_methods(keep):
        encoder.apply(variables, event_BLE, timeline, train=False)
    assert len(found) == 3 and len(set(found)) == 3
    assert float(aux["balance"]) == pytest.approx(np.mean(found), rel=1e-5)


def test_balance_is_a_loss_of_training_with_several_experts():
    encoder, variables, event_BLE, timeline = make(num_experts=3, experts_per_token=2)
    _, aux = encoder.apply(variables, event_BLE, timeline, train=True)
    assert set(aux) == {"balance"} and 0.5 < float(aux["balance"]) < 3
    assert encoder.apply(variables, event_BLE, timeline, train=False)[1] == {}
    single, params, _, _ = make()
    assert single.apply(params, event_BLE, timeline, train=True)[1] == {}


def test_dropout_acts_in_training_only():
    encoder, variables, event_BLE, timeline = make()
    dropped = fuxi_encoder.Encoder(E, ffn_multiple=2, max_len=N, dropout=0.5, input_dropout=0.5)
    plain_BLE = run(encoder, variables, event_BLE, timeline)
    np.testing.assert_array_equal(run(dropped, variables, event_BLE, timeline), plain_BLE)
    keys = {"dropout": jax.random.key(0)}
    trained_BLE, _ = dropped.apply(variables, event_BLE, timeline, train=True, rngs=keys)
    assert np.abs(trained_BLE - plain_BLE)[3].max() > 1e-3
