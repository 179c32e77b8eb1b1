"""Figures of a run: recall beside the baselines, the paper's Fig. 4, learning curves.

Owns how numbers look; takes them from `results.json`, `metrics.jsonl` and the model's own tables
and computes none but the cosine of Fig. 4a. Every figure is written as PNG and SVG, beside its
place and then renamed. Colours are those of Okabe and Ito, which colour-blind readers tell apart.

Letters: S scenarios, K experts, R SAP rank.
"""

import contextlib
import functools
import os
import pathlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from typing import Any

import numpy as np
from jaxtyping import Float

from dsmoe_jax import runlog
from dsmoe_jax.run import results as results_lib

Arrays = Mapping[str, Any]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
_STUDENT, _TEACHER, _BASELINE = COLOURS[0], COLOURS[4], "#B8BEC6"
_STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#808080",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "figure.titlesize": 11,
    "font.size": 9,
    "grid.color": "#E4E4E4",
    "legend.frameon": False,
    # Equal data give equal files.
    "svg.hashsalt": "dsmoe_jax",
    # Names are text, whatever dollars they hold.
    "text.parse_math": False,
}
# Fonts that have what the first lacks, where they are installed.
_FONTS = (
    "DejaVu Sans",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "WenQuanYi Micro Hei",
    "PingFang SC",
    "Microsoft YaHei",
    "Noto Emoji",
    "Symbola",
)
# What drawing may raise of odd numbers, odd names, fonts and full disks.
_DRAWING_ERRORS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


def draw_all(
    folder: pathlib.Path,
    *,
    results: Mapping[str, Any],
    metrics_path: pathlib.Path,
    kept: Mapping[str, int],
    fig4: Mapping[str, Arrays],
) -> list[pathlib.Path]:
    """Draws every figure that a run has numbers for; returns the files.

    Without metrics.jsonl there are no learning curves. `kept` is the step of the state that each
    stage kept. `fig4` holds `scenario_coefficients` ([S, R]
    by layer) and `gate_weights` ([S, K] by tower), as far as the model has them. A figure that
    cannot be drawn is named in one line, and the others are drawn.
    """
    scenarios = list(results["scenarios"])
    drawings: dict[str, Callable[[], list[pathlib.Path]]] = {}
    for k in results["k"]:
        name = f"recall_at_{k}"
        drawings[name] = functools.partial(draw_recall, folder / name, results, k)
    names = ("fig4a_scenario_similarity", "fig4b_gate_weights")
    drawings["fig4"] = lambda: draw_fig4(folder, names, fig4, scenarios)
    if points := runlog.read_points(metrics_path):
        name = "learning_curves"
        drawings[name] = lambda: draw_curves(folder / name, points, results["k"][0], kept)
    written = []
    for name, draw in drawings.items():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            written += draw()
        except _DRAWING_ERRORS as error:
            what = (str(error).strip() or type(error).__name__).splitlines()[0]
            runlog.say(f"{folder / name}: the figure is not drawn: {what}")
    return written


def draw_fig4(
    folder: pathlib.Path,
    names: tuple[str, str],
    tables: Mapping[str, Arrays],
    scenarios: Sequence[str],
) -> list[pathlib.Path]:
    """Fig. 4a and 4b under their names, as far as there are tables; see `draw_all`."""
    # A tower without the scenario has one row, and one layer's row has no angle to another.
    coefficients = tables.get("scenario_coefficients", {})
    coefficients = {name: table for name, table in coefficients.items() if len(table) > 1}
    written = []
    if coefficients:
        written += draw_similarity(folder / names[0], coefficients, scenarios)
    if gate_weights := tables.get("gate_weights"):
        written += draw_gates(folder / names[1], gate_weights, scenarios)
    return written


