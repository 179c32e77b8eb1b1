"""Raw tables, read in typed blocks of rows.

Owns reading of separated text and Parquet, also one block ahead, and finding the row that is to
blame when that fails. Does not own what a cell may hold (`columns.py`), separators and headers
(`forms.py`), archives and encodings (`streams.py`) nor quotes (`records.py`).

Rows are numbered as a person sees them in a spreadsheet: in a text file the header is row 1, and a
row is one whatever line breaks its quotes hold; in a Parquet file and in a text file without a
header the first record is row 1. Blocks keep memory bounded whatever the file's size.

    for frame in read.iterate(path, COLUMNS):   # pl.DataFrame, typed and checked, see `columns.py`
        ...
"""

import concurrent.futures
import dataclasses
import io
import json
import pathlib
import types
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

import polars as pl

from dsmoe_jax import runlog, terminal
from dsmoe_jax.data.prepare import columns as columns_lib
from dsmoe_jax.data.prepare import forms, records, streams

T = TypeVar("T")

BLOCK_BYTES = 1 << 23
# Beside files that `data/synthetic/` generated.
SYNTHETIC_FILE = "synthetic.json"
_PARQUET_BLOCK_ROWS = 1 << 20


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


def read(
    path: pathlib.Path, columns: Sequence[columns_lib.Column], form: forms.Form = forms.PLAIN
) -> pl.DataFrame:
    """The whole table: the columns asked for, then `columns.ROW`; see `iterate`."""
    return pl.concat(list(iterate(path, columns, form=form)))


def iterate(
    path: pathlib.Path,
    columns: Sequence[columns_lib.Column],
    block_bytes: int = BLOCK_BYTES,
    *,
    form: forms.Form = forms.PLAIN,
    constants: Mapping[str, str | None] = types.MappingProxyType({}),
    may_be_empty: bool = False,
) -> Iterator[pl.DataFrame]:
    """Yields a table in blocks of rows, typed and checked.

    Frames have the columns asked for, in that order, and `columns.ROW`; `block_bytes` are parsed at
    once from a text file. A column that the file lacks may be one of `constants`, its text in every
    row. A file without rows is refused unless it `may_be_empty`; then it may lack a header too, and
    hold nothing or blanks, in an archive or not.

    Raises:
      ValueError: Missing file or column, a row too short or too long, a cell that is not what its
        column expects or not its constant, a truncated archive, a table without rows.
    """
    path = pathlib.Path(path)
    streams.check_file(path)
    if not path.stat().st_size and may_be_empty:
        return
    blocks = _parquet_blocks if streams.is_parquet(path) else _csv_blocks
    rows = 0
    for frame in one_ahead(blocks(path, columns, block_bytes, form, constants, may_be_empty)):
        rows += frame.height
        yield frame
    if not rows and not may_be_empty:
        raise ValueError(f"{path}: expected at least one row, found none; add rows to the file")


def read_texts(path: pathlib.Path, form: forms.Form = forms.PLAIN) -> pl.DataFrame:
    """The whole table of a text file, all columns as text, without `columns.ROW`.

    Raises:
      ValueError: As `iterate`.
    """
    with streams.open_text(path, form.encoding) as stream:
        line, _ = forms.read_line(path, stream, BLOCK_BYTES)
    names = line.decode("utf-8", errors="replace")
    guess = form.separator or max(forms.SEPARATORS, key=names.count)
    named = [name.strip() for name in records.split_cells(names, guess)]
    wanted = [columns_lib.Column(name, "str", nullable=True) for name in named]
    chosen = dataclasses.replace(form, separator=guess)
    return pl.concat(list(iterate(path, wanted, form=chosen))).drop(columns_lib.ROW)


