"""One of several processes that evaluate a small store together, or the only one.

`python -m tests.e2e.shared_evaluation FOLDER PROCESSES INDEX PORT [WHAT]` writes every number that
it returns to FOLDER/PROCESSES-INDEX.npz. WHAT process 1 cannot do: `judge` its second batch, `read`
the users of its second batch, or `index` the corpus by FAISS.
"""

import dataclasses
import pathlib
import sys
from typing import Any
from unittest import mock

import jax
import numpy as np

from dsmoe_jax import features
from dsmoe_jax.config import schema
from dsmoe_jax.data import pipeline
from dsmoe_jax.data import store as store_lib
from dsmoe_jax.evaluation import evaluators, protocol
from dsmoe_jax.models.ranking import din
from dsmoe_jax.retrieval import faiss_index
from dsmoe_jax.training import sharding, train_state
from tests import tiny, tiny_features

CONFIG = schema.EvalConfig(k=(2, 20), mrr_depth=7, query_batch=9, item_batch=12)


def evaluate(store: store_lib.Store) -> dict[str, protocol.Evaluation]:
    """What every kind of evaluator finds on all queries and on a single one."""
    spec = features.select(store.spec, exclude=(), history_length=5, scenario_history_length=3)
    mesh = sharding.make_mesh()
    corpus = sharding.put_replicated(mesh, pipeline.read_corpus(store, spec))
    matcher = tiny.make_matcher(spec)
    ranker = din.DINConfig(hidden_dims=(4,), attention_hidden=(3,)).make(spec)
    score_QV = np.random.default_rng(0).normal(size=(200, store.spec.num_items))

    def freeze(model: Any) -> train_state.Frozen:
        variables = tiny_features.make_variables(model, *train_state.example_inputs(spec), seed=2)
        variables = sharding.put_replicated(mesh, dict(variables))
        return train_state.Frozen(variables.pop("params"), variables)

    found = {}
    for split in store_lib.SPLITS:
        for count in (None, 1):
            query_Q = np.arange(len(store.queries(split).rows_QC))[:count]
            for backend in ("exact", "faiss"):
                config = dataclasses.replace(CONFIG, backend=backend)
                by_index = evaluators.MatcherEvaluator(store, spec, corpus, matcher, config, mesh)
                found[f"{backend} {split} {count}"] = by_index(freeze(matcher), split, query_Q)
            by_score = evaluators.RankerEvaluator(store, spec, corpus, ranker, CONFIG, mesh, seed=4)
            found[f"ranker {split} {count}"] = by_score(freeze(ranker), split, query_Q)
            found[f"scores {split} {count}"] = evaluators.evaluate_scores(
                store, CONFIG, split, query_Q, score_QV.__getitem__, num_negatives=2
            )
    return found


# What of this process fails, at which call, and where no other takes part in it.
FAILURES: dict[str, tuple[Any, str, int]] = {
    "judge": (protocol.Protocol, "cut_lists", 2),
    "read": (pipeline.UserReader, "read", 2),
    "index": (faiss_index.FaissIndex, "__init__", 1),
}


def fail(what: str) -> None:
    """Lets a call of this process fail."""
    owner, name, at = FAILURES[what]
    work, calls = getattr(owner, name), []

    def count_and_work(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == at:
            raise OSError("store: input/output error")
        return work(*arguments)

    mock.patch.object(owner, name, count_and_work).start()


def main(folder: str, processes: str, index: str, port: str, *failing: str) -> None:
    """Connects to the others, evaluates and writes."""
    if int(processes) > 1:
        jax.distributed.initialize(
            f"127.0.0.1:{port}",
            int(processes),
            int(index),
            cluster_detection_method="deactivate",
        )
    if index == "1":
        for what in failing:
            fail(what)
    found = evaluate(store_lib.Store.open(pathlib.Path(folder, "store")))
    leaves, _ = jax.tree_util.tree_flatten_with_path(found)
    numbers = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
    np.savez(pathlib.Path(folder, f"{processes}-{index}.npz"), **numbers)


if __name__ == "__main__":
    main(*sys.argv[1:])
