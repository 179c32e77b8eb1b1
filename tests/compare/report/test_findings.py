"""Sentences about made-up numbers, whichever way these fall."""

import pytest

from dsmoe_jax.compare.report import build
from tests.compare import made_up

CONFIG = "configs/kuairand.py:sample"
DAYS = "macro recall@5 on test-0a to test-0b"
NONE_ABOVE = f"No other method or baseline is above DSMOE beyond noise in {DAYS}."
REFERENCE = made_up.system((0.01, 0.01), 5)


@pytest.fixture
def folder(tmp_path):
    made_up.save_comparison(tmp_path)
    return tmp_path


def find(folder):
    return build.find(build.Source(folder, CONFIG))


def test_rows_above_dsmoe_or_level_with_it_are_named_with_their_lead(folder):
    none, level = find(folder)[:2]
    assert none == NONE_ABOVE
    assert level.startswith(f"Within noise of DSMOE in {DAYS}, in points: EASE + scenario prior (")
    assert "random" not in level and level.count("[") == 1
    strong = {"implicit BPR + scenario prior": made_up.system((0.7, 0.6), 12)}
    made_up.save(folder, made_up.record("implicit", strong, kind="scored"))
    sentence = find(folder)[0]
    assert sentence.startswith(
        f"Above DSMOE beyond noise in {DAYS}, in points: implicit BPR + scenario prior (+"
    )
    assert "EASE" not in sentence
    made_up.save(folder, made_up.record("references", {"random": REFERENCE}, kind="scored"))
    assert not [sentence for sentence in find(folder) if sentence.startswith("Within noise")]


def test_rows_above_dsmoe_in_one_scenario_alone_are_named_with_it(folder):
    beginning = "Above DSMOE in one scenario's recall@5 on test-0a to test-0b, in points: "
    (folder / "references-seed0.json").unlink()
    assert not [sentence for sentence in find(folder) if sentence.startswith(beginning)]
    uneven = made_up.record("dssm", {"dssm": made_up.system((0.1, 0.5), 13)})
    made_up.save(folder, uneven)
    [single] = [sentence for sentence in find(folder) if sentence.startswith(beginning)]
    assert single.startswith(f"{beginning}DSSM K2 (+") and "K1" not in single
    above = made_up.record("dssm", {"dssm": made_up.system((0.6, 0.7), 13)})
    made_up.save(folder, above)
    assert not [sentence for sentence in find(folder) if sentence.startswith(beginning)]


def test_who_does_not_beat_popularity_is_named_with_the_reason(folder):
    weak = made_up.record("dsmoe", {"dsmoe": made_up.system((0.4, 0.05))})
    weak["costs"]["indexes"] = 1
    made_up.save(folder, weak)
    (folder / "dsmoe-seed1.json").unlink()
    [below] = [sentence for sentence in find(folder) if "has 9.1 % of the" in sentence]
    [reason] = [sentence for sentence in find(folder) if sentence.startswith("Of these")]
    assert below.startswith(
        "Not above popularity in scenario in K2, which has 9.1 % of the training positives; minus "
        "it, recall@5 in points: DSMOE -"
    )
    assert reason.startswith("Of these, DSMOE: one item vector for all scenarios")
    weak["costs"]["indexes"] = 2
    made_up.save(folder, weak)
    assert not [sentence for sentence in find(folder) if sentence.startswith("Of these")]
    assert not [sentence for sentence in find(folder) if "in scenario in K1" in sentence]


def test_that_every_method_beats_popularity_is_said_where_popularity_was_evaluated(folder):
    for seed in (0, 1):
        mine = {"dsmoe": made_up.system((0.5, 0.6), seed)}
        made_up.save(folder, made_up.record("dsmoe", mine, seed=seed))
    expected = "Every method is above popularity in scenario, in every scenario."
    assert expected in find(folder)
    (folder / "references-seed0.json").unlink()
    assert not [sentence for sentence in find(folder) if "popularity" in sentence]


