import dataclasses
import functools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_features

from dsmoe_jax.models.matching import dsmoe
from dsmoe_jax.nn import mixture
from dsmoe_jax.serving import bundle as export
from dsmoe_jax.training import train_state

B, V = 8, 20
SPEC = tiny_features.make_spec()
USERS = tiny_features.make_users(SPEC, B)
SCENARIO_B = tiny_features.make_scenarios(SPEC, B)

# What a server without JAX does: it imports NumPy and reads files.
READER = """
import json, pathlib, sys
import numpy as np

root = pathlib.Path(sys.argv[1])
bundle = json.loads((root / "bundle.json").read_text())
array = {path.stem: np.load(path) for path in root.glob("*.npy")}
rows = np.load(sys.argv[2])


def pool(table, ids, mask):
    return (table[ids] * mask[..., None]).sum(1) / np.maximum(mask.sum(1), 1)[:, None]


def embed(side):
    blocks = []
    for slot in bundle["inputs"][side]:
        table = array[slot["table"]][slot["first_row"] :]
        if slot["kind"] == "sparse":
            blocks.append(table[rows[side + "_sparse"][:, slot["column"]]])
        elif slot["kind"] == "dense":
            blocks.append(rows[side + "_dense"][:, slot["column"], None] * table[:1])
        elif slot["kind"] == "bag":
            ids = rows[side + "_bag_" + slot["name"]]
            blocks.append(pool(table, ids, ids > 0))
        else:
            ids = rows["sequence_" + slot["name"]]
            blocks.append(pool(table, ids[..., slot["column"]], ids[..., 0] > 0))
    return np.concatenate(blocks, axis=1)


def run(side, x, scenario):
    part = lambda name: array[side + "_" + name][scenario]
    hidden = x @ part("first") + part("first_bias")
    hidden = np.where(hidden > 0, hidden, array[side + "_slope"] * hidden)
    return hidden @ part("second") + part("second_bias")


S = len(bundle["scenarios"])
users = np.stack([run("user", embed("user"), s) for s in range(S)])
items = [run("item", embed("item"), s) for s in range(S if bundle["item_uses_scenario"] else 1)]
assert "jax" not in sys.modules
np.savez(sys.argv[3], users=users, items=np.stack(items), vectors=array["item_vectors"])
"""


@functools.cache
def make(**changes):
    fields = {"hidden_dim": 8, "output_dim": 5, "rank": 2, "num_experts": 3}
    model = dsmoe.DSMOEConfig(**{**fields, **changes}).make(SPEC)
    items = tiny_features.make_items(SPEC, (B, 2))
    variables = tiny_features.make_variables(model, USERS, items, SCENARIO_B)
    return model, train_state.Frozen(variables.pop("params"), variables)


def make_corpus():
    """Items whose id is their row."""
    corpus = tiny_features.make_items(SPEC, (V,))
    return corpus._replace(sparse_VF=corpus.sparse_VF.at[:, 0].set(jnp.arange(V)))


def embed_by_model(model, frozen, rows, scenario, method):
    variables = frozen.variables
    apply = jax.jit(functools.partial(model.apply, train=False, method=method))
    scenarios = jnp.full(rows.sparse_BF.shape[0] if method == "embed_user" else V, scenario)
    return apply(variables, rows, scenarios.astype(jnp.int32))[0]


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
@pytest.mark.parametrize("side", export.SIDES)
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


def test_gate_that_reads_features_is_refused(tmp_path):
    model, frozen = make(gate_input="scenario_and_features")
    with pytest.raises(ValueError, match=r"model.gate_input: folding a tower needs 'scenario'"):
        export.write_bundle(tmp_path / "bundle", model, frozen, make_corpus())
    assert list(tmp_path.iterdir()) == []


def test_a_history_that_is_not_averaged_is_refused(tmp_path):
    model, frozen = make()
    spec = dataclasses.replace(SPEC, history_encoder="hstu")
    with pytest.raises(ValueError, match=r"expected features.history_encoder 'mean', .* 'hstu'"):
        export.write_bundle(tmp_path / "b", model.clone(spec=spec), frozen, make_corpus())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("item_scenario", ["conditioned", "shared"])
