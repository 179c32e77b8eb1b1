"""Export: a trained matcher and its store as a bundle.

Owns the folding check and what a bundle holds. A teacher never gets here: what is written is read
through the matcher's own methods.

Letters: S scenarios, V rows of the corpus (row 0 is padding), I a tower's input, F hidden units, D
tower output, B rows of a chunk, Q queries.
"""

import datetime
import os
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float

import dsmoe_jax
from dsmoe_jax import batch as batch_lib
from dsmoe_jax import runlog
from dsmoe_jax.data import pipeline, statistics
from dsmoe_jax.data import store as store_lib
from dsmoe_jax.models.matching import two_tower
from dsmoe_jax.nn import causal, mixture
from dsmoe_jax.serving import bundle as bundle_lib
from dsmoe_jax.serving import compiled, histories, state, towers
from dsmoe_jax.training import train_state

# Largest difference, relative to the largest output, between a folded tower and the model, on
# inputs drawn at random and on users of the store.
_TOLERANCE = 1e-4
_REAL_TOLERANCE = 1e-5
_PROBES = 64
_ITEM_BATCH = 4096


class Cost(NamedTuple):
    """Floating-point operations of the user tower for one query."""

    model: float  # As the compiler counts those of the model
    exported: float  # Of the folded tower's products; the model's where it does not fold


def write_bundle(
    path: str | os.PathLike[str],
    store: store_lib.Store,
    matcher: two_tower.Matcher,
    frozen: train_state.Frozen,
    *,
    run: dict[str, Any],
    today: datetime.date | None = None,
) -> Cost:
    """Writes the bundle of a trained matcher.

    What depends on the days before a split is as the test days see it. Every process takes part in
    gathering the parameters; the first one does the rest.

    Args:
      path: The bundle's folder; an older bundle there is replaced.
      store: What it was trained on.
      matcher: The model; its `spec` says which features it reads.
      frozen: Its parameters and statistics.
      run: What the manifest says of the run: `variant`, `config_hash`, `step`, `remove_seen`,
        `results`.
      today: Date of the export.

    Raises:
      ValueError: When `path` holds something that is no bundle.
      RuntimeError: When a folded tower is not the model's.
    """
    root = pathlib.Path(path).expanduser()
    bundle_lib.check_place(root)
    today = today or datetime.date.today()
    frozen = train_state.Frozen(*jax.tree.map(_to_host, tuple(frozen)))
    if jax.process_index() > 0:
        return Cost(0.0, 0.0)
    frozen = _as_test_days_see_it(store, matcher, frozen)
    users, scenario_Q = _read_probes(store, matcher)
    corpus = pipeline.read_corpus(store, matcher.spec)
    arrays = {"item_vectors": _embed_corpus(matcher, frozen, corpus)}
    blobs: dict[str, bytes] = {}
    form: dict[str, Any]
    if folds(matcher):
        form = _fold(matcher, frozen, arrays)
    else:
        form = _compile(matcher, frozen, users, scenario_Q, arrays, blobs, today)
    known = state.read_known(store)
    _add_entities(store, known, arrays)
    _add_queries(store, arrays)
    described = {
        "method": type(matcher).__name__,
        "dataset": store.manifest["dataset"],
        **run,
        "data_hash": store.data_hash,
        "date": today.isoformat(),
        "versions": {"dsmoe_jax": dsmoe_jax.__version__, "jax": jax.__version__},
        "scenarios": list(matcher.spec.scenarios),
        "item_uses_scenario": matcher.item_uses_scenario,
        "score": "user_vector . item_vector, the largest over interests",
        "known_until_s": known.until_s,
        "spec": matcher.spec.to_json(),
        "raw_spec": store.spec.to_json(),
        "columns": store.manifest["columns"]["examples"],
        "dense": store.manifest["dense"],
        "raw_forms": store.manifest.get("raw_forms", {}),
        "gates": _read_gates(matcher, frozen),
        "towers": form,
    }
    probes = _embed_probes(matcher, frozen, users, scenario_Q)
    bundle_lib.write(root, arrays, blobs, described)
    _check(root, users, scenario_Q, probes.vector_QMD)
    exported = _count(matcher, form, arrays) if folds(matcher) else probes.operations
    return Cost(probes.operations, exported)


def folds(matcher: two_tower.Matcher) -> bool:
    """Whether the towers are plain arrays at serving."""
    if hasattr(matcher, "linear_form"):
        return True
    if isinstance(matcher, two_tower.KnownPrior):
        return False
    return (
        hasattr(matcher, "fold_tower")
        and getattr(matcher.cfg, "gate_input", "scenario") == "scenario"
    )


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


def _as_test_days_see_it(
    store: store_lib.Store, matcher: two_tower.Matcher, frozen: train_state.Frozen
) -> train_state.Frozen:
    changing = statistics.changing_constants(store, matcher.constant_shapes)
    if not changing:
        return frozen
    values = statistics.make_constants(store, changing, "test")
    constants = {**frozen.model_state["constants"], **values}
    return frozen._replace(model_state={**frozen.model_state, "constants": constants})


