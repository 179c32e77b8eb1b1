"""The difference of two bundles as text for a terminal and as one HTML page.

Owns how tables of texts look. The page needs nothing else: no script, no font, no network.
"""

import html
import textwrap
from collections.abc import Sequence

from dsmoe_jax.run import bundle_diff

# Of a terminal; longer cells are cut in the text, not on the page.
_WIDTH, _MOST = 100, 44

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --line: #d0d7de; --paper: #fff;
  --band: #f6f8fa; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --soft: #9198a1; --line: #3d444d; --paper: #0d1117; --band: #151b23; }
}
body { margin: 2rem auto; max-width: 68rem; padding: 0 1rem; color: var(--ink);
  background: var(--paper); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .3rem; }
p { color: var(--soft); margin: .2rem 0 .6rem; max-width: 46rem; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; }
dt { font-weight: 600; } dd { margin: 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .35rem .7rem .35rem 0;
  border-bottom: 1px solid var(--line); overflow-wrap: break-word; }
thead th { color: var(--soft); font-weight: 600; }
tbody th { font-weight: 600; white-space: nowrap; }
tbody tr:hover { background: var(--band); }
"""


def to_text(tables: Sequence[bundle_diff.Table], names: tuple[str, str]) -> str:
    """Lines for a terminal; `names` are those of A and B."""
    lines = [f"A  {names[0]}", f"B  {names[1]}"]
    for table in tables:
        lines += ["", table.title]
        if table.note:
            lines += textwrap.wrap(table.note, _WIDTH, initial_indent="  ", subsequent_indent="  ")
        cells = [[_cut(cell) for cell in row] for row in (table.header, *table.rows)]
        widths = [max(len(row[n]) for row in cells) for n in range(len(table.header))]
        for row in cells if table.rows else ():
            padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
            lines.append(("  " + "  ".join(padded)).rstrip())
    return "\n".join(lines) + "\n"


def to_html(tables: Sequence[bundle_diff.Table], names: tuple[str, str]) -> str:
    """The page."""
    first, second = (html.escape(name) for name in names)
    body = "\n".join(_section(table) for table in tables)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Two bundles</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>Two bundles</h1>
<dl><dt>A</dt><dd>{first}</dd><dt>B</dt><dd>{second}</dd></dl>
{body}
</body>
</html>
"""


def _section(table: bundle_diff.Table) -> str:
    parts = [f"<h2>{html.escape(table.title)}</h2>"]
    if table.note:
        parts.append(f"<p>{html.escape(table.note)}</p>")
    if table.rows:
        head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in table.header)
        rows = "\n".join(_row(row) for row in table.rows)
        parts.append(
            f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n'
            f"<tbody>\n{rows}\n</tbody></table></div>"
        )
    return "\n".join(parts)


def _row(row: Sequence[str]) -> str:
    first, *rest = (html.escape(cell) for cell in row)
    cells = "".join(f"<td>{cell}</td>" for cell in rest)
    return f'<tr><th scope="row">{first}</th>{cells}</tr>'


def _cut(text: str) -> str:
    """As much of a cell as a line has room for, in whole entries."""
    if len(text) <= _MOST:
        return text
    return f"{text[: _MOST - 5].rpartition(', ')[0] or text[: _MOST - 5]}, ..."
