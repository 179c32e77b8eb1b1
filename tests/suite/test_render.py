import json

import pytest

from dsmoe_jax.suite import finished, render, rows

TABLE = (
    rows.Row("ours", "**ours**", "a.py:x"),
    rows.Row("ablated", "ours without", "a.py:y", teacher_of="ours"),
    rows.Row("unfinished", "never run", "a.py:z"),
)


def summary(test, validation):
    def recalls(value):
        return {"recall@50": value, "recall@50_se": 0.004}

    return {
        "scenarios": {"K1": recalls(test), "K2": recalls(test / 2)},
        "macro": recalls(0.75 * test),
        "validation": {"scenarios": {}, "macro": recalls(validation)},
    }


def taught(low, high):
    """A teacher that differs from its student by these intervals in K1 and K2."""
    ends = {"K1": (0.01, 0.02), "K2": (low, high)}
    intervals = {
        name: {"difference": (low + high) / 2, "low": low, "high": high}
        for name, (low, high) in ends.items()
    }
    return {**summary(0.4, 0.4), "minus_student_recall@50": intervals}


def record(seed, test, validation, teacher=None):
    return {
        "seed": seed,
        "dataset": "rows",
        "k": [50, 100],
        **summary(test, validation),
        "teacher": teacher,
        "references": {"popularity": summary(0.1, 0.1)},
        "split": {"test": {"days": ["a", "b"], "examples": 1}},
        "candidates": 1000,
        "seen_items_removed": True,
        "device": "1 x cpu (2 cores)",
        "date": "2026-01-02",
    }


@pytest.fixture
def published(tmp_path):
    for seed, value in ((0, 0.2), (1, 0.3)):
        path = tmp_path / f"ours-seed{seed}.json"
        path.write_text(json.dumps(record(seed, value, value, taught(-0.1, value - 0.25))))
    path = tmp_path / "ablated-seed0.json"
    path.write_text(json.dumps(record(0, 0.2, 0.2, taught(-0.1, -0.1))))
    return tmp_path


def test_numbers_are_means_with_their_standard_deviation(published):
    table = render.results_table(render.load(published, TABLE), TABLE)
    lines = table.splitlines()
    assert lines[0] == "|  | validation macro | test K1 | test K2 | test macro |"
    assert lines[2] == "| popularity | 10.0 | 10.0 | 5.0 | 7.5 |"
    assert "| **ours** | 25.0 ± 7.1 | 25.0 ± 7.1 | 12.5 ± 3.5 | 18.8 ± 5.3 |" in lines
    assert "| ours without | 20.0 | 20.0 | 10.0 | 15.0 |" in lines
    assert "| never run | not run yet | not run yet | not run yet | not run yet |" in lines


def test_a_teacher_is_shown_once_beside_the_row_that_trained_it(published):
    table = render.results_table(render.load(published, TABLE), TABLE)
    assert table.count("_teacher of") == 1
    assert "| _teacher of: ours (sampled queries)_ | 40.0 ± 0.0 | 40.0 ± 0.0 |" in table


def test_the_caption_says_seeds_days_pool_machine_and_date(published):
    table = render.results_table(render.load(published, TABLE), TABLE)
    caption = next(line for line in table.splitlines() if line.startswith("Recall@50 in %"))
    for part in (
        "seeds 0, 1, where there is no ± one seed",
        "test a..b",
        "1,000 candidates",
        "removed",
        "2 cores",
        "2026-01-02",
    ):
        assert part in caption


def test_teachers_are_compared_with_their_students_once(published):
    table = render.results_table(render.load(published, TABLE), TABLE)
    compared = [line for line in table.splitlines() if line.startswith("- ")]
    assert compared == [
        "- ours: K1 +1.5 [+1.0, +2.0], K2 -5.0 [-10.0, +0.0]; single runs below zero: 1 of 4"
    ]


def test_rows_of_other_days_are_a_table_with_references_of_their_own(published):
    other = record(0, 0.6, 0.6)
    other["split"] = {"test": {"days": ["c", "d"], "examples": 1}}
    other["references"] = {"popularity": summary(0.5, 0.5)}
    (published / "unfinished-seed0.json").write_text(json.dumps(other))
    first, second = render.results_table(render.load(published, TABLE), TABLE).split("\n\n|")
    assert "never run" not in first
    assert "paper" in first
    assert "| popularity | 50.0 | 50.0 | 25.0 | 37.5 |" in second
    assert "| never run | 60.0 | 60.0 | 30.0 | 45.0 |" in second
    assert "test c..d" in second
    assert "paper" not in second


def peer(days, *values):
    split = {"test": {"days": days, "examples": 1}}
    cells = [
        {"seed": seed, "split": split, "systems": {"BPR": summary(value, value)}}
        for seed, value in enumerate(values)
    ]
    entries = tuple(finished.Entry(cell, "BPR") for cell in cells)
    return finished.System("BPR", "BPR", "scored", entries)


def test_peers_of_the_same_days_stand_below_the_reference_rows(published):
    records = render.load(published, TABLE)
    text = render.results_table(records, TABLE, [peer(["a", "b"], 0.2, 0.4), peer(["c"], 0.3)])
    lines = text.splitlines()
    [row] = [line for line in lines if line.startswith("| BPR")]
    assert row == "| BPR (seed 0, 1) | 30.0 ± 14.1 | 30.0 ± 14.1 | 15.0 ± 7.1 | 22.5 ± 10.6 |"
    assert lines[lines.index(row) - 1].startswith("| popularity")


def test_no_finished_cell_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected finished cells, found none"):
        render.results_table(render.load(tmp_path, TABLE), TABLE)