def test_what_the_scenario_prior_adds_is_told_where_both_rows_are(folder):
    assert not [sentence for sentence in find(folder) if "the scenario prior adds" in sentence]
    both = {
        "implicit BPR": made_up.system((0.3, 0.3), 12),
        "implicit BPR + scenario prior": made_up.system((0.5, 0.2), 12),
    }
    made_up.save(folder, made_up.record("implicit", both, kind="scored"))
    [sentence] = [sentence for sentence in find(folder) if "the scenario prior adds" in sentence]
    assert "in points: implicit BPR macro +" in sentence
    assert ", K2 -" in sentence and "K1" not in sentence


def test_ablations_are_answered_either_way_with_their_parameters(folder):
    smaller = made_up.record("no_sap", {"no_sap": made_up.system((0.1, 0.1), 8)})
    smaller["params"]["dense"] = 245_000
    made_up.save(folder, smaller)
    better = made_up.record("no_dsbn", {"no_dsbn": made_up.system((0.6, 0.6), 9)})
    made_up.save(folder, better)
    no_sap, no_dsbn = find(folder)[-2:]
    assert no_sap.startswith(
        "Without SAP (2.0 % fewer dense parameters): worse, as in the paper; minus DSMOE, recall@5 "
        "in points: macro -"
    )
    assert "; K1 -" in no_sap and ", K2 -" in no_sap
    assert no_dsbn.startswith(
        "Without DSBN (as many dense parameters): better, unlike in the paper; minus DSMOE"
    )
    same = {"no_dsbn": made_up.system((0.4, 0.3), 9)}
    made_up.save(folder, made_up.record("no_dsbn", same))
    assert "parameters): not told apart from DSMOE; minus DSMOE" in find(folder)[-1]


def test_an_ablation_on_other_days_than_dsmoe_is_not_compared(folder):
    (folder / "no_dsbn-seed0.json").unlink()
    (folder / "no_sap-seed0.json").unlink()
    later = made_up.record("no_sap", {"no_sap": made_up.system((0.1, 0.1), 8)}, days=2)
    made_up.save(folder, later)
    assert not [sentence for sentence in find(folder) if "SAP" in sentence]


def test_ablations_are_evaluated_on_all_test_days_that_they_share(folder):
    for row in ("dsmoe", "no_sap", "no_dsbn"):
        later = made_up.record(row, {row: made_up.system((0.4, 0.3), 8)}, days=2)
        made_up.save(folder, later)
    no_sap, no_dsbn = find(folder)[-2:]
    assert "recall@5 in points, all test days pooled: macro -" in no_sap
    assert "recall@5 in points, all test days pooled: macro +" in no_dsbn


def test_rows_are_evaluated_on_the_test_days_that_all_of_them_share(folder):
    pooled = "macro recall@5, all test days pooled"
    made_up.save_comparison(folder, days=(0, 2))
    assert find(folder)[0] == NONE_ABOVE
    assert f"No other method or baseline is above DSMOE beyond noise in {pooled}." in find(folder)
    made_up.save(folder, made_up.record("dssm", {"dssm": made_up.system((0.1, 0.1))}))
    assert not [sentence for sentence in find(folder) if pooled in sentence]
    later = made_up.record("dssm", {"dssm": made_up.system((0.9, 0.9), 13)}, days=2)
    made_up.save(folder, later)
    assert find(folder)[0] == NONE_ABOVE
    [above] = [sentence for sentence in find(folder) if sentence.startswith("Above DSMOE beyond")]
    assert above.startswith(f"Above DSMOE beyond noise in {pooled}, in points: DSSM (+")
    (folder / "dssm-seed0.json").unlink()
    [above] = [sentence for sentence in find(folder) if sentence.startswith("Above DSMOE beyond")]
    assert "macro recall@5 on test-2a to test-2b, in points: DSSM (+" in above


def test_the_first_of_several_shared_days_is_one_that_all_rows_were_tested_on(folder):
    made_up.save_comparison(folder, days=(0, 2, 4))
    (folder / "references-seed0.json").unlink()
    assert find(folder)[0].endswith("macro recall@5 on test-2a to test-2b.")


def test_rows_that_share_no_test_days_are_evaluated_on_dsmoes_first(folder):
    elsewhere = made_up.record("dssm", {"dssm": made_up.system((0.9, 0.9), 13)}, days=4)
    made_up.save(folder, elsewhere)
    assert find(folder)[0] == NONE_ABOVE
