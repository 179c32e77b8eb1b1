"""Scenario-adaptive projection (SAP): a linear layer with a low-rank scenario correction.

Owns the layer alone. The scenario enters through the coefficients b_s, a linear map of the scenario
embedding, which are computed once for all S scenarios and picked per example.

Letters: B examples, S scenarios, C scenario embedding, K experts side by side, R rank, I input,
O output of one expert.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from dsmoe_jax.nn import product, scenario


class SAP(nn.Module):
    """y = x (W + A diag(b_s) B) + bias with b_s = e_s C + c, for K experts that read one input.

    Factored: x W + ((x A) * b_s) B, so that no scenario's matrix is ever built; the experts are
    side by side in one product. B starts at 0 and b_s near 1: the layer starts as a plain linear
    one, the start of its own ablation, and the correction is not silenced through both factors.

    **Paper:** section "Scenario-adaptive projection". The paper calls b_s a bias vector; it
    multiplies.
    **Deviation:** initial values and the additive bias, shared by all scenarios, are unstated in
    the paper. Each SAP layer has its own C and c.
    """

    in_dim: int  # I
    out_dim: int  # O
    scenario_dim: int  # C
    rank: int  # R >= 1
    num_experts: int = 1  # K
    use_sap: bool = True  # False leaves a linear layer, the ablation "w/o SAP"
    # Type of the operands of products over rows, of `product.DTYPES`.
    product_dtype: str = "float32"

    def setup(self) -> None:
        lecun = nn.initializers.lecun_normal()
        zeros, ones = nn.initializers.zeros_init(), nn.initializers.ones_init()
        K, R, outputs = self.num_experts, self.rank, self.num_experts * self.out_dim
        self.shared_IO = self.param("shared", lecun, (self.in_dim, outputs), jnp.float32)
        self.bias_O = self.param("bias", zeros, (outputs,), jnp.float32)
        if self.use_sap:
            self.down_IR = self.param("down", lecun, (self.in_dim, K * R), jnp.float32)
            self.up_KRO = self.param("up", zeros, (K, R, self.out_dim), jnp.float32)
            shape_CR = (self.scenario_dim, K * R)
            self.coef_CR = self.param("coef_kernel", lecun, shape_CR, jnp.float32)
            self.coef_R = self.param("coef_bias", ones, (K * R,), jnp.float32)

    def coefficients(self, scenario_SC: Float[jax.Array, "S C"]) -> Float[jax.Array, "S K R"]:
        """b_s of every scenario and expert; needs `use_sap`."""
        coef_SR = scenario_SC @ self.coef_CR + self.coef_R[None]
        return coef_SR.reshape(-1, self.num_experts, self.rank)

    def fold(self, scenario_SC: Float[jax.Array, "S C"]) -> Float[jax.Array, "S I KO"]:
        """W + A diag(b_s) B of every scenario, the experts side by side."""
        if not self.use_sap:
            return jnp.broadcast_to(
                self.shared_IO[None], (scenario_SC.shape[0], *self.shared_IO.shape)
            )
        down_IKR = self.down_IR.reshape(self.in_dim, self.num_experts, self.rank)
        coef_SKR = self.coefficients(scenario_SC)
        delta = jnp.einsum("ikr,skr,kro->siko", down_IKR, coef_SKR, self.up_KRO)
        return self.shared_IO[None] + delta.reshape(-1, *self.shared_IO.shape)

    def __call__(
        self,
        parts: tuple[jax.Array, ...],
        scenario_SC: Float[jax.Array, "S C"],
        one_hot_BS: Float[jax.Array, "B S"],
    ) -> Float[jax.Array, "..."]:
        """Outputs [B, ..., K * O].

        The input comes in pieces whose widths sum to I, with leading axes that broadcast, e.g.
        users [B, 1, I_u] and items [1, G, I_v]: each piece is multiplied before it is spread.
        """
        # What W, B and the bias multiply stands side by side, so that one product does for all
        # three and another for all three gradients.
        beside, weights = [], [self.shared_IO]
        if self.use_sap:
            K, R = self.num_experts, self.rank
            coef_SR = self.coefficients(scenario_SC).reshape(-1, K * R)
            down = self._multiply(parts, self.down_IR)
            beside.append(down * scenario.pick(coef_SR, one_hot_BS, down.ndim))
            # A block-diagonal `up` keeps the experts side by side; batched small products would
            # transpose the whole output.
            up = jnp.einsum("kro,kj->krjo", self.up_KRO, jnp.eye(K, dtype=jnp.float32))
            weights.append(up.reshape(K * R, K * self.out_dim))
        shape = jnp.broadcast_shapes(*(part.shape[:-1] for part in parts))
        beside.append(jnp.ones((*shape, 1), jnp.float32))
        weights.append(self.bias_O[None])
        if len(parts) == 1:
            parts, beside = (), [*parts, *beside]
        pieces = (*parts, jnp.concatenate(beside, axis=-1))
        return self._multiply(pieces, jnp.concatenate(weights, axis=0))

    def _multiply(self, parts: tuple[jax.Array, ...], weight: Float[jax.Array, "I O"]) -> jax.Array:
        start, terms = 0, []
        for part in parts:
            rows = weight[start : start + part.shape[-1]]
            terms.append(product.multiply(part, rows, self.product_dtype))
            start += part.shape[-1]
        return functools.reduce(jnp.add, terms)
