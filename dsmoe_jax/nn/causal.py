"""Causal history encoders' base class: contract, input, relative biases and norms.

Owns the part around the blocks of `nn/hstu_encoder.py` and `nn/fuxi_encoder.py`: how an encoder is
called, which positions count, how long before the next request an event was, and what the encoder's
first layer reads. Histories are chronological and right-padded, so that with a causal mask no
position ever sees padding.

Letters: B examples, L positions, E the encoder's width, H heads, T time buckets, N the longest
history (`max_len`).
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Shaped, UInt8

from dsmoe_jax.nn import dropout as dropout_lib

# Buckets of ln(seconds) / 0.301, in float32; what int32 seconds can reach stays below 72.
NUM_BUCKETS = 129
BUCKET_WIDTH = 0.301
BIAS_STD = 0.02
KERNEL_STD = 0.02
EPSILON = 1e-6

Aux = dict[str, jax.Array]


class Timeline(NamedTuple):
    """What an encoder knows of histories beside their events; made once per batch.

    Attributes:
      mask_BL: Which positions count: those with an event, and the first of an empty history.
      bucket_BLL: Bucket of the seconds from event j (last axis) to the request after event i.
    """

    mask_BL: Bool[jax.Array, "B L"]
    bucket_BLL: UInt8[jax.Array, "B L L"]


def make_timeline(
    events_BL: Bool[jax.Array, "B L"], time_BL: Int[jax.Array, "B L"], time_B: Int[jax.Array, "B"]
) -> Timeline:
    """Buckets clip(floor(ln(max(|t_(i+1) - t_j|, 1)) / 0.301), 0, 128).

    t_(i+1) is when event i + 1 was asked for; after the last event it is the request's own time.
    Times of 0 (unknown) make differences of decades, which have buckets of their own.

    **Paper:** HSTU and FuXi-alpha, the temporal channel, as in their public code.
    **Deviation:** an empty history counts as one position without an event, which those never have.

    `events_BL` marks the positions that hold an event, the first ones of each row; times are Unix
    seconds, `time_B` that of the request.
    """
    mask_BL = events_BL.at[:, 0].set(True)
    time_BL = jnp.where(events_BL, time_BL, 0)
    next_BL = follow(time_BL, time_B, mask_BL)
    seconds_BLL = jnp.maximum(jnp.abs(next_BL[:, :, None] - time_BL[:, None, :]), 1)
    return Timeline(mask_BL, find_bucket(seconds_BLL))


def find_bucket(seconds: Int[jax.Array, "..."]) -> UInt8[jax.Array, "..."]:
    """The bucket of at least one second."""
    bucket = jnp.log(seconds.astype(jnp.float32)) / BUCKET_WIDTH
    return jnp.clip(bucket, 0, NUM_BUCKETS - 1).astype(jnp.uint8)


def bucket_starts() -> Int[np.ndarray, "T"]:
    """The least seconds of each bucket that int32 reaches, for readers without this logarithm."""
    most = np.iinfo(np.int32).max
    find = jax.jit(find_bucket)
    target_T = np.arange(1, int(find(jnp.int32(most))) + 1)
    below_T, start_T = np.ones(len(target_T), np.int64), np.full(len(target_T), most, np.int64)
    while (start_T - below_T > 1).any():
        middle_T = (below_T + start_T) // 2
        is_reached_T = np.asarray(find(jnp.asarray(middle_T, jnp.int32))) >= target_T
        start_T = np.where(is_reached_T, middle_T, start_T)
        below_T = np.where(is_reached_T, below_T, middle_T)
    return np.concatenate([[1], start_T])


def follow(
    value: Shaped[jax.Array, "B L *rest"],
    last: Shaped[jax.Array, "B *rest"],
    mask_BL: Bool[jax.Array, "B L"],
) -> Shaped[jax.Array, "B L *rest"]:
    """What comes after each position: the next position's value, and `last` after the last one."""
    is_last_BL = mask_BL & ~jnp.pad(mask_BL[:, 1:], ((0, 0), (0, 1)))
    is_last = is_last_BL.reshape(*mask_BL.shape, *(1,) * (value.ndim - 2))
    return jnp.where(is_last, last[:, None], jnp.roll(value, -1, axis=1))