def _read_probes(
    store: store_lib.Store, matcher: two_tower.Matcher
) -> tuple[batch_lib.Users, np.ndarray]:
    """The user side of test queries, spread over all."""
    rows_QC = np.asarray(store.queries("test").rows_QC)
    chosen = np.unique(np.linspace(0, len(rows_QC) - 1, _PROBES).astype(int))
    rows_QC = rows_QC[chosen]
    users = pipeline.UserReader(store, matcher.spec).read(rows_QC)
    return users, rows_QC[:, store.columns["scenario"]].astype(np.int32)


def _fold(
    matcher: two_tower.Matcher, frozen: train_state.Frozen, arrays: dict[str, np.ndarray]
) -> dict[str, Any]:
    """Adds the arrays of folded towers; returns what the manifest says about them."""
    form: dict[str, Any] = {"kind": "arrays"}
    linear = matcher.linear_form() if hasattr(matcher, "linear_form") else None
    known = ("linear_arrays", "embedding_arrays", "history_arrays")
    methods = [m for m in known if hasattr(matcher, m)]
    read = jax.jit(lambda frozen: [_apply(matcher, frozen, method=m) for m in methods])
    for found in read(frozen):
        arrays |= jax.tree.map(_to_host, found)
    for side in bundle_lib.SIDES:
        form[side] = {"linear": linear if side == "user" else None, "slots": []}
        if hasattr(matcher, "fold_tower"):
            slots = _apply(matcher, frozen, side, method="input_slots")
            form[side]["slots"] = [slot._asdict() for slot in slots]
            for name, array in fold_tower(matcher, frozen, side)._asdict().items():
                arrays[f"{side}_{name.rpartition('_')[0]}"] = array
    if hasattr(matcher, "history_form"):
        history = _apply(matcher, frozen, method="history_form")
        if history:
            arrays[f"{histories.PREFIX}bucket_starts"] = causal.bucket_starts()
            names = sorted(name for name in arrays if name.startswith(histories.PREFIX))
            form["user"]["history"] = {**history, "parameters": names}
    if hasattr(matcher, "fold_tower"):
        form["num_experts"] = matcher.cfg.num_experts
    return form


def _compile(
    matcher: two_tower.Matcher,
    frozen: train_state.Frozen,
    users: batch_lib.Users,
    scenario_Q: np.ndarray,
    arrays: dict[str, np.ndarray],
    blobs: dict[str, bytes],
    today: datetime.date,
) -> dict[str, Any]:
    """Adds the programs of towers that do not fold, and their variables."""
    leaves = jax.tree.leaves(frozen.variables)
    for n, leaf in enumerate(leaves):
        arrays[f"variables_{n}"] = _to_host(leaf)
    spec = matcher.spec
    one = batch_lib.Items(
        np.zeros((1, len(spec.item_sparse)), np.int32),
        np.zeros((1, len(spec.item_dense)), np.float32),
        {bag.name: np.zeros((1, bag.max_len), np.int32) for bag in spec.item_bags},
    )
    examples = {
        "user": compiled.flatten_users(users, scenario_Q),
        "item": compiled.flatten_items(one, np.zeros(1, np.int32)),
    }
    for side, example in examples.items():
        program = compiled.export_tower(matcher, frozen, side, example)
        blobs[f"{side}_tower.stablehlo"] = program
    return {
        "kind": "stablehlo",
        "num_variables": len(leaves),
        "expires": compiled.expiry(today),
    }


def _add_entities(
    store: store_lib.Store, known: state.Known, arrays: dict[str, np.ndarray]
) -> None:
    """Adds features, raw ids and vocabularies, and what is known of users."""
    for side in bundle_lib.SIDES:
        tables = {name: getattr(store, f"{side}s_{name}") for name in ("sparse", "dense", "raw_id")}
        arrays |= {f"{side}s_{name}": np.asarray(table) for name, table in tables.items()}
        bags: dict[str, np.ndarray] = getattr(store, f"{side}s_bags")
        arrays |= {f"{side}s_bag_{name}": np.asarray(ids_XP) for name, ids_XP in bags.items()}
    for name in store.manifest["vocabularies"]:
        arrays[f"vocabulary_{name}"] = np.asarray(store.load(f"vocabulary_{name}"))
    arrays["user_rows"] = known.rows_UC
    for name, (ids_EF, time_E) in known.sequences.items():
        arrays |= {f"sequence_{name}": ids_EF, f"sequence_{name}_time": time_E}
    shape_SV = (store.spec.num_scenarios, store.spec.num_items)
    [prior] = statistics.make_constants(store, {statistics.KNOWN_PRIOR: shape_SV}, "test").values()
    arrays["log_prior"] = prior


def _add_queries(store: store_lib.Store, arrays: dict[str, np.ndarray]) -> None:
    """Adds the test queries: who asked where, and what was clicked, to replay and to show."""
    queries, columns = store.queries("test"), store.columns
    arrays["test_queries"] = np.asarray(
        queries.rows_QC[:, [columns["user"], columns["scenario"]]], np.int32
    )
    arrays["test_relevant_indptr"] = np.asarray(queries.relevant.indptr)
    arrays["test_relevant"] = np.asarray(queries.relevant.items)


