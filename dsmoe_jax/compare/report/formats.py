"""Tables as Markdown, CSV and HTML.

Owns the forms alone; what a table says is made in `recall_table.py`, `cost_table.py` and
`method_table.py`.
"""

import csv
import dataclasses
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# How a cell that is compared with DSMOE's reads.
SIGNS = {"noise": "≈", "above": "▲", "below": "▼", "": ""}


@dataclasses.dataclass(frozen=True)
class Value:
    """A cell.

    Attributes:
      text: What is printed.
      rank: "best", "second" or nothing.
      verdict: A key of `SIGNS`.
    """

    text: str
    rank: str = ""
    verdict: str = ""

    @property
    def signed(self) -> str:
        """The text with its sign."""
        return f"{self.text} {SIGNS[self.verdict]}".strip()


@dataclasses.dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
      name: Of its files.
      heads: One per column; the first column holds labels.
      rows: Cells, as many as there are heads.
      records: The numbers behind it for the CSV file, one entry per number; the printed cells
        where there are none.
      is_text: Whether its cells are words, not numbers.
    """

    name: str
    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]
    notes: tuple[str, ...] = ()
    records: tuple[Mapping[str, Any], ...] = ()
    is_text: bool = False


def cells(rows: Iterable[Iterable[str]]) -> tuple[tuple[Value, ...], ...]:
    """Rows of plain cells."""
    return tuple(tuple(map(Value, row)) for row in rows)


def to_markdown(table: Table) -> str:
    """The table and its notes, without the title."""
    marks = {"best": "**{}**", "second": "<u>{}</u>", "": "{}"}
    ruler = "---" if table.is_text else "---:"
    lines = [_line(table.heads), _line(("---", *[ruler] * (len(table.heads) - 1)))]
    for row in table.rows:
        lines.append(_line(marks[cell.rank].format(cell.signed) for cell in row))
    return "\n".join([*lines, *(f"\n{note}" for note in table.notes)])


def to_csv(table: Table) -> str:
    """The numbers behind the table."""
    printed = [
        {head: cell.text for head, cell in zip(table.heads, row, strict=True)} for row in table.rows
    ]
    heads = list(table.records[0]) if table.records else table.heads
    return lines_to_csv(heads, table.records or printed)


def lines_to_csv(heads: Sequence[str], lines: Iterable[Mapping[str, Any]]) -> str:
    """A CSV file of some lines by their heads."""
    file = io.StringIO()
    writer = csv.DictWriter(file, heads, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return file.getvalue()


def to_html(table: Table) -> str:
    """A `figure` with caption, table and notes."""
    heads = "".join(f'<th scope="col">{html.escape(head)}</th>' for head in table.heads)
    body = "".join(f"<tr>{_html_row(row)}</tr>\n" for row in table.rows)
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in table.notes)
    return (
        f'<figure id="{table.name}"><h3>{html.escape(table.title)}</h3>'
        f'<div class="scroll"><table><thead><tr>{heads}</tr></thead>\n<tbody>{body}</tbody>'
        f"</table></div><figcaption>{notes}</figcaption></figure>"
    )


def _html_row(row: tuple[Value, ...]) -> str:
    label, *cells = row
    parts = [f'<th scope="row">{html.escape(label.text)}</th>']
    for cell in cells:
        classes = " ".join(filter(None, (cell.rank, cell.verdict)))
        sign = f' <span class="sign">{SIGNS[cell.verdict]}</span>' if cell.verdict else ""
        parts.append(f'<td class="{classes}">{html.escape(cell.text)}{sign}</td>')
    return "".join(parts)


def bullets(entries: Sequence[str]) -> str:
    """Sentences as a list in Markdown."""
    return "\n".join(f"- {entry}" for entry in entries)


def code(text: str) -> str:
    """Text of a console as a block in Markdown."""
    return f"```text\n{text.strip()}\n```"


def _line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"
