"""Encoded histories: what a causal encoder makes of a user's events, in NumPy alone.

Owns the arithmetic of `nn/hstu_encoder.py` and `nn/fuxi_encoder.py` with one head, as a bundle
stores them: the parameters by their paths, `history_<path>.npy`, and the manifest's form. Of the
last block only a history's last position is computed, and nothing of the padding behind the longest
history of a batch, which causal encoders never see.

**Paper:** see the encoders.

Letters: B users, L positions, R positions that are computed, F fields of an event, E the encoder's
width or that of one of its sub-spaces, K experts, I their hidden width, X seconds.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from dsmoe_jax import batch as batch_lib
from dsmoe_jax.serving import bundle as bundle_lib

# Of the norms, as in `nn/causal.py`.
_EPSILON = np.float32(1e-6)

# Of the names of its arrays in a bundle.
PREFIX = "history_"

Array = np.ndarray


class Encoder:
    """A history encoder of arrays."""

    def __init__(self, bundle: bundle_lib.Bundle, form: Mapping[str, Any]):
        """Takes what a bundle holds.

        Args:
          bundle: Holds the parameters, and `history_bucket_starts`: the least seconds of each time
            bucket.
          form: `kind` ("hstu", "fuxi" or "fuxi_mme"), names of the `parameters` and of the `tables`
            of an event's fields, `num_blocks`, `max_len`, and of FuXi `num_subspaces` and
            `experts_per_token`.
        """
        self._form = form
        self._arrays = {name.removeprefix(PREFIX): bundle.load(name) for name in form["parameters"]}
        self._tables = [bundle.load(name) for name in form["tables"]]
        self._subspaces: int = form.get("num_subspaces", 1)
        block = _run_hstu if form["kind"] == "hstu" else _run_fuxi
        self._blocks = [block] * form["num_blocks"]

    def __call__(
        self, sequence: batch_lib.Sequence, time_B: Int[np.ndarray, "B"]
    ) -> Float[np.ndarray, "B E"]:
        """One vector per user; `time_B` is when each asks, in Unix seconds."""
        arrays, M = self._arrays, self._subspaces
        count_B = np.maximum((sequence.ids_BLF[..., 0] > 0).sum(axis=1), 1)
        L = int(count_B.max())
        ids_BLF, time_BL = sequence.ids_BLF[:, :L], sequence.time_BL[:, :L]
        bucket_BLL = self._bucket(ids_BLF[..., 0] > 0, time_BL, time_B, count_B)
        fields = [table[ids_BLF[..., n]] for n, table in enumerate(self._tables)]
        event_BLE = np.concatenate(fields, axis=-1)
        B, _, width = event_BLE.shape
        # Sub-spaces as more users.
        x_BLE = event_BLE.reshape(B, L, M, -1).swapaxes(1, 2).reshape(B * M, L, -1)
        E = x_BLE.shape[-1]
        count_B, bucket_BLL = np.repeat(count_B, M), np.repeat(bucket_BLL, M, axis=0)
        x_BLE = x_BLE * np.float32(E**0.5) + arrays["input_position"][:L]
        x_BLE[np.arange(L) >= count_B[:, None]] = 0
        row_BR = np.broadcast_to(np.arange(L), (len(x_BLE), L))
        for n, block in enumerate(self._blocks):
            if n == len(self._blocks) - 1:
                row_BR = count_B[:, None] - 1
            own = _below(arrays, f"block_{n}_")
            x_BLE = block(own, self._form, x_BLE, row_BR, bucket_BLL)
        return np.asarray(x_BLE.reshape(B, width) / np.float32(width**0.5))

    def _bucket(self, events_BL: Array, time_BL: Array, time_B: Array, count_B: Array) -> Array:
        """See `causal.make_timeline`."""
        time_BL = np.where(events_BL, time_BL, 0).astype(np.int64)
        next_BL = np.concatenate([time_BL[:, 1:], time_BL[:, :1]], axis=1)
        next_BL[np.arange(len(count_B)), count_B - 1] = time_B
        seconds_BLL = np.maximum(np.abs(next_BL[:, :, None] - time_BL[:, None, :]), 1)
        starts_X = self._arrays["bucket_starts"]
        return np.asarray(np.searchsorted(starts_X, seconds_BLL, side="right") - 1)


def count_operations(form: Mapping[str, Any], arrays: Mapping[str, Array]) -> float:
    """Operations of the products for one query with the longest history.

    `arrays` are a bundle's, by their names in it.
    """
    L, E = form["max_len"], arrays[f"{PREFIX}input_position"].shape[1]
    total = 0.0
    for n in range(form["num_blocks"]):
        R = 1 if n == form["num_blocks"] - 1 else L
        if form["kind"] == "hstu":
            # u, q and the output of R positions; v and k of all; both products of attention.
            total += 2.0 * E * (3 * R * E + 2 * L * E + 2 * R * L)
        else:
            K, _, hidden = arrays[f"{PREFIX}block_{n}_ffn_first"].shape
            router = K if K > 1 else 0
            # u is three times as wide, and so are the channels that attention mixes.
            total += 2.0 * E * (7 * R * E + 2 * L * E + 4 * R * L)
            total += 2.0 * E * R * (3 * K * hidden + router)
    return total * float(form.get("num_subspaces", 1))


def _below(arrays: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    """The arrays of a path, by what follows it."""
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }


def _run_hstu(
    own: Mapping[str, Array],
    form: Mapping[str, Any],
    x_BLE: Array,
    row_BR: Array,
    bucket_BLL: Array,
) -> Array:
    """See `hstu_encoder.Block`, of the positions `row_BR`."""
    gate_EE, value_EE, query_EE, key_EE = np.split(own["uvqk"], 4, axis=1)
    normed_BLE = _layer_norm(x_BLE)
    value_BLE, key_BLE = _silu(normed_BLE @ value_EE), _silu(normed_BLE @ key_EE)
    normed_BRE = _take(normed_BLE, row_BR)
    position_BRL, time_BRL, mask_BRL = _bias(own, form, row_BR, bucket_BLL)
    logit_BRL = _silu(normed_BRE @ query_EE) @ key_BLE.swapaxes(1, 2)
    weight_BRL = _silu(logit_BRL + position_BRL + time_BRL) * mask_BRL
    mixed_BRE = (weight_BRL / np.float32(form["max_len"])) @ value_BLE
    mixed_BRE = _silu(normed_BRE @ gate_EE) * _layer_norm(mixed_BRE)
    changed_BRE = mixed_BRE @ own["output_kernel"] + own["output_bias"]
    return np.asarray(_take(x_BLE, row_BR) + changed_BRE)


def _run_fuxi(
    own: Mapping[str, Array],
    form: Mapping[str, Any],
    x_BLE: Array,
    row_BR: Array,
    bucket_BLL: Array,
) -> Array:
    """See `fuxi_encoder.Block`, of the positions `row_BR`; projections have one expert."""
    E = x_BLE.shape[-1]
    gate, value_EE, query_EE, key_EE = np.split(
        own["uvqk_kernel"][0], (3 * E, 4 * E, 5 * E), axis=1
    )
    normed_BLE = _rms_norm(x_BLE)
    value_BLE, key_BLE = _silu(normed_BLE @ value_EE), _silu(normed_BLE @ key_EE)
    normed_BRE = _take(normed_BLE, row_BR)
    position_BRL, time_BRL, mask_BRL = _bias(own, form, row_BR, bucket_BLL)
    weight_BRL = _silu(_silu(normed_BRE @ query_EE) @ key_BLE.swapaxes(1, 2))
    weight_BRL = weight_BRL * (mask_BRL / np.float32(form["max_len"]))
    channels = (position_BRL * mask_BRL, time_BRL * mask_BRL, weight_BRL)
    mixed = np.concatenate([channel_BRL @ value_BLE for channel_BRL in channels], axis=-1)
    mixed = _silu(normed_BRE @ gate) * _rms_norm(mixed)
    y_BRE = _take(x_BLE, row_BR) + mixed @ own["output_kernel"][0] + own["output_bias"]
    normed_BRE = _rms_norm(y_BRE)
    gate_BRK = _route(own, form, normed_BRE)
    for k in range(gate_BRK.shape[-1]):
        inner_BRI = _silu(normed_BRE @ own["ffn_first"][k]) * (normed_BRE @ own["ffn_third"][k])
        y_BRE = y_BRE + (inner_BRI * gate_BRK[..., k, None]) @ own["ffn_second"][k]
    return np.asarray(y_BRE)


def _route(own: Mapping[str, Array], form: Mapping[str, Any], y_BRE: Array) -> Array:
    """See `fuxi_encoder.Router`."""
    K = len(own["ffn_first"])
    if K == 1:
        return np.ones((*y_BRE.shape[:-1], 1), y_BRE.dtype)
    logit_BRK = y_BRE @ own["ffn_router_kernel"]
    share_BRK = np.exp(logit_BRK - logit_BRK.max(axis=-1, keepdims=True))
    share_BRK /= share_BRK.sum(axis=-1, keepdims=True)
    dropped = np.argsort(-share_BRK, axis=-1, kind="stable")[..., form["experts_per_token"] :]
    np.put_along_axis(share_BRK, dropped, 0, axis=-1)
    return np.asarray(share_BRK / share_BRK.sum(axis=-1, keepdims=True))


def _bias(
    own: Mapping[str, Array], form: Mapping[str, Any], row_BR: Array, bucket_BLL: Array
) -> tuple[Array, Array, Array]:
    """See `causal.RelativeBias`: of places and of times, and 1 where a position may see another."""
    distance_BRL = np.arange(bucket_BLL.shape[2]) - row_BR[..., None]
    position_BRL = own["bias_position"][form["max_len"] - 1 + distance_BRL]
    time_BRL = own["bias_time"][_take(bucket_BLL, row_BR)]
    return position_BRL, time_BRL, (distance_BRL <= 0).astype(np.float32)


def _take(value: Array, row_BR: Array) -> Array:
    """The rows of each user's matrix."""
    # As many as there are can only be all of them.
    is_whole = row_BR.shape[1] == value.shape[1]
    return value if is_whole else np.take_along_axis(value, row_BR[..., None], axis=1)


def _layer_norm(x: Array) -> Array:
    return _rms_norm(x - x.mean(axis=-1, keepdims=True))


def _rms_norm(x: Array) -> Array:
    return np.asarray(x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + _EPSILON))


def _silu(x: Array) -> Array:
    # Of a large negative number the exponential is infinite and the quotient 0.
    with np.errstate(over="ignore"):
        return np.asarray(x / (1 + np.exp(-x)))
