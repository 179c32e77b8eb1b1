"""Counts of multiplications against counts by hand, of functions and of whole methods."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from dsmoe_jax.compare import costs
from dsmoe_jax.models.matching import dsmoe
from dsmoe_jax.nn import embed
from tests import tiny_features

PAIRS = 8


@pytest.fixture
def spec():
    return tiny_features.make_spec()


def make(**changes):
    fields = {"hidden_dim": 8, "output_dim": 6, "num_experts": 3, "rank": 2, **changes}
    return dsmoe.DSMOEConfig(**fields)


def closed_form(inputs, C, *, K=3, R=2, H=8, D=6, use_sap=True):
    """One tower on one pair, and what a scenario needs once."""
    # The bias is a row of the product, and so are the rows of every expert's up-projection.
    sap = K * R if use_sap else 0
    first = inputs * sap + (inputs + sap + 1) * K * H
    last = (H * R + (H + R + 1) * D) if use_sap else (H + 1) * D
    tables = C * K  # gates
    if use_sap:
        # Scaling one scenario's up-projections by them is no matrix product.
        tables += C * (K * R + R)
    return first + last, tables


@pytest.mark.parametrize("use_sap", [True, False])
def test_dsmoe_is_its_closed_form(spec, use_sap):
    counted = costs.count_method(make(use_sap=use_sap), spec, PAIRS)
    C = spec.embedding_dim
    embedder = embed.Embedder(spec)
    for side, width in (("user", embedder.user_dim), ("item", embedder.item_dim)):
        per_pair, once = closed_form(width, C, use_sap=use_sap)
        assert counted[side] == PAIRS * per_pair + once
    per_query, once = closed_form(embedder.user_dim, C, use_sap=use_sap)
    assert counted["query"] == per_query + once
    assert counted["score"] == PAIRS * 6


def test_the_corpus_is_embedded_once_per_index(spec):
    conditioned = costs.count_method(make(), spec, PAIRS)
    shared = costs.count_method(make(item_scenario="shared"), spec, PAIRS)
    assert (conditioned["indexes"], shared["indexes"]) == (spec.num_scenarios, 1)
    assert conditioned["corpus"] > (spec.num_scenarios - 1) * shared["corpus"]


def test_the_example_of_the_papers_widths(spec):
    """Section 1.10's worked example: 512 user and 128 item entries, K 3, R 4, widths 256, 128."""
    total = sum(closed_form(inputs, 16, K=3, R=4, H=256, D=128)[0] for inputs in (512, 128))
    # As executed: a bias per output, and the zero blocks of three experts' up-projections.
    extra = 2 * (3 * 256 + 128) + 2 * (3 * 4 * 3 * 256 - 3 * 4 * 256)
    sap = 3 * (512 * 256 + 4 * (512 + 256)) + 256 * 128 + 4 * (256 + 128)
    sap += 3 * (128 * 256 + 4 * (128 + 256)) + 256 * 128 + 4 * (256 + 128)
    assert total == sap + extra
    assert total == pytest.approx(0.576e6, rel=0.03)


B, F, H = 5, 6, 3


def zeros(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_products_are_counted_through_calls_and_activations():
    def tower(x, w, v):
        return jax.jit(nn.relu)(x @ w) @ v + jax.checkpoint(lambda x: jnp.sin(x @ w))(x) @ v

    # A product that is made twice is counted twice.
    expected = 2 * B * F * H + 2 * B * H * 2
    assert costs.count_macs(tower, zeros(B, F), zeros(F, H), zeros(H, 2)) == expected


def test_a_pick_of_the_one_row_is_no_multiplication():
    def tower(one_hot, table):
        return one_hot @ table

    assert costs.count_macs(tower, zeros(B, 1), zeros(1, H)) == 0


def test_a_loop_is_counted_as_often_as_it_runs():
    def tower(x, w):
        return jax.lax.scan(lambda carry, _: (carry @ w, None), x, length=7)[0]

    assert costs.count_macs(tower, zeros(B, F), zeros(F, F)) == 7 * B * F * F


def test_of_branches_the_dearer_one_is_counted():
    def tower(flag, x, w):
        return jax.lax.cond(flag > 0, lambda: x @ w, lambda: x)

    assert costs.count_macs(tower, zeros(), zeros(B, F), zeros(F, F)) == B * F * F


def test_a_loop_of_unknown_length_is_refused():
    def tower(x):
        return jax.lax.while_loop(lambda y: y.sum() > 0, lambda y: y @ y, x)

    with pytest.raises(ValueError, match="expected none of 'while'"):
        costs.count_macs(tower, zeros(F, F))


def test_the_count_is_the_compilers():
    def tower(x, w, v):
        return (x @ w) @ v

    inputs = zeros(64, 32), zeros(32, 16), zeros(16, 8)
    compiled = jax.jit(tower).lower(*inputs).compile()
    assert compiled.cost_analysis()["flops"] == 2 * costs.count_macs(tower, *inputs)
