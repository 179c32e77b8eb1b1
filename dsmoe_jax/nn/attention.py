"""Attention of a candidate over a user's history, as in the Deep Interest Network (DIN).

Owns the attention unit and the masked softmax over positions.

Letters: B examples, G candidates (1 where all examples share them), L history length, E event
width, A hidden width of the unit.
"""

import itertools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from dsmoe_jax.nn import embed

PRELU_SLOPE = 0.25


class EncodedHistory(NamedTuple):
    """What the unit needs of a history, computed once per user."""

    events: embed.Events  # The embedded events
    hidden_BLA: Float[jax.Array, "B L A"]  # The history's part of the unit's first layer


class DINAttention(nn.Module):
    """r = sum_j softmax_j(MLP([q; h_j; q - h_j; q * h_j])) h_j over the events of a history.

    The first layer is split into q (Wq + Wd) + h (Wh - Wd) + (q * h) Wp, and the last product is
    taken as h (diag(q) Wp), so that no array [B, G, L, 4E] is ever built.

    **Paper:** Zhou et al., "Deep Interest Network for Click-Through Rate Prediction", section 4.3,
    with candidate, event, difference and product as the unit's input.
    **Deviation:** the weights are normalised by a softmax, which the original leaves out; PReLU in
    place of Dice.
    """

    event_dim: int  # E
    hidden: tuple[int, ...]  # Widths A of the unit's hidden layers

    def setup(self) -> None:
        lecun, zeros = nn.initializers.lecun_normal(), nn.initializers.zeros_init()
        widths = (4 * self.event_dim, *self.hidden, 1)
        self.kernels = [
            self.param(f"kernel_{n}", lecun, shape, jnp.float32)
            for n, shape in enumerate(itertools.pairwise(widths))
        ]
        # The last layer's bias would cancel in the softmax.
        self.biases = [
            self.param(f"bias_{n}", zeros, (width,), jnp.float32)
            for n, width in enumerate(self.hidden)
        ]
        slope = nn.initializers.constant(PRELU_SLOPE)
        self.slopes = self.param("prelu_slope", slope, (len(self.hidden),), jnp.float32)

    def encode(self, events: embed.Events) -> EncodedHistory:
        """The part that does not depend on the candidate."""
        _, of_event, of_difference, _ = jnp.split(self.kernels[0], 4)
        hidden_BLA = events.event_BLE @ (of_event - of_difference) + self.biases[0][None, None]
        return EncodedHistory(events, hidden_BLA)

    def __call__(
        self, encoded: EncodedHistory, candidate_BGE: Float[jax.Array, "_ G E"]
    ) -> Float[jax.Array, "B G E"]:
        """The attended history of every candidate, [1, G, E] where users share them; 0 if empty."""
        of_candidate, _, of_difference, of_product = jnp.split(self.kernels[0], 4)
        event_BLE, mask_BL = encoded.events
        query_BGA = candidate_BGE @ (of_candidate + of_difference)
        weight_BEGA = candidate_BGE.swapaxes(1, 2)[..., None] * of_product[None, :, None]
        if candidate_BGE.shape[0] == 1:
            product_BLGA = jnp.einsum("ble,ega->blga", event_BLE, weight_BEGA[0])
        else:
            product_BLGA = jnp.einsum("ble,bega->blga", event_BLE, weight_BEGA)
        hidden = product_BLGA + query_BGA[:, None] + encoded.hidden_BLA[:, :, None]
        for n in range(len(self.hidden)):
            if n:
                hidden = hidden @ self.kernels[n] + self.biases[n][None, None, None]
            hidden = jnp.where(hidden >= 0, hidden, self.slopes[n] * hidden)
        logit_BLG = (hidden @ self.kernels[-1])[..., 0]
        weight_BLG = masked_softmax(logit_BLG, mask_BL[:, :, None])
        return jnp.einsum("blg,ble->bge", weight_BLG, event_BLE)


def masked_softmax(
    logit_BLG: Float[jax.Array, "B L G"], mask_BL1: jax.Array
) -> Float[jax.Array, "B L G"]:
    """Softmax over L within the mask; all 0 where nothing is in it."""
    low = jnp.finfo(logit_BLG.dtype).min
    weight_BLG = nn.softmax(jnp.where(mask_BL1, logit_BLG, low), axis=1)
    return jnp.where(mask_BL1, weight_BLG, 0)
