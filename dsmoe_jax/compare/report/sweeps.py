"""Figures of several runs: the paper's Fig. 2 (experts), 3 (rank), 4 (scenarios), and a search.

Owns how several runs are drawn together; styles and files are those of `dsmoe_jax.run.figures`.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dsmoe_jax.compare import estimates
from dsmoe_jax.compare.report import finished, recall_table
from dsmoe_jax.run import figures

# What the axis of a figure is, and its title.
SWEPT = {
    "fig2": ("experts K", "Fig. 2: number of experts"),
    "fig3": ("rank R of SAP", "Fig. 3: rank of the scenario-adaptive projection"),
}


def draw_sweep(
    path: pathlib.Path, figure_name: str, systems: Sequence[finished.System]
) -> list[pathlib.Path]:
    """Test recall at the first cut-off by the value of one field; nothing where none is finished.

    The systems are one per value, in order, labelled by it; all tested on the same days.
    """
    done = [system for system in systems if system.entries]
    if len(done) < 2:
        return []
    k = recall_table.cutoffs_of(done[0])[0]
    scenarios = recall_table.scenarios_of(done[0])
    found = [estimates.estimate(estimates.pool(s, k), scenarios) for s in done]
    axis_label, title = SWEPT[figure_name]
    with figures.new_figure(6.4, 3.6) as figure:
        axis = figure.subplots()
        x = np.arange(len(done))
        for number, name in enumerate([*scenarios, estimates.MACRO]):
            value = 100 * np.array([entry[name].mean for entry in found])
            error = 100 * np.array([entry[name].error for entry in found])
            is_macro = name == estimates.MACRO
            look = {"color": "#202020"} if is_macro else figures.look(number)
            shift = 0.06 * (number - len(scenarios) / 2)
            look |= {"marker": ".", "linewidth": 2.0 if is_macro else 1.2, "elinewidth": 0.8}
            axis.errorbar(x + shift, value, np.nan_to_num(error), label=name, **look)
        axis.set_xticks(x, [system.label for system in done])
        axis.set_xlabel(axis_label)
        axis.set_ylabel(f"test Recall@{k} (%)")
        axis.set_ylim(0, None)
        axis.grid(axis="y")
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        axis.set_title(title, loc="left")
        figure.supxlabel("whiskers: one standard error over queries", fontsize=8)
        return figures.save(figure, path)


def draw_scenarios(folder: pathlib.Path, own: finished.System) -> list[pathlib.Path]:
    """Fig. 4a and 4b of DSMOE's first seed, as far as the model has the tables."""
    views = own.entries[0].record["views"]
    scenarios = recall_table.scenarios_of(own)
    tables: dict[str, dict[str, np.ndarray]] = {}
    for path, values in views.items():
        kind, _, name = path.partition("/")
        tables.setdefault(kind, {})[name] = np.array(values)
    return figures.draw_fig4(folder, ("fig4a", "fig4b"), tables, scenarios)


def draw_search(
    path: pathlib.Path, fields: Sequence[str], trials: Sequence[Mapping[str, Any]], title: str
) -> list[pathlib.Path]:
    """Every trial's score, in [0, 1], by the value of each field, a panel each.

    Trials have `end` ("done" or what else became of it), `score` and the text of every field.
    """
    columns, rows = figures.grid(fields, 3)
    with figures.new_figure(3.0 * columns, 2.4 * rows) as figure:
        axes = figures.make_panels(figure, fields, 3)
        for axis, field in zip(axes, fields, strict=False):
            values = sorted({trial[field] for trial in trials}, key=_as_number)
            for end, marker, colour in (("done", "o", figures.COLOURS[0]), ("", "x", "#999999")):
                shown = [t for t in trials if (t["end"] == "done") == (end == "done")]
                x = [values.index(t[field]) for t in shown]
                y = [100 * t["score"] for t in shown]
                axis.plot(x, y, marker, color=colour, markersize=5, alpha=0.8)
            axis.set_xticks(range(len(values)), values)
            axis.set_xlim(-0.5, len(values) - 0.5)
            axis.set_xlabel(field)
            axis.grid(axis="y")
        for axis in axes[::columns]:
            axis.set_ylabel("%")
        figure.suptitle(title)
        figure.supxlabel("cross: ended before its last epoch", fontsize=8)
        return figures.save(figure, path)


def _as_number(text: str) -> tuple[float, str]:
    """The order of a field's values: by their first number, if any, then as text."""
    try:
        return float(text.strip("(").partition(",")[0].strip(")")), text
    except ValueError:
        return float("-inf"), text
