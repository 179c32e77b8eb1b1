"""Figures are written whole, repeatably, and show what they are given."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from dsmoe_jax.run import figures


def make_row(value, scenarios):
    entry = {"recall@5": value, "recall@5_se": 0.01, "queries": 1234}
    return {"scenarios": {name: dict(entry) for name in scenarios}, "macro": dict(entry)}


def make_results(scenarios=("A", "B"), teacher=True):
    return {
        "dataset": "tiny (synthetic)",
        "k": [5],
        "candidates": 41,
        "seen_items_removed": True,
        **make_row(0.314, scenarios),
        "teacher": make_row(0.4, scenarios) if teacher else None,
        "references": {"popularity": make_row(0.1, scenarios)},
    }


def make_fig4(scenarios=2):
    rng = np.random.default_rng(0)
    return {
        "scenario_coefficients": {
            "user/forward": rng.normal(size=(scenarios, 4)),
            "item/forward": rng.normal(size=(scenarios, 4)),
        },
        "gate_weights": {"user": np.full((scenarios, 3), 1 / 3), "item": np.full((1, 3), 1 / 3)},
    }


def write_points(path, stages=("teacher", "student")):
    lines = []
    for stage in stages:
        for step in (1, 2, 3):
            lines.append({"stage": stage, "step": step, "train/loss_task": 1 / step})
            metrics = {"eval/A/recall@5": step / 10, "eval/B/recall@5": None}
            lines.append(
                {"stage": stage, "step": step, **metrics, "eval/macro/recall@5": step / 10}
            )
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return path


def draw(folder, **changes):
    folder.mkdir(exist_ok=True)
    options = {
        "results": make_results(),
        "metrics_path": write_points(folder / "metrics.jsonl"),
        "kept": {"teacher": 2, "student": 3},
        "fig4": make_fig4(),
        **changes,
    }
    return figures.draw_all(folder / "figures", **options)


def text_of(path):
    """Texts of an SVG, which matplotlib repeats as comments beside their outlines."""
    return re.findall(r"<!-- (.*?) -->", path.read_text())


def test_every_figure_is_written_as_png_and_svg_and_nothing_half_written_stays(tmp_path):
    written = draw(tmp_path)
    names = {path.name for path in written}
    stems = ("recall_at_5", "fig4a_scenario_similarity", "fig4b_gate_weights", "learning_curves")
    assert names == {f"{stem}.{kind}" for stem in stems for kind in ("png", "svg")}
    assert {path.name for path in (tmp_path / "figures").iterdir()} == names
    for path in written:
        start = path.read_bytes()[:200]
        assert start.startswith(b"\x89PNG") if path.suffix == ".png" else b"<?xml" in start


def test_equal_numbers_give_equal_files(tmp_path):
    first, second = draw(tmp_path / "a"), draw(tmp_path / "b")
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_recall_shows_every_row_scenario_and_value(tmp_path):
    figures.draw_recall(tmp_path / "recall", make_results(), 5)
    shown = text_of(tmp_path / "recall.svg")
    for text in ("popularity", "student", "teacher (sampled queries)", "A (1,234 queries)", "31.4"):
        assert text in shown
    assert sum(text == "31.4" for text in shown) == 3  # two scenarios and macro


def test_runs_without_teacher_curves_or_views_draw_what_they_have(tmp_path):
    written = draw(
        tmp_path,
        results=make_results(teacher=False),
        metrics_path=tmp_path / "missing.jsonl",
        fig4={},
    )
    assert {path.stem for path in written} == {"recall_at_5"}


def test_a_stage_without_validation_has_a_curve_of_its_loss_alone(tmp_path):
    path = write_points(tmp_path / "metrics.jsonl")
    line = json.dumps({"stage": "linear", "step": 1, "train/loss": 0.5})
    path.write_text(f"{line}\n{path.read_text()}")
    draw(tmp_path / "run", metrics_path=path)
    shown = text_of(tmp_path / "run" / "figures" / "learning_curves.svg")
    assert "linear: training loss" in shown
    assert not [text for text in shown if text.startswith("linear: validation")]
    assert [text for text in shown if text.startswith("student: validation")]


def test_a_scenario_without_queries_is_left_empty(tmp_path):
    results = make_results()
    results["scenarios"]["B"] = {"recall@5": None, "recall@5_se": float("nan"), "queries": 0}
    figures.draw_recall(tmp_path / "recall", results, 5)
    shown = text_of(tmp_path / "recall.svg")
    assert sum(text == "31.4" for text in shown) == 2


def test_names_are_text(tmp_path):
    names = ("$0_$10", "首页", "🛒 cart", "a\\frac{b", "_x^y")
    draw(tmp_path / "f", results=make_results(names), fig4=make_fig4(len(names)))
    for name in ("recall_at_5", "fig4a_scenario_similarity"):
        assert (tmp_path / "f" / "figures" / f"{name}.png").stat().st_size > 0
    # Mathematics would be many small texts, or no figure at all.
    figure = tmp_path / "f" / "figures" / "recall_at_5.svg"
    assert "$0_$10" in figure.read_text(encoding="utf-8")


def test_a_figure_that_cannot_be_drawn_is_one_line_and_the_others_are_drawn(
    tmp_path, monkeypatch, capsys
):
    def fail(*arguments):
        raise ValueError("no such glyph\nin any font")

    monkeypatch.setattr(figures, "draw_recall", fail)
    written = draw(tmp_path / "f")
    names = {path.stem for path in written}
    assert "learning_curves" in names and "fig4b_gate_weights" in names
    [line] = capsys.readouterr().out.splitlines()
    assert line.endswith("recall_at_5: the figure is not drawn: no such glyph")


def test_no_room_for_figures_ends_no_run(tmp_path, capsys):
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "figures").write_text("a file is in the way")
    assert draw(tmp_path / "f") == []
    assert capsys.readouterr().out.count("the figure is not drawn") == 3


def test_towers_that_do_not_know_the_scenario_have_no_similarity(tmp_path):
    fig4 = make_fig4()
    fig4["scenario_coefficients"]["item/forward"] = np.ones((1, 4))
    draw(tmp_path, fig4=fig4)
    shown = text_of(tmp_path / "figures" / "fig4a_scenario_similarity.svg")
    assert "user forward" in shown
    assert "item forward" not in shown
    assert "all scenarios" in text_of(tmp_path / "figures" / "fig4b_gate_weights.svg")


def test_many_scenarios_and_experts_fit(tmp_path):
    scenarios = tuple(f"S{i}" for i in range(12))
    fig4 = make_fig4(scenarios=12)
    fig4["gate_weights"] = {"user": np.full((12, 10), 0.1), "item": np.full((1, 10), 0.1)}
    missing = tmp_path / "missing.jsonl"
    written = draw(tmp_path, results=make_results(scenarios), fig4=fig4, metrics_path=missing)
    assert len(written) == 6


def test_learning_curves_name_the_epoch_that_each_stage_kept(tmp_path):
    points = write_points(tmp_path / "metrics.jsonl").read_text().splitlines()
    points = [json.loads(point) for point in points]
    # Not the best, but the last of a schedule, or what another machine's metrics do not hold.
    for step, note in ((3, ", kept: macro 30.0"), (2, ", kept: macro 20.0"), (7, ""), (None, "")):
        kept = {"teacher": 3} if step is None else {"teacher": 3, "student": step}
        figures.draw_curves(tmp_path / "curves", points, 5, kept)
        shown = text_of(tmp_path / "curves.svg")
        assert "teacher: validation Recall@5 (%), kept: macro 30.0" in shown
        assert f"student: validation Recall@5 (%){note}" in shown


def test_a_loss_of_one_part_is_one_curve(tmp_path):
    whole = {"train/loss": 0.5, "train/loss_task": 0.5}
    points = [
        {"stage": "teacher", "step": 1, **whole},
        {"stage": "student", "step": 1, **whole, "train/loss_distill": 0.1},
    ]
    figures.draw_curves(tmp_path / "curves", points, 5, {})
    shown = text_of(tmp_path / "curves.svg")
    assert shown.count("loss task") == 1
    assert shown.count("loss distill") == 1


def test_cosine_literal():
    coef_SR = np.array([[3.0, 4.0], [4.0, -3.0], [6.0, 8.0], [0.0, 0.0]])
    expected = [[1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(figures.cosine(coef_SR), expected, atol=1e-12)


def test_importing_the_module_does_not_import_matplotlib():
    code = "import sys, dsmoe_jax.run.figures; print('matplotlib' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.stdout.strip() == "False", answer.stderr


@pytest.mark.parametrize("number", [0, 7, 8, 23])
def test_repeated_colours_differ_in_pattern(number):
    other = figures.look(number + len(figures.COLOURS), bar=True)
    mine = figures.look(number, bar=True)
    assert mine["color"] == other["color"]
    assert mine["hatch"] != other["hatch"]
