"""Catalogue: the items that can be retrieved, their indexes, and changes to both.

Owns rows, raw ids and the features that filters read. A catalogue is never changed: a change makes
another, which shares what it can, so that a search sees all of a change or nothing. New items get
rows behind those of the bundle; removed ones keep theirs.

Letters: S scenarios, V rows (row 0 is padding), D a vector, N items, F features, P ids in a padded
bag.
"""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from dsmoe_jax import batch as batch_lib
from dsmoe_jax import features
from dsmoe_jax.retrieval import delta, host
from dsmoe_jax.serving import bundle as bundle_lib
from dsmoe_jax.serving import requests
from dsmoe_jax.serving import values as values_lib

ITEM = "item_id"
# Values that a message's nearest one is sought among: more would take long.
_MOST_COMPARED = 1000


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """Items, by row.

    Attributes:
      spec: All features that items have.
      encoder: Raw values to ids.
      raw_id_V: Raw ids.
      added: Rows of the items that the bundle's own rows do not hold, by raw id.
      sparse_VF, dense_VF, bags: Their features; NaN is a number that an upserted item was not
        given.
      log_prior_SV: Log share of a scenario's clicks, which cold users are answered by.
      indexes: Of each scenario, or one in all.
      priors: Searches `log_prior_SV`.
      changed: Rows that are others than the bundle's, or new.
      removed: Rows that cannot be retrieved.
    """

    spec: features.FeatureSpec
    encoder: requests.Encoder
    raw_id_V: np.ndarray
    added: Mapping[Any, int]
    sparse_VF: Int[np.ndarray, "V F"]
    dense_VF: Float[np.ndarray, "V _"]
    bags: Mapping[str, np.ndarray]
    log_prior_SV: Float[np.ndarray, "S V"]
    indexes: tuple[delta.DeltaIndex, ...]
    priors: tuple[delta.DeltaIndex, ...]
    changed: frozenset[int] = frozenset()
    removed: frozenset[int] = frozenset()

    @property
    def num_rows(self) -> int:
        """V, with removed rows."""
        return len(self.raw_id_V)

    @property
    def num_items(self) -> int:
        """Items that can be retrieved."""
        return self.indexes[0].num_candidates

    def index(self, scenario: int) -> delta.DeltaIndex:
        """The index of a scenario."""
        return self.indexes[scenario if len(self.indexes) > 1 else 0]

    def live_rows(self) -> Int[np.ndarray, "N"]:
        """Rows of the items that can be retrieved, ascending."""
        return np.setdiff1d(np.arange(1, self.num_rows), list(self.removed))

    def rows(self, raw: Any, where: str) -> Int[np.ndarray, "N"]:
        """Rows of raw ids, 0 where unknown.

        Raises:
          ValueError: When they are no list of ids.
        """
        raw = values_lib.read_ids(raw, where)
        row_N = self.encoder.items.encode(raw, where)
        if self.added:
            for n in np.flatnonzero(row_N == 0).tolist():
                row_N[n] = self.added.get(self.encoder.items.plain(raw[n], where), 0)
        return row_N

    def known_rows(self, raw: Any, *, removed_too: bool = False) -> Int[np.ndarray, "N"]:
        """Rows of raw ids, one or several, all of which must be there.

        Raises:
          ValueError: On an item that is not there, or was removed, unless these count too.
        """
        raw = (
            [raw] if isinstance(raw, str | int | np.integer) else values_lib.read_ids(raw, "items")
        )
        row_N = self.rows(raw, "items")
        wrong_N = row_N == 0
        if not removed_too:
            wrong_N = wrong_N | np.isin(row_N, list(self.removed))
        if wrong_N.any():
            wrong = values_lib.show(raw[int(np.argmax(wrong_N))])
            raise ValueError(f"items: expected items of the bundle, got {wrong}")
        return row_N

    def match(self, name: str, values: Any) -> np.ndarray:
        """Which items have one of the values of a feature, [V].

        Raises:
          ValueError: When items have no such category, or training knew no such value.
        """
        sparse = [feature.name for feature in self.spec.item_sparse[1:]]
        if name not in (*sparse, *self.bags):
            known = ", ".join([*sparse, *self.bags]) or "none"
            raise ValueError(f"filter: expected features among {known}, got {name!r}")
        if isinstance(values, str | int) or not hasattr(values, "__iter__"):
            values = [values]
        values, vocabulary = list(values), self.encoder.vocabularies[name]
        ids = vocabulary.encode(values, f"filter: {name}")
        if not ids.all():
            unknown, near = values[int(np.argmin(ids > 0))], ""
            if len(vocabulary) <= _MOST_COMPARED:
                near = values_lib.hint(
                    unknown, vocabulary.decode(np.arange(1, len(vocabulary) + 1))
                )
            raise ValueError(
                f"filter: {name}: expected values that items have, got "
                f"{values_lib.show(unknown)}{near}"
            )
        if name in self.bags:
            return np.asarray(np.isin(self.bags[name], ids).any(axis=1))
        return np.isin(self.sparse_VF[:, 1 + sparse.index(name)], ids)

    def with_items(
        self, raw: Sequence[Any], items: batch_lib.Items, vectors_SND: Float[np.ndarray, "S N D"]
    ) -> "Catalogue":
        """The catalogue with these items, new ones or in the place of those of the same id.

        Raises:
          ValueError: On an id that comes twice or is none, or a vector that cannot be searched.
        """
        plain = [self.encoder.items.plain(value, "items: item_id") for value in raw]
        met: set[Any] = set()
        kind = "an integer" if self.encoder.items.is_integer else "an id"
        for n, value in enumerate(plain):
            if value is None:
                raise ValueError(f"items: {ITEM}: expected {kind}, got {values_lib.show(raw[n])}")
            if value in met:
                raise ValueError(
                    f"items: {ITEM}: expected distinct ids, got {values_lib.show(raw[n])} twice"
                )
            met.add(value)
        row_N = self.rows(raw, "items: item_id")
        new_N = np.flatnonzero(row_N == 0)
        V = self.num_rows
        row_N[new_N] = V + np.arange(len(new_N))
        sparse_NF = items.sparse_VF.copy()
        sparse_NF[:, 0] = row_N
        prior_S = self.log_prior_SV[:, 1:].min(axis=1)
        grown = dataclasses.replace(
            self,
            raw_id_V=np.concatenate([self.raw_id_V, np.array([plain[n] for n in new_N])])
            if len(new_N)
            else self.raw_id_V,
            added={**self.added, **{plain[n]: int(row_N[n]) for n in new_N}},
            sparse_VF=_put(self.sparse_VF, row_N, sparse_NF),
            dense_VF=_put(self.dense_VF, row_N, items.dense_VF),
            bags={name: _put(ids, row_N, items.bags[name]) for name, ids in self.bags.items()},
            # Nobody has clicked a new item.
            log_prior_SV=np.concatenate(
                [self.log_prior_SV, np.repeat(prior_S[:, None], len(new_N), axis=1)], axis=1
            ),
        )
        indexes = [copy.copy(index) for index in self.indexes]
        priors = [copy.copy(prior) for prior in self.priors]
        for index, vector_ND in zip(indexes, vectors_SND, strict=True):
            index.upsert(row_N, vector_ND)
        for prior, row_V in zip(priors, grown.log_prior_SV, strict=True):
            prior.upsert(row_N, row_V[row_N][:, None])
        return dataclasses.replace(
            grown,
            indexes=tuple(indexes),
            priors=tuple(priors),
            changed=self.changed | set(row_N.tolist()),
            removed=self.removed - set(row_N.tolist()),
        )

    def without_rows(self, row_N: Int[np.ndarray, "N"]) -> "Catalogue":
        """The catalogue without these items."""
        indexes = [copy.copy(index) for index in self.indexes]
        priors = [copy.copy(prior) for prior in self.priors]
        for index in (*indexes, *priors):
            index.remove(row_N)
        return dataclasses.replace(
            self,
            indexes=tuple(indexes),
            priors=tuple(priors),
            removed=self.removed | set(row_N.tolist()),
        )

    def compacted(self) -> "Catalogue":
        """The same items with all changes in the indexes' own rows; exact search alone."""
        return dataclasses.replace(
            self,
            indexes=tuple(index.settle() for index in self.indexes),
            priors=tuple(prior.settle() for prior in self.priors),
        )


