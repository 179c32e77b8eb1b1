"""Retriever: lists of items for users in scenarios, from a bundle.

Owns the one way from requests to lists that Python, bulk recommendation and the service share, and
what a list leaves out. Does not own the encoding of requests (`requests.py`), towers nor search.

    retriever = dsmoe_jax.load("bundle")
    retriever.recommend([17, 42], "K1", k=50)

Columns of frames are called as RecTools calls them: `user_id`, `item_id`, `score`, `rank`, and
`scenario` beside them.

Letters: B users, Q queries (a user in a scenario), S scenarios, V rows of the corpus (row 0 is
padding), M interests, D a vector, T retrieved list length, N items, F features.
"""

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float, Int

from dsmoe_jax.retrieval import host
from dsmoe_jax.serving import bundle as bundle_lib
from dsmoe_jax.serving import catalogue as catalogue_lib
from dsmoe_jax.serving import explanation, frames, indexing, requests, towers
from dsmoe_jax.serving import lists as lists_lib
from dsmoe_jax.serving import values as values_lib

ALL = "all"
# Queries of one search.
_BLOCK = 1024


class Retriever:
    """A bundle that answers; safe to use from several threads.

    Attributes:
      bundle: What it was made from.
      scenarios: Names of the scenarios.
    """

    def __init__(self, bundle: bundle_lib.Bundle):
        """Maps the bundle's arrays.

        Raises:
          ValueError: When its towers are a program that this JAX cannot read.
        """
        self.bundle = bundle
        self.scenarios = bundle.scenarios
        self.encoder = requests.Encoder(bundle)
        self.user_tower, self.item_tower = towers.make_towers(bundle)
        # Replaced, never changed; whoever answers takes it once.
        self.catalogue = catalogue_lib.open_catalogue(
            bundle, self.encoder, indexing.open_indexes(bundle)
        )
        self._changing = threading.Lock()

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, verify: bool = True) -> "Retriever":
        """The retriever of the bundle at `path`; `verify` hashes every file first.

        Raises:
          ValueError: In one line, when there is no bundle, it is damaged or of another format.
        """
        return cls(bundle_lib.Bundle.open(path, verify=verify))

    def __repr__(self) -> str:
        """Method, data set and size."""
        manifest = self.bundle.manifest
        return (
            f"Retriever({manifest['method']} of {manifest['dataset']}, "
            f"{self.catalogue.num_items:,} items, scenarios {', '.join(self.scenarios)})"
        )

    @property
    def usual_exclude(self) -> str | None:
        """What was left out when the model was evaluated, which "usual" stands for."""
        return lists_lib.RULES[self.bundle.manifest["remove_seen"]]

    def recommend(
        self,
        users: Any,
        scenario: str | Sequence[str] = ALL,
        k: int = 50,
        *,
        exclude: lists_lib.Exclude = lists_lib.USUAL,
        allow: Any = None,
        filter: lists_lib.Filter | None = None,
        with_user: bool = False,
    ) -> Any:
        """The k best items of each user in each scenario.

        Args:
          users: Raw ids, one or several; requests as mappings, see `serving/requests.py`; or a
            frame of them, polars or pandas.
          scenario: A name, several, or "all".
          k: Items of a list. Fewer come where fewer match, and none else.
          exclude: Raw ids that are left out of every list; "seen" leaves out what the user is known
            to have clicked, "shown" all that the user was shown, "usual" what was left out when the
            model was evaluated, see `usual_exclude`; None nothing. A sequence may hold ids and
            these words. Of items that came by `upsert_items` a request's own `history` and `shown`
            count here too.
          allow: Raw ids, of which alone lists are made.
          filter: Values of item features, of which an item must have one each.
          with_user: Whether to tell in two more columns what a list rests on: `user`, one of
            `requests.STATUSES`, and `unknown_events`, the given ones that training did not know.

        Returns:
          A frame, pandas where `users` is one and else polars: `user_id`, as it was given,
          `scenario`, `item_id`, `score` and `rank`, from 1.

        Raises:
          ValueError: In one line, on an unknown scenario, field or feature, or a bad value.
        """
        columns = frames.read_users(users)
        wanted = self.want(k, exclude=exclude, allow=allow, filter=filter)
        encoded = self.encoder.encode(columns)
        usual = pl.Int64 if self.encoder.users.is_integer else pl.String
        ids = frames.name_users(users, columns, len(encoded.rows_BC), usual)
        raw_id_V, of = wanted.catalogue.raw_id_V, encoded if with_user else None
        blocks = [self.search(encoded, wanted, *q) for q in self._blocks(encoded, scenario)]
        frame = pl.concat(
            lists_lib.to_frame(found, ids, raw_id_V, self.scenarios, of)
            for found in blocks or [lists_lib.NONE]
        )
        return frames.to_pandas(frame) if frames.is_pandas(users) else frame

    def retrieve(
        self,
        columns: values_lib.Columns,
        scenario: str | Sequence[str],
        wanted: lists_lib.Wanted,
        times: lists_lib.Times | None = None,
    ) -> list[lists_lib.Answer]:
        """Lists of requests in columns, all scenarios of one request side by side.

        Args:
          columns: The requests.
          scenario: A name, several, or "all".
          wanted: What the lists may hold.
          times: Told how long it took.
        """
        start, own = time.perf_counter(), lists_lib.Times()
        encoded = self.encoder.encode(columns)
        own.tower_s = time.perf_counter() - start
        answers = []
        for queries in self._blocks(encoded, scenario):
            found = self.search(encoded, wanted, *queries, times=own)
            item_QT = wanted.catalogue.raw_id_V[found.item_QT]
            count_Q = (found.item_QT > 0).sum(axis=1)
            for q, row in enumerate(found.row_Q.tolist()):
                answers.append(
                    lists_lib.Answer(
                        requests.STATUSES[encoded.status_B[row]],
                        self.scenarios[found.scenario_Q[q]],
                        item_QT[q, : count_Q[q]].tolist(),
                        found.score_QT[q, : count_Q[q]].tolist(),
                        int(encoded.unknown_B[row]),
                    )
                )
        if times is not None:
            times.tower_s += own.tower_s
            times.search_s += time.perf_counter() - start - own.tower_s
        return answers

    def want(
        self,
        k: int,
        *,
        exclude: lists_lib.Exclude = lists_lib.USUAL,
        allow: Any = None,
        filter: lists_lib.Filter = None,
    ) -> lists_lib.Wanted:
        """The arguments of `recommend`, checked and in rows of today's catalogue."""
        return lists_lib.want(
            self.catalogue,
            k,
            exclude=exclude,
            usual=self.usual_exclude,
            allow=allow,
            filter=filter,
        )

    def search(
        self,
        encoded: requests.Encoded,
        wanted: lists_lib.Wanted,
        row_Q: Int[np.ndarray, "Q"],
        scenario_Q: Int[np.ndarray, "Q"],
        times: lists_lib.Times | None = None,
    ) -> lists_lib.Lists:
        """Lists of queries: requests, by number, in scenarios; tells the time of the tower."""
        cold_Q = encoded.status_B[row_Q] == requests.COLD
        T = min(wanted.k, wanted.catalogue.num_rows - 1)
        score_QT = np.full((len(row_Q), T), -np.inf, np.float32)
        item_QT = np.zeros((len(row_Q), T), np.int32)
        removed_of = {row: lists_lib.removed(encoded, wanted, row) for row in set(row_Q.tolist())}
        for is_cold in (False, True):
            chosen_Q = np.flatnonzero(cold_Q == is_cold)
            if not len(chosen_Q):
                continue
            if is_cold:
                vector_QMD = np.ones((len(chosen_Q), 1, 1), np.float32)
            else:
                start = time.perf_counter()
                users = encoded.read(row_Q[chosen_Q], scenario_Q[chosen_Q])
                vector_QMD = self.user_tower(users, scenario_Q[chosen_Q])
                if times is not None:
                    times.tower_s += time.perf_counter() - start
            for s in np.unique(scenario_Q[chosen_Q]).tolist():
                here_X = np.flatnonzero(scenario_Q[chosen_Q] == s)
                index = wanted.catalogue.priors[s] if is_cold else wanted.catalogue.index(s)
                queries = chosen_Q[here_X]
                removed = [removed_of[row] for row in row_Q[queries].tolist()]
                score_QT[queries], item_QT[queries] = index.search(
                    vector_QMD[here_X],
                    T,
                    allowed_V=wanted.allowed_V,
                    removed=removed if any(map(len, removed)) else None,
                )
        return lists_lib.Lists(row_Q, scenario_Q, score_QT, item_QT)

    def user_vectors(self, users: Any, scenario: str) -> Float[np.ndarray, "B M D"]:
        """The users' vectors in a scenario, one per interest, as an index is asked with."""
        encoded, s = self.encoder.encode(frames.read_users(users)), self._scenario_id(scenario)
        rows = np.arange(len(encoded.rows_BC))
        if not len(rows):
            # How many interests there are, a tower says of some user alone.
            return self.user_vectors([None], scenario)[:0]
        scenario_Q = np.full(len(rows), s, np.int32)
        return self.user_tower(encoded.read(rows, scenario_Q), scenario_Q)

    def item_vectors(
        self, items: Sequence[Any] | None = None, scenario: str | None = None
    ) -> Float[np.ndarray, "N D"]:
        """Vectors of items by raw id, of all in the order of `item_ids` where none are named.

        Raises:
          ValueError: On an unknown item, or without a scenario where vectors depend on it.
        """
        found = self.catalogue
        if scenario is None and len(found.indexes) > 1:
            raise ValueError(
                f"scenario: expected one of {', '.join(self.scenarios)}, since item vectors differ "
                "between them, got none"
            )
        index = found.index(0 if scenario is None else self._scenario_id(scenario))
        rows = found.live_rows() if items is None else found.known_rows(items)
        return index.vectors(rows)

    @property
    def item_ids(self) -> list[Any]:
        """Raw ids of all items that can be retrieved."""
        found = self.catalogue
        return list(found.raw_id_V[found.live_rows()].tolist())

    def similar_items(self, items: Any, scenario: str, k: int = 10) -> Any:
        """The k items whose vectors have the largest cosine with each item's, itself left out.

        Args:
          items: Raw ids, one or several.
          scenario: A name.
          k: Items of a list.

        Returns:
          A frame, pandas where `items` is a column of one and else polars: `item_id`, `scenario`,
          `similar_item_id`, `score` and `rank`.

        Raises:
          ValueError: On an unknown item or scenario.
        """
        wanted, s = self.want(k, exclude=None), self._scenario_id(scenario)
        found = wanted.catalogue
        row_N = found.known_rows(items)
        unit_VD = found.index(s).vectors(np.arange(found.num_rows))
        unit_VD /= np.maximum(np.linalg.norm(unit_VD, axis=1, keepdims=True), np.float32(1e-12))
        live_V = np.zeros(found.num_rows, bool)
        live_V[found.live_rows()] = True
        score_NT, item_NT = host.HostIndex(unit_VD).search(
            unit_VD[row_N][:, None],
            wanted.k,
            allowed_V=live_V,
            removed=[row_N[n : n + 1] for n in range(len(row_N))],
        )
        found_lists = lists_lib.Lists(
            np.arange(len(row_N)), np.full(len(row_N), s), score_NT, item_NT
        )
        asked = pl.Series(catalogue_lib.ITEM, found.raw_id_V[row_N])
        frame = lists_lib.to_frame(
            found_lists, asked.alias("of"), found.raw_id_V, self.scenarios
        ).rename({catalogue_lib.ITEM: "similar_item_id", "of": catalogue_lib.ITEM})
        return frames.to_pandas(frame) if frames.is_pandas(items) else frame

    def explain(self, user: Any, scenario: str, item: Any) -> explanation.Explanation:
        """What each event of a user and each expert adds to the score of an item.

        Raises:
          ValueError: When the tower's score is no sum of such parts, or on an unknown item.
        """
        encoded = self.encoder.encode(frames.read_users(user))
        if len(encoded.rows_BC) != 1:
            raise ValueError(f"user: expected one, got {len(encoded.rows_BC)}")
        if encoded.status_B[0] == requests.COLD:
            raise ValueError(
                "user: expected a known id or event to explain, got a cold user, whose list is the "
                "scenario's prior alone"
            )
        s, found = self._scenario_id(scenario), self.catalogue
        users = encoded.read(np.zeros(1, int), np.array([s]))
        vector_1D = found.index(s).vectors(found.known_rows([item]))
        return explanation.explain(self.user_tower, users, s, vector_1D[0], found.raw_id_V)

    def searcher(self, scenario: str) -> host.Searcher:
        """What is searched in a scenario."""
        return self.catalogue.index(self._scenario_id(scenario))

    def upsert_items(self, items: Any) -> int:
        """Adds items by their features, or changes some, without training.

        Vectors are the item tower's; of a new item, whose id training did not meet, they rest on
        its features alone.

        Args:
          items: A frame, or a mapping or several, with `item_id` and features; what is not given is
            unknown, also of an item that was there.

        Returns:
          Items that can be retrieved now.

        Raises:
          ValueError: In one line, on an unknown field or a bad value. Nothing is changed then.
        """
        columns = frames.read_users(items, catalogue_lib.ITEM, "items")
        if catalogue_lib.ITEM not in columns:
            raise ValueError(f"items: expected a field {catalogue_lib.ITEM!r}, got none")
        raw = list(columns[catalogue_lib.ITEM])
        encoded = self.encoder.encode_items(columns)
        with self._changing:
            found = self.catalogue
            # An item that training met has its own row in the tables of the tower.
            met_N = self.encoder.items.encode(raw, "items: item_id")
            encoded.sparse_VF[:, 0] = met_N
            wanted = towers.read_items(self.bundle, encoded)
            vectors = [self.item_tower(wanted, s) for s in range(len(found.indexes))]
            # A tower takes the mean for a number that is not given; nobody said it.
            is_given_NF = self.encoder.numbers_given(columns, len(raw))
            told = encoded._replace(dense_VF=np.where(is_given_NF, encoded.dense_VF, np.nan))
            self.catalogue = found.with_items(raw, told, np.stack(vectors))
            return self.catalogue.num_items

    def remove_items(self, items: Sequence[Any]) -> int:
        """Lets no list hold these items any more; returns how many can be retrieved then.

        Those that were removed already stay so: what failed half-way may be done again.

        Raises:
          ValueError: On an item that was never there. Nothing is changed then.
        """
        with self._changing:
            found = self.catalogue
            row_N = found.known_rows(items, removed_too=True)
            row_N = np.setdiff1d(row_N, list(found.removed))
            if len(row_N):
                self.catalogue = found.without_rows(row_N)
            return self.catalogue.num_items

    def compact(self) -> None:
        """Puts all changes into the indexes' own rows, which are then searched exactly.

        An approximate index is out of use from then on, in this retriever; the bundle keeps its
        own, which answers again where the bundle is opened anew.
        """
        with self._changing:
            self.catalogue = self.catalogue.compacted()

    def save_changes(self) -> None:
        """Keeps the changes in the bundle, so that it opens with them.

        Raises:
          ValueError: When the bundle was exported, indexed or changed by another meanwhile; nothing
            is written then.
        """
        with self._changing:
            arrays = catalogue_lib.list_changes(self.catalogue, self.bundle)
            self.bundle = bundle_lib.extend(self.bundle, arrays, {}, {})

    def _blocks(
        self, encoded: requests.Encoded, scenario: str | Sequence[str]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Requests and scenarios of queries, block by block, request-major."""
        chosen_S = np.array(self._scenario_ids(scenario))
        rows = max(1, _BLOCK // len(chosen_S))
        for start in range(0, len(encoded.rows_BC), rows):
            row_B = np.arange(start, min(start + rows, len(encoded.rows_BC)))
            yield np.repeat(row_B, len(chosen_S)), np.tile(chosen_S, len(row_B)).astype(np.int32)

    def _scenario_ids(self, scenario: Any) -> list[int]:
        if isinstance(scenario, str) and scenario == ALL:
            return [*range(len(self.scenarios))]
        if isinstance(scenario, str | Mapping) or not hasattr(scenario, "__iter__"):
            return [self._scenario_id(scenario, f"{ALL!r} or ")]
        names = list(scenario)
        if not names:
            raise ValueError("scenario: expected at least one, got none")
        ids = [self._scenario_id(name) for name in names]
        if len(set(ids)) < len(ids):
            raise ValueError(
                f"scenario: expected every name once, got {', '.join(map(str, names))}"
            )
        return ids

    def _scenario_id(self, name: Any, other: str = "") -> int:
        if isinstance(name, str) and name in self.scenarios:
            return self.scenarios.index(name)
        raise ValueError(
            f"scenario: expected {other}one of {', '.join(self.scenarios)}, got "
            f"{values_lib.show(name)}{values_lib.hint(name, self.scenarios)}"
        )