def draw_recall(path: pathlib.Path, results: Mapping[str, Any], k: int) -> list[pathlib.Path]:
    """Test recall@k of every row, one panel per scenario and one for the macro average."""
    rows = {name: (summary, _BASELINE) for name, summary in results["references"].items()}
    if results["teacher"]:
        rows["teacher (sampled queries)"] = (results["teacher"], _TEACHER)
    rows["student"] = (results, _STUDENT)
    panels = [*results["scenarios"], "macro"]
    columns, lines = grid(panels)
    height = lines * (0.9 + 0.28 * len(rows)) + 0.5
    with new_figure(2.2 + 1.9 * columns, height) as figure:
        axes = make_panels(figure, panels)
        for panel, axis in zip(panels, axes, strict=False):
            _draw_recall_panel(axis, panel, rows, f"recall@{k}")
        axes[0].invert_yaxis()
        figure.suptitle(
            f"{results['dataset']}: test Recall@{k} (%), {results['candidates']:,} candidates, "
            f"{results_lib.removal(results)}"
        )
        figure.supxlabel("whiskers: one standard error over queries", fontsize=8)
        return save(figure, path)


def draw_similarity(
    path: pathlib.Path, coefficients: Arrays, scenarios: Sequence[str]
) -> list[pathlib.Path]:
    """Cosine between the scenarios' SAP coefficients b_s.

    **Paper:** Fig. 4a. **Deviation:** the paper does not say whose b_s it shows, since every SAP
    layer has its own: the first panel is the mean of the cosine over all layers, the others are
    the layers.
    """
    similar = {name: cosine(np.asarray(coef)) for name, coef in coefficients.items()}
    panels = {"mean over layers": np.mean(list(similar.values()), axis=0), **similar}
    columns, lines = grid(panels)
    side = max(1.7, 0.42 * len(scenarios))
    with new_figure(0.9 + (side + 0.35) * columns, 0.8 + (side + 0.5) * lines) as figure:
        axes, image = make_panels(figure, panels), None
        for (title, similar_SS), axis in zip(panels.items(), axes, strict=False):
            image = axis.imshow(similar_SS, cmap="PuOr_r", vmin=-1, vmax=1)
            _label_cells(axis, similar_SS)
            axis.set_title(title.replace("/", " "))
            axis.set_xticks(range(len(scenarios)), scenarios)
            axis.set_yticks(range(len(scenarios)), scenarios)
            axis.tick_params(length=0)
            axis.spines[:].set_visible(False)
        figure.colorbar(image, ax=axes, label="cosine", shrink=0.8, pad=0.02)
        figure.suptitle("Similarity of scenarios: cosine of the SAP coefficients b_s")
        return save(figure, path)


def cosine(coef_SR: Float[np.ndarray, "S R"]) -> Float[np.ndarray, "S S"]:
    """Cosine between rows; 0 with a row of zeros, which has no direction."""
    norm_S1 = np.linalg.norm(coef_SR, axis=1, keepdims=True)
    unit_SR = coef_SR / np.where(norm_S1 > 0, norm_S1, 1.0)
    return unit_SR @ unit_SR.T


def draw_gates(
    path: pathlib.Path, gate_weights: Arrays, scenarios: Sequence[str]
) -> list[pathlib.Path]:
    """Expert weights per scenario, one panel per tower. **Paper:** Fig. 4b."""
    towers = {name: np.asarray(gate_SK) for name, gate_SK in gate_weights.items()}
    K = max(gate_SK.shape[1] for gate_SK in towers.values())
    width = float(np.clip(2.0 + 0.26 * K * len(scenarios), 5.0, 14.0))
    with new_figure(width, 0.6 + 1.9 * len(towers)) as figure:
        axes = figure.subplots(len(towers), 1, sharey=True, squeeze=False)[:, 0]
        for (tower, gate_SK), axis in zip(towers.items(), axes, strict=True):
            names = scenarios if len(gate_SK) == len(scenarios) else ["all scenarios"]
            bar = 0.8 / K
            for expert in range(gate_SK.shape[1]):
                x = np.arange(len(gate_SK)) + (expert - (K - 1) / 2) * bar
                axis.bar(x, gate_SK[:, expert], 0.9 * bar, **look(expert, bar=True))
            axis.axhline(1 / K, color="#606060", linewidth=0.8, linestyle=":")
            axis.set_title(f"{tower} tower")
            axis.set_xticks(range(len(names)), names)
            axis.set_xlim(-0.5, len(scenarios) - 0.5)  # bars of one width in every panel
            axis.tick_params(axis="x", length=0)
            axis.grid(axis="y")
        axes[0].set_ylim(0, None)
        figure.supylabel("gate weight (dotted: uniform)", fontsize=9)
        handles = axes[0].containers
        labels = [f"expert {expert + 1}" for expert in range(K)]
        figure.legend(handles, labels, loc="outside right center")
        figure.suptitle("Expert weights per scenario")
        return save(figure, path)


