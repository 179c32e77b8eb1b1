"""Feature columns with the official values, shares and nulls, tied to simulated preferences.

Owns: assigning a column's values so that their shares are exact and, where a score is given, so
that a value tells something about who or what carries it (users with neighbouring tastes share a
value). Without that tie the features of a synthetic data set would be noise.
"""

import numpy as np
import polars as pl
from jaxtyping import Float, Int, Real

from dsmoe_jax.data.synthetic import folders


def counts_of(share: Float[np.ndarray, "C"], rows: int) -> Int[np.ndarray, "C"]:
    """Rows per value, proportional to the shares, at least 1 each, `rows` in all.

    Raises:
      ValueError: If there are fewer rows than values.
    """
    if len(share) > rows:
        raise ValueError(f"rows: expected at least {len(share)}, one per value, got {rows}")
    # The reserved row of every value is taken from its own share where it has one.
    rest = np.maximum(share / share.sum() * rows - 1.0, 0.0)
    return 1 + folders.spread_counts(rest + 1e-12, rows - len(share))


def deal(
    rng: np.random.Generator, share: Float[np.ndarray, "C"], rows: int
) -> Int[np.ndarray, "R"]:
    """Codes [rows] in random order with exactly these shares, every code at least once."""
    return rng.permutation(np.repeat(np.arange(len(share)), counts_of(share, rows)))


def by_score(
    rng: np.random.Generator,
    score_R: Float[np.ndarray, "R"],
    share: Float[np.ndarray, "C"],
    noise: float = 0.3,
) -> Int[np.ndarray, "R"]:
    """Codes [R] in [0, C) with these shares; rows with close scores tend to share a code.

    Every code occurs at least once. The noise added to a score has the standard deviation `noise`
    in units of the scores' own.
    """
    noisy_R = score_R + noise * score_R.std() * rng.standard_normal(len(score_R))
    codes = rng.permutation(len(share))
    code_R = np.empty(len(score_R), np.int64)
    code_R[np.argsort(noisy_R, kind="stable")] = np.repeat(
        codes, counts_of(np.asarray(share)[codes], len(score_R))
    )
    return code_R


def draw_steps(
    rng: np.random.Generator,
    rows: int,
    edge: Real[np.ndarray, "C"],
    cumulative: Real[np.ndarray, "C"],
) -> Float[np.ndarray, "R"]:
    """Non-negative numbers with P(x < edge[i]) = cumulative[i], log-linear in between.

    Both ascend; the first edge is the smallest value, and `cumulative` goes from 0 to 1.
    """
    return np.asarray(np.expm1(np.interp(rng.random(rows), cumulative, np.log1p(edge))))


def to_ranges(
    value_R: Int[np.ndarray, "R"], edge: Int[np.ndarray, "C"], names: list[str]
) -> pl.Series:
    """The name of the range each value falls in; range i starts at edge[i]."""
    return take(names, np.searchsorted(edge, value_R, side="right") - 1)


def take(values: list[str], code_R: Int[np.ndarray, "R"]) -> pl.Series:
    """`values[code]` for every row, as text."""
    return pl.Series(values, dtype=pl.String).gather(code_R)


def with_nulls(values: np.ndarray | pl.Series, is_null_R: np.ndarray) -> pl.Series:
    """The values with nulls where the mask says so."""
    series = values if isinstance(values, pl.Series) else pl.Series(values)
    return pl.select(pl.when(pl.Series(~is_null_R)).then(series)).to_series()
