"""Typed reading of raw tables in blocks, where every error names file, row and column in one line.

Owns reading of comma-separated files (`.csv`, `.csv.gz`) and Parquet, and the form of the
messages. Does not own what the columns mean (each data set's file does).

Rows are numbered as a person sees them in the file: in a CSV file the header is row 1; in a
Parquet file the first record is row 1. Blocks keep memory bounded whatever the file's size. A line
break inside a quoted field is refused, so that a row is a line.

    columns = [read.Column("user", "int", low=0), read.Column("price", "float", nullable=True)]
    for frame in read.iterate(path, columns):   # pl.DataFrame with user, price and read.ROW
        read.check(path, frame, pl.col("price") > 1e9, "price", "at most 1e9")
"""

import csv
import dataclasses
import gzip
import io
import pathlib
import re
import zlib
from collections.abc import Iterator, Sequence
from typing import BinaryIO, Literal

import numpy as np
import polars as pl
import tqdm

# Name of the extra column with the row number in the file (int64).
ROW = "__row__"
BLOCK_BYTES = 1 << 25
_PARQUET_BLOCK_ROWS = 1 << 20
_CORRECT = "correct or remove the row"
_INTEGER = re.compile(r"\s*-?\d+\s*")

Kind = Literal["int", "code", "float", "str", "yyyymmdd"]
_RAW_TYPE: dict[str, type[pl.DataType]] = {
    "int": pl.Int64,
    "code": pl.Float64,
    "float": pl.Float64,
    "str": pl.String,
    "yyyymmdd": pl.Int64,
}
_NOUN = {
    "int": "an integer",
    "code": "a whole number",
    "float": "a finite number",
    "str": "text",
    "yyyymmdd": "a date as YYYYMMDD",
}


@dataclasses.dataclass(frozen=True)
class Column:
    """One column to read; columns of the file that are not asked for are ignored.

    Attributes:
      name: Header name; spaces around a header name in the file do not count.
      kind: "int" (int64); "code" (int64 from a whole number that may be written `1.0`, as a
        column with nulls often is); "float" (float64, finite); "str"; "yyyymmdd" (`pl.Date` from
        an integer).
      nullable: Whether an empty cell is allowed; it becomes null.
      low, high: Allowed range, inclusive, of "int", "code" and "float".
      null: Text that means null beside the empty cell, e.g. "NULL"; CSV only.
    """

    name: str
    kind: Kind
    nullable: bool = False
    low: float | None = None
    high: float | None = None
    null: str = ""

    @property
    def expected(self) -> str:
        """What a cell should hold, in words."""
        text = _NOUN[self.kind]
        if self.low is not None and self.high is not None:
            text += f" from {self.low} to {self.high}"
        elif self.low is not None:
            text += f" >= {self.low}"
        elif self.high is not None:
            text += f" <= {self.high}"
        return text + (" or nothing" if self.nullable else "")


def error(
    path: pathlib.Path, row: int, column: str, expected: str, got: str, todo: str = _CORRECT
) -> ValueError:
    """The one-line error every finding about a cell is reported with."""
    return ValueError(
        f"{path}: row {row}, column {column!r}: expected {expected}, got {got}; {todo}"
    )


