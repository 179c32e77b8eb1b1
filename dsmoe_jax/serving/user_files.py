"""Files of users, Parquet or CSV, read block by block.

Owns what a cell of a CSV file means, which has no types, and the one type of the raw ids, whatever
a block lacks.
"""

import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import polars as pl

from dsmoe_jax import features
from dsmoe_jax.serving import requests
from dsmoe_jax.serving import retriever as retriever_lib
from dsmoe_jax.serving import values as values_lib

SUFFIXES = (".parquet", ".csv")
# Of a list that was joined otherwise than by blanks.
_SEPARATORS = r"[,;|]"


class UserFile:
    """Requests in rows: `user_id` and whatever else one may have.

    All of a CSV file is text, which the bundle's vocabularies read; `history` and `shown` are item
    ids joined by blanks.

    Attributes:
      path: The file.
      count: Its rows.
      user_type: Type of the raw ids: of Parquet the column's own; of CSV text as it stands there,
        or integers where the bundle's ids and all of the column's are; else the bundle's.
    """

    def __init__(self, path: pathlib.Path, found: retriever_lib.Retriever):
        """Reads how many there are, and the type of their ids.

        Args:
          path: The file.
          found: Whose users and items are meant.

        Raises:
          ValueError: When there is no such file, or it cannot be read.
        """
        if path.suffix not in SUFFIXES:
            raise ValueError(
                f"--users: expected a file ending in {' or '.join(SUFFIXES)}, got {path}"
            )
        if not path.is_file():
            raise ValueError(f"--users: expected {path} to exist, found no file")
        self.path, self._found = path, found
        self._is_csv = path.suffix == ".csv"
        self._rows = (
            pl.scan_csv(path, infer_schema=False) if self._is_csv else pl.scan_parquet(path)
        )
        is_integer = found.encoder.users.is_integer
        raw, whole = pl.col(requests.USER), pl.col(requests.USER).cast(pl.Int64, strict=False)
        asked = [pl.len().alias("count")]
        try:
            own_type = self._rows.collect_schema().get(requests.USER, pl.Null())
            if self._is_csv and is_integer and own_type != pl.Null:
                same = raw.is_null() | (whole.cast(pl.String) == raw).fill_null(False)
                asked.append(same.all().alias("are_integers"))
            told = self._rows.select(asked).collect()
        except pl.exceptions.PolarsError as error:
            raise self._unreadable(error) from None
        self.count = int(told["count"].item())
        if own_type == pl.Null or ("are_integers" in told.columns and told["are_integers"].item()):
            own_type = pl.Int64() if is_integer else pl.String()
        self.user_type: Any = own_type

    def read(self, blocks: Iterable[int], block_users: int) -> Iterator[tuple[int, pl.DataFrame]]:
        """The users of each block, by its number.

        Raises:
          ValueError: When they cannot be read, or a list was joined otherwise than by blanks.
        """
        for block in blocks:
            first = block * block_users
            try:
                frame = self._rows.slice(first, block_users).collect()
            except pl.exceptions.PolarsError as error:
                raise self._unreadable(error) from None
            if self._is_csv:
                frame = self._split_lists(frame, first)
            if requests.USER in frame.columns:
                frame = frame.cast({requests.USER: self.user_type})
            yield block, frame

    def _split_lists(self, frame: pl.DataFrame, first: int) -> pl.DataFrame:
        names = [name for name in (features.HISTORY, requests.SHOWN) if name in frame.columns]
        ids = {name: pl.col(name).str.extract_all(r"\S+") for name in names}
        for name in names:
            odd = frame.with_row_index("row").filter(pl.col(name).str.contains(_SEPARATORS))
            token = odd.select("row", ids[name]).explode(name).drop_nulls()
            row_E = self._found.catalogue.rows(token[name].to_list(), f"users: {name}")
            known = token["row"].filter(pl.Series(row_E > 0, dtype=pl.Boolean))
            wrong = odd.filter(~pl.col("row").is_in(known.implode()))
            if len(wrong):
                cell = values_lib.show(wrong[name][0])
                raise ValueError(
                    f"--users: {self.path}: row {first + wrong['row'][0] + 1:,}: {name}: expected "
                    f"item ids joined by blanks, got {cell}, none of which is known"
                )
        return frame.with_columns(**ids)

    def _unreadable(self, error: Exception) -> ValueError:
        line = str(error).partition("\n")[0]
        return ValueError(f"--users: {self.path} cannot be read: {line}")
