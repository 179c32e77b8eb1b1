"""The page of the inputs `plus`, from records that nobody ran."""

import numpy as np
import pytest

from dsmoe_jax.compare import queries
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


def test_users_are_told_apart_by_what_is_known_of_them(systems):
    """Against means by hand; a group's queries are those of its users alone."""
    Q = sum(made_up.QUERIES)
    rng = np.random.default_rng(0)
    known = queries.Known("d" * 64, rng.integers(0, 6, Q), rng.integers(0, 2, Q))
    table = plus.make_users(systems, known)
    own = np.mean([entry.queries().recall(5) for entry in systems[0].entries], axis=0)
    scenario_Q = np.repeat(np.arange(2), made_up.QUERIES)
    found = {r["users"]: r for r in table.records if r["row"] == "dsmoe"}
    for label, chosen_Q in (
        ("all users", np.ones(Q, bool)),
        ("no training positive", known.trained_Q == 0),
        ("under 3 positives", known.events_Q < 3),
    ):
        macro = np.mean([own[chosen_Q & (scenario_Q == s)].mean() for s in (0, 1)])
        assert found[label]["macro"] == pytest.approx(macro)
        assert found[label]["all queries"] == pytest.approx(own[chosen_Q].mean())
        assert f"all {chosen_Q.sum():,} queries" in " ".join(
            table.heads[table.heads.index(f"{label}: macro @5") :]
        )
    assert made_up.row_of(table, "FISM")["all users: macro @5"].text


def test_earlier_days_and_another_rule_have_tables_of_their_own(tmp_path):
    """The rule's records are beside the others; days are told apart within a folder."""
    source = build.Source(tmp_path / "plus", plus.CONFIG)
    means = {(0, "plus"): (0.5, 0.4), (2, "plus"): (0.3, 0.2), (0, "plus_shown"): (0.7, 0.6)}
    for (days, name), mean in means.items():
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        for system, more in (("dsmoe", 0.0), ("fism", 0.05)):
            values = {system: made_up.system((mean[0] - more, mean[1] - more), days)}
            made_up.save(folder, made_up.record(system, values, days=days))
    for tables, name, mean in (
        (plus.show_earlier(source), "plus_earlier", means[2, "plus"]),
        (plus.show_shown(source), "plus_shown", means[0, "plus_shown"]),
    ):
        assert [table.name for table in tables] == [name, f"{name}_leads"]
        cell = made_up.row_of(tables[0], "DSMOE beside FISM")["macro @5"].text
        assert float(cell.strip("*")) == pytest.approx(100 * np.mean(mean), abs=8)
        assert [row[0].text for row in tables[1].rows] == ["FISM"]


def test_what_a_part_earns_is_the_lead_over_the_row_without_it(tmp_path):
    """Of the seeds that both have: seed 1 of DSMOE alone would be far above."""
    for system, seed, mean in (
        ("dsmoe", 0, 0.5),
        ("dsmoe", 1, 0.9),
        ("fism", 0, 0.45),
        ("fism", 1, 0.45),
        ("shared_norm", 0, 0.3),
        ("taught", 1, 0.9),
        ("dssm", 0, 0.1),
    ):
        values = {system: made_up.system((mean, mean), seed)}
        made_up.save(tmp_path, made_up.record(system, values, seed=seed))
    table = plus.show_parts(build.Source(tmp_path, plus.CONFIG))
    without = "without DSBN: one batch normalisation"
    taught = "DSMOE beside FISM, taught"
    assert [(row[0].text, row[-1].text) for row in table.rows] == [
        (without, "0"),
        (taught, "1"),
        ("FISM", "0, 1"),
    ]
    found = {r["row"]: r["difference"] for r in table.records if r["part"] == "macro"}
    assert found["shared_norm"] == pytest.approx(0.2, abs=0.08)
    assert found["fism"] == pytest.approx(0.25, abs=0.08)
    assert found["taught"] == pytest.approx(0.0, abs=0.08)


def test_the_page_of_users_wants_what_a_job_leaves(tmp_path):
    with pytest.raises(ValueError, match=r"expected queries-drop0\.npz, which a job leaves"):
        plus.show_users(build.Source(tmp_path, plus.CONFIG))