def _read_gates(
    matcher: two_tower.Matcher, frozen: train_state.Frozen
) -> dict[str, list[list[float]]]:
    """Weights [S, K] of the experts of each tower, of a model that has them."""
    if not hasattr(matcher, "gate_weights"):
        return {}
    gates = jax.jit(lambda frozen: _apply(matcher, frozen, method="gate_weights"))(frozen)
    return {side: _to_host(gate_SK).tolist() for side, gate_SK in gates.items()}


class _Probes(NamedTuple):
    vector_QMD: Float[np.ndarray, "Q M D"]  # User vectors of the model
    operations: float  # Of the user tower for one query


def _embed_probes(
    matcher: two_tower.Matcher,
    frozen: train_state.Frozen,
    users: batch_lib.Users,
    scenario_Q: np.ndarray,
) -> _Probes:
    """What the model makes of the probes, and at what cost."""

    def embed(
        frozen: train_state.Frozen, users: batch_lib.Users, scenario_Q: jax.Array
    ) -> jax.Array:
        vectors: jax.Array
        vectors, _ = _apply(matcher, frozen, users, scenario_Q, train=False, method="embed_user")
        return vectors

    with jax.default_matmul_precision("highest"):
        program = jax.jit(embed).lower(frozen, users, scenario_Q).compile()
    cost: Any = program.cost_analysis()
    vector_QMD = _to_host(program(frozen, users, scenario_Q))
    return _Probes(vector_QMD, float(cost.get("flops", 0.0)) / len(scenario_Q))


def _check(
    root: pathlib.Path,
    users: batch_lib.Users,
    scenario_Q: np.ndarray,
    expected_QMD: Float[np.ndarray, "Q M D"],
) -> None:
    """Compares the bundle's user and item towers with the model on rows of the store.

    Raises:
      RuntimeError: When they differ.
    """
    bundle = bundle_lib.Bundle.open(root, verify=False)
    user_tower, item_tower = towers.make_towers(bundle)
    _compare("user", user_tower(users, scenario_Q), expected_QMD)
    chosen = slice(1, 1 + _PROBES)
    items = jax.tree.map(lambda leaf: leaf[chosen], towers.read_items(bundle))
    for s, vector_VD in enumerate(bundle.load("item_vectors")):
        _compare("item", item_tower(items, s), vector_VD[chosen])


def _compare(side: str, got: np.ndarray, expected: np.ndarray) -> None:
    error = float(np.abs(got - expected).max())
    if not error <= _REAL_TOLERANCE * max(float(np.abs(expected).max()), 1.0):
        raise RuntimeError(f"export: the {side} tower differs from the model by {error:.3g}")


def _count(
    matcher: two_tower.Matcher, form: dict[str, Any], arrays: dict[str, np.ndarray]
) -> float:
    """Operations of a folded user tower's products for one query."""
    total = 0.0
    if "user_first" in arrays:
        total += 2.0 * (arrays["user_first"][0].size + arrays["user_second"][0].size)
    if "history" in form["user"]:
        total += histories.count_operations(form["user"]["history"], arrays)
    if "linear_covariance" in arrays:
        # The padding of a history is multiplied too.
        events = sum(sequence.max_len for sequence in matcher.spec.sequences)
        total += 2.0 * (events * arrays["linear_item"].shape[1] + arrays["linear_covariance"].size)
    return total


def _embed_corpus(
    matcher: two_tower.Matcher, frozen: train_state.Frozen, corpus: batch_lib.Items
) -> Float[np.ndarray, "S V D"]:
    """Item vectors per scenario, row = item id, in chunks of one shape."""

    @jax.jit
    def embed(frozen: train_state.Frozen, items: batch_lib.Items, scenario: jax.Array) -> jax.Array:
        scenario_B = jnp.full(len(items.sparse_VF), scenario, jnp.int32)
        item_BD: jax.Array
        item_BD, _ = _apply(matcher, frozen, items, scenario_B, train=False, method="embed_item")
        return item_BD

    V = corpus.sparse_VF.shape[0]
    scenarios = range(matcher.spec.num_scenarios if matcher.item_uses_scenario else 1)
    starts = range(0, V, min(_ITEM_BATCH, V))
    vectors: list[list[np.ndarray]] = [[] for _ in scenarios]
    with (
        runlog.bar(total=len(scenarios) * len(starts), desc="export") as bar,
        jax.default_matmul_precision("highest"),
    ):
        for s in scenarios:
            for start in starts:
                id_B = np.minimum(np.arange(start, start + starts.step), V - 1)
                item_BD = embed(frozen, batch_lib.take_items(corpus, id_B), np.int32(s))
                vectors[s].append(_to_host(item_BD)[: V - start])
                bar.update()
    return np.stack([np.concatenate(chunks) for chunks in vectors])


def _apply(
    matcher: two_tower.Matcher, frozen: train_state.Frozen, *inputs: Any, **options: Any
) -> Any:
    return matcher.apply(frozen.variables, *inputs, **options)


def _to_host(array: jax.Array | np.ndarray) -> np.ndarray:
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)