def causal_mask(length: int) -> Float[jax.Array, "L L"]:
    """1 where position i (first axis) may see j: itself and what came before."""
    return jnp.tri(length, dtype=jnp.float32)


def last_position(
    value_BLE: Float[jax.Array, "B L E"], mask_BL: Bool[jax.Array, "B L"]
) -> Float[jax.Array, "B E"]:
    """The value at each row's last position that counts."""
    last_B11 = (mask_BL.sum(axis=1) - 1)[:, None, None]
    return jnp.take_along_axis(value_BLE, last_B11, axis=1)[:, 0]


def layer_norm(x: Float[jax.Array, "*batch E"]) -> Float[jax.Array, "*batch E"]:
    """Mean 0, variance 1; nothing learned."""
    centred = x - x.mean(axis=-1, keepdims=True)
    return rms_norm(centred)


def rms_norm(x: Float[jax.Array, "*batch E"]) -> Float[jax.Array, "*batch E"]:
    """Mean square 1; nothing learned."""
    return x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + EPSILON)


def unit_norm(x: Float[jax.Array, "*batch E"]) -> Float[jax.Array, "*batch E"]:
    """Length 1; 0 stays 0."""
    square = jnp.square(x).sum(axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, EPSILON**2))


class RelativeBias(nn.Module):
    """One learned number per distance of positions and one per time bucket, for all heads."""

    max_len: int  # N

    @nn.compact
    def __call__(
        self, timeline: Timeline
    ) -> tuple[Float[jax.Array, "L L"], Float[jax.Array, "B L L"]]:
        """w_pos[N - 1 + (j - i)] and w_time[bucket]; nothing is masked."""
        normal = nn.initializers.normal(BIAS_STD)
        position_W = self.param("position", normal, (2 * self.max_len - 1,), jnp.float32)
        time_T = self.param("time", normal, (NUM_BUCKETS,), jnp.float32)
        place_L = jnp.arange(timeline.mask_BL.shape[1])
        distance_LL = place_L[None, :] - place_L[:, None]
        return position_W[self.max_len - 1 + distance_LL], time_T[timeline.bucket_BLL]


class Input(nn.Module):
    """x0 = sqrt(E) event + position, dropped out; 0 where no position counts."""

    dim: int  # E
    max_len: int  # N
    dropout: float  # Rate

    @nn.compact
    def __call__(
        self,
        event_BLE: Float[jax.Array, "B L E"],
        mask_BL: Bool[jax.Array, "B L"],
        offset_BLE: Float[jax.Array, "B #L E"] | None = None,
        *,
        train: bool,
    ) -> Float[jax.Array, "B L E"]:
        """The encoder's input; `offset_BLE` is added before dropout.

        Raises:
          ValueError: When there are more positions than `max_len`.
        """
        L = event_BLE.shape[1]
        if self.max_len < L:
            raise ValueError(f"history: expected at most {self.max_len} positions, got {L}")
        init = nn.initializers.truncated_normal(self.dim**-0.5)
        position_NE = self.param("position", init, (self.max_len, self.dim), jnp.float32)
        input_BLE = event_BLE * self.dim**0.5 + position_NE[None, :L]
        if offset_BLE is not None:
            input_BLE = input_BLE + offset_BLE
        input_BLE = dropout_lib.Dropout(self.dropout)(input_BLE, train=train)
        return jnp.where(mask_BL[..., None], input_BLE, 0)


class Encoder(nn.Module):
    """What every encoder is: a stack of blocks on events and their positions."""

    dim: int  # E, which H divides
    num_blocks: int = 2  # Blocks
    num_heads: int = 1  # H
    max_len: int = 50  # N
    dropout: float = 0.0  # Rate in the blocks
    input_dropout: float = 0.0  # Rate on the first block's input

    def __call__(
        self,
        event_BLE: Float[jax.Array, "B L E"],
        timeline: Timeline,
        offset_BLE: Float[jax.Array, "B #L E"] | None = None,
        *,
        train: bool,
    ) -> tuple[Float[jax.Array, "B L E"], Aux]:
        """One vector per position, which sees that position and what came before.

        Events are 0 at padding; `offset_BLE` is added to the first block's input. Also returns
        unweighted auxiliary losses by name.
        """
        raise NotImplementedError(f"{type(self).__name__} encodes nothing")
