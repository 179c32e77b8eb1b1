"""MovieLens-1M and -20M: what a user rated, in order, as one sequence; leave-one-out.

Harper and Konstan, "The MovieLens Datasets: History and Context", ACM TiiS 2015. Every rating,
whatever its stars, is a positive, and all users are in one scenario, as sequential methods are
compared on these files. The archives hold either

    ratings.dat  movies.dat  users.dat        `::` between cells, no header, Latin-1 (1M)
    ratings.csv  movies.csv                   with a header, UTF-8 (20M, and the later releases)

**Deviation:** ratings of the same second, of which there are many, are in the order of movie ids;
the public code of the methods leaves their order to its sorting.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import polars as pl

from dsmoe_jax.config import schema
from dsmoe_jax.data.prepare import assemble, columns, entities, read

SCENARIO = "all"
_SEPARATOR = "::"
_GENRE_SEPARATOR = "|"

_RATINGS_DAT = (
    columns.Column("user", "int", low=1),
    columns.Column("item", "int", low=1),
    columns.Column("rating", "float", low=0.5, high=5),
    columns.Column("time_s", "int", low=1, high=2**31 - 2),
)
_MOVIES_DAT = (
    columns.Column("item", "int", low=1),
    columns.Column("title", "str", nullable=True),
    columns.Column("genres", "str", nullable=True),
)
_USERS_DAT = (
    columns.Column("user", "int", low=1),
    columns.Column("gender", "str", nullable=True),
    columns.Column("age", "int", nullable=True),
    columns.Column("occupation", "int", nullable=True),
    columns.Column("zip_code", "str", nullable=True),
)
# Names in the later releases' headers.
_CSV_NAMES = {"user": "userId", "item": "movieId", "time_s": "timestamp"}


@dataclasses.dataclass
class MovieLensConfig(schema.DataConfig):
    """A MovieLens archive's folder; the days of `schema.DataConfig` are ignored.

    Attributes:
      name: What results are labelled with.
    """

    name: str = "MovieLens"

    SITE: ClassVar[str] = "https://grouplens.org/datasets/movielens"

    def prepare(self, store_dir: str) -> None:
        """Writes the store; see `schema.DataConfig.prepare`."""
        if not self.raw_dir:
            raise ValueError(
                f"data.raw_dir: expected the folder of {self.name}'s files, got none; they are "
                f"published at {self.SITE}; generated rows run with --config "
                "configs/movielens.py:synthetic"
            )
        if self.exposures:
            raise ValueError(
                "data.exposures: expected False, got True; MovieLens holds ratings alone, not what "
                "users were shown"
            )
        files = find_files(pathlib.Path(self.raw_dir))
        inputs = [path for path in files if path]
        assemble.prepare(self, store_dir, inputs, lambda: self._load(files))

    def _load(self, files: "Files") -> assemble.Dataset:
        movies = read_movies(files.movies)
        ratings = read_ratings(files, movies)
        users = read_users(files, ratings)
        day = pl.from_epoch(pl.col("time_s"), time_unit="s").dt.date()
        return assemble.Dataset(
            name=read.label(self.name, files.ratings.parent),
            scenarios=(SCENARIO,),
            users=entities.Table(users, key="user", sparse=tuple(users.columns[1:])),
            items=entities.Table(movies, key="item", bags=("genres",)),
            positives=ratings.select("user", "item", "time_s", scenario=0, day=day),
            split="leave_one_out",
            raw_forms={"genres": {"separator": _GENRE_SEPARATOR}},
        )


class Files(NamedTuple):
    """The official files found in a folder; users only in the `.dat` layout."""

    ratings: pathlib.Path
    movies: pathlib.Path
    users: pathlib.Path | None = None


def find_files(folder: pathlib.Path) -> Files:
    """Finds the files of either layout.

    Raises:
      ValueError: Naming the folder and what is missing in it.
    """
    if not folder.is_dir():
        raise ValueError(f"data.raw_dir: expected a folder with MovieLens files, got {folder}")
    suffix = ".dat" if (folder / "ratings.dat").is_file() else ".csv"
    names = [f"ratings{suffix}", f"movies{suffix}", *(["users.dat"] if suffix == ".dat" else [])]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder}: expected ratings.dat, movies.dat and users.dat, or ratings.csv and "
            f"movies.csv, missing {', '.join(missing)}; they are published at "
            f"{MovieLensConfig.SITE}"
        )
    return Files(*(folder / name for name in names))


def read_movies(path: pathlib.Path) -> pl.DataFrame:
    """All movies, which are all candidates: `item`, and `genres` as lists of names."""
    movies, item = _read(path, _MOVIES_DAT), columns_of(path, _MOVIES_DAT)["item"]
    columns.check_unique(path, movies, item)
    return movies.select(pl.col("genres").str.split(_GENRE_SEPARATOR), item=item)


def read_ratings(files: Files, movies: pl.DataFrame) -> pl.DataFrame:
    """All ratings: `user`, `item`, `time_s` and the row."""
    names = columns_of(files.ratings, _RATINGS_DAT)
    ratings = _read(files.ratings, _RATINGS_DAT)
    columns.check_known(files.ratings, ratings, names["item"], movies["item"], files.movies.name)
    return ratings.select(columns.ROW, **{name: names[name] for name in _CSV_NAMES})


def read_users(files: Files, ratings: pl.DataFrame) -> pl.DataFrame:
    """`user` and, where there is a table of them, what it says about them."""
    if files.users is None:
        return ratings.select(pl.col("user").unique().sort())
    users = _read(files.users, _USERS_DAT)
    columns.check_unique(files.users, users, "user")
    columns.check_known(files.ratings, ratings, "user", users["user"], files.users.name)
    return users.select("user", "gender", "age", "occupation")


def columns_of(path: pathlib.Path, wanted: Sequence[columns.Column]) -> dict[str, str]:
    """The names that a file's layout has for the columns."""
    is_dat = path.suffix == ".dat"
    return {c.name: c.name if is_dat else _CSV_NAMES.get(c.name, c.name) for c in wanted}