def find(folder: str | pathlib.Path, name: str) -> pathlib.Path | None:
    """The file `name` or `name`.gz in `folder`, or None."""
    for candidate in (pathlib.Path(folder) / name, pathlib.Path(folder) / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    return None


def read(path: pathlib.Path, columns: Sequence[Column]) -> pl.DataFrame:
    """The whole table: the columns asked for, then `ROW`; see `iterate`."""
    return pl.concat(list(iterate(path, columns)))


def iterate(
    path: pathlib.Path, columns: Sequence[Column], block_bytes: int = BLOCK_BYTES
) -> Iterator[pl.DataFrame]:
    """Yields the table in blocks of rows, in order, typed and checked.

    Args:
      path: A `.csv`, `.csv.gz` or `.parquet` file.
      columns: What to read.
      block_bytes: Text parsed at once from a CSV file.

    Yields:
      Frames with the columns asked for, in that order, and `ROW`.

    Raises:
      ValueError: Missing file or column, a row too short or too long, a cell that is not what its
        column expects, a truncated archive, a table without rows.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: expected a file, found none; check the folder and the name")
    blocks = _parquet_blocks if path.suffix == ".parquet" else _csv_blocks
    rows = 0
    for frame in blocks(path, columns, block_bytes):
        rows += frame.height
        yield frame
    if not rows:
        raise ValueError(f"{path}: expected at least one row, found none; add rows to the file")


def check(
    path: pathlib.Path,
    frame: pl.DataFrame,
    violated: pl.Expr,
    column: str,
    expected: str,
    todo: str = _CORRECT,
) -> None:
    """Refuses the first row (by `ROW`) of `frame` for which `violated` is true.

    Raises:
      ValueError: Naming the file, the row, `column`, what was expected and what it holds.
    """
    if not frame.select(violated.fill_null(False).any()).item():
        return
    first = frame.filter(violated).sort(ROW).row(0, named=True)
    raise error(path, first[ROW], column, expected, _show(first[column]), todo)


def check_unique(path: pathlib.Path, frame: pl.DataFrame, key: str) -> None:
    """Refuses a table in which two rows share `key`.

    Raises:
      ValueError: Naming the second of them.
    """
    if frame.select(pl.col(key).n_unique()).item() == frame.height:
        return
    repeated = pl.col(key).cum_count().over(key) > 1
    second = frame.sort(ROW).filter(repeated).row(0, named=True)
    first = frame.filter(pl.col(key) == second[key]).select(pl.col(ROW).min()).item()
    raise error(
        path,
        second[ROW],
        key,
        "every id once",
        f"{_show(second[key])} again (first in row {first})",
        "remove one of the two rows",
    )


def check_known(
    path: pathlib.Path, frame: pl.DataFrame, column: str, known: pl.Series, source: str
) -> None:
    """Refuses a row whose `column` is not among `known`, the ids of the file named `source`.

    Raises:
      ValueError: Naming the first such row.
    """
    check(
        path,
        frame,
        ~pl.col(column).is_in(known.implode()),
        column,
        f"an id that is in {source}",
        f"add it to {source} or remove the row",
    )


def _show(value: object) -> str:
    return "nothing" if value is None or value == "" else repr(value)


def _csv_blocks(
    path: pathlib.Path, columns: Sequence[Column], block_bytes: int
) -> Iterator[pl.DataFrame]:
    size = path.stat().st_size
    with (
        path.open("rb") as raw,
        tqdm.tqdm(
            total=size,
            desc=path.name,
            unit="B",
            unit_scale=True,
            disable=None,
            delay=2,
            leave=False,
        ) as bar,
    ):
        stream: BinaryIO = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw  # type: ignore[assignment]
        names = _read_header(path, _read_some(path, stream, lambda s: s.readline()), columns)
        row, rest = 2, b""
        while True:
            text = _read_some(path, stream, lambda s: s.read(block_bytes))
            end = not text
            text = rest + text
            # A line may be longer than a block; only whole lines are parsed.
            cut = len(text) if end else text.rfind(b"\n") + 1
            rest, text = text[cut:], text[:cut]
            if end:
                text = text.rstrip(b"\r\n")
            if text.strip():
                frame = _parse_block(path, text, row, names, columns)
                row += frame.height
                yield frame
            bar.update(raw.tell() - bar.n)
            if end:
                return


def _read_some(path: pathlib.Path, stream: BinaryIO, read_from) -> bytes:  # type: ignore[no-untyped-def]
    try:
        return read_from(stream)
    except EOFError:
        raise ValueError(
            f"{path}: expected a whole gzip file, got one that ends early; "
            "copy or download it again"
        ) from None
    except (gzip.BadGzipFile, zlib.error) as failure:
        raise ValueError(
            f"{path}: expected a gzip file, got damaged content ({failure}); "
            "copy or download it again"
        ) from None


def _read_header(path: pathlib.Path, line: bytes, columns: Sequence[Column]) -> list[str]:
    text = line.decode("utf-8-sig", errors="replace")
    names = [name.strip() for name in next(csv.reader([text]), [])]
    for column in columns:
        if names.count(column.name) != 1:
            raise ValueError(
                f"{path}: row 1, column {column.name!r}: expected it once in the header, got it "
                f"{names.count(column.name)} times among {', '.join(names) or 'nothing'}; "
                "check that this is the right file"
            )
    return names


def _parse_block(
    path: pathlib.Path, text: bytes, row: int, names: list[str], columns: Sequence[Column]
) -> pl.DataFrame:
    """Types a block of whole lines; only when that fails it is searched for the reason."""
    lines = text.count(b"\n") + (not text.endswith(b"\n"))
    wanted = {column.name: column for column in columns}
    schema = {
        # Columns nobody asked for may share a name.
        name if name in wanted else f"{name}@{i}": _RAW_TYPE[wanted[name].kind]
        if name in wanted
        else pl.String
        for i, name in enumerate(names)
    }
    try:
        frame = pl.read_csv(
            io.BytesIO(text),
            has_header=False,
            schema=schema,
            columns=[names.index(column.name) for column in columns],
            null_values={column.name: column.null for column in columns},
        )
    except pl.exceptions.PolarsError as failure:
        reason = str(failure).split("\n")[0]
    else:
        # A short row arrives as nulls, so the separators are counted.
        if frame.height == lines and _separators(text) == lines * (len(names) - 1):
            numbered = frame.with_columns(pl.int_range(row, row + frame.height).alias(ROW))
            return _to_types(path, numbered, columns)
        reason = "rows of different lengths"
    _locate(path, text, row, names, wanted)
    raise ValueError(
        f"{path}: rows {row} to {row + lines - 1}: expected {len(names)} well-formed columns, "
        f"got an error of the parser ({reason}); correct the rows"
    )


def _separators(text: bytes) -> int:
    """Commas outside quotes."""
    if b'"' not in text:
        return text.count(b",")
    byte = np.frombuffer(text, np.uint8)
    inside = np.bitwise_xor.accumulate(byte == ord('"'))
    return int(np.count_nonzero((byte == ord(",")) & ~inside))


def _locate(
    path: pathlib.Path, text: bytes, row: int, names: list[str], wanted: dict[str, Column]
) -> None:
    """Raises the error of the first line that does not parse."""
    for number, line in enumerate(text.splitlines(), start=row):
        if line.count(b'"') % 2:
            raise ValueError(
                f"{path}: row {number}: expected every quoted field to end on its line, "
                f"got {_shorten(line)}; {_CORRECT}"
            )
        try:
            cells = next(csv.reader([line.decode("utf-8")]), [])
        except UnicodeDecodeError:
            raise ValueError(
                f"{path}: row {number}: expected UTF-8 text, got {_shorten(line)}; "
                "convert the file to UTF-8"
            ) from None
        if len(cells) != len(names):
            raise ValueError(
                f"{path}: row {number}: expected {len(names)} columns, got {len(cells)}: "
                f"{_shorten(line)}; {_CORRECT}"
            )
        for name, cell in zip(names, cells, strict=True):
            column = wanted.get(name)
            if column and cell not in ("", column.null) and not _parses(cell, column.kind):
                raise error(path, number, name, column.expected, repr(cell))


def _parses(cell: str, kind: Kind) -> bool:
    if kind == "str":
        return True
    if _RAW_TYPE[kind] == pl.Int64:
        return bool(_INTEGER.fullmatch(cell)) and abs(int(cell)) < 2**63
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell


def _shorten(line: bytes) -> str:
    text = line.decode("utf-8", errors="replace")
    return repr(text if len(text) <= 80 else f"{text[:77]}...")


def _to_types(path: pathlib.Path, frame: pl.DataFrame, columns: Sequence[Column]) -> pl.DataFrame:
    """Checks parsed cells against their columns and gives them their final types."""
    violations = {column.name: _violated(column) for column in columns}
    found = frame.select(rule.fill_null(False).any().alias(n) for n, rule in violations.items())
    for column in columns:
        if found[column.name].item():
            check(path, frame, violations[column.name], column.name, column.expected)
    final = []
    for column in columns:
        value = pl.col(column.name)
        if column.kind == "code":
            value = value.cast(pl.Int64)
        elif column.kind == "yyyymmdd":
            value = _to_date(value)
        elif column.kind == "str":
            value = pl.when(value != "").then(value)
        final.append(value.alias(column.name))
    return frame.select(*final, ROW)


def _violated(column: Column) -> pl.Expr:
    value = pl.col(column.name)
    rules = []
    if not column.nullable:
        rules.append(value.is_null() if column.kind != "str" else value.fill_null("") == "")
    if column.kind in ("code", "float"):
        rules.append(~value.is_finite())
    if column.kind == "code":
        rules.append(value != value.floor())
    if column.kind == "yyyymmdd":
        rules.append(value.is_not_null() & _to_date(value).is_null())
    if column.low is not None:
        rules.append(value < column.low)
    if column.high is not None:
        rules.append(value > column.high)
    return pl.any_horizontal([rule.fill_null(False) for rule in rules] or [pl.lit(False)])


def _to_date(value: pl.Expr) -> pl.Expr:
    return value.cast(pl.String).str.to_date("%Y%m%d", strict=False)


def _parquet_blocks(
    path: pathlib.Path, columns: Sequence[Column], block_bytes: int
) -> Iterator[pl.DataFrame]:
    del block_bytes  # records are counted instead
    try:
        table = pl.scan_parquet(path)
        schema = table.collect_schema()
        height = table.select(pl.len()).collect().item()
    except (pl.exceptions.PolarsError, OSError) as failure:
        reason = str(failure).split("\n")[0]
        raise ValueError(f"{path}: expected a Parquet file, got {reason}; write it again") from None
    for column in columns:
        if column.name not in schema:
            raise ValueError(
                f"{path}: column {column.name!r}: expected it in the file, got "
                f"{', '.join(schema)}; check that this is the right file"
            )
        if not _fits(schema[column.name], column.kind):
            raise ValueError(
                f"{path}: column {column.name!r}: expected {column.expected}, got the type "
                f"{schema[column.name]}; write the column with another type"
            )
    casts = [pl.col(column.name).cast(_RAW_TYPE[column.kind]) for column in columns]
    for offset in range(0, height, _PARQUET_BLOCK_ROWS):
        frame = table.select(casts).slice(offset, _PARQUET_BLOCK_ROWS).collect()
        numbered = frame.with_columns(pl.int_range(offset + 1, offset + 1 + pl.len()).alias(ROW))
        yield _to_types(path, numbered, columns)


def _fits(dtype: pl.DataType, kind: Kind) -> bool:
    if kind == "str":
        return dtype in (pl.String, pl.Categorical, pl.Enum)
    if _RAW_TYPE[kind] == pl.Int64:
        return dtype.is_integer() or dtype == pl.Boolean
    return dtype.is_numeric()
