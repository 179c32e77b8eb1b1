"""User and item tables: vocabularies, standardised numbers and bags of ids.

Owns how one raw value becomes an id or a standardised number. Does not own reading (`read.py`) nor
the store's layout (`assemble.py`).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from dsmoe_jax import features, runlog

_ROW = "__table_row__"
# How many times all others a number is that is asked about.
_DWARFS = 1e6
# Below the first, squares lose digits; the second is the least number with all of them.
_LEAST_STD, _LEAST_NORMAL = 1e-150, float(np.finfo(np.float64).tiny)
# Of the largest number, a spread that is nothing but its last digit.
_ROUNDING = 4 * float(np.finfo(np.float64).eps)
# Padded arrays of this size are no matter; larger ones may be so many times what they hold.
_SMALL_BYTES, _MOST_PADDING = 1 << 26, 64


@dataclasses.dataclass(frozen=True)
class Table:
    """All users or all items in raw values, one row each, and which columns are which features.

    Columns that hold the same value in every row are left out of the store.

    Attributes:
      frame: The raw values.
      key: Column of raw ids, integers or texts, unique and without nulls. It decides the order of
        the rows; in the store it becomes the sparse feature `user_id` or `item_id`.
      sparse: Categorical columns: integers, texts, dates or booleans; null is unknown (id 0).
      dense: Numeric columns, standardised as they are; null becomes the mean.
      log_dense: Numeric columns >= 0, standardised after log(1 + x).
      bags: List columns of integers or texts; null is the empty list.
      source: The file that messages name; "" where there is none.
      written: What the file calls columns that have another name here.
    """

    frame: pl.DataFrame
    key: str
    sparse: tuple[str, ...] = ()
    dense: tuple[str, ...] = ()
    log_dense: tuple[str, ...] = ()
    bags: tuple[str, ...] = ()
    source: str = ""
    written: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def where(self, name: str) -> str:
        """A column as messages begin."""
        column = f"column {self.written.get(name, name)!r}"
        return f"{self.source}: {column}" if self.source else column


@dataclasses.dataclass(frozen=True)
class EncodedTable:
    """A table as the store holds it; row 0 is zeros.

    Attributes:
      raw_id: The key's raw value by row; row 0 is -1 or "".
      sparse_XF, dense_XF, bags: Arrays by row.
      sparse, dense, bag: The features' descriptions, columns in that order.
      vocabularies: By sparse or bag feature, the raw values of ids 1.. in ascending order.
      moments: By dense feature, the transform, mean and standard deviation applied.
      where: By sparse or bag feature, its column as messages begin.
    """

    raw_id: np.ndarray
    sparse_XF: np.ndarray
    dense_XF: np.ndarray
    bags: dict[str, np.ndarray]
    sparse: tuple[features.SparseFeature, ...]
    dense: tuple[features.DenseFeature, ...]
    bag: tuple[features.BagFeature, ...]
    vocabularies: dict[str, pl.Series]
    moments: dict[str, dict[str, Any]]
    where: dict[str, str]

    @property
    def names(self) -> list[str]:
        """Names of all features."""
        described: Any = (*self.sparse, *self.dense, *self.bag)
        return [feature.name for feature in described]

    def rows(self, raw: pl.Series) -> np.ndarray:
        """Row numbers (int64) of raw ids; 0 where unknown or null."""
        return encode(raw, pl.Series(self.raw_id[1:])).astype(np.int64)

    def encode(self, name: str, raw: pl.Series) -> np.ndarray:
        """Ids (int32) of raw values of the sparse feature `name`; 0 where unknown or null."""
        return encode(_plain(raw), self.vocabularies[name])


def quantile_edges(value: pl.Series, num_buckets: int) -> np.ndarray:
    """The bounds between about equally full ranges of a numeric column, ascending."""
    known = value.drop_nulls().to_numpy()
    if not len(known):
        return np.zeros(0)
    return np.unique(np.quantile(known, np.arange(1, num_buckets) / num_buckets))


def bucket(value: pl.Series, edges: np.ndarray) -> pl.Series:
    """Integer codes 0.. of the ranges that `edges` bound, each with its lower bound; null stays."""
    code = np.searchsorted(edges, value.fill_null(0).to_numpy(), side="right")
    return pl.Series(value.name, code, dtype=pl.Int64).set(value.is_null(), None)


def make_vocabulary(*values: pl.Series) -> pl.Series:
    """The distinct non-null values, ascending; value i has id i + 1."""
    return (
        pl.concat([value.rename(values[0].name) for value in values]).drop_nulls().unique().sort()
    )


def encode(raw: pl.Series, vocabulary: pl.Series) -> np.ndarray:
    """Ids (int32) of raw values; 0 for null and for values outside the vocabulary."""
    if len(vocabulary) and vocabulary.dtype.is_integer() and raw.dtype.is_integer():
        low, high = vocabulary[0] - 1, vocabulary[-1] + 1
        if high - low < 8 * len(vocabulary) + 2**20:
            # Ids are mostly dense, and then one gather is several times faster than a join.
            id_of = np.zeros(high - low + 1, np.int32)
            id_of[vocabulary.to_numpy() - low] = np.arange(1, len(vocabulary) + 1)
            place = raw.cast(pl.Int64).fill_null(low).clip(low, high).to_numpy() - low
            return np.asarray(id_of[place])
    codes = pl.DataFrame({"value": vocabulary}).with_row_index("id", offset=1)
    left = pl.DataFrame({"value": raw.cast(vocabulary.dtype)})
    joined = left.join(codes, on="value", how="left", maintain_order="left")
    return joined["id"].fill_null(0).to_numpy().astype(np.int32)


def as_array(vocabulary: pl.Series, where: str) -> np.ndarray:
    """A vocabulary or key column as int64 or fixed-width text, with a row 0 of -1 or "".

    `where` is what messages call it.

    Raises:
      ValueError: On what fixed-width text cannot hold, or not within reason.
    """
    if vocabulary.dtype.is_integer():
        return np.concatenate([[-1], vocabulary.to_numpy()]).astype(np.int64)
    if vocabulary.str.contains("\0", literal=True).any():
        raise ValueError(
            f"{where}: expected text without zero characters, got one; remove them, or set "
            "data.encoding where the file is not of UTF-8"
        )
    if len(vocabulary):
        lengths = vocabulary.str.len_chars()
        longest, total = int(str(lengths.max())), int(lengths.sum())
        mend = "shorten it, or leave the column out where it is no category"
        check_padding(where, "characters", longest, len(vocabulary), total, mend)
    return np.array(["", *vocabulary.to_list()], dtype=np.str_)


def encode_table(
    table: Table,
    id_name: str,
    extra_values: Mapping[str, pl.Series],
    kept: frozenset[str] = frozenset(),
    moments: Mapping[str, Mapping[str, Any]] | None = None,
) -> EncodedTable:
    """Turns raw values into ids and standardised numbers.

    The row number becomes the sparse feature `id_name`. `extra_values` need an id although no row
    of the table may hold them (they occur in a behaviour log); the features `kept` stay although
    they are constant. Dense features with given `moments` take those in place of their own.

    Raises:
      ValueError: When a key is null or repeated, a name is used twice or a log column is negative.
    """
    frame = table.frame.sort(table.key)
    names = [id_name, *table.sparse, *table.dense, *table.log_dense, *table.bags]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"{id_name} table: expected each feature once, got {repeated[0]!r} twice")
    if frame[table.key].null_count() or frame[table.key].n_unique() != frame.height:
        raise ValueError(f"column {table.key!r}: expected distinct ids without nulls")
    num_rows = frame.height + 1
    vocabularies: dict[str, pl.Series] = {}
    sparse = [features.SparseFeature(id_name, num_rows)]
    columns = [np.arange(num_rows, dtype=np.int32)]
    for name in table.sparse:
        if frame[name].n_unique() < 2 and name not in kept:
            continue
        raw, extra = _plain(frame[name]), extra_values.get(name)
        vocabulary = make_vocabulary(raw, *([] if extra is None else [_plain(extra)]))
        vocabularies[name] = vocabulary
        sparse.append(features.SparseFeature(name, len(vocabulary) + 1))
        columns.append(np.append(np.int32(0), encode(raw, vocabulary)))
    dense, dense_XF, found = _encode_dense(table, frame, moments or {})
    bag, bags = [], {}
    for name in table.bags:
        vocabulary, ids_XP = _encode_bag(frame[name], table.where(name))
        if len(vocabulary) > 0:
            vocabularies[name] = vocabulary
            bags[name] = ids_XP
            bag.append(features.BagFeature(name, len(vocabulary) + 1, ids_XP.shape[1]))
    return EncodedTable(
        raw_id=as_array(frame[table.key], table.where(table.key)),
        sparse_XF=np.stack(columns, axis=1),
        dense_XF=dense_XF,
        bags=bags,
        sparse=tuple(sparse),
        dense=tuple(dense),
        bag=tuple(bag),
        vocabularies=vocabularies,
        moments=found,
        where={name: table.where(name) for name in vocabularies},
    )


def _plain(value: pl.Series) -> pl.Series:
    """Integers as int64, everything else as text, so that a vocabulary can be written."""
    if value.dtype.is_float():
        raise ValueError(
            f"column {value.name!r}: expected a categorical column (integers, texts, dates), got "
            f"{value.dtype}; round it or make it dense"
        )
    if value.dtype.is_integer() or value.dtype == pl.Boolean:
        return value.cast(pl.Int64)
    return value.cast(pl.String)


def _encode_dense(
    table: Table, frame: pl.DataFrame, given: Mapping[str, Mapping[str, Any]]
) -> tuple[list[features.DenseFeature], np.ndarray, dict[str, dict[str, Any]]]:
    found, columns, moments = [], [], {}
    for name in (*table.dense, *table.log_dense):
        # NumPy sums in one fixed order, whatever the number of threads.
        value = frame[name].cast(pl.Float64).fill_nan(None).to_numpy().astype(np.float64)
        known = ~np.isnan(value)
        transform = "log1p" if name in table.log_dense else "identity"
        if transform == "log1p":
            if np.any(value[known] < 0):
                raise ValueError(
                    f"{table.where(name)}: expected numbers >= 0 for log(1 + x), got "
                    f"{value[known].min()}; use `dense` for it"
                )
            value = np.log1p(value)
        if name in given:
            mean, std = given[name]["mean"], given[name]["std"]
        elif not known.any() or np.ptp(value[known]) == 0:
            continue
        else:
            mean, std = _moments(table.where(name), value[known])
        if known.any():
            _warn_of_outlier(table.where(name), frame[name])
        scaled = np.where(known, (value - mean) / std, 0.0).astype(np.float32)
        columns.append(np.append(np.float32(0), scaled))
        moments[name] = {"transform": transform, "mean": mean, "std": std}
        found.append(features.DenseFeature(name))
    empty = np.zeros((frame.height + 1, 0), np.float32)
    return found, np.stack(columns, axis=1) if columns else empty, moments


def _warn_of_outlier(where: str, value: pl.Series) -> None:
    """Says so where a few numbers dwarf all others: they may mean "unknown".

    Those are the numbers above a gap that is wider than any among true numbers, however many
    different ones stand for "unknown".
    """
    size = value.cast(pl.Float64).fill_nan(None).abs()
    sizes = size.drop_nulls().unique().sort().to_numpy()
    # Zero is small beside 1, and beside what is smaller.
    sizes = np.where(sizes == 0, np.minimum(1.0, sizes[1:2].sum()), sizes)
    gaps = np.flatnonzero(sizes[1:] > _DWARFS * sizes[:-1])
    if not len(gaps):
        return
    below, above = sizes[gaps[0]], sizes[gaps[0] + 1]
    number = value.filter(size >= above)
    if 2 * len(number) > value.len() - value.null_count():
        return
    low, high = number.min(), number.max()
    held = f"{low!r}" if low == high else f"{low!r} to {high!r}"
    others = 0.0 if size.filter(size < above).max() == 0 else below
    runlog.say(
        f"{where}: {len(number):,} cells hold {held}, and no other is above {others:g}; where it "
        "means unknown, name it in data.null_values"
    )


def _moments(where: str, value: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of numbers that are not all equal, however small or large.

    Raises:
      ValueError: When they differ by less than rounding, or are too small to be told apart.
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        mean, std = float(value.mean()), float(value.std())
    largest = float(np.abs(value).max())
    if not (np.isfinite(std) and std >= _LEAST_STD):
        # Squares of such numbers are 0 or infinite.
        unit = value / largest
        mean, std = float(unit.mean()) * largest, float(unit.std()) * largest
    if not (np.isfinite(mean) and _LEAST_NORMAL <= std < np.inf and std > largest * _ROUNDING):
        raise ValueError(
            f"{where}: expected numbers with a spread, got mean {mean:g} and standard "
            f"deviation {std:g}, which double precision cannot tell from a constant; write it in "
            "another unit or leave the column out"
        )
    return mean, std


def check_padding(where: str, what: str, length: int, rows: int, total: int, mend: str) -> None:
    """Refuses an array whose rows are padded to the longest, when nearly all of it is padding.

    Args:
      where: The column, as messages begin.
      what: What the lengths count.
      length: The longest row's.
      rows: Number of rows.
      total: Sum of all lengths.
      mend: What to do about it.

    Raises:
      ValueError: When the array is large, and large beside what it holds.
    """
    size = 4 * length * rows
    if size > max(_SMALL_BYTES, _MOST_PADDING * 4 * total):
        raise ValueError(
            f"{where}: expected cells of about the same length, got one of {length:,} "
            f"{what} among {rows:,} rows with {total / rows:.1f} on average, which would need "
            f"{size / 2**20:,.0f} MiB; {mend}"
        )


def _encode_bag(bag: pl.Series, where: str) -> tuple[pl.Series, np.ndarray]:
    """The bag's vocabulary and its ids, right-padded with 0, one row per row plus row 0."""
    flat = (
        pl.DataFrame({"value": bag.list.unique(maintain_order=True)})
        .with_row_index(_ROW, offset=1)
        .explode("value")
        .drop_nulls("value")
    )
    value = _plain(flat["value"]).rename(bag.name)
    vocabulary = make_vocabulary(value)
    row = flat[_ROW].to_numpy()
    first = np.searchsorted(row, row, side="left")
    column = np.arange(len(row)) - first
    longest, mend = int(column.max(initial=0)) + 1, "shorten it or set data.bag_limit"
    check_padding(where, "values", longest, len(bag), len(row), mend)
    ids_XP = np.zeros((len(bag) + 1, longest), np.int32)
    ids_XP[row, column] = encode(value, vocabulary)
    return vocabulary, ids_XP
