"""Numbers of the data, of evaluation and of the reference rows, all on the tiny store."""

import contextlib
import itertools
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from dsmoe_jax import features
from dsmoe_jax.baselines import builtin
from dsmoe_jax.config import schema
from dsmoe_jax.data import pipeline, statistics
from dsmoe_jax.data import store as store_lib
from dsmoe_jax.evaluation import evaluators, metrics, protocol
from dsmoe_jax.models.ranking import din
from dsmoe_jax.retrieval import exact, reservoir
from dsmoe_jax.training import sharding, train_state
from tests import tiny, tiny_features

CONFIG = schema.EvalConfig(k=(3, 5), query_batch=16, item_batch=12, mrr_depth=7)


@contextlib.contextmanager
def open_store() -> Iterator[store_lib.Store]:
    """The tiny store."""
    with tempfile.TemporaryDirectory() as folder:
        yield tiny.write_store(pathlib.Path(folder) / "store")


def select(store: store_lib.Store) -> features.FeatureSpec:
    """All features, with histories shorter than some users'."""
    return features.select(
        store.spec,
        exclude=(),
        history_length=5,
        scenario_history_length=3,
        scenario_histories=True,
    )


def data() -> dict[str, Any]:
    """Order of batches, what batches hold, constants and statistics."""
    with open_store() as store:
        return batches(store) | constants(store)


def batches(store: store_lib.Store) -> dict[str, Any]:
    """Two epochs in order, the first batch in full, a process's slice, and a batch of queries."""
    spec = select(store)
    found: dict[str, Any] = {}
    for name, changes in (
        ("all", {"batch_size": 96}),
        ("last only", {"batch_size": 24, "last_only": True}),
        ("second of two processes", {"batch_size": 96, "process_index": 1, "process_count": 2}),
    ):
        source = pipeline.BatchSource(store, spec, seed=3, max_epochs=2, **changes)
        read = [source[step] for step in range(len(source))]
        found[f"{name}: steps"] = [source.steps_per_epoch, len(source)]
        found[f"{name}: users"] = [batch.users.sparse_BF[:, 0] for batch in read]
        found[f"{name}: items"] = [batch.item_B for batch in read]
    source = pipeline.BatchSource(store, spec, seed=3, batch_size=12, max_epochs=1)
    iterator = pipeline.make_train_iterator(source, start=2)
    for kind, tree in (
        ("batch", source[0]),
        ("batch of the iterator", next(iterator)),
        ("queries", next(pipeline.query_batches(store, spec, "test", np.arange(5), 6))),
        ("corpus", pipeline.read_corpus(store, spec)),
    ):
        leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
        for path, leaf in leaves:
            found[f"{kind}{jax.tree_util.keystr(path)}"] = leaf
    return found


def constants(store: store_lib.Store) -> dict[str, Any]:
    """All constants a model may ask for, and the statistics behind them."""
    S, V = store.spec.num_scenarios, store.spec.num_items
    shapes = {
        "log_prior_SV": (S, V),
        "clicked_SV": (S, V),
        "item_vector_VC": (V, 3),
        "sparse_author_V": (V,),
        "dense_duration_V": (V,),
        "bag_tag_VP": (V, 3),
    }
    found: dict[str, Any] = dict(statistics.make_constants(store, shapes))
    found["aged clicks"] = statistics.count_clicks(store, half_life_days=2.0)
    found["aged prior"] = statistics.log_prior(store, half_life_days=4.0, prior_clicks=3.0)
    interactions_UV = statistics.read_interactions(store)
    found["clicks of users"] = interactions_UV.toarray().astype(int) @ (1 + np.arange(V))
    rows_QC = store.queries("validation").rows_QC
    found["windows"] = statistics.read_windows(store, rows_QC).toarray().astype(int) @ (
        1 + np.arange(V)
    )
    return found


def evaluation() -> dict[str, Any]:
    """Judged scores, sampled queries, comparisons, models evaluated whole, and search."""
    with open_store() as store:
        found = judged(store) | models(store)
    found |= {f"search: {name}": value for name, value in search().items()}
    # Reservoirs are cut back often; what was compiled before knows other sizes.
    with (
        mock.patch.object(reservoir, "_LEAST_ROOM", 32),
        mock.patch.object(exact, "_CPU_SCORE_BYTES", 1 << 12),
    ):
        jax.clear_caches()
        found |= {f"search, small: {name}": value for name, value in search().items()}
    jax.clear_caches()
    return found


def make_scores(store: store_lib.Store, split: str, seed: int) -> np.ndarray:
    """Scores of all queries, of which many are equal."""
    shape = (len(store.queries(split).rows_QC), store.spec.num_items)
    return np.random.default_rng(seed).integers(-9, 9, shape).astype(np.float32) / 4


def flatten(summary: Any) -> list[float]:
    """All numbers of a summary by sorted names; -1 where there is none, for want of queries."""
    if isinstance(summary, dict):
        return [number for name in sorted(summary) for number in flatten(summary[name])]
    return [-1.0 if np.isnan(summary) else float(summary)]


