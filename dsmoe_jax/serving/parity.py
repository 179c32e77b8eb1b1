"""Parity: whether lists that something else made of a bundle are its exact lists.

Owns the probe users and the comparison. Two items whose scores differ by rounding may change
places, since no two libraries sum in the same order; anything else is a difference.

Letters: Q probe users, M interests, D a vector, T retrieved list length, V rows of the catalogue,
X items.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from dsmoe_jax.retrieval import host
from dsmoe_jax.serving import onnx_feeds, requests, retriever

NUM_USERS = 64
_SEED = 0
# Of the product of both norms, by which a score is rounded at most.
_TOLERANCE = 1e-5


class Probes(NamedTuple):
    """Known users in one scenario, and their exact lists.

    Attributes:
      scenario: Its name.
      user_ids: Raw ids.
      vector_QMD: Their vectors.
      score_QT: Scores of the exact lists, best first; -inf where fewer items are left.
      item_QT: Their rows, 0 there.
    """

    scenario: str
    user_ids: list[Any]
    vector_QMD: Float[np.ndarray, "Q M D"]
    score_QT: np.ndarray
    item_QT: np.ndarray


class Overlap(NamedTuple):
    """How lists compare with the exact ones of the same queries.

    Attributes:
      scenario: Its name.
      share: Of the exact lists' items, those that were found.
      gap: Largest difference between the exact score of an item found and that of the exact list's
        item at its rank, by the product of the norms; infinite where an item is missing, unknown or
        repeated.
    """

    scenario: str
    share: float
    gap: float

    @property
    def is_exact(self) -> bool:
        """Whether rounding explains all that differs."""
        return self.gap <= _TOLERANCE

    def line(self, k: int) -> str:
        """One line for people."""
        same = "equal" if self.is_exact else "DIFFERENT"
        return f"  {self.scenario:<12} overlap@{k} {100 * self.share:6.2f} %  {same}"


def choose_users(known: Sequence[Any], count: int = NUM_USERS) -> list[Any]:
    """Some of the known users, the same ones every time.

    Raises:
      ValueError: When there are none.
    """
    if not len(known):
        raise ValueError("probe users: expected users that the bundle knows, got none")
    chosen = np.random.default_rng(_SEED).permutation(len(known))[:count]
    return [known[n] for n in np.sort(chosen).tolist()]


def probe(
    served: retriever.Retriever, users: Sequence[Any], scenario: str, k: int, *, removes: bool
) -> Probes:
    """Known users in a scenario with their exact lists.

    Args:
      served: The bundle.
      users: Raw ids.
      scenario: Its name.
      k: Length of a list.
      removes: Whether lists leave out what they do in evaluation.
    """
    bundle = served.bundle
    s = served.scenarios.index(scenario)
    encoded = served.encoder.encode({requests.USER: list(users)})
    row_Q, scenario_Q = np.arange(len(users)), np.full(len(users), s, np.int32)
    vector_QMD = served.user_tower(encoded.read(row_Q, scenario_Q), scenario_Q)
    removed = None
    if removes:
        removed = onnx_feeds.list_removed(encoded, bundle.manifest["remove_seen"])
    found = served.catalogue
    live_V = np.zeros(found.num_rows, bool)
    live_V[found.live_rows()] = True
    index = host.HostIndex(found.index(s).vectors(np.arange(found.num_rows)))
    score_QT, item_QT = index.search(vector_QMD, k, allowed_V=live_V, removed=removed)
    return Probes(scenario, list(users), vector_QMD, score_QT, item_QT)


def compare(served: retriever.Retriever, probes: Probes, found: Sequence[Sequence[Any]]) -> Overlap:
    """Compares lists of raw item ids, best first, with the probes' exact lists."""
    items = served.catalogue
    index = items.index(served.scenarios.index(probes.scenario))
    norm_X = np.linalg.norm(index.vectors(items.live_rows()), axis=1)
    shared, wanted, gap = 0, 0, 0.0
    for q, raw in enumerate(found):
        is_item_T = probes.item_QT[q] > 0
        exact_T, score_T = probes.item_QT[q][is_item_T], probes.score_QT[q][is_item_T]
        item_T = items.rows(list(raw), "items")
        shared, wanted = shared + len(np.intersect1d(exact_T, item_T)), wanted + len(exact_T)
        is_list = len(item_T) == len(exact_T) and item_T.all()
        if not is_list or len(np.unique(item_T)) < len(item_T):
            gap = np.inf
            continue
        got_T = host.score_rows(probes.vector_QMD[q], index.vectors(item_T))
        norm = float(np.linalg.norm(probes.vector_QMD[q], axis=1).max() * norm_X.max())
        gap = max(gap, float(np.abs(got_T - score_T).max(initial=0.0)) / max(norm, 1e-30))
    return Overlap(probes.scenario, shared / max(wanted, 1), gap)
