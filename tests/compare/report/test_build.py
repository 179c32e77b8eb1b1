"""What a report holds, from records that nobody ran."""

import json

import pytest

from dsmoe_jax.baselines import catalogue
from dsmoe_jax.compare import __main__ as command_line
from dsmoe_jax.compare import plan, processes, runner
from dsmoe_jax.compare.report import (
    build,
    cost_table,
    finished,
    page,
    recall_table,
)
from dsmoe_jax.models import registry
from tests.compare import made_up

CONFIG = "configs/kuairand.py:sample"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    made_up.save_comparison(folder, days=(0, 2))
    return build.Source(folder, CONFIG)


def test_days_are_pooled_for_those_that_were_tested_on_all_of_them(tmp_path):
    made_up.save_comparison(tmp_path, days=(0, 2))
    made_up.save(tmp_path, made_up.record("dssm", {"dssm": made_up.system((0.3, 0.3))}))
    later = made_up.record("mind", {"mind": made_up.system((0.3, 0.3))}, days=4)
    made_up.save(tmp_path, later)
    found = {t.name: t for t in build.make_tables(build.Source(tmp_path, CONFIG))}
    shown = {
        name: [
            made_up.row_of(found[name], row)["K1 @5"].text != "not run" for row in ("DSSM", "MIND")
        ]
        for name in ("table2", "table2_drop2", "table2_pooled")
    }
    assert shown == {
        "table2": [True, False],
        "table2_drop2": [False, False],
        "table2_pooled": [False, False],
    }
    # The ablations were tested on the last days alone, and so is what they are compared with.
    assert [name for name in found if name.startswith("table4")] == ["table4"]
    own = made_up.row_of(found["table4"], "DSMOE")["K1 @5"].text
    assert own == made_up.row_of(found["table2"], "DSMOE")["K1 @5"].text
    made_up.save(tmp_path, made_up.record("no_sap", {"no_sap": made_up.system((0.1, 0.1))}, days=2))
    made_up.save(
        tmp_path, made_up.record("no_dsbn", {"no_dsbn": made_up.system((0.6, 0.3))}, days=2)
    )
    found = {t.name: t for t in build.make_tables(build.Source(tmp_path, CONFIG))}
    assert [name for name in found if name.startswith("table4")] == [
        "table4",
        "table4_drop2",
        "table4_pooled",
    ]
    assert made_up.row_of(found["table4"], "DSMOE")["K1 @5"].text == own
    assert made_up.row_of(found["table4_pooled"], "without SAP")["K1 @5"].verdict == "below"


def test_days_on_which_dsmoe_was_tested_alone_have_no_table_2(tmp_path):
    made_up.save_comparison(tmp_path)
    made_up.save(tmp_path, made_up.record("dsmoe", {"dsmoe": made_up.system((0.4, 0.3))}, days=2))
    found = [table.name for table in build.make_tables(build.Source(tmp_path, CONFIG))]
    assert [name for name in found if name.startswith("table2")] == ["table2"]


def test_rebuilt_methods_are_labelled_so_and_the_papers_rows_are_not(tmp_path):
    made_up.save_comparison(tmp_path)
    made_up.save(tmp_path, made_up.record("m5", {"m5": made_up.system((0.3, 0.3))}))
    source = build.Source(tmp_path, CONFIG)
    assert made_up.row_of(recall_table.make("t", "T", source.systems("table2")), "M5-style")
    labels = [row[0].text for row in cost_table.make(source.systems("table3")).rows]
    assert "M5-style" in labels and "paper: M5" in labels
    # With the paper's inputs DSMOE is itself.
    wanted = {label for name, label in registry.LABELS.items() if name != registry.PLUS_MATCHER}
    assert {label.removeprefix("paper: ") for label in labels} >= wanted