def open_catalogue(
    bundle: bundle_lib.Bundle, encoder: requests.Encoder, indexes: Sequence[host.Searcher]
) -> Catalogue:
    """The catalogue of a bundle, with the changes that it keeps."""
    prior_SV, vectors_SVD = bundle.load("log_prior"), bundle.load("item_vectors")
    spec = bundle.raw_spec
    found = Catalogue(
        spec,
        encoder,
        bundle.load("items_raw_id"),
        {},
        bundle.load("items_sparse"),
        bundle.load("items_dense"),
        {bag.name: bundle.load(f"items_bag_{bag.name}") for bag in spec.item_bags},
        prior_SV,
        tuple(delta.DeltaIndex(*pair) for pair in zip(indexes, vectors_SVD, strict=True)),
        tuple(
            delta.DeltaIndex(host.HostIndex(row_V[:, None]), row_V[:, None]) for row_V in prior_SV
        ),
    )
    if bundle.has("changed_rows"):
        row_N = bundle.load("changed_rows")
        raw = np.concatenate([found.raw_id_V, bundle.load("added_raw_id")])[row_N]
        bags = {name: bundle.load(f"changed_bag_{name}") for name in found.bags}
        items = batch_lib.Items(bundle.load("changed_sparse"), bundle.load("changed_dense"), bags)
        if len(row_N):
            found = found.with_items(raw.tolist(), items, bundle.load("changed_vectors"))
        found = found.without_rows(bundle.load("removed_rows"))
    return found


def list_changes(found: Catalogue, bundle: bundle_lib.Bundle) -> dict[str, np.ndarray]:
    """Arrays that say how a catalogue differs from its bundle's own rows, by file name."""
    own_rows = len(bundle.load("items_raw_id"))
    row_N = np.array(sorted(found.changed), np.int64)
    vectors_SND = np.stack([index.vectors(row_N) for index in found.indexes])
    # What was added and removed again holds its row by any vector.
    vectors_SND[:, ~vectors_SND.any(axis=(0, 2))] = 1.0
    bags = {f"changed_bag_{name}": ids_VP[row_N] for name, ids_VP in found.bags.items()}
    return {
        "added_raw_id": found.raw_id_V[own_rows:],
        "changed_rows": row_N,
        "changed_vectors": vectors_SND,
        "changed_sparse": found.sparse_VF[row_N],
        "changed_dense": found.dense_VF[row_N],
        "removed_rows": np.array(sorted(found.removed), np.int64),
        **bags,
    }


def _put(values_V: np.ndarray, row_N: np.ndarray, new_N: np.ndarray) -> np.ndarray:
    """A copy with these rows, of which some lie behind the end."""
    more = max(0, int(row_N.max(initial=0)) + 1 - len(values_V))
    grown = np.concatenate([values_V, np.zeros((more, *values_V.shape[1:]), values_V.dtype)])
    grown[row_N] = new_N
    return grown