def draw_curves(
    path: pathlib.Path,
    points: Sequence[Mapping[str, Any]],
    k: int,
    kept: Mapping[str, int],
) -> list[pathlib.Path]:
    """Losses and validation recall@k of every stage against its steps, of metrics.jsonl's lines.

    `kept` is as in `draw_all`.
    """
    stages = list(dict.fromkeys(point["stage"] for point in points))
    with new_figure(9.0, 0.6 + 2.6 * len(stages)) as figure:
        axes = figure.subplots(len(stages), 2, squeeze=False)
        for stage, (left, right) in zip(stages, axes, strict=True):
            mine = [point for point in points if point["stage"] == stage]
            titles = (
                _draw_losses(left, mine),
                _draw_validation(right, mine, f"recall@{k}", kept.get(stage)),
            )
            for axis, title in zip((left, right), titles, strict=True):
                axis.set_title(f"{stage}: {title}", loc="left")
                axis.set_xlim(0, None)
                axis.set_ylim(0, None)
                axis.grid()
        for axis in axes[-1]:
            axis.set_xlabel("step")
        return save(figure, path)


def _draw_recall_panel(
    axis: Any, panel: str, rows: Mapping[str, tuple[Mapping[str, Any], str]], metric: str
) -> None:
    entries = [
        summary["macro"] if panel == "macro" else summary["scenarios"][panel]
        for summary, _ in rows.values()
    ]
    # JSON's null, a metric of a scenario without queries, becomes NaN.
    value = 100 * np.array([entry[metric] for entry in entries], float)
    error = 100 * np.array([entry[f"{metric}_se"] for entry in entries], float)
    colours = [colour for _, colour in rows.values()]
    y = np.arange(len(rows))
    whisker = {"ecolor": "#404040", "elinewidth": 0.9}
    axis.barh(y, value, 0.72, xerr=np.nan_to_num(error), color=colours, error_kw=whisker)
    top = np.nanmax(value + np.nan_to_num(error), initial=0.0)
    for row in np.flatnonzero(~np.isnan(value)):
        # Beside the whisker, where neither the bar nor its error hides the number.
        x = value[row] + np.nan_to_num(error[row]) + 0.02 * top
        axis.text(x, row, f"{value[row]:.1f}", va="center", fontsize=8)
    axis.set_xlim(0, 1.24 * top or 1.0)
    axis.set_yticks(y, list(rows))
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x")
    share = "" if panel == "macro" else f" ({entries[-1]['queries']:,} queries)"
    axis.set_title(f"{panel}{share}")


def _draw_losses(axis: Any, points: Sequence[Mapping[str, Any]]) -> str:
    """Draws the losses of a stage; returns the title."""
    names = _keys(points, lambda key: key.startswith("train/") and key.count("/") == 1)
    if len(names) == 2:
        # The whole and its only part are one curve.
        names = ["train/loss"]
    for number, key in enumerate(names):
        label = key.removeprefix("train/").replace("_", " ")
        _plot(axis, points, key, label=label, linewidth=1.2, **look(number))
    if names:
        axis.legend(loc="upper right")
    return "training loss"


