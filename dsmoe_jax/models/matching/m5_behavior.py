"""Interests from groups of a user's behaviour: a transformer block, calibrated pooling, masking.

Owns the reading of one modality ("channel") of the histories, and the masked-item loss that trains
it. Does not own how events are embedded.

Letters: N histories (of users and groups), L history length, E event width, W the block's width,
H attention heads, X negatives.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from dsmoe_jax.nn import attention, tables


class Block(nn.Module):
    """A pre-norm transformer block: h + Attention(LN(h)), then h + FFN(LN(h)) with GELU."""

    width: int  # W, which the heads divide
    num_heads: int  # H
    expansion: int = 2  # Width of the FFN's hidden layer, in W

    def setup(self) -> None:
        self.attention_norm, self.ffn_norm = nn.LayerNorm(), nn.LayerNorm()
        self.query_key_value = nn.Dense(3 * self.width)
        self.output = nn.Dense(self.width)
        self.ffn_up, self.ffn_down = nn.Dense(self.expansion * self.width), nn.Dense(self.width)

    def __call__(
        self, hidden_NLW: Float[jax.Array, "N L W"], mask_NL: Bool[jax.Array, "N L"]
    ) -> Float[jax.Array, "N L W"]:
        """Every position reads all positions in the mask; what those outside hold is no matter."""
        joint = self.query_key_value(self.attention_norm(hidden_NLW))
        query, key, value = (
            part.reshape(*part.shape[:2], self.num_heads, -1)
            for part in jnp.split(joint, 3, axis=-1)
        )
        logit_NHLL = jnp.einsum("nlhz,nmhz->nhlm", query, key) * query.shape[-1] ** -0.5
        low = jnp.finfo(logit_NHLL.dtype).min
        weight_NHLL = nn.softmax(jnp.where(mask_NL[:, None, None], logit_NHLL, low))
        read = jnp.einsum("nhlm,nmhz->nlhz", weight_NHLL, value)
        hidden_NLW = hidden_NLW + self.output(read.reshape(hidden_NLW.shape))
        return hidden_NLW + self.ffn_down(nn.gelu(self.ffn_up(self.ffn_norm(hidden_NLW))))


class Interests(nn.Module):
    """One interest vector per history: sum_t w_t h_t, w = softmax_t(v tanh(h_t W + b)).

    h is a transformer block over projected tokens e_t + position_t, of which the most recent event
    has position 0. The parameters are shared by all histories. In training masked events are
    replaced by a learned token, and predicted from what surrounds them.
    """

    event_dim: int  # E
    width: int  # W
    num_heads: int  # H
    max_len: int  # L

    def setup(self) -> None:
        init = nn.initializers.truncated_normal(tables.TABLE_STD)
        shape_LE = (self.max_len, self.event_dim)
        self.position_LE = self.param("position", init, shape_LE, jnp.float32)
        self.masked_E = self.param("masked_event", init, (self.event_dim,), jnp.float32)
        self.project = nn.Dense(self.width)
        self.block = Block(self.width, self.num_heads)
        self.calibrate = nn.Dense(self.width)
        # A bias would cancel in the softmax.
        self.intensity = nn.Dense(1, use_bias=False)
        self.predict = nn.Dense(self.event_dim)

    def __call__(
        self,
        event_NLE: Float[jax.Array, "N L E"],
        mask_NL: Bool[jax.Array, "N L"],
        masked_NL: Bool[jax.Array, "N L"],
    ) -> tuple[Float[jax.Array, "N W"], Float[jax.Array, "N L E"]]:
        """Interests, 0 where the history is empty, and what event each position predicts.

        The most recent event comes first; those in `masked_NL` are hidden. A prediction should have
        the largest inner product with the event that is there.
        """
        token_NLE = jnp.where(masked_NL[..., None], self.masked_E[None, None], event_NLE)
        hidden_NLW = self.block(self.project(token_NLE + self.position_LE[None]), mask_NL)
        logit_NL1 = self.intensity(jnp.tanh(self.calibrate(hidden_NLW)))
        weight_NL1 = attention.masked_softmax(logit_NL1, mask_NL[..., None])
        return (weight_NL1 * hidden_NLW).sum(axis=1), self.predict(hidden_NLW)


def masked_item_loss(
    predicted_NLE: Float[jax.Array, "N L E"],
    event_NLE: Float[jax.Array, "N L E"],
    item_NL: Int[jax.Array, "N L"],
    negative_XE: Float[jax.Array, "X E"],
    negative_X: Int[jax.Array, "X"],
    masked_NL: Bool[jax.Array, "N L"],
) -> Float[jax.Array, ""]:
    """Sampled softmax of the hidden items, its mean over the masked positions; 0 without any.

    All positions share the uniform negatives; one that is a position's own item does not count
    there.
    """
    own_NL = (predicted_NLE * event_NLE).sum(axis=-1)
    logit_NLX = predicted_NLE @ negative_XE.T
    hits_NLX = item_NL[..., None] == negative_X[None, None]
    logit_NLX = jnp.where(hits_NLX, jnp.finfo(logit_NLX.dtype).min, logit_NLX)
    loss_NL = jnp.logaddexp(own_NL, jax.nn.logsumexp(logit_NLX, axis=-1)) - own_NL
    return jnp.where(masked_NL, loss_NL, 0).sum() / jnp.maximum(masked_NL.sum(), 1)
