"""Interests of a history by dynamic routing between capsules, as in MIND.

Owns the routing of events to interests and the number of interests that a history supports.

Letters: B examples, L history length, M interests, E event width.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from dsmoe_jax.nn import dropout, embed

# Of the logits that routing starts from: a constant of the method, not of a run.
_NOISE_SEED = (0x6D696E64, 0x63617073)
_TINY = 1e-9


def squash(z: Float[jax.Array, "... E"]) -> Float[jax.Array, "... E"]:
    """|z|^2 / (1 + |z|^2) z / |z|: the direction stays, the length falls into [0, 1)."""
    square = jnp.square(z).sum(axis=-1, keepdims=True)
    # At 0, where the length has no derivative, the constant leaves 0 and a gradient of 0.
    return z * (square / (1 + square) * jax.lax.rsqrt(square + _TINY))


def active_interests(length_B: Int[jax.Array, "B"], num_interests: int) -> Bool[jax.Array, "B M"]:
    """Which interests a history of so many events supports: the first clip(log2(1 + n), 1, M).

    Rounded down, and without a logarithm, which would miss whole powers of 2.
    """
    # The first interest needs no event.
    needed_M = np.exp2(np.arange(1, num_interests + 1)) * (np.arange(num_interests) > 0)
    length_B1 = length_B[:, None].astype(jnp.float32)
    return 1 + length_B1 >= needed_M[None].astype(np.float32)


def routing_noise(max_len: int, num_interests: int) -> Float[jax.Array, "L M"]:
    """Standard normal logits of every position and interest, the same in every call.

    A position's values do not depend on the number of positions. They are hashed, not drawn: a
    trained model means these values, whatever later versions of libraries draw.
    """
    seed = jnp.asarray(_NOISE_SEED, jnp.uint32)
    bits_LM = dropout.hash_positions(seed, (max_len, num_interests))
    # The upper 23 bits and a half, which float32 holds exactly, so that neither end is reached.
    uniform_LM = ((bits_LM >> 9).astype(jnp.float32) + 0.5) * 2.0**-23
    return jax.scipy.special.ndtri(uniform_LM)


class DynamicRouting(nn.Module):
    """Interests c_m = squash(sum_l w_lm h_l S), w the softmax of routing logits over interests.

    The logits start from fixed noise, without which all interests would be one, and grow with the
    agreement c_m . h_l S in every iteration but the last. They are not learned, and no gradient
    passes through the weights: S and the events learn from the last sum alone.

    **Paper:** Li et al., "Multi-Interest Network with Dynamic Routing for Recommendation at Tmall",
    section "Multi-interest extractor layer": shared bilinear map, random initial logits, number of
    interests by the history's length.
    **Deviation:** log2(1 + n) interests where the paper has log2(n), so that an empty history has
    its one interest; the noise belongs to the position and is never drawn anew, so that a user's
    vectors are a function of the user.
    """

    event_dim: int  # E, of events and interests alike
    num_interests: int  # M
    iterations: int  # Of the routing, at least 1

    def setup(self) -> None:
        shape_EE = (self.event_dim, self.event_dim)
        # Not scaled down by the width: agreement is of second order in events that start small.
        init = nn.initializers.normal(1.0)
        self.bilinear_EE = self.param("bilinear", init, shape_EE, jnp.float32)

    def weights(self, events: embed.Events) -> Float[jax.Array, "B L M"]:
        """Share of every event in every interest in the last iteration.

        Sums to 1 over the interests that the history supports; 0 at padding.
        """
        mapped_BLE = jax.lax.stop_gradient(events.event_BLE @ self.bilinear_EE)
        return self._route(mapped_BLE, events.mask_BL)

    def __call__(
        self, events: embed.Events
    ) -> tuple[Float[jax.Array, "B M E"], Bool[jax.Array, "B M"]]:
        """Interests, 0 where the history supports fewer, and which ones it supports."""
        mapped_BLE = events.event_BLE @ self.bilinear_EE
        weight_BLM = self._route(jax.lax.stop_gradient(mapped_BLE), events.mask_BL)
        return _gather(weight_BLM, mapped_BLE), self._active(events.mask_BL)

    def _active(self, mask_BL: Bool[jax.Array, "B L"]) -> Bool[jax.Array, "B M"]:
        return active_interests(mask_BL.sum(axis=1), self.num_interests)

    def _route(
        self, mapped_BLE: Float[jax.Array, "B L E"], mask_BL: Bool[jax.Array, "B L"]
    ) -> Float[jax.Array, "B L M"]:
        noise_LM = routing_noise(mapped_BLE.shape[1], self.num_interests)
        logit_BLM = jnp.where(self._active(mask_BL)[:, None], noise_LM[None], -jnp.inf)
        mask_BL1 = mask_BL[..., None].astype(jnp.float32)
        for _ in range(self.iterations - 1):
            interest_BME = _gather(nn.softmax(logit_BLM) * mask_BL1, mapped_BLE)
            logit_BLM = logit_BLM + jnp.einsum("bme,ble->blm", interest_BME, mapped_BLE)
        return nn.softmax(logit_BLM) * mask_BL1


def _gather(
    weight_BLM: Float[jax.Array, "B L M"], mapped_BLE: Float[jax.Array, "B L E"]
) -> Float[jax.Array, "B M E"]:
    return squash(jnp.einsum("blm,ble->bme", weight_BLM, mapped_BLE))
