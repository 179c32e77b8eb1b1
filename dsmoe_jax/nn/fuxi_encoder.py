"""FuXi: a causal encoder of histories with separate channels for content, place and time.

Owns the block of FuXi-alpha (Ye et al., arXiv 2502.03036) and what Fuxi-MME (arXiv 2510.25285)
makes of it: narrow sub-spaces that share one stack of blocks, and a sparsely gated mixture of
experts in place of the feed-forward network. One sub-space and one expert are FuXi-alpha.

**Deviation:** Fuxi-MME's text was not available, only its abstract and summaries of it: this is
Fuxi-MME-style. That the experts are the feed-forward networks (or the projections of attention as
well), their number, top-k routing with renormalised weights and the balancing loss are this
project's reading.

Letters: B examples, M sub-spaces, L positions, E width of a sub-space, H heads, A width of a head,
F width of all heads, K experts, I hidden width of an expert, O output width of a layer, N the
longest history.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from dsmoe_jax.nn import causal
from dsmoe_jax.nn import dropout as dropout_lib

_STACKED = nn.initializers.lecun_normal(batch_axis=(0,))


class Router(nn.Module):
    """Which experts a position uses, and how much of each."""

    num_experts: int  # K; with one there is nothing to choose, and no parameter
    experts_per_token: int  # Experts whose weight is kept, at most K

    @nn.compact
    def __call__(
        self, y_BMLE: Float[jax.Array, "B M L E"], mask_BL: Bool[jax.Array, "B L"]
    ) -> tuple[Float[jax.Array, "B M L K"], Float[jax.Array, ""]]:
        """Weights that sum to 1 over the kept experts, and K sum_k f_k P_k.

        The second is 1 where positions spread evenly over the experts. f_k is the share of the kept
        weights' places that expert k has, P_k the mean of its weight before any is dropped, both
        over the positions that count (Fedus et al., "Switch Transformers").
        """
        K = self.num_experts
        if K == 1:
            return jnp.ones((*y_BMLE.shape[:-1], 1), y_BMLE.dtype), jnp.ones((), y_BMLE.dtype)
        lecun = nn.initializers.lecun_normal()
        router_EK = self.param("kernel", lecun, (y_BMLE.shape[-1], K), jnp.float32)
        share_BMLK = nn.softmax(y_BMLE @ router_EK)
        _, best = jax.lax.top_k(share_BMLK, self.experts_per_token)
        kept_BMLK = jax.nn.one_hot(best, K, dtype=share_BMLK.dtype).sum(axis=-2)
        gate_BMLK = share_BMLK * kept_BMLK
        gate_BMLK = gate_BMLK / gate_BMLK.sum(axis=-1, keepdims=True)
        return gate_BMLK, self._balance(share_BMLK, kept_BMLK, mask_BL)

    def _balance(
        self,
        share_BMLK: Float[jax.Array, "B M L K"],
        kept_BMLK: Float[jax.Array, "B M L K"],
        mask_BL: Bool[jax.Array, "B L"],
    ) -> Float[jax.Array, ""]:
        counts_B1L1 = mask_BL[:, None, :, None].astype(share_BMLK.dtype)
        positions = counts_B1L1.sum() * share_BMLK.shape[1]
        mean_K = (share_BMLK * counts_B1L1).sum(axis=(0, 1, 2)) / positions
        used_K = (kept_BMLK * counts_B1L1).sum(axis=(0, 1, 2)) / positions / self.experts_per_token
        return self.num_experts * (used_K * mean_K).sum()


class ExpertFFN(nn.Module):
    """sum_k g_k (SiLU(y W1_k) * (y W3_k)) W2_k over the best experts of each position.

    All experts are computed, side by side in one product, and weighted before the last one, which
    sums over them: with a handful of experts that is cheaper than moving rows.
    """

    hidden_dim: int  # I
    num_experts: int  # K
    experts_per_token: int  # See `Router`

    @nn.compact
    def __call__(
        self, y_BMLE: Float[jax.Array, "B M L E"], mask_BL: Bool[jax.Array, "B L"]
    ) -> tuple[Float[jax.Array, "B M L E"], Float[jax.Array, ""]]:
        K, E, hidden = self.num_experts, y_BMLE.shape[-1], self.hidden_dim
        first_KEI = self.param("first", _STACKED, (K, E, hidden), jnp.float32)
        third_KEI = self.param("third", _STACKED, (K, E, hidden), jnp.float32)
        second_KIE = self.param("second", _STACKED, (K, hidden, E), jnp.float32)
        inner = nn.silu(y_BMLE @ _side_by_side(first_KEI)) * (y_BMLE @ _side_by_side(third_KEI))
        gate_BMLK, balance = Router(K, self.experts_per_token, name="router")(y_BMLE, mask_BL)
        apart = inner.reshape(*gate_BMLK.shape, hidden) * gate_BMLK[..., None]
        return apart.reshape(inner.shape) @ second_KIE.reshape(K * hidden, E), balance


class ExpertProjection(nn.Module):
    """sum_k g_k x W_k over the best experts of each position."""

    out_dim: int  # O
    num_experts: int  # K
    experts_per_token: int  # See `Router`
    kernel_init: nn.initializers.Initializer  # Of every expert's kernel

    @nn.compact
    def __call__(
        self, x_BMLE: Float[jax.Array, "B M L E"], mask_BL: Bool[jax.Array, "B L"]
    ) -> tuple[Float[jax.Array, "B M L O"], Float[jax.Array, ""]]:
        K, E = self.num_experts, x_BMLE.shape[-1]
        gate_BMLK, balance = Router(K, self.experts_per_token, name="router")(x_BMLE, mask_BL)
        kernel_KEO = self.param("kernel", self.kernel_init, (K, E, self.out_dim), jnp.float32)
        apart = (x_BMLE @ _side_by_side(kernel_KEO)).reshape(*gate_BMLK.shape, -1)
        return (apart * gate_BMLK[..., None]).sum(axis=-2), balance


def _side_by_side(kernel_KEI: Float[jax.Array, "K E I"]) -> Float[jax.Array, "E K*I"]:
    return kernel_KEI.transpose(1, 0, 2).reshape(kernel_KEI.shape[1], -1)


class Block(nn.Module):
    """y = x + Linear(dropout(u * RMS([o_pos, o_time, o_content]))), then y + FFN(dropout(RMS(y))).

    [u, v, q, k] = SiLU(RMS(x) W); o_content = (SiLU(q k') / N) v, o_pos = w_pos v, o_time =
    w_time v, each with a causal mask, joined per head.

    **Paper:** FuXi-alpha, "Adaptive Multi-channel Self-attention" and "Multi-stage Feed-forward
    Network". **Deviation:** where its code and text differ, the code: u is made of the normalised
    input, and the order of the channels.
    """

    dim: int  # E; a head is E / H wide
    num_heads: int  # H
    ffn_multiple: int  # Hidden width of the feed-forward network, in E
    num_experts: int  # K
    experts_per_token: int  # See `Router`
    # Whether W and Linear are mixtures of experts too, each by a router of its own; the feed-
    # forward network always is.
    expert_projections: bool
    max_len: int  # N
    dropout: float  # Rate

    @nn.compact
    def __call__(
        self, x_BMLE: Float[jax.Array, "B M L E"], timeline: causal.Timeline, *, train: bool
    ) -> tuple[Float[jax.Array, "B M L E"], Float[jax.Array, ""]]:
        """The block's output and the balance of its experts, the mean over its layers."""
        E, K, kept = self.dim, self.num_experts, self.experts_per_token
        projections = K if self.expert_projections else 1
        normal = nn.initializers.normal(causal.KERNEL_STD)
        project = ExpertProjection(6 * E, projections, min(kept, projections), normal, name="uvqk")
        joint_BMLO, of_project = project(causal.rms_norm(x_BMLE), timeline.mask_BL)
        gate, value, query, key = jnp.split(nn.silu(joint_BMLO), (3 * E, 4 * E, 5 * E), axis=-1)
        mixed = gate * causal.rms_norm(self._attend(value, query, key, timeline))
        mixed = dropout_lib.Dropout(self.dropout)(mixed, train=train)
        xavier = nn.initializers.xavier_uniform(batch_axis=(0,))
        output = ExpertProjection(E, projections, min(kept, projections), xavier, name="output")
        change_BMLE, of_output = output(mixed, timeline.mask_BL)
        bias_E = self.param("output_bias", nn.initializers.zeros_init(), (E,), jnp.float32)
        y_BMLE = x_BMLE + change_BMLE + bias_E[None, None, None]
        ffn = ExpertFFN(self.ffn_multiple * E, K, kept, name="ffn")
        normed_BMLE = dropout_lib.Dropout(self.dropout)(causal.rms_norm(y_BMLE), train=train)
        change_BMLE, balance = ffn(normed_BMLE, timeline.mask_BL)
        if self.expert_projections:
            balance = (of_project + of_output + balance) / 3
        return y_BMLE + change_BMLE, balance

    def _attend(
        self,
        value_BMLF: Float[jax.Array, "B M L F"],
        query_BMLF: Float[jax.Array, "B M L F"],
        key_BMLF: Float[jax.Array, "B M L F"],
        timeline: causal.Timeline,
    ) -> Float[jax.Array, "B M L 3*F"]:
        """The three channels of every head, joined."""
        *lead, F = value_BMLF.shape
        heads = (*lead, self.num_heads, F // self.num_heads)
        mask_LL = causal.causal_mask(lead[-1])
        position_LL, time_BLL = causal.RelativeBias(self.max_len, name="bias")(timeline)
        # Both channels are the same for all heads and sub-spaces.
        of_position = jnp.einsum("ij,bmjf->bmif", position_LL * mask_LL, value_BMLF)
        of_time = jnp.einsum("bij,bmjf->bmif", time_BLL * mask_LL[None], value_BMLF)
        query, key = query_BMLF.reshape(heads), key_BMLF.reshape(heads)
        weight_BMHLL = nn.silu(jnp.einsum("bmiha,bmjha->bmhij", query, key))
        weight_BMHLL = weight_BMHLL * (mask_LL / self.max_len)[None, None, None]
        of_content = jnp.einsum("bmhij,bmjha->bmiha", weight_BMHLL, value_BMLF.reshape(heads))
        channels = (of_position.reshape(heads), of_time.reshape(heads), of_content)
        return jnp.concatenate(channels, axis=-1).reshape(*lead, 3 * F)


class Encoder(causal.Encoder):
    """A stack of `Block`, the same one for every sub-space.

    Sub-space k reads entries [k E, (k + 1) E) of the events, which is what splitting the item table
    into M independent ones comes to; the positions' table is shared. Outputs are joined again.

    `dim` of `causal.Encoder` is M E, and H divides E.
    """

    ffn_multiple: int = 1  # Hidden width of a feed-forward network, in its input's
    num_subspaces: int = 1  # M
    num_experts: int = 1  # K
    experts_per_token: int = 1  # See `Router`
    expert_projections: bool = False  # See `Block`
    # Whether a learned vector per sub-space joins the first block's input.
    subspace_token: bool = False

    @nn.compact
    def __call__(
        self,
        event_BLE: Float[jax.Array, "B L ME"],
        timeline: causal.Timeline,
        offset_BLE: Float[jax.Array, "B #L ME"] | None = None,
        *,
        train: bool,
    ) -> tuple[Float[jax.Array, "B L ME"], causal.Aux]:
        """See `causal.Encoder`.

        With several experts and in training, "balance" is the mean of `Router`'s over layers.
        """
        B, L, dim = event_BLE.shape
        M, E = self.num_subspaces, dim // self.num_subspaces

        def fold(whole: jax.Array) -> jax.Array:
            """Sub-spaces as more examples: [B, L, M * E] to [B * M, L, E]."""
            apart = whole.reshape(B, -1, M, E).transpose(0, 2, 1, 3)
            return apart.reshape(B * M, -1, E)

        offset = None if offset_BLE is None else fold(offset_BLE)
        if self.subspace_token:
            init = nn.initializers.truncated_normal(E**-0.5)
            token_ME = self.param("subspace", init, (M, E), jnp.float32)
            token = jnp.tile(token_ME, (B, 1))[:, None]
            offset = token if offset is None else offset + token
        start = causal.Input(E, self.max_len, self.input_dropout, name="input")
        mask = jnp.repeat(timeline.mask_BL, M, axis=0)
        x_BMLE = start(fold(event_BLE), mask, offset, train=train).reshape(B, M, L, E)
        balances = []
        for n in range(self.num_blocks):
            block = Block(
                dim=E,
                num_heads=self.num_heads,
                ffn_multiple=self.ffn_multiple,
                num_experts=self.num_experts,
                experts_per_token=self.experts_per_token,
                expert_projections=self.expert_projections,
                max_len=self.max_len,
                dropout=self.dropout,
                name=f"block_{n}",
            )
            x_BMLE, balance = block(x_BMLE, timeline, train=train)
            balances.append(balance)
        aux = {}
        if train and self.num_experts > 1:
            aux["balance"] = jnp.stack(balances).mean()
        return x_BMLE.transpose(0, 2, 1, 3).reshape(B, L, dim), aux
