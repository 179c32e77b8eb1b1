"""Scenario mixture, DSMOE's tower: SAP experts, scenario gate and SAP forward layer.

Owns the trunk that both towers and the small teacher share. Does not own embeddings.

Letters: B examples, S scenarios, C scenario embedding, K experts, R rank, I input, H an expert's
width, F = K * H hidden units, D the tower's output. Inputs may have axes between B and I
(candidates of an example).
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from dsmoe_jax.nn import dsbn, sap, scenario

# PyTorch's initial slope, in which the paper was written.
PRELU_SLOPE = 0.25

GATE_INPUTS = ("scenario", "scenario_and_features")


class FoldedTower(NamedTuple):
    """A tower at inference: in each scenario a perceptron with one hidden layer of K * H units.

    PReLU(x first_s + first_bias_s) second_s + second_bias_s.
    """

    first_SIF: Float[jax.Array, "S I F"]  # SAP folded into one matrix per scenario
    first_bias_SF: Float[jax.Array, "S F"]  # The first layer's bias
    slope_F: Float[jax.Array, "F"]  # PReLU's slope below 0
    # Normalisation, gate and forward layer folded into one matrix per scenario.
    second_SFD: Float[jax.Array, "S F D"]
    second_bias_SD: Float[jax.Array, "S D"]  # Their constant part


class ScenarioMixture(nn.Module):
    """z = SAP_forward(sum_k alpha_k DSBN_k(PReLU_k(SAP_k(x)))), all conditioned on the scenario.

    **Paper:** sections "Experts" (linear, PReLU, normalisation, in this order), "Gate" (softmax of
    a linear map of the scenario embedding, hence one row of weights per scenario) and "Forward
    network" (one SAP layer without activation).
    **Deviation:** one learned PReLU slope per expert, initially 0.25, unstated in the paper.
    """

    in_dim: int  # I
    hidden_dim: int  # H
    output_dim: int  # D
    scenario_dim: int  # C
    num_scenarios: int  # S
    num_experts: int  # K
    rank: int  # R of every SAP layer
    use_sap: bool = True  # False replaces SAP layers by linear ones
    norm: str = "dsbn"  # "dsbn", "bn" or "none"
    momentum: float = 0.1  # Of the running statistics
    # "scenario", or "scenario_and_features" for a gate that also reads x.
    gate_input: str = "scenario"
    product_dtype: str = "float32"  # See `sap.SAP`

    def setup(self) -> None:
        K, C, H = self.num_experts, self.scenario_dim, self.hidden_dim
        shared = (self.use_sap, self.product_dtype)
        self.experts = sap.SAP(self.in_dim, H, C, self.rank, K, *shared)
        slope = nn.initializers.constant(PRELU_SLOPE)
        self.slope_K = self.param("prelu_slope", slope, (K,), jnp.float32)
        self.norms = dsbn.ScenarioNorm(self.norm, self.num_scenarios, K * H, self.momentum)
        reads_features = self.gate_input == "scenario_and_features"
        shape_CK = (C + self.in_dim * reads_features, K)
        lecun, zeros = nn.initializers.lecun_normal(), nn.initializers.zeros_init()
        self.gate_CK = self.param("gate_kernel", lecun, shape_CK, jnp.float32)
        self.gate_K = self.param("gate_bias", zeros, (K,), jnp.float32)
        self.forward = sap.SAP(H, self.output_dim, C, self.rank, 1, *shared)

    def coefficients(self, scenario_SC: Float[jax.Array, "S C"]) -> dict[str, jax.Array]:
        """b_s [S, R] of every SAP layer: `expert_0`, ..., `forward`; empty without SAP."""
        if not self.use_sap:
            return {}
        coef_SKR = self.experts.coefficients(scenario_SC)
        table = {f"expert_{k}": coef_SKR[:, k] for k in range(self.num_experts)}
        return {**table, "forward": self.forward.coefficients(scenario_SC)[:, 0]}

    def gate_weights(self, scenario_SC: Float[jax.Array, "S C"]) -> Float[jax.Array, "S K"]:
        """Expert weights, rows summing to 1; of a gate that reads features, those at x = 0."""
        return nn.softmax(self._scenario_gate(scenario_SC))

    def fold(self, scenario_SC: Float[jax.Array, "S C"]) -> FoldedTower:
        """All that depends on the scenario alone folded into two matrices per scenario.

        Raises:
          ValueError: When the gate reads features.
        """
        if self.gate_input != "scenario":
            raise ValueError(
                f"model.gate_input: folding a tower needs 'scenario', got {self.gate_input!r}"
            )
        S, K, H = scenario_SC.shape[0], self.num_experts, self.hidden_dim
        gain_SF, shift_SH = self._fold_gate(scenario_SC, *self.norms.running_affine())
        forward_SHD = self.forward.fold(scenario_SC)
        every_SFD = jnp.tile(forward_SHD, (1, K, 1))
        return FoldedTower(
            first_SIF=self.experts.fold(scenario_SC),
            first_bias_SF=jnp.broadcast_to(self.experts.bias_O[None], (S, K * H)),
            slope_F=jnp.repeat(self.slope_K, H),
            second_SFD=gain_SF[..., None] * every_SFD,
            second_bias_SD=jnp.einsum("sh,shd->sd", shift_SH, forward_SHD)
            + self.forward.bias_O[None],
        )

    def __call__(
        self,
        parts: tuple[jax.Array, ...],
        scenario_SC: Float[jax.Array, "S C"],
        one_hot_BS: Float[jax.Array, "B S"],
        *,
        train: bool,
    ) -> Float[jax.Array, "B ... D"]:
        """Runs the trunk on an input given in pieces (see `sap.SAP`)."""
        K, H = self.num_experts, self.hidden_dim
        hidden = self.experts(parts, scenario_SC, one_hot_BS)
        # Picked like all else per scenario, because the gradient of a pick is a product: XLA sums
        # over all rows into one vector far more slowly.
        slope_SF = jnp.broadcast_to(jnp.repeat(self.slope_K, H)[None], (self.num_scenarios, K * H))
        slope = scenario.pick(slope_SF, one_hot_BS, hidden.ndim)
        hidden = jnp.where(hidden >= 0, hidden, slope * hidden)
        gain_SF, shift_SF = self.norms.affine(hidden, one_hot_BS, train=train)
        if self.gate_input == "scenario":
            gain_SF, shift_SH = self._fold_gate(scenario_SC, gain_SF, shift_SF)
            shift = scenario.pick(shift_SH, one_hot_BS, hidden.ndim)
            mixed = _sum_experts(hidden, scenario.pick(gain_SF, one_hot_BS, hidden.ndim), K) + shift
        else:
            normal = hidden * scenario.pick(gain_SF, one_hot_BS, hidden.ndim)
            normal = normal + scenario.pick(shift_SF, one_hot_BS, hidden.ndim)
            gate = self._feature_gate(parts, scenario_SC, one_hot_BS, hidden.ndim)
            mixed = _sum_experts(normal, jnp.repeat(gate, H, axis=-1), K)
        return self.forward((mixed,), scenario_SC, one_hot_BS)

    def _fold_gate(
        self,
        scenario_SC: Float[jax.Array, "S C"],
        gain_SF: Float[jax.Array, "S F"],
        shift_SF: Float[jax.Array, "S F"],
    ) -> tuple[Float[jax.Array, "S F"], Float[jax.Array, "S H"]]:
        """A normalisation's gain times the gate, and its shift summed over the gated experts."""
        gate_SF = jnp.repeat(self.gate_weights(scenario_SC), self.hidden_dim, axis=1)
        shift_SKH = (gate_SF * shift_SF).reshape(-1, self.num_experts, self.hidden_dim)
        return gate_SF * gain_SF, shift_SKH.sum(axis=1)

    def _scenario_gate(self, scenario_SC: Float[jax.Array, "S C"]) -> Float[jax.Array, "S K"]:
        return scenario_SC @ self.gate_CK[: self.scenario_dim] + self.gate_K[None]

    def _feature_gate(
        self,
        parts: tuple[jax.Array, ...],
        scenario_SC: Float[jax.Array, "S C"],
        one_hot_BS: Float[jax.Array, "B S"],
        ndim: int,
    ) -> Float[jax.Array, "B ... K"]:
        """Weights of each candidate of a gate that reads features."""
        logit = scenario.pick(self._scenario_gate(scenario_SC), one_hot_BS, ndim)
        start = self.scenario_dim
        for part in parts:
            logit = logit + part @ self.gate_CK[start : start + part.shape[-1]]
            start += part.shape[-1]
        return nn.softmax(logit)


def _sum_experts(
    hidden: Float[jax.Array, "B ... F"], weight: Float[jax.Array, "*axes F"], num_experts: int
) -> Float[jax.Array, "B ... H"]:
    """Weighted sum over the experts, which lie side by side."""
    # `split`, not slices or a reshape: its gradient is one concatenation.
    experts = jnp.split(hidden, num_experts, axis=-1)
    weights = jnp.split(weight, num_experts, axis=-1)
    terms = (e * w for e, w in zip(experts, weights, strict=True))
    return functools.reduce(jnp.add, terms)
