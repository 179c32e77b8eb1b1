"""Dot plots: one row per system, a dot for its value and a line for its interval."""

import functools
import math
import pathlib
import statistics
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from dsmoe_jax.compare.report import generated
from dsmoe_jax.run import figures

# Colour and marker of the first, the second and the third kind of rows of a figure.
_LOOKS = ((figures.COLOURS[0], "o"), (figures.COLOURS[1], "s"), ("#606060", "D"))


class Dot(NamedTuple):
    """A row: what it is, its value and the ends of its interval in the axis' unit, its kind."""

    label: str
    value: float
    low: float = math.nan
    high: float = math.nan
    kind: str = ""


def over_seeds(label: str, values: Sequence[float], kind: str) -> Dot:
    """A mean, plus and minus one standard deviation."""
    mean = statistics.fmean(values)
    reach = statistics.stdev(values) if len(values) > 1 else math.nan
    return Dot(label, mean, mean - reach, mean + reach, kind)


def block(
    name: str, title: str, label: str, dots: Sequence[Dot], *, scale: str = "linear"
) -> generated.Block:
    """A figure of a page, with its numbers in a file; its dots are from top to bottom.

    The label says what is measured, in which unit, and what the lines are.
    """
    lines = [f'"{d.label}",{d.value:.5g},{d.low:.5g},{d.high:.5g},{d.kind}' for d in dots]
    numbers = "\n".join([",".join(Dot._fields), *lines, ""])
    alt = " ".join(f"{title}: {label}".split())
    text = f"![{alt}]({name}.svg)\n\n[The figure's numbers]({name}.csv)"
    draw = functools.partial(_draw, name, title, label, dots, scale)
    return generated.Block(text, {f"{name}.csv": numbers}, draw)


def _draw(
    name: str, title: str, label: str, dots: Sequence[Dot], scale: str, folder: pathlib.Path
) -> None:
    kinds = sorted({dot.kind for dot in dots}, key=lambda kind: (kind != "DSMOE", kind))
    labels = [textwrap.fill(dot.label, 34) for dot in dots]
    # As wide as a telephone shows it without shrinking its letters.
    with figures.new_figure(4.8, 1.3 + 0.21 * "\n".join(labels).count("\n")) as figure:
        axis = figure.subplots()
        for kind, (colour, marker) in zip(kinds, _LOOKS, strict=False):
            rows = [(y, dot) for y, dot in enumerate(dots) if dot.kind == kind]
            y, ends = [y for y, _ in rows], [(dot.low, dot.high) for _, dot in rows]
            axis.hlines(y, *zip(*ends, strict=True), color=colour)
            axis.plot([d.value for _, d in rows], y, marker, color=colour, ms=5, label=kind)
        if any(dot.low < 0 < dot.high for dot in dots):
            axis.axvline(0, color="#606060", linewidth=0.8, linestyle=":")
        axis.set_yticks(range(len(dots)), labels)
        axis.set_xscale(scale)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set_ylim(len(dots) - 0.4, -0.6)
        axis.tick_params(axis="y", length=0)
        axis.grid(axis="both")
        figure.supxlabel(label, fontsize=8)
        if len(kinds) > 1:
            axis.legend(loc="best", frameon=True)
        figure.suptitle(title)
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
