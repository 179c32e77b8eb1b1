"""True scores of a simulation's world as systems: the ceiling, and what the towers' rank can hold.

Letters: Q queries, V rows of the corpus (row 0 is padding).
"""

from typing import cast

from dsmoe_jax.baselines import builtin
from dsmoe_jax.config import fingerprint, schema
from dsmoe_jax.data import store as store_lib
from dsmoe_jax.data.synthetic import world
from dsmoe_jax.evaluation import evaluators, protocol
from dsmoe_jax.run import stages


def evaluate(experiment: schema.Experiment, store: store_lib.Store) -> list[builtin.Baseline]:
    """The systems `truth` and `truncated` on all queries of both splits."""
    data = cast(world.SyntheticWorldConfig, experiment.data)
    true = world.TrueScores(data.folder(data.store_dir), store)
    rank = fingerprint.as_dict(experiment)["model"]["output_dim"]

    def evaluated(split: str, is_truncated: bool) -> protocol.Evaluation:
        query_Q = protocol.sample_queries(store, split, None, stages.QUERY_SEED)
        rows_QC = store.queries(split).rows_QC
        if not is_truncated:
            return evaluators.evaluate_scores(
                store, experiment.eval, split, query_Q, lambda ids: true.scores(rows_QC[ids])
            )
        score_QV = true.scores(rows_QC)
        scenario_Q = rows_QC[:, store.columns["scenario"]]
        score_QV[:, 1:] = world.truncate(score_QV[:, 1:], scenario_Q, rank)
        return evaluators.evaluate_scores(
            store, experiment.eval, split, query_Q, lambda ids: score_QV[ids]
        )

    return [
        builtin.Baseline(name, {}, evaluated("validation", cut), evaluated("test", cut))
        for name, cut in (("truth", False), ("truncated", True))
    ]
