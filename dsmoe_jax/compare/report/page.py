"""One-page report: Markdown, and HTML that needs nothing but itself.

Owns the layout and the style of the page, and the list of deviations that every report carries.
"""

import base64
import html
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from dsmoe_jax.baselines import selection
from dsmoe_jax.compare.report import formats

TITLE = "Multi-scenario matching: the comparison"

DEVIATIONS = (
    "The paper's rows, split and widths are unknown: its numbers stand beside ours for the order "
    "of magnitude, not digit by digit.",
    "A method whose code and equations are not public is rebuilt in its style; its own file says "
    "which parts are inferred.",
    "All methods share one contract: the same features, uniform negatives, binary cross-entropy, "
    "Adam with coupled L2, early stopping on macro validation recall; where a method's own paper "
    "trains otherwise, its file says so.",
    "A baseline from another library trains as the library does, by its own loss, negatives and "
    f"optimiser, on the same clicks; {selection.NUM_TRIALS} settings are tried on validation days.",
    "DSMOE alone is distilled, from a teacher that also sees a log-prior per scenario and item and "
    'collaborative vectors; "without distillation" in Table 4 is what remains without it.',
    "Items a user clicked before the test days are no candidates.",
)

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #202020; background: #fff;
       max-width: 78rem; margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.7rem; } h2 { margin-top: 2.4rem; border-bottom: 1px solid #ddd; }
h3 { margin: 1.6rem 0 .4rem; font-size: 1.05rem; }
figure { margin: 1.2rem 0; } figcaption, .note { color: #505050; font-size: .88rem; }
figcaption p { margin: .3rem 0; max-width: 60rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .6rem; text-align: right; border-bottom: 1px solid #e6e6e6; }
thead th { vertical-align: bottom; border-bottom: 2px solid #999; }
tbody th { text-align: left; font-weight: 500; min-width: 10rem; position: sticky; left: 0;
           background: #fff; }
td { white-space: nowrap; }
#table1 :is(th, td) { text-align: left; white-space: normal; }
td.best { font-weight: 700; } td.second { text-decoration: underline; }
td.noise { color: #707070; } .sign { font-size: .8em; }
td.above .sign { color: #007050; } td.below .sign { color: #b04a00; }
img { max-width: 100%; height: auto; }
nav a { margin-right: 1rem; }
"""


class Picture(NamedTuple):
    """A figure: the path of its files without their endings, and what it shows."""

    path: pathlib.Path
    caption: str


class Report(NamedTuple):
    """What a report holds; notes say what was run, and on what."""

    notes: Sequence[str]
    findings: Sequence[str]
    tables: Sequence[formats.Table]
    pictures: Sequence[Picture]


def to_html(report: Report) -> str:
    """The page with style and images inside."""
    figures = "".join(map(_picture, report.pictures)) or "<p>None is finished.</p>"
    parts = {
        "What was run": ("run", _list(report.notes)),
        "Findings": ("findings", _list(report.findings)),
        "Tables": ("tables", "\n" + "".join(map(formats.to_html, report.tables))),
        "Figures": ("figures", "\n" + figures),
        "Deviations": ("deviations", _list(DEVIATIONS)),
    }
    nav = "".join(f'<a href="#{anchor}">{title}</a>' for title, (anchor, _) in parts.items())
    body = "\n".join(
        f'<h2 id="{anchor}">{title}</h2>{text}' for title, (anchor, text) in parts.items()
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{TITLE}</title><style>{_STYLE}</style></head>\n<body><h1>{TITLE}</h1>"
        f"<nav>{nav}</nav>\n{body}\n</body></html>\n"
    )


def to_markdown(report: Report) -> str:
    """The same as Markdown, its figures as files beside it."""
    parts = [f"# {TITLE}", "## What was run", formats.bullets(report.notes)]
    parts += ["## Findings", formats.bullets(report.findings)]
    for table in report.tables:
        parts += [f"## {table.title}", formats.to_markdown(table)]
    for picture in report.pictures:
        parts.append(f"![{picture.caption}]({picture.path.name}.png)\n\n{picture.caption}")
    return "\n\n".join([*parts, "## Deviations", formats.bullets(DEVIATIONS)]) + "\n"


def _picture(picture: Picture) -> str:
    data = base64.b64encode(picture.path.with_name(f"{picture.path.name}.svg").read_bytes())
    caption = html.escape(picture.caption)
    return (
        f'<figure id="{picture.path.name}">'
        f'<img alt="{caption}" src="data:image/svg+xml;base64,{data.decode()}">'
        f"<figcaption><p>{caption}</p></figcaption></figure>\n"
    )


def _list(entries: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{html.escape(entry)}</li>' for entry in entries)}</ul>"