def judged(store: store_lib.Store) -> dict[str, Any]:
    """Fixed scores by both rules of removal on both splits, on all queries and on a sample."""
    found: dict[str, Any] = {}
    for split in store_lib.SPLITS:
        for per_scenario in (None, 4):
            query_Q = protocol.sample_queries(store, split, per_scenario, 0)
            found[f"{split} {per_scenario}: queries"] = query_Q
            for remove_seen, how in (("positives", "without"), ("none", "with")):
                config = schema.EvalConfig(
                    k=CONFIG.k, query_batch=16, mrr_depth=7, remove_seen=remove_seen
                )
                first, second = (
                    evaluators.evaluate_scores(
                        store,
                        config,
                        split,
                        query_Q,
                        make_scores(store, split, seed).__getitem__,
                        num_negatives=2,
                        seed=5,
                    )
                    for seed in (0, 1)
                )
                name = f"{split} {per_scenario} {how} seen"
                found[f"{name}: summary"] = flatten(first.summarise())
                found[f"{name}: queries"] = per_query(first)
                found[f"{name}: comparison"] = flatten_comparison(
                    protocol.compare(first, second, 5)
                )
    with mock.patch.object(metrics, "_BLOCK_VALUES", 64):
        blocks = protocol.compare(first, second, 5)
    found["comparison in blocks"] = flatten_comparison(blocks)
    return found


def flatten_comparison(comparison: dict[str, metrics.Interval]) -> list[float]:
    """Differences of the scenarios, then the ends of their intervals, then macro."""
    *scenarios, macro = comparison.values()
    return [*itertools.chain(*zip(*scenarios, strict=True)), *macro]


def per_query(found: protocol.Evaluation) -> np.ndarray:
    """Every metric of every query."""
    columns = [*found.recall.values(), *found.hit_rate.values(), *found.ndcg.values()]
    columns += [column_Q for column_Q in (found.mrr_Q, found.log_loss_Q) if column_Q is not None]
    return np.stack(columns)


def models(store: store_lib.Store) -> dict[str, Any]:
    """A matcher through its index and a ranker by brute force, with random variables."""
    spec = features.select(store.spec, exclude=(), history_length=5, scenario_history_length=3)
    mesh = sharding.make_mesh(jax.devices()[:1])
    corpus = jax.tree.map(jnp.asarray, pipeline.read_corpus(store, spec))
    matcher = tiny.make_matcher(spec)
    ranker = din.DINConfig(hidden_dims=(4,), attention_hidden=(3,)).make(spec)
    query_Q = protocol.sample_queries(store, "test", None, 0)
    found: dict[str, Any] = {}

    def freeze(model: Any) -> train_state.Frozen:
        variables = dict(
            tiny_features.make_variables(model, *train_state.example_inputs(spec), seed=2)
        )
        return train_state.Frozen(variables.pop("params"), variables)

    for name, patched in (("", {}), (", in chunks", {"_PAIRS_PER_CPU": 100})):
        with contextlib.ExitStack() as stack:
            for constant, value in patched.items():
                stack.enter_context(mock.patch.object(evaluators, constant, value))
            by_score = evaluators.RankerEvaluator(store, spec, corpus, ranker, CONFIG, mesh, seed=4)
            found[f"ranker{name}"] = per_query(by_score(freeze(ranker), "test", query_Q))
    by_index = evaluators.MatcherEvaluator(store, spec, corpus, matcher, CONFIG, mesh)
    found["matcher"] = per_query(by_index(freeze(matcher), "test", query_Q))
    found["vectors of the corpus"] = by_index.embed_corpus(freeze(matcher), 1)
    return found


def search() -> dict[str, Any]:
    """Ids and scores of an exact search among vectors of whole numbers, of which many are equal."""
    rng = np.random.default_rng(6)
    item_VD = rng.integers(-2, 3, (3000, 3)).astype(np.float32)
    query_QMD = rng.integers(-2, 3, (7, 2, 3)).astype(np.float32)
    found: dict[str, Any] = {}
    for name, changes, k in (
        ("whole", {}, 12),
        ("in chunks", {"item_chunk": 96, "query_chunk": 4}, 40),
        ("fewer rows", {"num_rows": 30}, 40),
    ):
        index = exact.ExactIndex(item_VD, **changes)
        score_QT, item_QT = index.search(jnp.asarray(query_QMD), k)
        found[f"{name}: items"] = item_QT
        found[f"{name}: scores"] = jnp.where(jnp.isneginf(score_QT), -99.0, score_QT)
    score_QT, item_QT = exact.top_k(query_QMD[:, 0] @ item_VD.T, 9)
    return found | {"of given scores: items": item_QT, "of given scores: scores": score_QT}


def baselines() -> dict[str, Any]:
    """Rows with what validation chose, also where the corpus and its scores count as many."""
    found: dict[str, Any] = {}
    with open_store() as store:
        few = 3 * store.spec.num_items * store.spec.num_scenarios
        for name, changes in (
            ("", {}),
            ("two directions: ", {"SVD_WIDTH": 2}),
            ("large corpus: ", {"MAX_EASE_ITEMS": 10, "NUM_NEIGHBOURS": 5, "MAX_SCORES": few}),
        ):
            with contextlib.ExitStack() as stack:
                for constant, value in changes.items():
                    stack.enter_context(mock.patch.object(builtin, constant, value))
                rows = builtin.evaluate_baselines(store, CONFIG, seed=1)
            for row in rows:
                found |= {f"{name}{row.name}: {key}": value for key, value in of_row(row).items()}
    return found


def of_row(row: builtin.Baseline) -> dict[str, Any]:
    """Chosen settings, 0 standing for none, and recall."""
    settings = [float(row.settings[name] or 0) for name in sorted(row.settings)]
    found: dict[str, Any] = {"settings": settings} if settings else {}
    for split, judged in (("validation", row.validation), ("test", row.test)):
        summary = judged.summarise()
        found[f"{split} macro"] = flatten(summary["macro"])
        found[f"{split} scenarios"] = flatten(summary["scenarios"])
    return found