def _draw_validation(
    axis: Any, points: Sequence[Mapping[str, Any]], metric: str, kept: int | None
) -> str:
    """Draws the validation recall of a stage, in %, with the step kept; returns the title."""
    keys = _keys(points, lambda key: key.startswith("eval/") and key.endswith(f"/{metric}"))
    names = [key.split("/")[1] for key in keys]
    note = ""
    for number, name in enumerate([name for name in names if name != "macro"]):
        style = {"linewidth": 1.2, "marker": ".", **look(number)}
        _plot(axis, points, f"eval/{name}/{metric}", 100, label=name, **style)
    if "macro" in names:
        style = {"label": "macro", "color": "#202020", "linewidth": 2.2}
        step, value = _plot(axis, points, f"eval/macro/{metric}", 100, **style)
        # The best epoch, or the last one where the step size falls to the end.
        for place in np.flatnonzero((step == kept) & ~np.isnan(value))[-1:]:
            axis.axvline(step[place], color="#606060", linewidth=0.8, linestyle=":")
            note = f", kept: macro {value[place]:.1f}"
    if names:
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    # A stage that nothing selects in is not validated.
    axis.set_visible(bool(names))
    return f"validation {metric.replace('recall', 'Recall')} (%){note}"


def grid(panels: Sized, most: int = 5) -> tuple[int, int]:
    """Columns and lines of panels side by side, at most so many in a line."""
    columns = min(len(panels), most)
    return columns, -(-len(panels) // columns)


def make_panels(figure: Any, panels: Sized, most: int = 5) -> Any:
    """Axes of the panels, left to right; those of places left over stay invisible."""
    columns, lines = grid(panels, most)
    axes = figure.subplots(lines, columns, sharey=True, squeeze=False).ravel()
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    return axes


def look(number: int, *, bar: bool = False) -> dict[str, Any]:
    """Colour, and past the palette's end a pattern that tells repeated colours apart."""
    colour, again = COLOURS[number % len(COLOURS)], number // len(COLOURS)
    if bar:
        return {"color": colour, "hatch": ("", "///", "...")[again % 3]}
    return {"color": colour, "linestyle": ("-", "--", ":")[again % 3]}


def _label_cells(axis: Any, value_SS: np.ndarray) -> None:
    if len(value_SS) > 8:  # no room for numbers
        return
    for (row, column), value in np.ndenumerate(value_SS):
        colour = "white" if abs(value) > 0.7 else "#202020"
        text = f"{value:.2f}".replace("-0.00", "0.00")
        axis.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)


def _keys(points: Sequence[Mapping[str, Any]], wanted: Callable[[str], bool]) -> list[str]:
    """The wanted keys of any point, in the order of their first appearance."""
    return list(dict.fromkeys(key for point in points for key in point if wanted(key)))


def _plot(
    axis: Any, points: Sequence[Mapping[str, Any]], key: str, factor: int = 1, **style: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Draws a metric by its steps; returns both."""
    known = [(point["step"], point[key]) for point in points if key in point]
    step, value = np.array(known, float).reshape(-1, 2).T
    axis.plot(step, factor * value, **style)
    return step, factor * value


@contextlib.contextmanager
def new_figure(width: float, height: float) -> Iterator[Any]:
    """A matplotlib figure of that size in inches, in the house's style, without a display."""
    # Imported here: a run that stops early should not wait for it.
    import matplotlib
    from matplotlib import figure, font_manager

    there = {font.name for font in font_manager.fontManager.ttflist}
    fonts = [name for name in _FONTS if name in there]
    with matplotlib.rc_context({**_STYLE, "font.family": fonts}), warnings.catch_warnings():
        # A character that no font has is drawn as a box.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield figure.Figure(figsize=(width, height), layout="constrained")


def save(figure: Any, path: pathlib.Path) -> list[pathlib.Path]:
    """Writes a figure as PNG and SVG; returns both files."""
    written = []
    for kind, options in (("png", {"dpi": 150}), ("svg", {"metadata": {"Date": None}})):
        target = path.with_name(f"{path.name}.{kind}")
        partial = target.with_name(f"{target.name}.partial")
        figure.savefig(partial, format=kind, **options)
        # Both files have one layout, which takes a third of the time.
        figure.set_layout_engine("none")
        os.replace(partial, target)
        written.append(target)
    return written
