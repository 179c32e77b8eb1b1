"""Counts of whole methods against their closed forms."""

import pytest

from dsmoe_jax.compare import costs
from dsmoe_jax.models.matching import dsmoe
from dsmoe_jax.nn import embed
from tests import tiny_features

PAIRS = 8


@pytest.fixture
def spec():
    return tiny_features.make_spec()


def make(spec, **changes):
    fields = {"hidden_dim": 8, "output_dim": 6, "num_experts": 3, "rank": 2, **changes}
    return dsmoe.DSMOEConfig(**fields).make(spec)


def closed_form(inputs, S, C, *, K=3, R=2, H=8, D=6, use_sap=True):
    """One tower on one pair, and what a batch needs once: with S scenarios, or with one query's."""
    # The bias is a row of the product, and so are the rows of every expert's up-projection.
    sap = K * R if use_sap else 0
    first = inputs * sap + (inputs + sap + 1) * K * H
    last = (H * R + (H + R + 1) * D) if use_sap else (H + 1) * D
    tables = S * C * K  # gates
    if use_sap:
        tables += S * C * (K * R + R) + K * R * H * K + R * D
    return first + last, tables


@pytest.mark.parametrize("use_sap", [True, False])
def test_dsmoe_is_its_closed_form(spec, use_sap):
    matcher = make(spec, use_sap=use_sap)
    counted = costs.count_matcher(matcher, PAIRS)
    S, C = spec.num_scenarios, spec.embedding_dim
    embedder = embed.Embedder(spec)
    for side, width in (("user", embedder.user_dim), ("item", embedder.item_dim)):
        per_pair, once = closed_form(width, S, C, use_sap=use_sap)
        assert counted[side] == PAIRS * per_pair + once
    # One query asks for its own scenario's coefficients and gates alone.
    per_query, once = closed_form(embedder.user_dim, 1, C, use_sap=use_sap)
    assert counted["query"] == per_query + once
    assert counted["score"] == PAIRS * 6


def test_the_corpus_is_embedded_once_per_index(spec):
    conditioned = costs.count_matcher(make(spec), PAIRS)
    shared = costs.count_matcher(make(spec, item_scenario="shared"), PAIRS)
    assert (conditioned["indexes"], shared["indexes"]) == (spec.num_scenarios, 1)
    assert conditioned["corpus"] > (spec.num_scenarios - 1) * shared["corpus"]


def test_the_example_of_the_papers_widths(spec):
    """Section 1.10's worked example: 512 user and 128 item entries, K 3, R 4, widths 256, 128."""
    total = sum(closed_form(inputs, 4, 16, K=3, R=4, H=256, D=128)[0] for inputs in (512, 128))
    # As executed: a bias per output, and the zero blocks of three experts' up-projections.
    extra = 2 * (3 * 256 + 128) + 2 * (3 * 4 * 3 * 256 - 3 * 4 * 256)
    sap = 3 * (512 * 256 + 4 * (512 + 256)) + 256 * 128 + 4 * (256 + 128)
    sap += 3 * (128 * 256 + 4 * (128 + 256)) + 256 * 128 + 4 * (256 + 128)
    assert total == sap + extra
    assert total == pytest.approx(0.576e6, rel=0.03)
