"""Requests: raw ids, categories, numbers, tags and histories as the arrays that a tower reads.

Owns the way from what a caller holds to what training saw: the vocabularies, moments and separators
of preparation. Does not own towers nor search.

A request is a mapping; all of it is optional:

    user_id           the raw id; features and events of a known user stand for what is not given
    <feature>         a category, a number, or of a bag a list or text with the bag's separator
    history           positives, oldest first: raw item ids, or mappings with item_id and, where the
                      model reads them, scenario and time
    shown             what was shown without a positive, likewise
    <behaviour log>   events as mappings of its fields, e.g. category and brand, and time
    time              unix seconds of the request, for models that read times

A value that training did not know is unknown: it counts as if it were not given. What cannot be a
value at all is refused in one line.

Letters: B requests, F features or fields of an event, P ids in a padded bag, E events, S scenarios,
C columns of a row, X values.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from dsmoe_jax import batch as batch_lib
from dsmoe_jax import features
from dsmoe_jax.data import pipeline
from dsmoe_jax.serving import bundle as bundle_lib
from dsmoe_jax.serving import events, towers
from dsmoe_jax.serving import state as state_lib
from dsmoe_jax.serving import values as values_lib

USER, TIME, SHOWN = "user_id", "time", "shown"
STATUSES = ("known", "from_history", "cold")
KNOWN, FROM_HISTORY, COLD = range(3)


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Requests as rows that a reader of users reads.

    Attributes:
      reader: Reads what the model sees.
      state: What the rows point into.
      rows_BC: One row per request; the scenario is the caller's to set.
      status_B: `KNOWN`, `FROM_HISTORY` or `COLD`.
      unknown_B: Events that were left out, since training did not know them.
      given_history_B: Whether the history is the request's own.
      more_shown: Items shown, by row, that no sequence holds.
      others: Raw ids of items that training did not know, by row and by `history` or `shown`: lists
        may hold them, where they came since.
    """

    reader: pipeline.UserReader
    state: pipeline.UserState
    rows_BC: Int[np.ndarray, "B C"]
    status_B: Int[np.ndarray, "B"]
    unknown_B: Int[np.ndarray, "B"]
    given_history_B: np.ndarray
    more_shown: Mapping[int, np.ndarray] = dataclasses.field(default_factory=dict)
    others: Mapping[int, Mapping[str, list[Any]]] = dataclasses.field(default_factory=dict)

    def read(self, row_Q: np.ndarray, scenario_Q: np.ndarray) -> batch_lib.Users:
        """The user side of queries: requests, by number, in scenarios."""
        rows_QC = self.rows_BC[row_Q]
        rows_QC[:, self.state.columns["scenario"]] = scenario_Q
        return self.reader.read(rows_QC)

    def seen(self, row: int) -> Int[np.ndarray, "E"]:
        """Items with a positive; of a stored history those of the log, not from before it."""
        ids_E, time_E = self._events(row, features.HISTORY)
        return ids_E if self.given_history_B[row] else ids_E[time_E > 0]

    def shown(self, row: int) -> Int[np.ndarray, "E"]:
        """All items that the user is known to have been shown, positives included."""
        names = [n for n in (features.HISTORY, features.EXPOSURES) if n in self.state.sequences]
        found = [self._events(row, name)[0] for name in names]
        return np.concatenate([*found, self.more_shown.get(row, found[0][:0])])

    def _events(self, row: int, name: str) -> tuple[np.ndarray, np.ndarray]:
        if name not in self.state.sequences:
            return np.zeros(0, np.int32), np.zeros(0, np.int32)
        ids_EF, time_E = self.state.sequences[name]
        columns = self.state.columns
        window = slice(*(self.rows_BC[row, columns[f"{name}_{end}"]] for end in ("start", "stop")))
        return ids_EF[window, 0], time_E[window]


