"""The serving bundle: a trained two-tower model as plain arrays that NumPy alone can run.

Owns the folding check and the bundle's files. A teacher never gets here: what is written is read
through the matcher's own methods.

    bundle.json                   what follows, for programs; see `describe`
    <side>_table_<field>.npy      [rows, E], the row of an unknown id is 0
    <side>_dense.npy              [F, E], one vector per dense feature
    <side>_first.npy, ...         the folded towers, see `nn.mixture.FoldedTower`
    item_vectors.npy              [S, V, D], or [1, V, D] where items do not see the scenario
    item_raw_id.npy               [V] raw ids by row; row 0 is padding

Letters: S scenarios, V rows of the corpus (row 0 is padding), E one field's width, I a tower's
input, F hidden units, D tower output, B rows of a chunk.
"""

import json
import os
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float, Shaped

import dsmoe_jax
from dsmoe_jax import batch as batch_lib
from dsmoe_jax import runlog
from dsmoe_jax.data import manifest
from dsmoe_jax.models.matching import two_tower
from dsmoe_jax.nn import mixture
from dsmoe_jax.training import train_state

FORMAT = 1
FILE = "bundle.json"
SIDES = ("user", "item")

# Largest difference, relative to the largest output, between a folded tower and the model.
_TOLERANCE = 1e-4
_PROBES = 64


