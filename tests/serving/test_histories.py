"""Causal history encoders as plain arrays: the model's vectors and the evaluation's lists."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsmoe_jax import batch as batch_lib
from dsmoe_jax import features
from dsmoe_jax.data import pipeline
from dsmoe_jax.models.matching import dsmoe
from dsmoe_jax.nn import causal
from dsmoe_jax.serving import bundle as bundle_lib
from dsmoe_jax.serving import export, onnx_graph, retriever, towers
from tests.serving import shop, test_retriever

KINDS = ("hstu", "fuxi", "fuxi_mme")
L = 6  # Events that the shop's models read
NOW_S = 2_000_000_000


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return shop.prepare(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module", params=KINDS)
def exported(request, store, tmp_path_factory):
    config = dsmoe.DSMOEConfig(num_experts=2, rank=2, hidden_dim=6, output_dim=5)
    untrained = shop.Untrained(store, config, history_encoder=request.param)
    # Larger parameters, so that no part of a block is lost in rounding.
    params = untrained.frozen.params
    encoder = jax.tree.map(lambda leaf: 5 * leaf, params["embedder"]["history_encoder"])
    embedder = {**params["embedder"], "history_encoder": encoder}
    untrained.frozen = untrained.frozen._replace(params={**params, "embedder": embedder})
    path = tmp_path_factory.mktemp("bundles") / request.param
    return untrained, path, untrained.export(path)


def make_users(untrained, lengths):
    """Users with so many events, at times from a second to decades ago."""
    rng, B = np.random.default_rng(0), len(lengths)
    rows_BC = np.asarray(untrained.store.train_NC[:B])
    users = pipeline.UserReader(untrained.store, untrained.spec).read(rows_BC)
    is_event_BL = np.arange(L) < np.array(lengths)[:, None]
    ago_BL = np.exp(np.sort(rng.uniform(0, 21, (B, L)), axis=1)[:, ::-1]).astype(np.int64)
    # Some times are unknown.
    time_BL = np.where(rng.random((B, L)) < 0.1, 0, np.maximum(NOW_S - ago_BL, 0))
    id_BL = rng.integers(1, shop.NUM_ITEMS + 1, (B, L)) * is_event_BL
    history = batch_lib.Sequence(
        id_BL[..., None].astype(np.int32), (time_BL * is_event_BL).astype(np.int32)
    )
    return users._replace(
        sequences={**users.sequences, features.HISTORY: history},
        time_B=np.full(B, NOW_S, np.int32),
    )


def test_vectors_are_the_models_for_histories_of_any_length_and_age(exported):
    untrained, path, _ = exported
    tower, _ = towers.make_towers(bundle_lib.Bundle.open(path))
    lengths = [n % (L + 1) for n in range(200)]
    users, scenario_B = make_users(untrained, lengths), np.arange(200, dtype=np.int32) % 3
    embed = jax.jit(
        lambda variables, users, scenario_B: untrained.matcher.apply(
            variables, users, scenario_B, train=False, method="embed_user"
        )[0]
    )
    expected = np.asarray(embed(untrained.frozen.variables, users, scenario_B))
    got = tower(users, scenario_B)
    assert np.abs(got - expected).max() <= 1e-5 * max(np.abs(expected).max(), 1.0)
    # Not by chance: order, times and the last event count, and so does each user's own length.
    history = users.sequences[features.HISTORY]
    for changed in (
        history._replace(ids_BLF=np.where(history.ids_BLF > 0, 1, 0).astype(np.int32)),
        history._replace(time_BL=history.time_BL // 2),
    ):
        other = users._replace(sequences={**users.sequences, features.HISTORY: changed})
        assert np.abs(tower(other, scenario_B) - got).max() > 1e-3 * np.abs(got).max()
    for few in (slice(0, 1), slice(1, 3), slice(0, 200, 7)):
        part = jax.tree.map(lambda leaf, few=few: leaf[few], users)
        np.testing.assert_allclose(tower(part, scenario_B[few]), got[few], rtol=1e-4, atol=1e-5)


def test_lists_are_the_evaluations(exported):
    untrained, path, _ = exported
    store, found = untrained.store, retriever.Retriever.load(path)
    users = sorted({*store.users_raw_id[store.queries("test").rows_QC[:, 0]].tolist()})
    lists, evaluation = found.recommend(users, "all", 10), untrained.evaluate()
    for k in (5, 10):
        np.testing.assert_array_equal(test_retriever.hits(store, lists, k), evaluation.hits[k])
    assert len(found.recommend({"history": ["i1", "i2"], "time": 1_700_000_000}, "feed", 4)) == 4


def test_the_bundle_is_plain_arrays_and_says_what_they_mean(exported):
    untrained, path, cost = exported
    bundle = bundle_lib.Bundle.open(path)
    form = bundle.manifest["towers"]
    assert form["kind"] == "arrays" and not list(path.glob("*.stablehlo"))
    assert form["user"]["history"]["kind"] == untrained.spec.history_encoder
    assert all(bundle.has(name) for name in form["user"]["history"]["parameters"])
    assert [s["kind"] for s in form["user"]["slots"]].count("encoded") == 1
    assert 0 < cost.exported < cost.model


def test_an_encoder_that_differs_from_the_model_is_refused(store, tmp_path, monkeypatch):
    config = dsmoe.DSMOEConfig(num_experts=1, rank=2, hidden_dim=6, output_dim=5)
    untrained = shop.Untrained(store, config, history_encoder="hstu")
    form = {**untrained.matcher.bind(untrained.frozen.variables).history_form(), "num_blocks": 1}
    monkeypatch.setattr(dsmoe.DSMOE, "history_form", lambda _: form)
    with pytest.raises(RuntimeError, match="export: the user tower differs from the model by"):
        untrained.export(tmp_path / "bundle")


def test_what_rests_on_means_is_refused_in_one_line(exported, tmp_path):
    untrained, path, _ = exported
    found = retriever.Retriever.load(path)
    assert export.folds(untrained.matcher)
    user = untrained.store.users_raw_id[1]
    with pytest.raises(ValueError, match=r"explain: expected a tower .* encodes the whole history"):
        found.explain(user, "feed", "i1")
    with pytest.raises(ValueError, match="expected means of histories for ONNX, got the encoder"):
        onnx_graph.write_onnx(found.bundle, tmp_path / "x.onnx", k=5)


def test_buckets_begin_where_the_models_logarithm_says():
    start_T = causal.bucket_starts()
    assert start_T[0] == 1 and (np.diff(start_T) >= 0).all() and 70 < len(start_T) < 73
    near_X = np.unique(np.concatenate([start_T + n for n in range(-300, 301)]))
    near_X = near_X[(near_X >= 1) & (near_X < 2**31)]
    expected_X = jax.jit(causal.find_bucket)(jnp.asarray(near_X, jnp.int32))
    found_X = np.searchsorted(start_T, near_X, side="right") - 1
    np.testing.assert_array_equal(found_X, expected_X)
