"""Folding: a tower's arrays are the model, and one that is not is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsmoe_jax.models.matching import dsmoe
from dsmoe_jax.nn import mixture
from dsmoe_jax.serving import bundle as bundle_lib
from dsmoe_jax.serving import export, retriever
from dsmoe_jax.training import train_state
from tests import tiny_features
from tests.models import small
from tests.serving import shop

B = 8
SPEC = tiny_features.make_spec()
USERS = tiny_features.make_users(SPEC, B)
SCENARIO_B = tiny_features.make_scenarios(SPEC, B)


@functools.cache
def make(**changes):
    fields = {"hidden_dim": 8, "output_dim": 5, "rank": 2, "num_experts": 3}
    model = dsmoe.DSMOEConfig(**{**fields, **changes}).make(SPEC)
    items = tiny_features.make_items(SPEC, (B, 2))
    variables = tiny_features.make_variables(model, USERS, items, SCENARIO_B)
    return model, train_state.Frozen(variables.pop("params"), variables)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_sap": False},
        {"norm": "bn"},
        {"norm": "none"},
        {"input_includes_scenario": True},
        {"item_scenario": "shared", "input_includes_scenario": True},
    ],
)
@pytest.mark.parametrize("side", bundle_lib.SIDES)
def test_folded_tower_equals_the_model(side, changes):
    model, frozen = make(**changes)
    folded = export.fold_tower(model, frozen, side)  # raises when it differs
    scenarios = 1 if side == "item" and "item_scenario" in changes else 4
    assert folded.first_SIF.shape[0] == folded.second_SFD.shape[0] == scenarios
    assert folded.first_SIF.shape[2] == 3 * 8
    variables = frozen.variables
    x_BI = np.random.default_rng(1).normal(size=(B, folded.first_SIF.shape[1])).astype("f")
    run = jax.jit(functools.partial(model.apply, method="run_tower"), static_argnums=1)
    for s in range(scenarios):
        expected_BD = run(variables, side, x_BI, jnp.full(B, s, jnp.int32))
        np.testing.assert_allclose(
            export.run_folded(folded, x_BI, s), expected_BD, rtol=1e-4, atol=1e-4
        )


def test_a_fold_that_differs_is_refused(monkeypatch):
    model, frozen = make()
    fold = mixture.ScenarioMixture.fold

    def wrong(self, scenario_SC):
        folded = fold(self, scenario_SC)
        return folded._replace(second_bias_SD=folded.second_bias_SD.at[2].add(0.1))

    monkeypatch.setattr(mixture.ScenarioMixture, "fold", wrong)
    with pytest.raises(RuntimeError, match=r"folded user tower differs .* scenario 'C'"):
        export.fold_tower(model, frozen, "user")


def test_a_bundle_that_differs_from_the_model_on_real_rows_is_refused(tmp_path, monkeypatch):
    untrained = shop.Untrained(shop.prepare(tmp_path), small.SMALL_MATCHERS["fism"])
    form = {**untrained.matcher.linear_form(), "least_variance": 10.0}
    monkeypatch.setattr(type(untrained.matcher), "linear_form", lambda _: form)
    with pytest.raises(RuntimeError, match="export: the user tower differs from the model by"):
        untrained.export(tmp_path / "bundle")


@pytest.mark.parametrize("history_encoder", ["mean", "hstu"])
def test_a_dsmoe_that_does_not_fold_is_a_program(tmp_path, history_encoder):
    changes = {"gate_input": "scenario_and_features"}
    config = dsmoe.DSMOEConfig(num_experts=2, rank=2, hidden_dim=6, output_dim=5, **changes)
    store = shop.prepare(tmp_path)
    untrained = shop.Untrained(store, config, history_encoder=history_encoder)
    cost = untrained.export(tmp_path / "bundle")
    assert cost.exported == cost.model > 0
    found = retriever.Retriever.load(tmp_path / "bundle")
    towers_form = found.bundle.manifest["towers"]
    assert towers_form["kind"] == "stablehlo" and towers_form["expires"] > "2026"
    known = store.users_raw_id[found.bundle.load("test_queries")[:3, 0]].tolist()
    assert len(found.recommend(known, "feed", 4)) == 4 * len(known)
    with pytest.raises(ValueError, match="explain: expected a tower that folds"):
        found.explain(known[0], "feed", "i1")


def test_a_program_of_another_jax_is_refused_in_one_line(tmp_path, monkeypatch):
    untrained = shop.Untrained(shop.prepare(tmp_path), small.SMALL_MATCHERS["dssm"])
    untrained.export(tmp_path / "bundle")

    def fail(_):
        raise ValueError("Cannot deserialize computation")

    monkeypatch.setattr(jax.export, "deserialize", fail)
    with pytest.raises(ValueError, match=r"user_tower.stablehlo: expected .* promised until 20"):
        retriever.Retriever.load(tmp_path / "bundle")


def test_folding_saves_operations(tmp_path):
    cost = shop.Untrained(shop.prepare(tmp_path), small.SMALL_MATCHERS["dsmoe"]).export(
        tmp_path / "bundle"
    )
    assert 0 < cost.exported < cost.model