def write_bundle(
    path: str | os.PathLike[str],
    matcher: two_tower.Matcher,
    frozen: train_state.Frozen,
    corpus: batch_lib.Items,
    *,
    item_raw_id_V: Shaped[np.ndarray, "V"] | None = None,
    item_batch: int = 4096,
) -> None:
    """Writes the bundle of a trained matcher, beside its place first.

    Every process takes part; the first one writes.

    Args:
      path: The bundle's folder; an older bundle there is replaced.
      matcher: A model that folds: DSMOE.
      frozen: Its parameters and statistics.
      corpus: All items, leading axis V.
      item_raw_id_V: The raw id of every row, if the bundle is to carry them.
      item_batch: Items embedded at once.

    Raises:
      ValueError: When the model cannot be folded, or `path` holds something that is no bundle.
    """
    if not hasattr(matcher, "fold_tower"):
        raise ValueError(f"export: expected a matcher that folds, got {type(matcher).__name__}")
    if matcher.spec.history_encoder != "mean":
        raise ValueError(
            "export: expected features.history_encoder 'mean', the one that a bundle's reader "
            f"knows, got {matcher.spec.history_encoder!r}"
        )
    root = pathlib.Path(path)
    if root.exists() and not (root / FILE).is_file():
        raise ValueError(f"{root}: expected a bundle to replace or nothing, got other files")
    arrays = _read_arrays(matcher, frozen, corpus, item_batch)
    if item_raw_id_V is not None:
        arrays["item_raw_id"] = item_raw_id_V
    if jax.process_index() > 0:
        return
    partial = root.with_name(root.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        for name, array in arrays.items():
            np.save(partial / f"{name}.npy", np.ascontiguousarray(array), allow_pickle=False)
        text = json.dumps(describe(matcher, frozen, partial), indent=1)
        (partial / FILE).write_text(text + "\n", encoding="utf-8")
        if root.exists():
            shutil.rmtree(root)
        partial.replace(root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def describe(
    matcher: two_tower.Matcher, frozen: train_state.Frozen, folder: pathlib.Path
) -> dict[str, Any]:
    """What `bundle.json` says about the arrays in `folder`.

    Returns:
      `format`; `method`; `versions`; `scenarios` (names, which a scenario id indexes);
      `item_uses_scenario` (whether the scenario picks the item vectors and the item tower, else
      index 0 does); `tower` (how an input x becomes a vector); `score` (how vectors become a
      logit); `spec` (the features; ids as in the prepared store); `inputs` (per side, the slots of
      E entries whose concatenation is x, see `nn.tables.Slot`); `files` (bytes and sha256).
    """
    inputs = {
        side: [slot._asdict() for slot in _apply(matcher, frozen, side, method="input_slots")]
        for side in SIDES
    }
    return {
        "format": FORMAT,
        "method": type(matcher).__name__,
        "versions": {"dsmoe_jax": dsmoe_jax.__version__, "jax": jax.__version__},
        "scenarios": list(matcher.spec.scenarios),
        "item_uses_scenario": matcher.item_uses_scenario,
        "tower": "prelu(x @ first[s] + first_bias[s], slope) @ second[s] + second_bias[s]",
        "score": "user_vector . item_vector",
        "spec": matcher.spec.to_json(),
        "inputs": inputs,
        "files": manifest.fingerprint(sorted(folder.glob("*.npy"))),
    }


def fold_tower(
    matcher: two_tower.Matcher, frozen: train_state.Frozen, side: str
) -> mixture.FoldedTower:
    """The "user" or "item" tower as a perceptron per scenario, on the host.

    The folded tower is compared with the model on random inputs in every scenario.

    Raises:
      ValueError: When the model cannot be folded.
      RuntimeError: When the folded tower's outputs are not the model's.
    """
    # GPUs round float32 products by default; what is written once is folded exactly.
    with jax.default_matmul_precision("highest"):
        fold = jax.jit(lambda frozen: _apply(matcher, frozen, side, method="fold_tower"))
        folded: mixture.FoldedTower = jax.tree.map(_to_host, fold(frozen))
        num_scenarios, width = folded.first_SIF.shape[:2]
        probe_BI = np.random.default_rng(0).normal(size=(_PROBES, width)).astype(np.float32)
        run = jax.jit(
            lambda frozen, *inputs: _apply(matcher, frozen, side, *inputs, method="run_tower")
        )
        for s in range(num_scenarios):
            expected_BD = _to_host(run(frozen, probe_BI, np.full(_PROBES, s, np.int32)))
            error = np.abs(run_folded(folded, probe_BI, s) - expected_BD).max()
            if not error <= _TOLERANCE * max(float(np.abs(expected_BD).max()), 1.0):
                raise RuntimeError(
                    f"export: the folded {side} tower differs from the model by {error:.3g} in "
                    f"scenario {matcher.spec.scenarios[s]!r}"
                )
    return folded


def run_folded(
    folded: mixture.FoldedTower, input_BI: Float[np.ndarray, "B I"], scenario: int
) -> Float[np.ndarray, "B D"]:
    """Vectors of one scenario from a folded tower, in NumPy."""
    hidden_BF = input_BI @ folded.first_SIF[scenario] + folded.first_bias_SF[scenario][None]
    hidden_BF = np.where(hidden_BF >= 0, hidden_BF, folded.slope_F[None] * hidden_BF)
    return hidden_BF @ folded.second_SFD[scenario] + folded.second_bias_SD[scenario][None]


def _read_arrays(
    matcher: two_tower.Matcher,
    frozen: train_state.Frozen,
    corpus: batch_lib.Items,
    item_batch: int,
) -> dict[str, np.ndarray]:
    """Every array of the bundle by its file's name, on the host."""
    read = jax.jit(lambda frozen: _apply(matcher, frozen, method="embedding_arrays"))
    arrays: dict[str, np.ndarray] = jax.tree.map(_to_host, read(frozen))
    for side in SIDES:
        for name, array in fold_tower(matcher, frozen, side)._asdict().items():
            arrays[f"{side}_{name.rpartition('_')[0]}"] = array
    arrays["item_vectors"] = _embed_corpus(matcher, frozen, corpus, item_batch)
    return arrays


def _embed_corpus(
    matcher: two_tower.Matcher,
    frozen: train_state.Frozen,
    corpus: batch_lib.Items,
    item_batch: int,
) -> Float[np.ndarray, "S V D"]:
    """Item vectors per scenario, row = item id, in chunks of one shape."""

    @jax.jit
    def embed(
        frozen: train_state.Frozen, corpus: batch_lib.Items, id_B: jax.Array, scenario: jax.Array
    ) -> jax.Array:
        items = batch_lib.take_items(corpus, id_B)
        scenario_B = jnp.full(id_B.shape, scenario, jnp.int32)
        item_BD: jax.Array
        item_BD, _ = _apply(matcher, frozen, items, scenario_B, train=False, method="embed_item")
        return item_BD

    V = corpus.sparse_VF.shape[0]
    scenarios = range(matcher.spec.num_scenarios if matcher.item_uses_scenario else 1)
    starts = range(0, V, min(item_batch, V))
    vectors: list[list[np.ndarray]] = [[] for _ in scenarios]
    with (
        runlog.bar(total=len(scenarios) * len(starts), desc="export") as bar,
        jax.default_matmul_precision("highest"),
    ):
        for s in scenarios:
            for start in starts:
                id_B = np.minimum(np.arange(start, start + starts.step), V - 1)
                item_BD = embed(frozen, corpus, id_B, np.int32(s))
                vectors[s].append(_to_host(item_BD)[: V - start])
                bar.update()
    return np.stack([np.concatenate(chunks) for chunks in vectors])


def _apply(
    matcher: two_tower.Matcher, frozen: train_state.Frozen, *inputs: Any, **options: Any
) -> Any:
    return matcher.apply(frozen.variables, *inputs, **options)


def _to_host(array: jax.Array) -> np.ndarray:
    if not array.is_fully_addressable:
        array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)
