"""A synthetic twin of MovieLens-1M: its three files, at any size, with simulated sequences.

Owns what is in the files; reading them is `movielens.py`'s. Every number of ratings per user and
every time is drawn, none is taken from the real files.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import polars as pl

from dsmoe_jax.data.prepare import movielens
from dsmoe_jax.data.synthetic import files

GENRES = (
    "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama",
    "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War",
    "Western",
)  # fmt: skip
_SERIES = 8
_LEAST_RATINGS = 20
_FIRST_S, _SPAN_S = 956_700_000, 90_000_000
_WITHIN_HOUR = 0.6
_FOLLOWS = 0.7
_FAVOURITE = 0.7


@dataclasses.dataclass
class SyntheticMovieLensConfig(files.Generated, movielens.MovieLensConfig):
    """A generated twin of MovieLens-1M, read by the same loader.

    `raw_dir` is where the files are generated; empty means beside the store. The official size is
    num_users=6040, num_items=3883, ratings_per_user=166.

    Attributes:
      num_users: Rows of users.dat.
      num_items: Rows of movies.dat.
      ratings_per_user: On average, at least 21.
      generator_seed: Decides every byte of the files.
    """

    name: str = "MovieLens-1M"
    num_users: int = 600
    num_items: int = 400
    ratings_per_user: int = 50
    generator_seed: int = 0

    TITLE: ClassVar[str] = "MovieLens-1M"
    NOTE: ClassVar[str] = (
        "Simulated: movies form series of up to eight parts. Within an hour of a part, a user "
        "mostly rates the next part of its series; after longer, mostly another movie of the "
        "user's favourite genres. Movies' popularity is Zipf. Nobody rates a movie twice, and "
        "everybody rates at least twenty, as in the real files."
    )

    def write(self, folder: pathlib.Path) -> None:
        """Writes ratings.dat, movies.dat and users.dat into `folder`.

        Raises:
          ValueError: If a size is too small, or users could not rate that many different movies.
        """
        files.check_least(self, num_users=1, num_items=100, ratings_per_user=_LEAST_RATINGS + 1)
        num_items, seed = self.num_items, self.generator_seed
        if self.ratings_per_user > num_items // 2:
            raise ValueError(
                f"data.ratings_per_user: expected at most half of data.num_items={num_items}, got "
                f"{self.ratings_per_user}"
            )
        rng = files.random_stream(seed, "movies")
        genre_V = rng.integers(0, len(GENRES), -(-num_items // _SERIES)).repeat(_SERIES)[:num_items]
        second_V = rng.integers(0, len(GENRES), num_items)
        popularity_V = rng.permutation(files.zipf_shares(num_items, 0.8))
        titles = [f"Series {i // _SERIES}, Part {i % _SERIES + 1} ({1970 + i % 30})"
                  for i in range(num_items)]  # fmt: skip
        genres = [
            "|".join(sorted({GENRES[first], GENRES[second]}))
            for first, second in zip(genre_V, second_V, strict=True)
        ]
        _write_dat(folder / "movies.dat", [np.arange(1, num_items + 1), titles, genres])
        _write_users(folder / "users.dat", self.num_users, seed)
        users = range(1, self.num_users + 1)
        parts = [self._rate(user, genre_V, popularity_V) for user in users]
        ratings = [np.concatenate(part) for part in zip(*parts, strict=True)]
        _write_dat(folder / "ratings.dat", ratings)

    def _rate(
        self, user: int, genre_V: np.ndarray, popularity_V: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """One user's ratings: user, movie, stars, unix seconds."""
        rng, num_items = files.random_stream(self.generator_seed, "user", user), len(genre_V)
        more = rng.geometric(1 / (self.ratings_per_user - _LEAST_RATINGS))
        count = min(_LEAST_RATINGS + int(more), num_items // 2)
        favourite = rng.choice(len(GENRES), 3, replace=False)
        liked_V = np.where(np.isin(genre_V, favourite), 1.0, 0.0)
        share_V = popularity_V * (1 - _FAVOURITE + _FAVOURITE * len(GENRES) / 3 * liked_V)
        is_soon = rng.random(count) < _WITHIN_HOUR
        gap_s = np.where(
            is_soon, rng.integers(1, 3600, count), rng.integers(86_400, 864_000, count)
        )
        follows = is_soon & (rng.random(count) < _FOLLOWS)
        open_V = np.ones(num_items, bool)
        movie, rated = -1, []
        for position in range(count):
            after = movie + 1
            is_part = position and follows[position] and after % _SERIES and after < num_items
            if is_part and open_V[after]:
                movie = after
            else:
                movie = int(files.draw_shares(rng, share_V * open_V, 1)[0])
            open_V[movie] = False
            rated.append(movie)
        time_E = _FIRST_S + int(rng.integers(0, _SPAN_S)) + np.cumsum(gap_s)
        stars_E = rng.integers(1, 6, count)
        return np.full(count, user), np.asarray(rated) + 1, stars_E, time_E


def _write_users(path: pathlib.Path, num_users: int, seed: int) -> None:
    rng = files.random_stream(seed, "users")
    gender = rng.choice(np.array(["F", "M"]), num_users)
    age = rng.choice(np.array([1, 18, 25, 35, 45, 50, 56]), num_users)
    occupation = rng.integers(0, 21, num_users)
    zip_code = [f"{code:05d}" for code in rng.integers(0, 100_000, num_users)]
    _write_dat(path, [np.arange(1, num_users + 1), gender, age, occupation, zip_code])


def _write_dat(path: pathlib.Path, cells: Sequence[Any]) -> None:
    frame = pl.DataFrame({str(i): column for i, column in enumerate(cells)})
    joined = frame.select(pl.concat_str(pl.all().cast(pl.String), separator="::"))
    path.write_text("\n".join(joined.to_series().to_list()) + "\n", encoding="latin-1")
