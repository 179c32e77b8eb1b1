"""Lists: what they may hold, what they hold, and as a frame.

Owns what is left out of a list and why. Columns of frames are called as RecTools calls them.

Letters: Q queries (a user in a scenario), V rows of the catalogue (row 0 is padding), T retrieved
list length, X rows.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float, Int

from dsmoe_jax.serving import catalogue as catalogue_lib
from dsmoe_jax.serving import requests
from dsmoe_jax.serving import values as values_lib

# What `exclude` may name in the place of items.
SEEN, SHOWN = "seen", "shown"
# The rules of an evaluation, as `exclude` calls them.
RULES = {"none": None, "positives": SEEN, "shown": SHOWN}

# What comes from outside is checked by hand: a mistake is one line, not a library's message.
Exclude = Any
Filter = Any


class Wanted(NamedTuple):
    """What a list may hold.

    Attributes:
      k: Items of a list, at least 1.
      rules: `SEEN`, `SHOWN`, both or neither: what is left out by what the user did.
      excluded_X: Rows that are left out.
      allowed_V: Which rows may come; None for all.
      catalogue: The items, as they were when the list was asked for.
    """

    k: int
    rules: tuple[str, ...]
    excluded_X: Int[np.ndarray, "X"]
    allowed_V: np.ndarray | None
    catalogue: catalogue_lib.Catalogue


class Lists(NamedTuple):
    """Answers to queries.

    Attributes:
      row_Q: The request of each query.
      scenario_Q: Its scenario id.
      score_QT: Scores, best first; -inf where fewer than T items match.
      item_QT: Item ids, 0 there.
    """

    row_Q: Int[np.ndarray, "Q"]
    scenario_Q: Int[np.ndarray, "Q"]
    score_QT: Float[np.ndarray, "Q T"]
    item_QT: Int[np.ndarray, "Q T"]


@dataclasses.dataclass(frozen=True)
class Answer:
    """One list.

    Attributes:
      user: "known"; "from_history" where the id is unknown and an event is known; "cold" where
        neither is, and the list is the scenario's most popular items.
      scenario: Its name.
      item_ids: Raw ids, best first.
      scores: Their scores.
      unknown_events: Given events that training did not know, which count nothing.
    """

    user: str
    scenario: str
    item_ids: list[Any]
    scores: list[float]
    unknown_events: int


@dataclasses.dataclass
class Times:
    """How long lists took to compute, in seconds; parts add up.

    Attributes:
      tower_s: From raw values to user vectors.
      search_s: From user vectors to lists.
    """

    tower_s: float = 0.0
    search_s: float = 0.0


NONE = Lists(
    np.zeros(0, np.int64),
    np.zeros(0, np.int64),
    np.zeros((0, 1), np.float32),
    np.zeros((0, 1), np.int32),
)


def want(
    found: catalogue_lib.Catalogue,
    k: int,
    *,
    exclude: Exclude = SEEN,
    allow: Any = None,
    filter: Filter | None = None,
) -> Wanted:
    """The arguments of `Retriever.recommend`, checked and in rows of a catalogue.

    Raises:
      ValueError: In one line, on one that means nothing.
    """
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise ValueError(f"k: expected an integer >= 1, got {k!r}")
    rules, excluded_X = _read_exclude(exclude, found)
    allowed_V = None
    if allow is not None:
        allowed_V = np.zeros(found.num_rows, bool)
        allowed_V[found.rows(allow, "allow")] = True
    if filter is not None and not isinstance(filter, Mapping):
        raise ValueError(
            f"filter: expected a mapping from features to lists of values, got {filter!r}"
        )
    for name, values in (filter or {}).items():
        matching_V = found.match(name, values)
        allowed_V = matching_V if allowed_V is None else allowed_V & matching_V
    if allowed_V is not None:
        allowed_V[0] = False
    return Wanted(int(k), rules, excluded_X, allowed_V, found)


def to_frame(
    found: Lists, user_ids: values_lib.Values, raw_id_V: np.ndarray, scenarios: Sequence[str]
) -> pl.DataFrame:
    """Lists as a frame; `user_ids` are those of the requests, `raw_id_V` those of the items."""
    is_item_QT = found.item_QT > 0
    count_Q = is_item_QT.sum(axis=1)
    rank_QT = np.broadcast_to(np.arange(1, found.item_QT.shape[1] + 1), found.item_QT.shape)
    names = np.array(scenarios)
    user = pl.Series("user_id", user_ids, strict=False)
    return pl.DataFrame(
        {
            "user_id": user.gather(np.repeat(found.row_Q, count_Q)),
            "scenario": np.repeat(names[found.scenario_Q], count_Q),
            "item_id": raw_id_V[found.item_QT[is_item_QT]],
            "score": found.score_QT[is_item_QT],
            "rank": rank_QT[is_item_QT].astype(np.int32),
        }
    )


def _read_exclude(
    exclude: Exclude, found: catalogue_lib.Catalogue
) -> tuple[tuple[str, ...], np.ndarray]:
    """The rules that are named, and the rows."""
    none = np.zeros(0, np.int32)
    if exclude is None:
        return (), none
    expected = f"exclude: expected {SEEN!r}, {SHOWN!r} or a list of item ids, got {exclude!r}"
    if isinstance(exclude, str):
        if exclude not in (SEEN, SHOWN):
            raise ValueError(expected)
        return (exclude,), none
    if isinstance(exclude, Mapping) or not hasattr(exclude, "__iter__"):
        raise ValueError(expected)
    values = list(exclude)
    rules = tuple(word for word in (SEEN, SHOWN) if word in values)
    row_X = found.rows([v for v in values if v not in rules], "exclude")
    return rules, row_X[row_X > 0]


def removed(encoded: requests.Encoded, wanted: Wanted, row: int) -> np.ndarray:
    """Rows that a request's lists leave out."""
    found = [wanted.excluded_X]
    if SEEN in wanted.rules:
        found.append(encoded.seen(row))
    if SHOWN in wanted.rules:
        found.append(encoded.shown(row))
    return np.concatenate(found) if len(found) > 1 else found[0]