def one_ahead(values: Generator[T, None, None]) -> Iterator[T]:
    """The same values in the same order; the next one is made while one is used.

    Parsing, sorting and hashing leave the interpreter free, so two cores share them. What the
    generator raises is raised here, in its turn. At most two values are alive at once.
    """
    end: Any = object()
    pool = concurrent.futures.ThreadPoolExecutor(1)
    coming = pool.submit(next, values, end)
    try:
        while (value := coming.result()) is not end:
            coming = pool.submit(next, values, end)
            yield cast(T, value)
    finally:
        # A consumer that leaves early leaves the generator suspended.
        concurrent.futures.wait([coming])
        values.close()
        # Its thread ends by itself. What nobody holds any more is closed wherever it is collected,
        # in a thread that just starts too, which must not wait for another to end: both would take
        # the lock by which `threading` knows its threads.
        pool.shutdown(wait=False)


def _csv_blocks(
    path: pathlib.Path,
    columns: Sequence[columns_lib.Column],
    block_bytes: int,
    form: forms.Form,
    constants: Mapping[str, str | None],
    may_be_empty: bool,
) -> Generator[pl.DataFrame, None, None]:
    size = path.stat().st_size
    with (
        streams.open_text(path, form.encoding) as stream,
        runlog.bar(total=size, desc=path.name, unit="B", unit_scale=True, delay=2) as bar,
    ):
        first, rest = forms.read_line(path, stream, block_bytes)
        if may_be_empty and not first.strip():
            while not rest.strip() and (more := stream.read(block_bytes)):
                rest += more
            if not rest.strip():
                return
        table, rest = forms.read_header(path, stream, (first, rest), columns, form, constants)
        row, separator = (1 if form.names else 2), table.separator.encode()
        while True:
            read_text = stream.read(block_bytes)
            end = not read_text
            try:
                block = records.cut(rest, read_text, separator, end=end)
            except records.QuoteError as failure:
                raise ValueError(
                    f"{path}: row {row + failure.rows}: {failure}; {columns_lib.CORRECT}"
                ) from None
            rest = block.rest
            if block.text:
                frame = _parse_block(path, block, row, table)
                row += frame.height
                yield frame
            if (end and block.is_open) or len(rest) > records.LONGEST_RECORD:
                expected = "every quoted field to end" if block.is_open else "a shorter row"
                raise ValueError(
                    f"{path}: row {row}: expected {expected}, got {records.shorten(rest[:400])}; "
                    f"{columns_lib.CORRECT}"
                )
            bar.update(stream.position - bar.n)
            if end:
                return


def _parse_block(
    path: pathlib.Path, block: records.Block, row: int, table: forms.Table
) -> pl.DataFrame:
    """Types a block of whole records; only when that fails it is searched for the reason."""
    text, rows = block.text, block.rows
    wanted, names = table.wanted, table.names
    reason = "rows of different lengths"
    # Where a number has blanks around it, or is none, the block is read as text. Times that
    # left-out rows have need not be numbers.
    for as_text in (False, True):
        # Columns nobody asked for may share a name.
        own = columns_lib.OWN
        schema = {n if n in wanted else f"{own}{i}": pl.String for i, n in enumerate(names)}
        raw_type = columns_lib.RAW_TYPE
        schema |= {n: pl.String if as_text else raw_type[c.kind] for n, c in wanted.items()}
        try:
            frame = pl.read_csv(
                io.BytesIO(text),
                has_header=False,
                schema=schema,
                columns=[names.index(name) for name in wanted],
                separator=table.separator,
                quote_char='"' if b'"' in text else None,
                null_values=["", *table.null_values]
                if table.null_values
                else {name: column.null for name, column in wanted.items()},
            )
        except pl.exceptions.PolarsError as failure:
            reason = str(failure).split("\n")[0]
            continue
        # A short row arrives as nulls, so the separators are counted.
        if frame.height == rows and block.separators == rows * (len(names) - 1):
            numbered = frame.with_columns(
                pl.int_range(row, row + frame.height).alias(columns_lib.ROW)
            )
            if as_text:
                numbered = columns_lib.from_text(path, numbered, wanted.values(), table.null_values)
            return _finish(path, numbered, table.columns, table.constants, table.null_values)
        break
    _locate(path, text, row, table)
    raise ValueError(
        f"{path}: rows {row} to {row + rows - 1}: expected {len(names)} well-formed columns, "
        f"got an error of the parser ({reason}); correct the rows"
    )