def test_bundle_runs_in_numpy_alone_and_equals_the_model(tmp_path, item_scenario):
    model, frozen = make(item_scenario=item_scenario, input_includes_scenario=True)
    corpus = make_corpus()
    export.write_bundle(
        tmp_path / "bundle", model, frozen, corpus, item_raw_id_V=np.arange(V) * 7, item_batch=6
    )
    rows = {
        "user_sparse": USERS.sparse_BF,
        "user_dense": USERS.dense_BF,
        "item_sparse": corpus.sparse_VF,
        "item_dense": corpus.dense_VF,
        **{f"user_bag_{name}": ids for name, ids in USERS.bags.items()},
        **{f"item_bag_{name}": ids for name, ids in corpus.bags.items()},
        **{f"sequence_{name}": s.ids_BLF for name, s in USERS.sequences.items()},
    }
    np.savez(tmp_path / "rows.npz", **{k: np.asarray(v) for k, v in rows.items()})
    arguments = [str(tmp_path / name) for name in ("bundle", "rows.npz", "got.npz")]
    subprocess.run([sys.executable, "-c", READER, *arguments], check=True, cwd=tmp_path)
    got = np.load(tmp_path / "got.npz")
    assert got["vectors"].shape == (4 if item_scenario == "conditioned" else 1, V, 5)
    np.testing.assert_allclose(got["items"], got["vectors"], rtol=1e-3, atol=1e-4)
    for s in range(4):
        expected = embed_by_model(model, frozen, USERS, s, "embed_user")[:, 0]
        np.testing.assert_allclose(got["users"][s], expected, rtol=1e-3, atol=1e-4)
    for s in range(len(got["vectors"])):
        expected = embed_by_model(model, frozen, corpus, s, "embed_item")
        np.testing.assert_allclose(got["vectors"][s], expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(np.load(tmp_path / "bundle/item_raw_id.npy"), np.arange(V) * 7)


def test_bundle_holds_the_described_files_and_no_teacher(tmp_path):
    model, frozen = make()
    export.write_bundle(tmp_path / "bundle", model, frozen, make_corpus())
    bundle = json.loads((tmp_path / "bundle" / "bundle.json").read_text())
    files = {path.name for path in (tmp_path / "bundle").iterdir()} - {"bundle.json"}
    assert files == set(bundle["files"])
    assert {path.name for path in tmp_path.iterdir()} == {"bundle"}
    assert bundle["scenarios"] == ["A", "B", "C", "D"] and bundle["method"] == "DSMOE"
    named = {f"{slot['table']}.npy" for side in export.SIDES for slot in bundle["inputs"][side]}
    tower = {"first", "first_bias", "slope", "second", "second_bias"}
    towers = {f"{side}_{name}.npy" for side in export.SIDES for name in tower}
    assert files == named | towers | {"item_vectors.npy"}


def test_an_older_bundle_is_replaced_and_other_files_are_not(tmp_path):
    model, frozen = make()
    export.write_bundle(tmp_path / "bundle", model, frozen, make_corpus())
    (tmp_path / "bundle" / "stale.npy").write_bytes(b"")
    export.write_bundle(tmp_path / "bundle", model, frozen, make_corpus())
    assert not (tmp_path / "bundle" / "stale.npy").exists()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    with pytest.raises(ValueError, match="expected a bundle to replace or nothing"):
        export.write_bundle(tmp_path / "notes", model, frozen, make_corpus())
    assert (tmp_path / "notes" / "a.txt").read_text() == "mine"


def test_nothing_half_written_remains(tmp_path, monkeypatch):
    model, frozen = make()
    monkeypatch.setattr(export, "describe", lambda *_: {"not json": object()})
    with pytest.raises(TypeError):
        export.write_bundle(tmp_path / "bundle", model, frozen, make_corpus())
    assert list(tmp_path.iterdir()) == []
