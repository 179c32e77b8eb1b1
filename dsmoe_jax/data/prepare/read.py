"""Raw tables, read in typed blocks of rows.

Owns reading of comma-separated files (`.csv`, `.csv.gz`) and Parquet, also one block ahead, and
finding the row that is to blame when that fails. Does not own what a cell may hold (`columns.py`).

Rows are numbered as a person sees them in the file: in a CSV file the header is row 1; in a
Parquet file the first record is row 1. Blocks keep memory bounded whatever the file's size. A line
break inside a quoted field is refused, so that a row is a line.

    for frame in read.iterate(path, COLUMNS):   # pl.DataFrame, typed and checked, see `columns.py`
        ...
"""

import concurrent.futures
import csv
import gzip
import io
import json
import pathlib
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, TypeVar, cast

import numpy as np
import polars as pl

from dsmoe_jax import runlog
from dsmoe_jax.data.prepare import columns as columns_lib

T = TypeVar("T")

BLOCK_BYTES = 1 << 23
# Beside files that `data/synthetic/` generated.
SYNTHETIC_FILE = "synthetic.json"
_PARQUET_BLOCK_ROWS = 1 << 20
# Comparisons stay in the cache.
_COUNTED_AT_ONCE = 1 << 18


def find(folder: str | pathlib.Path, name: str) -> pathlib.Path | None:
    """The file `name` or `name`.gz in `folder`, or None."""
    candidates = (pathlib.Path(folder, name), pathlib.Path(folder, f"{name}.gz"))
    return next((path for path in candidates if path.is_file()), None)


def read_synthetic(folder: str | pathlib.Path) -> dict[str, Any] | None:
    """What a generator wrote of itself into a folder of its files; None in any other folder."""
    try:
        written = json.loads((pathlib.Path(folder) / SYNTHETIC_FILE).read_text())
    except (OSError, ValueError):
        return None
    return written if isinstance(written, dict) and isinstance(written.get("files"), dict) else None


def label(name: str, folder: str | pathlib.Path) -> str:
    """What results on the files of a folder are labelled with: generated ones say so."""
    return name if read_synthetic(folder) is None else f"{name} (synthetic)"


def read(path: pathlib.Path, columns: Sequence[columns_lib.Column]) -> pl.DataFrame:
    """The whole table: the columns asked for, then `columns.ROW`; see `iterate`."""
    return pl.concat(list(iterate(path, columns)))


