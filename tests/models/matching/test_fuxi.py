import functools

import jax
import numpy as np
import pytest
import tiny_features

from dsmoe_jax.models.matching import fuxi, hstu
from dsmoe_jax.training import train_state
from tests.nn import histories

SPEC = tiny_features.make_spec()
INPUTS = (
    tiny_features.make_users(SPEC, 5),
    tiny_features.make_items(SPEC, (5, 3)),
    tiny_features.make_scenarios(SPEC, 5),
)


@functools.partial(jax.jit, static_argnames=("model", "train", "method"))
def apply(model, variables, *inputs, train=False, method="__call__"):
    rngs = {"dropout": jax.random.key(1)} if train else None
    return model.apply(variables, *inputs, train=train, method=method, rngs=rngs)


def count(model):
    def init(key):
        return model.init(key, *train_state.example_inputs(model.spec), train=False)

    return histories.count(jax.eval_shape(init, jax.random.key(0))["params"])


def test_one_sub_space_and_one_expert_are_fuxi_alpha():
    alpha = fuxi.FuxiConfig(output_dim=8, num_heads=2, ffn_multiple=2)
    single = fuxi.FuxiMMEConfig(**vars(alpha), num_subspaces=1, num_experts=1, experts_per_token=1)
    model = alpha.make(SPEC)
    variables = tiny_features.make_variables(model, *INPUTS)
    expected, _ = apply(model, variables, *INPUTS)
    got, _ = apply(single.make(SPEC), variables, *INPUTS)
    np.testing.assert_allclose(got, expected, atol=1e-6)
    _, aux = apply(single.make(SPEC), variables, *INPUTS, train=True)
    assert aux == {}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        # 2 blocks of 4 E^2 + E^2 + E, the biases of 13 distances (L = 7) and 129 buckets.
        (hstu.HSTUConfig(), 2 * (5 * 2500 + 50 + 11 + 129)),
        (fuxi.FuxiConfig(), 2 * (6 * 2500 + 3 * 2500 + 50 + 3 * 2500 + 11 + 129)),
    ],
)
def test_a_model_is_its_table_its_positions_and_its_blocks(config, expected):
    table, positions = 20 * 50, 6 * 50
    assert count(config.make(SPEC)) == table + positions + expected


def test_projections_are_mixtures_where_they_are_asked_to_be():
    fields = {"output_dim": 8, "num_blocks": 1, "num_experts": 3, "experts_per_token": 2}
    found = {}
    for moe_in in ("ffn", "ffn+proj"):
        model = fuxi.FuxiMMEConfig(**fields, moe_in=moe_in).make(SPEC)
        params = tiny_features.make_variables(model, *INPUTS)["params"]

        def loss(params, model=model):
            variables = {"params": params}
            row_B1, aux = apply(model, variables, *INPUTS, train=True, method="next_item_loss")
            return row_B1.mean() + sum(aux.values())

        gradient = jax.jit(jax.grad(loss))(params)["encoder"]["block_0"]
        routed = [name for name in ("uvqk", "output", "ffn") if "router" in gradient[name]]
        assert all(np.abs(gradient[n]["router"]["kernel"]).max() > 0 for n in routed)
        found[moe_in] = routed
    assert found == {"ffn": ["ffn"], "ffn+proj": ["uvqk", "output", "ffn"]}
    with pytest.raises(ValueError, match=r"model.moe_in: expected one of .*, got 'proj'"):
        fuxi.FuxiMMEConfig(**fields, moe_in="proj").make(SPEC)


def test_parts_of_one_length_weigh_the_same():
    fields = {"output_dim": 8, "input_dropout": 0.0, "dropout": 0.0, "temperature": 0.1}
    whole, parts = (
        fuxi.FuxiMMEConfig(**fields, normalize_parts=each).make(SPEC) for each in (False, True)
    )
    variables = tiny_features.make_variables(whole, *INPUTS)
    (user, item), (_, raw_item) = (
        [
            np.asarray(apply(model, variables, *given, method=method)[0])
            for method, given in (
                ("embed_user", (INPUTS[0], INPUTS[2])),
                ("embed_item", (INPUTS[1], INPUTS[2])),
            )
        ]
        for model in (parts, whole)
    )
    for m in range(2):
        part = slice(4 * m, 4 * m + 4)
        np.testing.assert_allclose(np.linalg.norm(user[..., part], axis=-1), 0.5**0.5 / 0.1, 1e-5)
        lengths = np.linalg.norm(raw_item[..., part], axis=-1, keepdims=True)
        np.testing.assert_allclose(item[..., part], raw_item[..., part] / lengths * 0.5**0.5, 1e-4)
    logit, _ = apply(parts, variables, *INPUTS)
    assert np.abs(logit).max() <= 1 / 0.1 * (1 + 1e-5)
    losses = [
        apply(m, variables, *INPUTS, train=True, method="next_item_loss")[0] for m in (whole, parts)
    ]
    assert np.abs(losses[0] - losses[1]).max() > 1e-3


def test_balance_is_weighted_and_of_training_alone():
    config = fuxi.FuxiMMEConfig(output_dim=8, input_dropout=0.0, dropout=0.0)
    model = config.make(SPEC)
    variables = tiny_features.make_variables(model, *INPUTS)
    heavy = fuxi.FuxiMMEConfig(**{**vars(config), "balance_weight": 0.5}).make(SPEC)
    one, fifty = (
        apply(m, variables, *INPUTS, train=True, method="next_item_loss")[1]["balance"]
        for m in (model, heavy)
    )
    np.testing.assert_allclose(fifty, 50 * one, rtol=1e-5)
    assert 0.003 < one < 0.04
    assert apply(model, variables, *INPUTS)[1] == {}
