"""The choice among the trials of a baseline, with scorers of three lines in place of libraries."""

import numpy as np
import pytest

from dsmoe_jax.baselines import builtin, linear, selection
from dsmoe_jax.config import schema
from dsmoe_jax.evaluation import evaluators
from tests import tiny

CONFIG = schema.EvalConfig(k=(3, 5), query_batch=16)
RANDOM = ({"kind": "random"}, linear.make_random(tiny.NUM_ITEMS + 1, seed=0))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tiny.write_store(tmp_path_factory.mktemp("trials") / "store")


def make_oracle(store, known):
    """Knows what is relevant on one split and ranks at random on the other."""
    table = store.queries(known)

    def score(split, query_B):
        score_BV = RANDOM[1](split, query_B) / np.float32(1 << 24)
        for row, query in enumerate(query_B) if split == known else ():
            mine = slice(*table.relevant.indptr[query : query + 2])
            score_BV[row, table.relevant.items[mine]] += 1
        return score_BV

    return {"kind": f"oracle of {known}"}, score


def evaluate(store, scorer, split="test"):
    query_Q = np.arange(len(store.queries(split).rows_QC))
    return evaluators.evaluate_scores(store, CONFIG, split, query_Q, lambda ids: scorer(split, ids))


def evaluate_trials(store, *made):
    return selection.evaluate_trials("baseline", made, store, CONFIG, seed=0)


def test_a_baseline_has_a_row_as_it_comes_and_one_with_the_prior(store):
    row, with_prior = evaluate_trials(store, RANDOM)
    assert (row.name, row.settings) == ("baseline", {"kind": "random"})
    assert with_prior.name == "baseline + scenario prior"
    prior = {name: value for name, value in with_prior.settings.items() if name != "kind"}
    for found, scorer in (
        (row, RANDOM[1]),
        (with_prior, linear.add_prior(RANDOM[1], store, **prior)),
    ):
        np.testing.assert_array_equal(found.test.recall[3], evaluate(store, scorer).recall[3])
        np.testing.assert_array_equal(
            found.validation.recall[3], evaluate(store, scorer, "validation").recall[3]
        )


def test_validation_chooses_and_test_days_have_no_say(store):
    candidates = [RANDOM, make_oracle(store, "test"), make_oracle(store, "validation")]
    for row in evaluate_trials(store, *candidates):
        assert row.settings["kind"] == "oracle of validation"
    recall = {row.name: row.validation.recall[5].mean() for row in evaluate_trials(store, RANDOM)}
    best, _ = evaluate_trials(store, *candidates)
    assert best.validation.recall[5].mean() > recall["baseline"] + 0.3


def test_the_trial_that_is_best_beside_the_prior_need_not_be_best_alone(store, monkeypatch):
    prior = {"weight": 0.5, "half_life_days": None, "prior_clicks": 3.0}
    monkeypatch.setattr(
        builtin.PriorChooser,
        "add_prior",
        lambda chooser, settings, scorer: (
            float(scorer is RANDOM[1]),
            {**settings, **prior},
            scorer,
        ),
    )
    row, with_prior = evaluate_trials(store, make_oracle(store, "validation"), RANDOM)
    assert row.settings == {"kind": "oracle of validation"}
    assert with_prior.settings == {"kind": "random", **prior}


def test_no_more_trials_are_fitted_than_the_budget_has(store, monkeypatch):
    monkeypatch.setattr(selection, "NUM_TRIALS", 3)
    fitted = []

    def fit():
        for number in range(5):
            fitted.append(number)
            yield {"number": number}, RANDOM[1]

    selection.evaluate_trials("baseline", fit(), store, CONFIG, seed=0)
    assert fitted == [0, 1, 2]


def test_queries_that_a_baseline_cannot_rank_get_popularity(store):
    def score(split, query_B):
        score_BV = np.ones((len(query_B), tiny.NUM_ITEMS + 1), np.float32)
        score_BV[::2, 1 + np.arange(tiny.NUM_ITEMS)] = np.arange(tiny.NUM_ITEMS)
        return score_BV

    ids = np.arange(4)
    found_BV = selection.rank_by_popularity_if_constant(score, store)("test", ids)
    popular_BV = linear.make_popularity(store)("test", ids)
    np.testing.assert_array_equal(found_BV[1::2], popular_BV[1::2])
    np.testing.assert_array_equal(found_BV[::2], score("test", ids)[::2])


def test_every_trial_is_told(store, capsys):
    evaluate_trials(store, RANDOM, make_oracle(store, "validation"))
    lines = [line for line in capsys.readouterr().out.splitlines() if "trial" in line]
    assert [line.split(":")[0] for line in lines] == [
        "baseline, trial 1 of 12",
        "baseline, trial 2 of 12",
    ]


def test_a_baseline_without_trials_is_refused(store):
    with pytest.raises(ValueError, match="baseline: expected at least one trial"):
        evaluate_trials(store)
