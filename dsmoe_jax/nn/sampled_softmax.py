"""Sampled softmax over a positive and negatives, at every position of a sequence or of an example.

Letters: B examples, L positions, N negatives of an example, X logits, D width.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

# A logit this low takes no part in the softmax.
MASKED_LOGIT = -5e4


def sampled_softmax(
    query_BLD: Float[jax.Array, "B L D"],
    positive_BLD: Float[jax.Array, "B L D"],
    negative_BND: Float[jax.Array, "B N D"],
    positive_id_BL: Int[jax.Array, "B L"],
    negative_id_BN: Int[jax.Array, "B N"],
) -> Float[jax.Array, "B L"]:
    """-log of the positive's softmax among itself and the example's negatives.

    An example's negatives serve all of its positions; where one is the position's own positive, it
    takes no part there.

    **Paper:** sampled softmax as in the public code of HSTU and FuXi-alpha.
    **Deviation:** their negatives are drawn for every position: L times the memory.
    """
    positive_BL = (query_BLD * positive_BLD).sum(axis=-1)
    negative_BLN = jnp.einsum("bld,bnd->bln", query_BLD, negative_BND)
    collides_BLN = positive_id_BL[:, :, None] == negative_id_BN[:, None, :]
    negative_BLN = jnp.where(collides_BLN, MASKED_LOGIT, negative_BLN)
    return _cross_entropy(positive_BL, negative_BLN)


def first_among(logit_BX: Float[jax.Array, "B X"]) -> Float[jax.Array, "B 1"]:
    """-log of the first logit's softmax among all of a row; logits of -inf take no part."""
    return _cross_entropy(logit_BX[:, 0], logit_BX[:, 1:])[:, None]


def _cross_entropy(positive: jax.Array, others: jax.Array) -> jax.Array:
    # -log sigmoid(positive - logsumexp(others)).
    return jax.nn.softplus(jax.nn.logsumexp(others, axis=-1) - positive)
