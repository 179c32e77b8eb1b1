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

from dsmoe_jax import features
from dsmoe_jax.serving import catalogue as catalogue_lib
from dsmoe_jax.serving import requests
from dsmoe_jax.serving import values as values_lib

# What `exclude` may name in the place of items. USUAL, where nobody says, is what was left out when
# the model was evaluated, which its bundle knows.
SEEN, SHOWN, USUAL = "seen", "shown", "usual"
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
    exclude: Exclude,
    usual: str | None,
    allow: Any = None,
    filter: Filter | None = None,
) -> Wanted:
    """The arguments of `Retriever.recommend`, checked and in rows of a catalogue.

    Args:
      found: The catalogue.
      k: Items of a list.
      exclude: What is left out.
      usual: What `USUAL` stands for.
      allow: Raw ids, of which alone lists are made.
      filter: Values of item features.

    Raises:
      ValueError: In one line, on one that means nothing.
    """
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise ValueError(f"k: expected an integer >= 1, got {k!r}")
    rules, excluded_X = _read_exclude(exclude, usual, found)
    allowed_V = None
    if allow is not None:
        allowed_V = np.zeros(found.num_rows, bool)
        allowed_V[found.rows(allow, "allow")] = True
    if filter is not None and not isinstance(filter, Mapping):
        raise ValueError(
            "filter: expected a mapping from features to lists of values, got "
            f"{values_lib.show(filter)}"
        )
    for name, values in (filter or {}).items():
        matching_V = found.match(name, values)
        allowed_V = matching_V if allowed_V is None else allowed_V & matching_V
    if allowed_V is not None:
        allowed_V[0] = False
    return Wanted(int(k), rules, excluded_X, allowed_V, found)


def to_frame(
    found: Lists,
    user_ids: pl.Series,
    raw_id_V: np.ndarray,
    scenarios: Sequence[str],
    of: requests.Encoded | None = None,
) -> pl.DataFrame:
    """Lists as a frame.

    Args:
      found: The lists.
      user_ids: Those of the requests, `user_id`.
      raw_id_V: Those of the items.
      scenarios: Names by scenario id.
      of: The requests, where `user` and `unknown_events` of `Answer` are to be columns too.
    """
    is_item_QT = found.item_QT > 0
    count_Q = is_item_QT.sum(axis=1)
    rank_QT = np.broadcast_to(np.arange(1, found.item_QT.shape[1] + 1), found.item_QT.shape)
    row_X = np.repeat(found.row_Q, count_Q)
    names = np.array(scenarios)
    columns = {
        user_ids.name: user_ids.gather(row_X),
        "scenario": np.repeat(names[found.scenario_Q], count_Q),
        "item_id": raw_id_V[found.item_QT[is_item_QT]],
        "score": found.score_QT[is_item_QT],
        "rank": rank_QT[is_item_QT].astype(np.int32),
    }
    if of is not None:
        columns["user"] = np.array(requests.STATUSES)[of.status_B[row_X]]
        columns["unknown_events"] = of.unknown_B[row_X]
    return pl.DataFrame(columns)


def _read_exclude(
    exclude: Exclude, usual: str | None, found: catalogue_lib.Catalogue
) -> tuple[tuple[str, ...], np.ndarray]:
    """The rules that are named, and the rows."""
    if exclude is None:
        return (), np.zeros(0, np.int32)
    words = (SEEN, SHOWN, USUAL)
    if isinstance(exclude, str) and exclude in words:
        named, values = [exclude], []
    elif isinstance(exclude, str | Mapping) or not hasattr(exclude, "__iter__"):
        raise ValueError(
            f"exclude: expected {SEEN!r}, {SHOWN!r}, {USUAL!r} or a list of item ids, got "
            f"{values_lib.show(exclude)}"
        )
    else:
        given = values_lib.read_ids(exclude, "exclude")
        named = [value for value in given if isinstance(value, str) and value in words]
        values = [value for value in given if not isinstance(value, str) or value not in words]
    _check_words(values, words, found)
    rules = {usual if word == USUAL else word for word in named}
    row_X = found.rows(values, "exclude")
    return tuple(rule for rule in (SEEN, SHOWN) if rule in rules), row_X[row_X > 0]


def _check_words(
    values: Sequence[Any], words: Sequence[str], found: catalogue_lib.Catalogue
) -> None:
    """Refuses what is a rule misspelt, where it can be no id."""
    items = found.encoder.items
    for value in values:
        # No integer, and no text that is one.
        if items.is_integer and isinstance(value, str) and items.plain(value, "exclude") is None:
            near = values_lib.hint(value.lower(), words)
            if near:
                raise ValueError(
                    f"exclude: expected item ids, {SEEN!r}, {SHOWN!r} or {USUAL!r}, got "
                    f"{values_lib.show(value)}{near}"
                )


def removed(encoded: requests.Encoded, wanted: Wanted, row: int) -> np.ndarray:
    """Rows that a request's lists leave out."""
    found = [wanted.excluded_X]
    if SEEN in wanted.rules:
        found.append(encoded.seen(row))
    if SHOWN in wanted.rules:
        found.append(encoded.shown(row))
    if wanted.rules and wanted.catalogue.added and row in encoded.others:
        # Of items that came after training towers know nothing, but lists may hold them.
        fields = (*encoded.others[row],) if SHOWN in wanted.rules else (features.HISTORY,)
        raw = [item for name in fields for item in encoded.others[row].get(name, ())]
        row_X = wanted.catalogue.rows(raw, "users")
        found.append(row_X[row_X > 0])
    return np.concatenate(found) if len(found) > 1 else found[0]