class Encoder:
    """Turns requests into rows, by the vocabularies and moments of a bundle."""

    def __init__(self, bundle: bundle_lib.Bundle):
        """Maps the bundle's arrays; nothing is copied."""
        spec, manifest = bundle.raw_spec, bundle.manifest
        self._spec, self._manifest = spec, manifest
        self.columns = {name: n for n, name in enumerate(manifest["columns"])}
        self.users = values_lib.Vocabulary(bundle.load("users_raw_id"), of_ids=True)
        self.items = values_lib.Vocabulary(bundle.load("items_raw_id"), of_ids=True)
        self.vocabularies = {
            feature.name: values_lib.Vocabulary(bundle.load(f"vocabulary_{feature.name}"))
            for group in (spec.user_sparse, spec.item_sparse, spec.user_bags, spec.item_bags)
            for feature in group
            if bundle.has(f"vocabulary_{feature.name}")
        }
        names = [sequence.name for sequence in spec.sequences]
        self._stored = pipeline.UserState(
            spec=spec,
            columns=self.columns,
            users_sparse=bundle.load("users_sparse"),
            users_dense=bundle.load("users_dense"),
            users_bags={b.name: bundle.load(f"users_bag_{b.name}") for b in spec.user_bags},
            sequences={
                n: (bundle.load(f"sequence_{n}"), bundle.load(f"sequence_{n}_time")) for n in names
            },
        )
        self._read_spec = towers.read_spec(bundle)
        self._reader = pipeline.UserReader(self._stored, self._read_spec)
        self._rows_UC = bundle.load("user_rows")
        self._windows = {of.sequence: of for of in state_lib.windows(spec)}
        self._event_fields = {s.name: s.fields for s in spec.sequences}
        # The names of a request; the histories of scenarios follow from the history.
        own = {n: n for n in names if n not in ("scenario_history", features.EXPOSURES)}
        if features.EXPOSURES in names:
            own[SHOWN] = features.EXPOSURES
        self._sequence_of = own
        self.user_features = [
            feature.name for group in ("sparse", "dense", "bags") for feature in self._of(group)
        ]
        self.fields = (*dict.fromkeys((*own, SHOWN, TIME, *self.user_features)),)
        self.item_features = [
            feature.name
            for group in ("sparse", "dense", "bags")
            for feature in self._of(group, "item")
        ]

    def known_users(self) -> list[Any]:
        """Raw ids of all users that the bundle knows."""
        return self.users.decode(np.arange(1, len(self.users) + 1))

    def encode(self, columns: values_lib.Columns) -> Encoded:
        """Rows of requests in columns, all of one length.

        Raises:
          ValueError: On an unknown field, or a value that cannot be one of it.
        """
        _check_fields(columns, self.fields, "users")
        B = max((len(values) for values in columns.values()), default=0)
        user_B = np.zeros(B, np.int32)
        if USER in columns:
            user_B = self.users.encode(columns[USER], f"users: {USER}")
        rows_BC = self._rows_UC[user_B]
        state, unknown_B = self._stored, np.zeros(B, np.int64)
        others: dict[int, dict[str, list[Any]]] = {}
        given = {name: values for name, values in columns.items() if name != USER}
        has_events_B, given_history_B = np.zeros(B, bool), np.zeros(B, bool)
        if any(values_lib.is_any_given(values) for values in given.values()):
            state = self._overlay(user_B, rows_BC, given)
            sequences = dict(state.sequences)
            for name, of in self._sequence_of.items():
                if name in given and values_lib.is_any_given(given[name]):
                    is_given_B, known_B, lost_B = self._put_events(
                        sequences, rows_BC, of, given[name], name, others
                    )
                    has_events_B |= known_B
                    unknown_B += lost_B
                    if name == features.HISTORY:
                        given_history_B = is_given_B
            state = state._replace(sequences=sequences)
        status_B = np.where(user_B > 0, KNOWN, np.where(has_events_B, FROM_HISTORY, COLD))
        more_shown = {}
        if SHOWN in given and SHOWN not in self._sequence_of:
            for row, value in enumerate(given[SHOWN]):
                listed = values_lib.read_list(value, f"users: {SHOWN}") or []
                ids_EF, _, _ = self._encode_events(listed, ("item_id",), f"users: {SHOWN}")
                more_shown[row] = ids_EF[:, 0]
                _keep_others(others, SHOWN, listed, np.full(len(listed), row), ids_EF)
        reader = self._reader
        if state is not self._stored:
            reader = pipeline.UserReader(state, self._read_spec)
        return Encoded(
            *(reader, state, rows_BC, status_B, unknown_B, given_history_B, more_shown, others)
        )

    def encode_items(self, columns: values_lib.Columns) -> batch_lib.Items:
        """Items by their raw features, in columns; those that are not given are unknown.

        Raises:
          ValueError: On an unknown field, or a value that cannot be one of it.
        """
        spec = self._spec
        columns = self._derive(columns)
        _check_fields(columns, self.item_features, "items")
        N = max((len(values) for values in columns.values()), default=0)
        sparse_NF = np.zeros((N, len(spec.item_sparse)), np.int32)
        dense_NF = np.zeros((N, len(spec.item_dense)), np.float32)
        bags = {bag.name: np.zeros((N, bag.max_len), np.int32) for bag in spec.item_bags}
        self._put_features("item", columns, sparse_NF, dense_NF, bags)
        return batch_lib.Items(sparse_NF, dense_NF, bags)

    def numbers_given(self, columns: values_lib.Columns, count: int) -> np.ndarray:
        """Which numbers of `count` items in columns are given, [N, F]."""
        names = [feature.name for feature in self._spec.item_dense]
        none_N = np.zeros(count, bool)
        given = [
            ~np.isnan(values_lib.read_numbers(columns[name], name)) if name in columns else none_N
            for name in names
        ]
        return np.stack(given, axis=1) if given else np.zeros((count, 0), bool)

    def _of(self, group: str, side: str = "user") -> tuple[Any, ...]:
        found: tuple[Any, ...] = getattr(self._spec, f"{side}_{group}")
        return found

    def _derive(self, columns: values_lib.Columns) -> dict[str, values_lib.Values]:
        """Adds ranges of numbers that are given, as preparation made them."""
        found = dict(columns)
        for name, form in self._manifest["raw_forms"].items():
            if "edges" in form and form["column"] in found and name not in found:
                values = values_lib.read_numbers(found[form["column"]], f"items: {form['column']}")
                code = np.searchsorted(form["edges"], np.nan_to_num(values), side="right")
                found[name] = [
                    None if np.isnan(v) else int(c) for v, c in zip(values, code, strict=True)
                ]
        return found

    def _overlay(
        self, user_B: np.ndarray, rows_BC: np.ndarray, given: dict[str, values_lib.Values]
    ) -> pipeline.UserState:
        """The users' own rows, changed by what is given; `rows_BC` then points to them."""
        stored = self._stored
        sparse_BF, dense_BF = stored.users_sparse[user_B], stored.users_dense[user_B]
        bags = {name: ids_UP[user_B] for name, ids_UP in stored.users_bags.items()}
        self._put_features("user", given, sparse_BF, dense_BF, bags)
        rows_BC[:, self.columns["user"]] = np.arange(len(rows_BC))
        if TIME in given:
            time_B = values_lib.read_numbers(given[TIME], f"users: {TIME}")
            known_B = ~np.isnan(time_B)
            if not ((time_B[known_B] >= 1) & (time_B[known_B] <= events.LAST_S)).all():
                raise ValueError(f"users: {TIME}: expected unix seconds from 1 to {events.LAST_S}")
            rows_BC[known_B, self.columns["time_s"]] = time_B[known_B].astype(np.int64)
        return stored._replace(users_sparse=sparse_BF, users_dense=dense_BF, users_bags=bags)

    def _put_features(
        self,
        side: str,
        columns: values_lib.Columns,
        sparse_BF: Int[np.ndarray, "B F"],
        dense_BF: Float[np.ndarray, "B _"],
        bags: dict[str, Int[np.ndarray, "B _"]],
    ) -> None:
        """Writes the features that are given over what is there."""
        for n, feature in enumerate(self._of("sparse", side)):
            name = feature.name
            if name in columns and name in self.vocabularies:
                ids_B = self.vocabularies[name].encode(columns[name], f"{side}s: {name}")
                given_B = values_lib.given(columns[name])
                sparse_BF[given_B, n] = ids_B[given_B]
        for n, feature in enumerate(self._of("dense", side)):
            if feature.name in columns:
                values_B = values_lib.read_numbers(
                    columns[feature.name], f"{side}s: {feature.name}"
                )
                given_B = ~np.isnan(values_B)
                dense_BF[given_B, n] = self._standardise(feature.name, values_B[given_B], side)
        for feature in self._of("bags", side):
            if feature.name in columns:
                ids_BP, given_B = self._encode_bag(feature, columns[feature.name], side)
                bags[feature.name][given_B] = ids_BP[given_B]

    def _standardise(self, name: str, value_X: np.ndarray, side: str) -> np.ndarray:
        moments = self._manifest["dense"][name]
        if moments["transform"] == "log1p":
            if (value_X < 0).any():
                raise ValueError(
                    f"{side}s: {name}: expected a number >= 0, got {float(value_X.min())!r}"
                )
            value_X = np.log1p(value_X)
        return np.asarray((value_X - moments["mean"]) / moments["std"], np.float32)

    def _encode_bag(
        self, feature: features.BagFeature, values: values_lib.Values, side: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ids [B, P] of each bag, right-padded, and which are given."""
        separator = self._manifest["raw_forms"].get(feature.name, {}).get("separator", ",")
        parts = [
            [part.strip() for part in value.split(separator)]
            if isinstance(value, str)
            else values_lib.read_list(value, f"{side}s: {feature.name}")
            for value in values
        ]
        flat, row_X = values_lib.flatten(parts)
        ids_X = self.vocabularies[feature.name].encode(flat, f"{side}s: {feature.name}")
        ids_BP = np.zeros((len(values), feature.max_len), np.int32)
        place_B = np.zeros(len(values), np.int64)
        for row, found in zip(row_X.tolist(), ids_X.tolist(), strict=True):
            place = int(place_B[row])
            if found and place < feature.max_len and found not in ids_BP[row]:
                ids_BP[row, place] = found
                place_B[row] += 1
        return ids_BP, np.array([part is not None for part in parts], bool)

    def _put_events(
        self,
        sequences: dict[str, tuple[np.ndarray, np.ndarray]],
        rows_BC: Int[np.ndarray, "B C"],
        sequence: str,
        values: values_lib.Values,
        field: str,
        others: dict[int, dict[str, list[Any]]],
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Puts given events in the place of stored ones, of users that bring some.

        Returns:
          Of each request, whether it brings events, whether any is known, how many are not.
        """
        B, where = len(values), f"users: {field}"
        given = [values_lib.read_list(value, where) for value in values]
        given_B = np.array([event is not None for event in given], bool)
        flat, row_E = values_lib.flatten(given)
        fields = self._event_fields[sequence]
        ids_EF, time_E, scenario_E = self._encode_events(flat, fields, where)
        known_E = ids_EF[:, 0] > 0
        if field in (features.HISTORY, SHOWN):
            _keep_others(others, field, flat, row_E, ids_EF)
        lost_B = np.bincount(row_E[~known_E], minlength=B)
        ids_EF, time_E, scenario_E, row_E = (
            part[known_E] for part in (ids_EF, time_E, scenario_E, row_E)
        )
        # Given oldest first; where all of a request's events have times, these decide.
        untimed_B = np.bincount(row_E[time_E == 0], minlength=B) > 0
        order = np.lexsort((np.where(untimed_B[row_E], 0, time_E), row_E))
        ids_EF, time_E, scenario_E, row_E = (
            part[order] for part in (ids_EF, time_E, scenario_E, row_E)
        )
        self._place(sequences, rows_BC, sequence, given_B, row_E, ids_EF, time_E)
        if sequence == features.HISTORY and "scenario_history" in sequences:
            S = self._spec.num_scenarios
            kept_E = scenario_E >= 0
            key_E = row_E[kept_E] * S + scenario_E[kept_E]
            order = np.argsort(key_E, kind="stable")
            events_of = (ids_EF[kept_E][order], time_E[kept_E][order])
            self._place(sequences, rows_BC, "scenario_history", given_B, key_E[order], *events_of)
        return given_B, np.bincount(row_E, minlength=B) > 0, lost_B

    def _place(
        self,
        sequences: dict[str, tuple[np.ndarray, np.ndarray]],
        rows_BC: np.ndarray,
        sequence: str,
        *given: np.ndarray,
    ) -> None:
        events.place(sequences, self._windows[sequence], self.columns, rows_BC, *given)

    def _encode_events(self, flat: list[Any], fields: tuple[str, ...], where: str) -> events.Events:
        known = {"item_id": self.items, **self.vocabularies}
        return events.encode(flat, {f: known[f] for f in fields}, self._spec.scenarios, where)


def _check_fields(names: Iterable[Any], known: Sequence[str], what: str) -> None:
    for name in names:
        if name not in known:
            hint = values_lib.hint(name, known) or f"; known: {', '.join(known)}"
            raise ValueError(f"{what}: unknown field {name!r}{hint}")


def _keep_others(
    others: dict[int, dict[str, list[Any]]],
    field: str,
    flat: Sequence[Any],
    row_E: np.ndarray,
    ids_EF: np.ndarray,
) -> None:
    """Adds the raw ids of unknown events to `others`, see `Encoded`."""
    for n in np.flatnonzero(ids_EF[:, 0] == 0).tolist():
        event = flat[n]
        raw = event.get("item_id") if isinstance(event, Mapping) else event
        others.setdefault(int(row_E[n]), {}).setdefault(field, []).append(raw)