def iterate(
    path: pathlib.Path, columns: Sequence[columns_lib.Column], block_bytes: int = BLOCK_BYTES
) -> Iterator[pl.DataFrame]:
    """Yields a `.csv`, `.csv.gz` or `.parquet` table in blocks of rows, typed and checked.

    Frames have the columns asked for, in that order, and `columns.ROW`; `block_bytes` are parsed at
    once from a CSV file.

    Raises:
      ValueError: Missing file or column, a row too short or too long, a cell that is not what its
        column expects, a truncated archive, a table without rows.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: expected a file, found none; check the folder and the name")
    blocks = _parquet_blocks if path.suffix == ".parquet" else _csv_blocks
    rows = 0
    for frame in one_ahead(blocks(path, columns, block_bytes)):
        rows += frame.height
        yield frame
    if not rows:
        raise ValueError(f"{path}: expected at least one row, found none; add rows to the file")


def one_ahead(values: Generator[T, None, None]) -> Iterator[T]:
    """The same values in the same order; the next one is made while one is used.

    Parsing, sorting and hashing leave the interpreter free, so two cores share them. What the
    generator raises is raised here, in its turn. At most two values are alive at once.
    """
    end: Any = object()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        try:
            coming = pool.submit(next, values, end)
            while (value := coming.result()) is not end:
                coming = pool.submit(next, values, end)
                yield cast(T, value)
        finally:
            # A consumer that leaves early leaves the generator suspended.
            concurrent.futures.wait([coming])
            values.close()


def _csv_blocks(
    path: pathlib.Path, columns: Sequence[columns_lib.Column], block_bytes: int
) -> Generator[pl.DataFrame, None, None]:
    size = path.stat().st_size
    with (
        path.open("rb") as raw,
        runlog.bar(total=size, desc=path.name, unit="B", unit_scale=True, delay=2) as bar,
    ):
        stream = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
        names = _read_header(path, _read_some(path, stream, lambda s: s.readline()), columns)
        row, rest = 2, b""
        while True:
            text = _read_some(path, stream, lambda s: s.read(block_bytes))
            end = not text
            text, rest = _cut_lines(rest, text, end)
            if text:
                frame = _parse_block(path, text, row, names, columns)
                row += frame.height
                yield frame
            bar.update(raw.tell() - bar.n)
            if end:
                return


def _cut_lines(rest: bytes, text: bytes, end: bool) -> tuple[bytes, bytes]:
    """Whole lines of `rest + text` to parse, and what is left; empty lines wait for what follows.

    Blocks are large, so each byte is copied once.
    """
    if end:
        return (rest + text).rstrip(b"\r\n"), b""
    last = text.rfind(b"\n") + 1
    while last and text[last - 1] in b"\r\n":
        last -= 1
    if not last:
        # A short block without the end of a line of its own may end one of the rest.
        whole = rest + text
        last = len(whole[: whole.rfind(b"\n") + 1].rstrip(b"\r\n"))
        cut = whole.find(b"\n", last) + 1 if last else 0
        return whole[:cut], whole[cut:]
    cut = text.find(b"\n", last) + 1
    return b"".join((rest, memoryview(text)[:cut])), text[cut:]


def _read_some(
    path: pathlib.Path, stream: io.BufferedIOBase, read_from: Callable[[io.BufferedIOBase], bytes]
) -> bytes:
    try:
        return read_from(stream)
    except (EOFError, gzip.BadGzipFile, zlib.error) as failure:
        early = isinstance(failure, EOFError)
        found = "one that ends early" if early else f"damaged content ({failure})"
        raise ValueError(
            f"{path}: expected a whole gzip file, got {found}; copy or download it again"
        ) from None


def _read_header(
    path: pathlib.Path, line: bytes, columns: Sequence[columns_lib.Column]
) -> list[str]:
    text = line.decode("utf-8-sig", errors="replace")
    names = [name.strip() for name in next(csv.reader([text]), [])]
    for column in columns:
        if column.name not in names:
            raise ValueError(
                f"{path}: row 1, column {column.name!r}: expected it in the header, got "
                f"{', '.join(names) or 'an empty line'}; check that this is the right file"
            )
        if names.count(column.name) > 1:
            raise ValueError(
                f"{path}: row 1, column {column.name!r}: expected it once in the header, got it "
                f"{names.count(column.name)} times; rename the others"
            )
    return names


def _parse_block(
    path: pathlib.Path,
    text: bytes,
    row: int,
    names: list[str],
    columns: Sequence[columns_lib.Column],
) -> pl.DataFrame:
    """Types a block of whole lines; only when that fails it is searched for the reason."""
    lines = _count(text, b"\n") + (not text.endswith(b"\n"))
    wanted = {column.name: column for column in columns}
    # Columns nobody asked for may share a name.
    schema = {n if n in wanted else f"{n}@{i}": pl.String for i, n in enumerate(names)}
    schema |= {name: columns_lib.RAW_TYPE[column.kind] for name, column in wanted.items()}
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
            numbered = frame.with_columns(
                pl.int_range(row, row + frame.height).alias(columns_lib.ROW)
            )
            return columns_lib.to_types(path, numbered, columns)
        reason = "rows of different lengths"
    _locate(path, text, row, names, wanted)
    raise ValueError(
        f"{path}: rows {row} to {row + lines - 1}: expected {len(names)} well-formed columns, "
        f"got an error of the parser ({reason}); correct the rows"
    )


def _separators(text: bytes) -> int:
    """Commas outside quotes."""
    if b'"' not in text:
        return _count(text, b",")
    byte = np.frombuffer(text, np.uint8)
    inside = np.bitwise_xor.accumulate(byte == ord('"'))
    return int(np.count_nonzero((byte == ord(",")) & ~inside))


def _count(text: bytes, character: bytes) -> int:
    """Occurrences of one byte, several times faster than `bytes.count` where there are many."""
    byte = np.frombuffer(text, np.uint8)
    parts = (byte[i : i + _COUNTED_AT_ONCE] for i in range(0, len(byte), _COUNTED_AT_ONCE))
    return sum(int(np.count_nonzero(part == ord(character))) for part in parts)


def _locate(
    path: pathlib.Path,
    text: bytes,
    row: int,
    names: list[str],
    wanted: dict[str, columns_lib.Column],
) -> None:
    """Raises the error of the first line that does not parse."""
    for number, line in enumerate(text.splitlines(), start=row):
        if line.count(b'"') % 2:
            raise ValueError(
                f"{path}: row {number}: expected every quoted field to end on its line, "
                f"got {_shorten(line)}; {columns_lib.CORRECT}"
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
                f"{_shorten(line)}; {columns_lib.CORRECT}"
            )
        for name, cell in zip(names, cells, strict=True):
            column = wanted.get(name)
            if not column or cell in ("", column.null):
                continue
            if not columns_lib.parses(cell, column.kind):
                raise columns_lib.error(path, number, name, column.expected, repr(cell))


def _shorten(line: bytes) -> str:
    text = line.decode("utf-8", errors="replace")
    return repr(text if len(text) <= 80 else f"{text[:77]}...")


def _parquet_blocks(
    path: pathlib.Path, columns: Sequence[columns_lib.Column], block_bytes: int
) -> Generator[pl.DataFrame, None, None]:
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
        if not columns_lib.fits(schema[column.name], column.kind):
            raise ValueError(
                f"{path}: column {column.name!r}: expected {column.expected}, got the type "
                f"{schema[column.name]}; write the column with another type"
            )
    casts = [pl.col(column.name).cast(columns_lib.RAW_TYPE[column.kind]) for column in columns]
    for offset in range(0, height, _PARQUET_BLOCK_ROWS):
        frame = table.select(casts).slice(offset, _PARQUET_BLOCK_ROWS).collect()
        numbered = frame.with_columns(
            pl.int_range(offset + 1, offset + 1 + pl.len()).alias(columns_lib.ROW)
        )
        yield columns_lib.to_types(path, numbered, columns)
