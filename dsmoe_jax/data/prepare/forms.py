"""Forms of text files: separators, encodings, names of columns from a header or without one.

Owns what a table is told to be like and the reading of its first line. Does not own rows
(`read.py`).
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dsmoe_jax import terminal
from dsmoe_jax.data.prepare import columns as columns_lib
from dsmoe_jax.data.prepare import records, streams

# Guessed in this order from a header.
SEPARATORS = (",", "\t", ";", "|")


@dataclasses.dataclass(frozen=True)
class Form:
    """How text files of a table are written; Parquet files say so themselves.

    Attributes:
      separator: One character between cells; "" takes the first of `SEPARATORS` by which the header
        has the columns that are asked for.
      encoding: Name of a text encoding; UTF-16 with a byte order mark is told from it.
      null_values: Texts that mean an empty cell, in Parquet too.
      names: Of the columns of text files that have no header, in their order; empty for files with.
      setting: The field of the configuration that gives them, for messages.
    """

    separator: str = ","
    encoding: str = "utf-8"
    null_values: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    setting: str = ""


PLAIN = Form()


class Table(NamedTuple):
    """A text file's header, and what is asked of it."""

    names: list[str]
    separator: str
    wanted: Mapping[str, columns_lib.Column]
    columns: Sequence[columns_lib.Column]
    null_values: tuple[str, ...]
    constants: Mapping[str, str | None]


def read_header(
    path: pathlib.Path,
    stream: streams.Text,
    begin: tuple[bytes, bytes],
    columns: Sequence[columns_lib.Column],
    form: Form,
    constants: Mapping[str, str | None],
) -> tuple[Table, bytes]:
    """The header or what stands in its place, and the text after it that was read with it.

    `begin` is what `read_line` found.
    """
    first, rest = begin
    line = first.decode("utf-8", errors="replace")
    asked = [column.name for column in columns if column.name not in constants]
    tried = [form.separator] if form.separator else SEPARATORS
    split = {s: [name.strip() for name in records.split_cells(line, s)] for s in tried}
    if form.names:
        separator = max(tried, key=lambda s: len(split[s]) == len(form.names))
        names, cells = list(form.names), len(split[separator])
        is_empty = not (first or rest)
        if not is_empty and cells != len(names):
            raise ValueError(
                f"{path}: row 1: expected the {len(names)} columns of {form.setting}, got {cells}: "
                f"{records.shorten(first)}; name all of them in order, or set data.separator"
            )
        known_here = [name for name in asked if name in names]
        if len(known_here) > 1 and all(
            split[separator][names.index(name)] == name for name in known_here
        ):
            raise ValueError(
                f"{path}: row 1: expected values of the columns {form.setting}, got their names; "
                f"the file has a header: leave {form.setting} empty"
            )
        rest = b"" if is_empty else first + b"\n" + rest
    else:
        known = {s: sum(name in split[s] for name in asked) for s in tried}
        # Where no column is known by any, a message shows the most cells.
        by = known if any(known.values()) else {s: len(split[s]) for s in tried}
        separator = max(tried, key=by.__getitem__)
        names = split[separator]
    for column in columns:
        if column.name not in names and column.name not in constants:
            if stream.promised:
                raise ValueError(
                    f"{path}: expected a whole {stream.promised} file, got damaged content (other "
                    "first bytes); copy or download it again"
                )
            if form.names:
                raise ValueError(
                    f"{form.setting}: expected a column {column.name!r}, got "
                    f"{terminal.one_line(', '.join(names))}"
                )
            is_one = len(names) == 1 and names[0]
            guess = f" in one cell, split by {separator!r}" if is_one else ""
            shown = terminal.one_line(", ".join(names)) or "an empty line"
            raise ValueError(
                f"{path}: row 1, column {column.name!r}: expected it in the header, got "
                f"{shown}{guess}; check that this is the right file"
                + (", or set data.separator" if guess else "")
                + _advise(names, form)
            )
        if names.count(column.name) > 1:
            raise ValueError(
                f"{path}: row 1, column {column.name!r}: expected it once in the header, got it "
                f"{names.count(column.name)} times; rename the others"
            )
    wanted = {column.name: column for column in columns if column.name in names}
    table = Table(names, separator, wanted, columns, form.null_values, constants)
    return table, rest


def _advise(names: list[str], form: Form) -> str:
    """What to do about a header that looks like a row: names of columns are no numbers."""
    is_row = any(columns_lib.parses(name, "float") for name in names if name)
    return f", or, if it has no header, set {form.setting}" if form.setting and is_row else ""


def read_line(path: pathlib.Path, stream: streams.Text, block_bytes: int) -> tuple[bytes, bytes]:
    """The first line, and the text after it that was read with it."""
    text = b""
    while (end := records.first_end(text)) == len(text):
        more = stream.read(block_bytes)
        text += more
        if not more:
            break
        if len(text) > records.LONGEST_RECORD:
            raise ValueError(f"{path}: row 1: expected a shorter header")
    return text[:end], text[end + 1 :]
