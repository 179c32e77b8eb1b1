"""Batches: the arrays between data, models and evaluation, and the letters of their axes.

    B  examples in a batch            N  sampled negatives per positive
    S  scenarios                      G  candidates per example, 1 + N
    K  experts                        V  rows of the item corpus (row 0 is padding)
    R  SAP rank                       U  rows of the user table (row 0 is unknown)
    D  tower output                   Q  evaluation queries (user, scenario)
    E  one field's embedding          T  retrieved list length
    C  scenario embedding             P  ids in a padded bag
    F  feature fields                 L  history length
    I, O  a layer's input and output  M, H  interests; attention heads

An array's name ends in `_` and its letters, in order. Scalars have no suffix.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

# Batches are assembled on the host (NumPy) and consumed on devices (JAX), often by one function, so
# that a type checker is told neither.
if TYPE_CHECKING:
    Array = Any
else:
    Array = jax.Array | np.ndarray


class Sequence(NamedTuple):
    """The most recent events of one kind, in chronological order, right-padded.

    Attributes:
      ids_BLF: int32, one id per item field of the `features.SequenceFeature`; 0 at padding (the
        first field is never 0 at a real event).
      time_BL: int32 unix seconds; 0 where unknown and at padding.
    """

    ids_BLF: Int[Array, "... L F"]
    time_BL: Int[Array, "... L"]


class Users(NamedTuple):
    """The user side of examples or queries.

    Attributes:
      sparse_BF: int32, columns as `FeatureSpec.user_sparse`.
      dense_BF: float32, columns as `FeatureSpec.user_dense`.
      bags: int32 [B, P] by the name of the bag feature.
      sequences: By the name of the sequence feature.
      time_B: int32 unix seconds of the request; at evaluation the start of the split, or of what
        is held out.
    """

    sparse_BF: Int[Array, "... F"]
    dense_BF: Float[Array, "... F"]
    bags: dict[str, Int[Array, "... P"]]
    sequences: dict[str, Sequence]
    time_B: Int[Array, "..."]


class Items(NamedTuple):
    """Items, either the whole corpus (leading axis V, row = item id) or gathered candidates.

    Attributes:
      sparse_VF: int32, columns as `FeatureSpec.item_sparse`; column 0 is the item id.
      dense_VF: float32, columns as `FeatureSpec.item_dense`.
      bags: int32 [V, P] by the name of the bag feature.
    """

    sparse_VF: Int[Array, "... F"]
    dense_VF: Float[Array, "... F"]
    bags: dict[str, Int[Array, "... P"]]


class Batch(NamedTuple):
    """Training examples: a user in a scenario and the item that was clicked.

    Attributes:
      users: The user side, whose histories hold only what came before the example.
      scenario_B: int32 in [0, S).
      item_B: int32 in [1, V), the positive.
      log_share_B: float32, log of the share of the training examples, or of those in the same
        scenario, that have this item; None where nobody asks for it.
    """

    users: Users
    scenario_B: Int[Array, "B"]
    item_B: Int[Array, "B"]
    log_share_B: Float[Array, "B"] | None = None


class Queries(NamedTuple):
    """Evaluation queries: a user in a scenario, padded to a fixed batch.

    Attributes:
      users: The user side, whose histories end where the split begins.
      scenario_Q: int32 in [0, S).
      query_Q: int32 row of the split's query table; -1 marks a padding row.
    """

    users: Users
    scenario_Q: Int[Array, "Q"]
    query_Q: Int[Array, "Q"]


def split_items(items: Items, count: int) -> tuple[Items, Items]:
    """The first `count` candidates [B, count] of every example, and the others."""
    first = jax.tree.map(lambda leaf: leaf[:, :count], items)
    return first, jax.tree.map(lambda leaf: leaf[:, count:], items)


def take_items(corpus: Items, ids: Int[Array, "..."]) -> Items:
    """Gathers rows of the corpus; the result has the leading shape of `ids`."""
    return Items(
        sparse_VF=corpus.sparse_VF[ids],
        dense_VF=corpus.dense_VF[ids],
        bags={name: bag[ids] for name, bag in corpus.bags.items()},
    )
