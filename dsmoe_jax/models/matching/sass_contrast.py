"""Contrastive losses between two views of the same entities.

Owns the loss over a batch of pairs. Does not own what the views are.

Letters: B pairs, D a view's width.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

# Below this squared length a view has no direction: its cosine with anything is near 0.
SMALLEST_SQUARE = 1e-12


def info_nce(
    first_BD: Float[jax.Array, "B D"],
    second_BD: Float[jax.Array, "B D"],
    paired_B: Bool[jax.Array, "B"],
    same_BB: Bool[jax.Array, "B B"],
    temperature: float,
) -> Float[jax.Array, "B"]:
    """Symmetrised InfoNCE with the other pairs of the batch as negatives, one value per pair.

    -1/2 [log softmax_j(cos(a_i, b_j) / tau) + log softmax_j(cos(b_i, a_j) / tau)] at j = i, over
    pair i and the pairs j of other entities. 0 where there is no pair.

    Args:
      first_BD: a, of any length.
      second_BD: b, the other view of the same row's entity.
      paired_B: Which rows are pairs; others are neither trained on nor anybody's negative.
      same_BB: Which rows hold the same entity; they are not each other's negatives. Symmetric.
      temperature: tau > 0.
    """
    logit_BB = _unit(first_BD) @ _unit(second_BD).T / temperature
    compared_BB = paired_B[None] & (~same_BB | jnp.eye(len(paired_B), dtype=bool))
    low = jnp.finfo(logit_BB.dtype).min
    first_B = jax.nn.logsumexp(jnp.where(compared_BB, logit_BB, low), axis=1)
    second_B = jax.nn.logsumexp(jnp.where(compared_BB, logit_BB.T, low), axis=1)
    return jnp.where(paired_B, (first_B + second_B) / 2 - jnp.diagonal(logit_BB), 0)


def _unit(x: Float[jax.Array, "B D"]) -> Float[jax.Array, "B D"]:
    square_B1 = jnp.square(x).sum(axis=1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square_B1, SMALLEST_SQUARE))
