"""The reference rows and the choice of their settings."""

import dataclasses

import numpy as np
import pytest

from dsmoe_jax.baselines import builtin, linear
from dsmoe_jax.config import schema
from dsmoe_jax.evaluation import evaluators, protocol
from tests import tiny

CONFIG = schema.EvalConfig(k=(3, 5), query_batch=16)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tiny.write_store(tmp_path_factory.mktemp("baselines") / "store")


@pytest.fixture(scope="module")
def rows(store):
    return builtin.evaluate_baselines(store, CONFIG, seed=1)


def all_queries(store, split):
    return np.arange(len(store.queries(split).rows_QC))


def test_rows_are_named_evaluated_on_all_queries_and_say_what_was_chosen(store, rows):
    assert [row.name for row in rows] == [
        "random",
        "popularity",
        "popularity in scenario",
        "SVD",
        "SVD + scenario prior",
        "EASE + scenario prior",
    ]
    for row in rows:
        assert len(row.validation.query_Q) == len(all_queries(store, "validation"))
        assert len(row.test.query_Q) == len(all_queries(store, "test"))
    by_name = {row.name: row for row in rows}
    assert set(by_name["SVD + scenario prior"].settings) == {
        "weight",
        "half_life_days",
        "prior_clicks",
    }
    assert by_name["EASE + scenario prior"].settings["l2"] in builtin.EASE_L2
    assert by_name["popularity"].settings == {}


def test_rows_are_evaluated_on_a_sample_where_scores_would_be_too_many(store, rows, monkeypatch):
    per_scenario = 2
    scores = per_scenario * store.spec.num_items * store.spec.num_scenarios
    monkeypatch.setattr(builtin, "MAX_SCORES", scores)
    found = builtin.evaluate_baselines(store, CONFIG, seed=1)
    wanted_Q = protocol.sample_queries(store, "test", per_scenario, 1)
    assert 0 < len(wanted_Q) < len(all_queries(store, "test"))
    for row, whole in zip(found[:4], rows[:4], strict=True):
        np.testing.assert_array_equal(row.test.query_Q, wanted_Q)
        # Nothing else changes: a sampled query is evaluated as before.
        np.testing.assert_array_equal(row.test.recall[3], whole.test.recall[3][wanted_Q])


def test_a_row_equals_its_scorer_evaluated_directly(store, rows):
    read = linear.read_clicks(store)
    row = {row.name: row for row in rows}["EASE + scenario prior"]
    prior = {name: value for name, value in row.settings.items() if name != "l2"}
    scorer = linear.add_prior(linear.make_ease(read, row.settings["l2"]), store, **prior)
    expected = evaluators.evaluate_scores(
        store, CONFIG, "test", all_queries(store, "test"), lambda ids: scorer("test", ids)
    )
    np.testing.assert_allclose(row.test.recall[3], expected.recall[3])


def test_what_users_like_is_found_by_collaborative_rows_and_not_by_popularity(store, monkeypatch):
    # Users of the tiny store keep to one half of the items: two directions say it all.
    monkeypatch.setattr(builtin, "SVD_WIDTH", 2)
    rows = builtin.evaluate_baselines(store, CONFIG, seed=1)
    recall = {row.name: np.mean([*row.validation.recall[5], *row.test.recall[5]]) for row in rows}
    assert recall["SVD"] > 1.3 * recall["popularity"]
    assert recall["SVD + scenario prior"] > 1.3 * recall["popularity in scenario"]


@pytest.mark.parametrize("remove_seen", ["positives", "none", "shown"])
def test_macro_recalls_of_the_grid_equal_the_evaluators(store, remove_seen):
    config = dataclasses.replace(CONFIG, remove_seen=remove_seen)
    query_Q = protocol.sample_queries(store, "validation", 9, seed=2)
    svd = linear.make_svd(linear.read_clicks(store), 5)
    chooser = builtin.PriorChooser(store, query_Q, 3, remove_seen=remove_seen)
    recall_X = chooser.macro_recalls(svd)
    grid = chooser._grid
    assert len(recall_X) == len(grid) == len({tuple(entry.items()) for entry in grid})
    for x in range(0, len(grid), 7):
        scorer = linear.add_prior(svd, store, **grid[x])
        evaluation = evaluators.evaluate_scores(
            store,
            config,
            "validation",
            query_Q,
            lambda ids, scorer=scorer: scorer("validation", ids),
        )
        expected = evaluation.summarise()["macro"]["recall@3"]
        assert recall_X[x] == pytest.approx(expected, abs=1e-9)


def test_the_best_candidate_and_prior_are_chosen(store):
    query_Q = all_queries(store, "validation")
    table = store.queries("validation")

    def oracle(split, ids):
        score = np.zeros((len(ids), tiny.NUM_ITEMS + 1), np.float32)
        for row, query in enumerate(ids):
            score[row, table.relevant.items[slice(*table.relevant.indptr[query : query + 2])]] = 1
        return score

    useless = linear.make_random(tiny.NUM_ITEMS + 1, seed=0)
    chooser = builtin.PriorChooser(store, query_Q, 3, remove_seen="positives")
    settings, _ = chooser.choose([({"kind": "useless"}, useless), ({"kind": "oracle"}, oracle)])
    assert settings["kind"] == "oracle"
    assert chooser.macro_recalls(oracle).max() > chooser.macro_recalls(useless).max() + 0.3
    with pytest.raises(ValueError, match="expected at least one scorer"):
        chooser.choose([])


def test_large_pools_get_item_knn_in_place_of_ease(store, monkeypatch):
    monkeypatch.setattr(builtin, "MAX_EASE_ITEMS", tiny.NUM_ITEMS - 1)
    names = [row.name for row in builtin.evaluate_baselines(store, CONFIG, seed=1)]
    assert names[-1] == "item-kNN + scenario prior"
