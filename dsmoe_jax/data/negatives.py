"""Negative sampling on the device.

Owns the candidates of a training step; `train.num_negatives` says how many, `loss.negatives` how
they are drawn; evaluation ranks the whole corpus instead. Methods that draw items of their own do
so in their files.

Letters: B examples, N negatives per positive, G = 1 + N candidates, S scenarios.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from dsmoe_jax import batch as batch_lib


class Candidates(NamedTuple):
    """A positive and its negatives, and what a loss wants to know of their draw.

    Attributes:
      item_BG: The positive, then the negatives.
      is_other_BN: Whether a negative is another item than the positive; None where all are.
      log_share_BN: Log of the probability with which each was drawn; None where the batch holds no
        shares.
    """

    item_BG: Int[jax.Array, "B G"]
    is_other_BN: Bool[jax.Array, "B N"] | None
    log_share_BN: Float[jax.Array, "B N"] | None


def draw_candidates(
    key: jax.Array, positive_B: Int[jax.Array, "B"], *, num_items: int, num_negatives: int
) -> Int[jax.Array, "B G"]:
    """Each positive followed by negatives, uniform over the corpus without that positive.

    **Paper:** "random negative sampling", nothing more. **Deviation:** uniform over the whole
    corpus with replacement; other positives of the user are not rejected.

    `num_items` counts the padding row 0. With the step's `key` the draw is the same on any number
    of devices.
    """
    shape = (positive_B.shape[0], num_negatives)
    # Uniform over the num_items - 2 other items: skip the positive by shifting what is above it.
    other_BN = jax.random.randint(key, shape, 1, num_items - 1, dtype=jnp.int32)
    negative_BN = other_BN + (other_BN >= positive_B[:, None])
    return jnp.concatenate([positive_B[:, None], negative_BN.astype(positive_B.dtype)], axis=1)


def draw(
    key: jax.Array,
    batch: batch_lib.Batch,
    *,
    num_items: int,
    num_scenarios: int,
    num_negatives: int,
    kind: str = "uniform",
    uniform_share: float = 0.0,
) -> Candidates:
    """The candidates of a batch, by `loss.negatives` and `loss.uniform_share`.

    Of the kinds "popularity" and "scenario" a negative is the positive of a random example of the
    batch, of the same scenario for the latter: items are drawn in proportion to their training
    examples there, without a table of them. It may be the example's own, which `is_other_BN` tells.
    """
    row_key, mix_key = jax.random.split(jax.random.fold_in(key, 1))
    uniform_BG = draw_candidates(
        key, batch.item_B, num_items=num_items, num_negatives=num_negatives
    )
    log_uniform_BN = jnp.full((len(uniform_BG), num_negatives), -jnp.log(num_items - 2.0))
    if kind == "uniform":
        return Candidates(uniform_BG, None, log_uniform_BN)
    scenario_B = batch.scenario_B if kind == "scenario" else jnp.zeros_like(batch.scenario_B)
    row_BN = _draw_rows(row_key, scenario_B, num_scenarios, num_negatives)
    is_uniform_BN = jax.random.bernoulli(mix_key, uniform_share, row_BN.shape)
    negative_BN = jnp.where(is_uniform_BN, uniform_BG[:, 1:], batch.item_B[row_BN])
    items = jnp.concatenate([batch.item_B[:, None], negative_BN], axis=1)
    is_other_BN = negative_BN != batch.item_B[:, None]
    if batch.log_share_B is None:
        return Candidates(items, is_other_BN, None)
    log_share_BN = jnp.where(is_uniform_BN, log_uniform_BN, batch.log_share_B[row_BN])
    return Candidates(items, is_other_BN, log_share_BN)


def _draw_rows(
    key: jax.Array, group_B: Int[jax.Array, "B"], num_groups: int, num_negatives: int
) -> Int[jax.Array, "B N"]:
    """Random rows of the batch, each of its example's group."""
    order_B = jnp.argsort(group_B)
    bound_S = jnp.searchsorted(group_B[order_B], jnp.arange(num_groups + 1))
    start_B, stop_B = bound_S[group_B], bound_S[group_B + 1]
    uniform_BN = jax.random.uniform(key, (len(group_B), num_negatives))
    place_BN = start_B[:, None] + (uniform_BN * (stop_B - start_B)[:, None]).astype(jnp.int32)
    return order_B[jnp.minimum(place_BN, stop_B[:, None] - 1)]
