"""Negative sampling on the device.

Owns the candidates of a training step; `train.num_negatives` says how many, evaluation ranks the
whole corpus instead. Methods that draw items of their own do so in their files.

Letters: B examples, N negatives per positive, G = 1 + N candidates.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Int


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