def _locate(path: pathlib.Path, text: bytes, row: int, table: forms.Table) -> None:
    """Raises the error of the first row that is no text, or has too few or too many cells."""
    names = table.names
    for number, line in enumerate(records.split_rows(text), start=row):
        try:
            cells = records.split_cells(line.decode("utf-8"), table.separator)
        except UnicodeDecodeError:
            raise ValueError(
                f"{path}: row {number}: expected UTF-8 text, got {records.shorten(line)}; "
                "set data.encoding, such as 'latin-1', or convert the file to UTF-8"
            ) from None
        if not line.rstrip(b"\r"):
            cells = []
        if len(cells) != len(names):
            raise ValueError(
                f"{path}: row {number}: expected {len(names)} columns, got {len(cells)}: "
                f"{records.shorten(line)}; {columns_lib.CORRECT}"
            )


def _finish(
    path: pathlib.Path,
    frame: pl.DataFrame,
    columns: Sequence[columns_lib.Column],
    constants: Mapping[str, str | None],
    null_values: tuple[str, ...],
) -> pl.DataFrame:
    """Adds the constants that the file lacks; checks all cells and gives them their types.

    Raises:
      ValueError: Naming the first cell that is not what its column expects, or not the constant.
    """
    for column in columns:
        # A time may be of a file and its day of the path.
        is_time = column.kind in ("time", "clock")
        if column.name in constants and column.name in frame.columns and not is_time:
            constant = constants[column.name]
            stated = None if constant in null_values else constant
            columns_lib.check_constant(path, frame, column, stated)
    added = [
        pl.lit(constants[column.name], dtype=pl.String)
        .cast(columns_lib.TEXT_TYPE[column.kind], strict=False)
        .alias(column.name)
        for column in columns
        if column.name not in frame.columns
    ]
    frame = columns_lib.drop_values(frame.with_columns(added), null_values)
    return columns_lib.to_types(path, frame, columns)


def _parquet_blocks(
    path: pathlib.Path,
    columns: Sequence[columns_lib.Column],
    block_bytes: int,
    form: forms.Form,
    constants: Mapping[str, str | None],
    may_be_empty: bool,
) -> Generator[pl.DataFrame, None, None]:
    del block_bytes  # records are counted instead
    try:
        # A name may hold what is a pattern elsewhere, and folders are no columns here.
        table = pl.scan_parquet(path, glob=False, hive_partitioning=False)
        schema = table.collect_schema()
        height = table.select(pl.len()).collect().item()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as failure:
        raise _damaged_parquet(path, failure) from None
    if may_be_empty and not height:
        return
    for column in columns:
        if column.name not in schema and column.name not in constants:
            shown = terminal.one_line(", ".join(schema)) or "no columns"
            raise ValueError(
                f"{path}: column {column.name!r}: expected it in the file, got {shown}; check that "
                "this is the right file"
            )
        # Parts without rows may have types of their own.
        if height and column.name in schema and not columns_lib.fits(schema[column.name], column):
            raise ValueError(
                f"{path}: column {column.name!r}: expected {column.expected}, got the type "
                f"{schema[column.name]}; {columns_lib.hint(schema[column.name], column)}"
            )
    casts = [
        columns_lib.from_typed(schema[column.name], column)
        for column in columns
        if column.name in schema
    ]
    for offset in range(0, height, _PARQUET_BLOCK_ROWS):
        try:
            frame = table.select(casts).slice(offset, _PARQUET_BLOCK_ROWS).collect()
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as failure:
            raise _damaged_parquet(path, failure) from None
        numbered = frame.with_columns(
            pl.int_range(offset + 1, offset + 1 + pl.len()).alias(columns_lib.ROW)
        )
        yield _finish(path, numbered, columns, constants, form.null_values)


def _damaged_parquet(path: pathlib.Path, failure: BaseException) -> ValueError:
    reason = str(failure).split("\n")[0]
    return ValueError(f"{path}: expected a Parquet file, got {reason}; write it again")
