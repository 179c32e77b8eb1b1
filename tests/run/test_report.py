"""What a run report says of the teacher."""

import types

import numpy as np
import pytest

from dsmoe_jax.config import schema
from dsmoe_jax.evaluation import evaluators, protocol
from dsmoe_jax.run import report, stages
from dsmoe_jax.training import train_state
from tests import tiny

CONFIG = schema.EvalConfig(k=(5,), teacher_validation_queries=4, teacher_test_queries=6)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tiny.write_store(tmp_path_factory.mktemp("report") / "store")


def evaluate(store, split, query_Q, seed):
    shape = (len(store.queries(split).rows_QC), store.spec.num_items)
    score_QV = np.random.default_rng(seed).random(shape, np.float32)
    return evaluators.evaluate_scores(store, CONFIG, split, query_Q, score_QV.__getitem__)


@pytest.mark.parametrize("teacher_seed", [1, 2])
def test_teacher_and_student_are_compared_by_an_interval_and_nothing_more(store, teacher_seed):
    lines = []
    run = object.__new__(stages.Stages)
    run.experiment = types.SimpleNamespace(eval=CONFIG)
    run.store, run.spec = store, store.spec
    run.log = types.SimpleNamespace(line=lines.append)
    run.evaluate_ranker = lambda frozen, split, query_Q: evaluate(
        store, split, query_Q, teacher_seed
    )
    student = {
        split: evaluate(store, split, protocol.sample_queries(store, split, None, 0), 1)
        for split in ("validation", "test")
    }
    frozen = train_state.Frozen({}, {})
    summary = report._evaluate_teacher(run, frozen, student)
    found = summary["validation"]["minus_student_recall@5"]["macro"]
    # The same scores differ in nothing, which is no reason for a verdict either.
    assert (found["difference"] == 0) == (teacher_seed == 1)
    assert found["low"] <= found["difference"] <= found["high"]
    assert [line.split(":")[0] for line in lines] == ["validation", "test"]
    asked = len(protocol.sample_queries(store, "validation", 4, 0))
    assert f"recall@5 in points with 95 % intervals, on {asked} queries" in lines[0]
