"""What the documentation shows of a comparison, from records that nobody ran."""

import csv

import pytest

from dsmoe_jax.compare.report import build, documents, formats
from dsmoe_jax.compare.simulation import designs
from tests.compare import made_up

K = "recall@5 in %, mean of scenarios"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    made_up.save_comparison(folder, days=(0, 2))
    baselines = {"implicit BPR + scenario prior": made_up.system((0.7, 0.6), 12)}
    made_up.save(folder, made_up.record("implicit", baselines, kind="scored"))
    for row, recall in (("dssm", 0.2), ("mind", 0.3), ("undistilled", 0.15)):
        made_up.save(folder, made_up.record(row, {row: made_up.system((recall, recall))}))
    source = build.Source(folder, "configs/kuairand.py:sample")
    return documents.Documents(source, folder / "none", source)


def test_the_summary_has_the_best_of_every_kind(made):
    table = made.summarise()
    assert [row[0].text for row in table.rows] == [
        "DSMOE",
        "implicit BPR + scenario prior",
        "EASE + scenario prior",
        "DSMOE without a teacher",
        "MIND",
        "popularity in scenario",
    ]
    assert len(table.heads) == 5
    whole = made_up.row_of(made.tables["table2"], "MIND")["macro @5"].text
    assert made_up.row_of(table, "MIND")[K].text == whole.partition(" ")[0]


def test_what_speaks_against_the_method_is_said(made):
    best, teacher, layers = made.list_limits()
    assert best.startswith("Above DSMOE beyond noise") and "implicit BPR" in best
    assert "baselines above it: implicit BPR + scenario prior" in teacher
    assert "popularity in scenario" in teacher and "random" not in teacher
    assert layers.count("without") == 2


def test_a_table_is_shown_whole_with_its_numbers_in_a_file(made):
    block = made.blocks["table2"]()
    assert formats.to_markdown(made.tables["table2"]) in block.text
    [row] = [
        row
        for row in csv.DictReader(block.files["table2.csv"].splitlines())
        if (row["row"], row["scenario"], row["k"]) == ("mind", "macro", "5")
    ]
    shown = made_up.row_of(made.tables["table2"], "MIND")["macro @5"].text
    assert f"{100 * float(row['recall']):.1f}" == shown.partition(" ")[0]


@pytest.mark.parametrize("name", ["recall", "changes", "fig2", "products"])
def test_a_figure_is_drawn_from_the_numbers_beside_it(made, name, tmp_path):
    block = made.blocks[name]()
    rows = list(csv.DictReader(block.files[f"{name}.csv"].splitlines()))
    assert rows and all(float(row["value"]) == float(row["value"]) for row in rows)
    block.draw(tmp_path)
    first = (tmp_path / f"{name}.svg").read_bytes()
    block.draw(tmp_path)
    assert (tmp_path / f"{name}.svg").read_bytes() == first
    if name == "recall":
        values = {row["label"]: float(row["value"]) for row in rows}
        shown = made_up.row_of(made.tables["table2"], "DSMOE")["macro @5"].text
        assert f"{values['DSMOE']:.1f}" == shown.partition(" ")[0]
        assert list(values.values()) == sorted(values.values(), reverse=True)


def test_worlds_are_shown_from_the_published_records():
    source = build.Source(documents.PUBLISHED / "comparison", "configs/kuairand.py:sample")
    made = documents.Documents(source, documents.PUBLISHED / "simulation", source)
    for world in designs.WORLDS:
        block = made.blocks[world.name]()
        assert world.title in block.text
        rows = list(csv.DictReader(block.files[f"{world.name}.csv"].splitlines()))
        assert len(rows) == len(world.arms)
        for row in rows:
            assert f"{float(row['value']):.1f} ± " in block.text