def _read(path: pathlib.Path, wanted: Sequence[columns.Column]) -> pl.DataFrame:
    if path.suffix == ".dat":
        return read_dat(path, wanted)
    names = columns_of(path, wanted)
    return read.read(path, [dataclasses.replace(c, name=names[c.name]) for c in wanted])


def read_dat(path: pathlib.Path, wanted: Sequence[columns.Column]) -> pl.DataFrame:
    """A table of the 1M archive, typed and checked as `read.read` does; its first line is row 1.

    `wanted` are all its columns, in their order.

    Raises:
      ValueError: In one line, naming file, row and column.
    """
    lines = pl.DataFrame({"line": path.read_text(encoding="latin-1").splitlines()})
    if not lines.height:
        raise ValueError(f"{path}: expected at least one row, found none; add rows to the file")
    frame = lines.select(cells=pl.col("line").str.split(_SEPARATOR))
    frame = frame.with_row_index(columns.ROW, offset=1).with_columns(pl.col(columns.ROW).cast(int))
    ragged = frame.filter(pl.col("cells").list.len() != len(wanted))
    if ragged.height:
        row = ragged.row(0, named=True)
        raise ValueError(
            f"{path}: row {row[columns.ROW]}: expected {len(wanted)} columns joined by "
            f"{_SEPARATOR!r}, got {len(row['cells'])}; {columns.CORRECT}"
        )
    texts = [pl.col("cells").list.get(i).alias(c.name) for i, c in enumerate(wanted)]
    frame = frame.select(*texts, columns.ROW)
    for column in wanted:
        value = pl.col(column.name)
        if columns.RAW_TYPE[column.kind] == pl.String:
            continue
        number = value.str.strip_chars().cast(columns.RAW_TYPE[column.kind], strict=False)
        unreadable = number.is_null() & (value != "")
        columns.check(path, frame, unreadable, column.name, column.expected)
        frame = frame.with_columns(number)
    return columns.to_types(path, frame, wanted)