def test_a_comparison_without_dsmoe_is_refused(tmp_path):
    made_up.save_comparison(tmp_path)
    for path in tmp_path.glob("dsmoe-*"):
        path.unlink()
    with pytest.raises(ValueError, match="expected a finished job of dsmoe"):
        build.write(build.Source(tmp_path, CONFIG), tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_all_versions_that_jobs_were_made_with_are_named(tmp_path):
    made_up.save_comparison(tmp_path)
    peer = made_up.record("implicit", {"implicit ALS": made_up.system((0.3, 0.3))}, kind="scored")
    made_up.save(tmp_path, peer | {"versions": {"jax": "1.2.4", "implicit": "0.7"}})
    [versions] = [
        line
        for line in build.describe(build.Source(tmp_path, CONFIG))
        if line.startswith("Versions")
    ]
    assert versions.endswith("Versions: jax 1.2.3 / 1.2.4, implicit 0.7.")


def test_a_report_says_what_was_run_and_what_failed(source, tmp_path):
    (tmp_path / "failed").mkdir()
    (tmp_path / "failed" / "m5-seed0.json").write_text('{"error": "it diverged"}')
    with_failed = build.Source(source.records, CONFIG, failed=tmp_path / "failed")
    text = build.write(with_failed, tmp_path / "report").with_suffix(".md").read_text()
    assert "2026-01-02" in text
    assert "7,583 candidates" in text
    assert "Failed: m5-seed0: it diverged" in text
    assert all(deviation in text for deviation in page.DEVIATIONS)


def test_hours_count_what_a_resumed_job_took_before(tmp_path):
    made_up.save_comparison(tmp_path)
    source = build.Source(tmp_path, CONFIG)
    assert ", 0.2 hours of runs" in build.describe(source)[0]  # seven of 90 s
    resumed = made_up.record("dsmoe", {"dsmoe": made_up.system((0.4, 0.3))})
    resumed["time_s"]["student"] = 7200.0
    made_up.save(tmp_path, resumed)
    assert ", 2.1 hours of runs" in build.describe(source)[0]


def test_test_days_on_which_settings_were_chosen_are_named(tmp_path):
    made_up.save_comparison(tmp_path, days=(0, 2))
    source = build.Source(tmp_path, CONFIG)
    assert build.describe(source)[-1].endswith("test days are only reported.")
    for path in tmp_path.glob("*-drop2.json"):
        entry = json.loads(path.read_text())
        entry["split"]["test"]["days"] = ["validation-0a", "validation-0b"]
        path.write_text(json.dumps(entry))
    assert build.describe(source)[-1].endswith(
        "Of the test days, validation-0a, validation-0b are validation days of other jobs: "
        "settings were chosen on them."
    )


def test_runs_that_their_minutes_ended_are_named_with_their_epochs(tmp_path):
    limits = {"max_epochs": 15, "max_minutes": 3.0}
    for seed, epochs, seconds in ((0, 10, 181.0), (1, 15, 200.0), (2, 9, 100.0)):
        entry = made_up.record("dsmoe", {"dsmoe": made_up.system((0.4, 0.3), seed)}, seed=seed)
        entry |= {"teacher_job": "teacher-seed0", "epochs": epochs, **limits}
        entry["time_s"] = {"teacher": 190.0, "pretraining": 20.0, "student": seconds - 20.0}
        made_up.save(tmp_path, entry)
    references = {"random": made_up.system((0.01, 0.01), 5)}
    made_up.save(tmp_path, made_up.record("references", references, kind="scored"))
    source = build.Source(tmp_path, CONFIG)
    told = build.describe(source)[-1]
    assert told.startswith("1 of 3 runs used up their 3 minutes of training before their epochs")
    assert told.endswith("Epochs they did: dsmoe 10.")
    teacher = {**made_up.record("teacher", {}, kind="teacher"), "epochs": 7, **limits}
    del teacher["time_s"]
    made_up.save(tmp_path, teacher)
    told = build.describe(source)[-1]
    assert told.startswith("2 of 4 runs")
    assert told.endswith("Epochs they did: dsmoe 10; teacher 7.")


def test_one_value_makes_no_figure(tmp_path):
    made_up.save_comparison(tmp_path)
    (tmp_path / "rank1-seed0.json").unlink()
    names = {
        path.name
        for path in build.write(
            build.Source(tmp_path, CONFIG), tmp_path / "report"
        ).parent.iterdir()
    }
    assert "fig2.png" in names
    assert "fig3.png" not in names


def test_a_figures_numbers_are_a_table_too_whatever_days_were_tested(tmp_path):
    made_up.save_comparison(tmp_path, days=(2,))
    for row in ("rank1", "num_experts1"):
        (tmp_path / f"{row}-seed0.json").unlink()
    made_up.save(tmp_path, made_up.record("rank1", {"rank1": made_up.system((0.3, 0.2))}, days=2))
    source = build.Source(tmp_path, CONFIG)
    found = {table.name: table for table in build.make_tables(source)}
    assert "fig2_recall" not in found
    run = [row[0].text for row in found["fig3_recall"].rows if row[1].text != "not run"]
    [own] = [row.label for row in plan.systems_of("fig3", CONFIG) if row.name == plan.METHOD]
    below = ["popularity in scenario", "EASE + scenario prior"]
    assert run == ["rank R of SAP = 1", f"rank R of SAP = {own}", *below]
    assert "fig3.png" in {p.name for p in build.write(source, tmp_path / "r").parent.iterdir()}


def test_runners_that_share_a_folder_write_the_report_in_turn(tmp_path, monkeypatch):
    is_held = []

    def write(source, folder):
        with processes.lock(tmp_path / "report.lock") as lock:
            is_held.append(lock is None)
        return folder

    monkeypatch.setattr(build, "write", write)
    monkeypatch.setattr(runner.Runner, "run", lambda work, machine, only: work.states)
    assert command_line.main(["run", "fig4", "--budget=small", f"--dir={tmp_path}"]) == 0
    assert is_held == [True]


def test_teachers_stand_beside_their_students(tmp_path):
    made_up.save_comparison(tmp_path)
    assert "teachers" not in [t.name for t in build.make_tables(build.Source(tmp_path, CONFIG))]
    for row, seed, mean in (("dsmoe", 0, 0.5), ("dsmoe", 1, 0.6), ("same_fields", 0, 0.3)):
        entry = made_up.record(row, {row: made_up.system((0.4, 0.3), seed)}, seed=seed)
        interval = {"difference": mean - 0.4, "low": mean - 0.5, "high": mean - 0.3}
        minus = dict.fromkeys((*made_up.SCENARIOS, "macro"), interval)
        entry["teacher"] = {**made_up.system((mean, mean)), "minus_student": minus}
        made_up.save(tmp_path, entry)
    found = {t.name: t for t in build.make_tables(build.Source(tmp_path, CONFIG))}
    heads, rows = found["teachers"].heads, [[c.text for c in r] for r in found["teachers"].rows]
    assert [row[0] for row in rows] == [
        "teacher of: DSMOE",
        "minus its student",
        "teacher of: taught by a teacher with its own fields alone",
        "minus its student",
    ]
    macro = heads.index("macro @5")
    assert rows[0][macro].startswith("5") and "±" in rows[0][macro]
    assert rows[1][macro] == "+15.0 [+5.0, +25.0]"
    assert rows[3][macro] == "-10.0 [-20.0, +0.0]"
    decided = found[plan.DECIDED]
    assert made_up.row_of(decided, "every value as printed")["K1 @5"].text == "not run"
    assert made_up.row_of(decided, "taught by a teacher with its own fields alone")["K1 @5"].verdict


def test_references_are_rows_of_their_own(source):
    rows = plan.systems_of("table2", CONFIG)
    names = [system.name for system in finished.load(source.records, rows)]
    assert names[-len(catalogue.EXTERNAL) - 3 :] == [
        "random",
        "popularity in scenario",
        "EASE + scenario prior",
        *catalogue.EXTERNAL,
    ]


def test_what_to_beat_stands_below_every_table_of_recall(tmp_path):
    made_up.save_comparison(tmp_path, days=(0, 2))
    found = {"implicit BPR": 0.1, "implicit BPR + scenario prior": 0.9}
    made_up.save(
        tmp_path,
        made_up.record(
            "implicit",
            {name: made_up.system((recall, recall), 12) for name, recall in found.items()},
            kind="scored",
        ),
    )
    worse = made_up.system((0.1, 0.1))
    made_up.save(tmp_path, made_up.record("no_sap", {"no_sap": worse}, days=2))
    made_up.save(tmp_path, made_up.record("paper_exact", {"paper_exact": worse}))
    source = build.Source(tmp_path, CONFIG)
    shown = {table.name: [row[0].text for row in table.rows] for table in build.make_tables(source)}
    references = ["popularity in scenario", "EASE + scenario prior"]
    below = [*references, "implicit BPR + scenario prior"]
    for name in ("table4", "fig2_recall", "fig3_recall", plan.DECIDED):
        assert shown[name][-3:] == below
        assert not {"random", "implicit BPR"} & {*shown[name]}
    # The other library was tested on the last days alone.
    for name in ("table4_drop2", "table4_pooled"):
        assert shown[name][-2:] == references
        assert below[-1] not in shown[name]


def test_baselines_that_were_not_run_say_so_and_finished_ones_need_no_library(
    tmp_path, monkeypatch
):
    # A machine without any of their libraries.
    monkeypatch.setattr(catalogue, "list_missing", lambda: list(catalogue.EXTERNAL))
    made_up.save_comparison(tmp_path)
    found = {"implicit BPR + scenario prior": made_up.system((0.7, 0.6), 12)}
    made_up.save(tmp_path, made_up.record("implicit", found, kind="scored"))
    (tmp_path / "failed").mkdir()
    (tmp_path / "failed" / "lightfm-seed0.json").write_text('{"error": "no memory"}')
    source = build.Source(tmp_path, CONFIG, failed=tmp_path / "failed")
    page_path = build.write(source, tmp_path / "report")
    text = page_path.with_suffix(".md").read_text()
    assert (
        "Not run: torch-rechub YoutubeDNN. Install the extra baselines: pip install '.[baselines]'."
        in text
    )
    table = recall_table.make("t", "T", source.systems("table2"))
    assert made_up.row_of(table, "implicit BPR + scenario prior")["K1 @5"].rank == "best"
    assert made_up.row_of(table, "torch-rechub YoutubeDNN")["K1 @5"].text == "not run"
    assert "implicit ALS and BPR" not in [row[0].text for row in table.rows]
