"""Tables of recall, from records that nobody ran."""

import csv
import io

import pytest

from dsmoe_jax.compare.report import build, formats, paper, recall_table
from tests.compare import made_up

CONFIG = "configs/kuairand.py:sample"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    made_up.save_comparison(folder, days=(0, 2))
    return build.Source(folder, CONFIG)


def first_day(source):
    return [system.on_days(0) for system in source.systems("table2")]


def test_cells_are_marked_by_rank_and_by_comparison(source):
    table = recall_table.make("t", "T", first_day(source))
    own, random = made_up.row_of(table, "DSMOE"), made_up.row_of(table, "random")
    assert "±" in own["K1 @5"].text
    assert own["K1 @5"].verdict == ""
    assert random["K1 @5"].verdict == "below"
    assert made_up.row_of(table, "EASE + scenario prior")["K1 @5"].verdict == "noise"
    for head in table.heads[2:]:
        ranks = [row[table.heads.index(head)].rank for row in table.rows]
        assert (ranks.count("best"), ranks.count("second")) == (1, 1)
    assert random["K1 @5"].rank == ""


def test_numbers_behind_a_table_are_in_its_csv(source):
    table = recall_table.make("t", "T", first_day(source))
    lines = list(csv.DictReader(io.StringIO(formats.to_csv(table))))
    [line] = [x for x in lines if (x["row"], x["scenario"], x["k"]) == ("random", "macro", "5")]
    assert float(line["low"]) < float(line["minus_dsmoe"]) < float(line["high"]) < 0
    [own] = [x for x in lines if (x["row"], x["scenario"], x["k"]) == ("dsmoe", "K1", "10")]
    assert own["minus_dsmoe"] == ""
    assert own["seeds"] == "2"


def test_the_papers_numbers_stand_below_where_its_cut_offs_are_ours(source, monkeypatch):
    table = recall_table.make("t", "T", first_day(source))
    assert not any(row[0].text.startswith("paper") for row in table.rows)
    printed = {"KuaiRand-Pure": {"dsmoe": {"K1": {5: 18.9}, "K2": {5: 31.0}}}}
    monkeypatch.setattr(paper, "RECALL", printed)
    row = made_up.row_of(recall_table.make("t", "T", first_day(source)), "paper: DSMOE")
    assert [row[head].text for head in ("K1 @5", "K2 @5", "macro @5", "K1 @10")] == [
        "18.9",
        "31.0",
        "24.9",
        "",
    ]


def test_what_was_not_run_says_so(source):
    table = recall_table.make("t", "T", source.systems("table4"), with_paper=False)
    assert {cell.text for cell in made_up.row_of(table, "without distillation").values()} == {
        "without distillation",
        "not run",
    }


def test_rows_of_fewer_seeds_are_named(tmp_path):
    made_up.save_comparison(tmp_path)
    for row, seeds in (("dsmoe", 3), ("mind", 2), ("m5", 1)):
        for seed in range(seeds):
            mine = {row: made_up.system((0.4, 0.3), seed)}
            made_up.save(tmp_path, made_up.record(row, mine, seed=seed))
    systems = build.Source(tmp_path, CONFIG).systems("table2")
    caption = recall_table.make("t", "T", systems).notes[0]
    assert "(DSMOE: 0, 1, 2; fewer: MIND 2; no ±: one seed, or nothing random)" in caption


def test_seeds_that_some_days_lack_are_named_where_days_are_pooled(tmp_path):
    made_up.save_comparison(tmp_path, days=(0, 2))
    systems = build.Source(tmp_path, CONFIG).systems("table2")
    caption = recall_table.make("t", "T", systems).notes[0]
    assert "(DSMOE: 0, 1; no ±: one seed on all days, or nothing random)" in caption
    (tmp_path / "dsmoe-seed1-drop2.json").unlink()
    systems = build.Source(tmp_path, CONFIG).systems("table2")
    caption = recall_table.make("t", "T", systems).notes[0]
    assert "(DSMOE: 0, 1; on all days: 0; no ±: one seed on all days, or" in caption


def test_days_weigh_alike_in_the_validation_column_whatever_their_seeds(tmp_path):
    for seed, day, macro in ((0, 0, 0.1), (1, 0, 0.3), (0, 2, 0.6)):
        mine = made_up.system((0.4, 0.3), seed, day)
        mine["validation"] = {"macro": {"recall@5": macro}}
        made_up.save(tmp_path, made_up.record("dsmoe", {"dsmoe": mine}, seed=seed, days=day))
    table = recall_table.make("t", "T", build.Source(tmp_path, CONFIG).systems("table2"))
    assert made_up.row_of(table, "DSMOE")["validation recall@5"].text == "40.0"
