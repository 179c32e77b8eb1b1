"""The page of the inputs `plus`, from records that nobody ran."""

import numpy as np
import pytest

from dsmoe_jax.compare.report import build, plus
from tests.compare import made_up


@pytest.fixture(scope="module")
def systems(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    for seed in (0, 1):
        for name, means in (("dsmoe", (0.5, 0.4)), ("fism", (0.45, 0.42))):
            found = {name: made_up.system(means, seed)}
            made_up.save(folder, made_up.record(name, found, seed=seed))
    baselines = {"random": made_up.system((0.1, 0.1)), "popularity": made_up.system((0.2, 0.1))}
    made_up.save(folder, made_up.record("references", baselines, kind="scored"))
    return plus.load(build.Source(folder, plus.CONFIG))


def test_the_systems_that_were_run_are_shown(systems):
    table = plus.make_recall(systems)
    assert [row[0].text for row in table.rows] == [
        "DSMOE beside FISM",
        "FISM",
        "random",
        "popularity",
    ]


def test_a_lead_is_the_difference_in_macro_recall_and_over_all_queries(systems):
    own, other = systems[0], systems[1]
    recall_Q = [
        np.mean([entry.queries().recall(5) for entry in system.entries], axis=0)
        for system in (own, other)
    ]
    difference_Q = recall_Q[0] - recall_Q[1]
    first = made_up.QUERIES[0]
    lead = {
        "K1": difference_Q[:first].mean(),
        "K2": difference_Q[first:].mean(),
        "all queries": difference_Q.mean(),
    }
    lead["macro"] = (lead["K1"] + lead["K2"]) / 2
    table = plus.make_leads(systems)
    assert [row[0].text for row in table.rows] == ["FISM", "popularity"]
    records = {r["part"]: r for r in table.records if r["row"] == "fism"}
    assert set(records) == set(lead)
    for part, wanted in lead.items():
        assert records[part]["difference"] == pytest.approx(wanted)
        assert records[part]["low"] < wanted < records[part]["high"]
    shown = table.rows[0][table.heads.index("all queries @5")].text
    assert shown.startswith(f"{100 * lead['all queries']:+.1f}")


def test_the_sentence_names_the_best_baseline_and_the_lead(systems):
    said = plus.say(systems)
    shown = made_up.row_of(plus.make_recall(systems), "DSMOE beside FISM")["macro @5"].text
    assert said.startswith(f"{shown.split()[0].strip('*')} %")
    assert "popularity, the best baseline" in said and "(2 seeds)" in said


def test_what_stands_beside_it_is_said(systems):
    assert "above DSMOE" in plus.find(systems)[0]
