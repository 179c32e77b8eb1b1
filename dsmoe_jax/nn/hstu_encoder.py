"""HSTU: a causal encoder of histories by pointwise attention (Zhai et al., ICML 2024).

Owns the block and the stack of blocks. What it shares with FuXi is in `nn/causal.py`.

Letters: B examples, L positions, E width, H heads, A width of a head, N the longest history.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from dsmoe_jax.nn import causal
from dsmoe_jax.nn import dropout as dropout_lib


class Block(nn.Module):
    """x + Linear(dropout(u * LN(a v))), a = SiLU(q k' + bias) / N, [u, v, q, k] = SiLU(LN(x) W).

    **Paper:** "Actions Speak Louder than Words: Trillion-Parameter Sequential Transducers for
    Generative Recommendations", pointwise aggregated attention, as in its public code: no softmax,
    N constant, norms without parameters, one bias of positions and times for all heads.
    """

    dim: int  # E; a head is E / H wide
    num_heads: int  # H
    max_len: int  # N
    dropout: float  # Rate

    @nn.compact
    def __call__(
        self, x_BLE: Float[jax.Array, "B L E"], timeline: causal.Timeline, *, train: bool
    ) -> Float[jax.Array, "B L E"]:
        B, L, E = x_BLE.shape
        H = self.num_heads
        normal = nn.initializers.normal(causal.KERNEL_STD)
        kernel_EO = self.param("uvqk", normal, (E, 4 * E), jnp.float32)
        joint_BLO = nn.silu(causal.layer_norm(x_BLE) @ kernel_EO)
        gate_BLE, *rest = jnp.split(joint_BLO, 4, axis=-1)
        value_BLHA, query_BLHA, key_BLHA = (part.reshape(B, L, H, E // H) for part in rest)
        position_LL, time_BLL = causal.RelativeBias(self.max_len, name="bias")(timeline)
        logit_BHLL = jnp.einsum("biha,bjha->bhij", query_BLHA, key_BLHA)
        weight_BHLL = nn.silu(logit_BHLL + (position_LL[None] + time_BLL)[:, None])
        weight_BHLL = weight_BHLL * (causal.causal_mask(L) / self.max_len)[None, None]
        mixed_BLHA = jnp.einsum("bhij,bjha->biha", weight_BHLL, value_BLHA)
        mixed_BLE = gate_BLE * causal.layer_norm(mixed_BLHA.reshape(B, L, E))
        mixed_BLE = dropout_lib.Dropout(self.dropout)(mixed_BLE, train=train)
        xavier = nn.initializers.xavier_uniform()
        return x_BLE + nn.Dense(E, kernel_init=xavier, name="output")(mixed_BLE)


class Encoder(causal.Encoder):
    """A stack of `Block`; the attributes are those of `causal.Encoder`."""

    @nn.compact
    def __call__(
        self,
        event_BLE: Float[jax.Array, "B L E"],
        timeline: causal.Timeline,
        offset_BLE: Float[jax.Array, "B #L E"] | None = None,
        *,
        train: bool,
    ) -> tuple[Float[jax.Array, "B L E"], causal.Aux]:
        """See `causal.Encoder`; there are no losses."""
        start = causal.Input(self.dim, self.max_len, self.input_dropout, name="input")
        x_BLE = start(event_BLE, timeline.mask_BL, offset_BLE, train=train)
        for n in range(self.num_blocks):
            block = Block(self.dim, self.num_heads, self.max_len, self.dropout, name=f"block_{n}")
            x_BLE = block(x_BLE, timeline, train=train)
        return x_BLE, {}
