"""A tower of ADIN: gates on the fields, shared and per-scenario networks and their fusion.

Owns the trunk that both towers share. Does not own embeddings.

Letters: B examples, S scenarios, C scenario embedding, N fields, E one field's embedding, I = N * E
a tower's input, K shared networks, H the networks' last width, D the tower's output. Inputs may
have axes between B and I (candidates of an example).
"""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from dsmoe_jax.nn import mlp, scenario

FUSIONS = ("concat", "sum")


class InterestAdaptation(nn.Module):
    """Every field times a gate of its scenario: a_s = 2 sigmoid(W2_s ReLU(W1_s mean_E(field))).

    Embeddings are small at the start, so that gates are then near 1.

    Attributes:
      num_scenarios: S.
      num_fields: N.
      reduction: N / reduction hidden units, at least one.
    """

    num_scenarios: int
    num_fields: int
    reduction: int

    def setup(self) -> None:
        S, N = self.num_scenarios, self.num_fields
        hidden = max(N // self.reduction, 1)
        self.squeeze = mlp.ScenarioLinear(S, N, hidden)
        self.excite = mlp.ScenarioLinear(S, hidden, N)

    def __call__(
        self, input_BI: Float[jax.Array, "B ... I"], one_hot_BS: Float[jax.Array, "B S"]
    ) -> Float[jax.Array, "B ... I"]:
        """Gates fields that lie side by side."""
        field_BNE = input_BI.reshape(*input_BI.shape[:-1], self.num_fields, -1)
        hidden = nn.relu(self.squeeze(field_BNE.mean(axis=-1), one_hot_BS))
        gate_BN = 2 * nn.sigmoid(self.excite(hidden, one_hot_BS))
        return (field_BNE * gate_BN[..., None]).reshape(input_BI.shape)


class Tower(nn.Module):
    """Adaptation of the input, shared and per-scenario networks, their fusion and a last layer.

    Attributes:
      in_dim: I.
      num_fields: N.
      scenario_dim: C.
      num_scenarios: S.
      num_shared: K.
      hidden_dims: Widths of each network, the last being H.
      output_dim: D.
      reduction: See `InterestAdaptation`.
      fusion: "concat" or "sum".
      norm: "dsbn", "bn" or "none".
      momentum: Of the running statistics.
    """

    in_dim: int
    num_fields: int
    scenario_dim: int
    num_scenarios: int
    num_shared: int
    hidden_dims: tuple[int, ...]
    output_dim: int
    reduction: int
    fusion: str
    norm: str
    momentum: float

    def setup(self) -> None:
        S, K, C, H = self.num_scenarios, self.num_shared, self.scenario_dim, self.hidden_dims[-1]
        self.adaptation = InterestAdaptation(S, self.num_fields, self.reduction)
        # The first layer of all shared networks reads one input: one product for all K.
        self.shared_first = nn.Dense(K * self.hidden_dims[0])
        self.shared_layers = [
            mlp.ExpertLinear(K, *shape) for shape in itertools.pairwise(self.hidden_dims)
        ]
        self.shared_blocks = [self._block(K * width) for width in self.hidden_dims]
        dims = (self.in_dim, *self.hidden_dims)
        self.specific_layers = [mlp.ScenarioLinear(S, *shape) for shape in itertools.pairwise(dims)]
        self.specific_blocks = [self._block(width) for width in self.hidden_dims]
        lecun = nn.initializers.lecun_normal()
        stacked = nn.initializers.lecun_normal(batch_axis=(0,))
        self.weight_CK = self.param("shared_weight", lecun, (C, K), jnp.float32)
        self.specific_gate_SCH = self.param("specific_gate", stacked, (S, C, H), jnp.float32)
        self.shared_gate_SCH = self.param("shared_gate", stacked, (S, C, H), jnp.float32)
        fused = 3 * H if self.fusion == "concat" else H
        self.forward = mlp.ScenarioLinear(S, fused, self.output_dim)

    def __call__(
        self,
        input_BI: Float[jax.Array, "B ... I"],
        scenario_SC: Float[jax.Array, "S C"],
        one_hot_BS: Float[jax.Array, "B S"],
        *,
        train: bool,
    ) -> Float[jax.Array, "B ... D"]:
        """Runs the tower."""
        adapted = self.adaptation(input_BI, one_hot_BS)
        shared = self._run_shared(adapted, scenario_SC, one_hot_BS, train)
        specific = adapted
        for layer, block in zip(self.specific_layers, self.specific_blocks, strict=True):
            specific = block(layer(specific, one_hot_BS), one_hot_BS, train=train)
        specific = specific * _gate(self.specific_gate_SCH, scenario_SC, one_hot_BS, specific.ndim)
        shared = shared * _gate(self.shared_gate_SCH, scenario_SC, one_hot_BS, shared.ndim)
        if self.fusion == "concat":
            fused = jnp.concatenate([specific, specific * shared, shared], axis=-1)
        else:
            fused = specific + shared
        return self.forward(fused, one_hot_BS)

    def _run_shared(
        self,
        adapted: Float[jax.Array, "B ... I"],
        scenario_SC: Float[jax.Array, "S C"],
        one_hot_BS: Float[jax.Array, "B S"],
        train: bool,
    ) -> Float[jax.Array, "B ... H"]:
        """The shared networks, summed with the scenario's weights."""
        hidden = self.shared_blocks[0](self.shared_first(adapted), one_hot_BS, train=train)
        for layer, block in zip(self.shared_layers, self.shared_blocks[1:], strict=True):
            hidden = block(layer(hidden), one_hot_BS, train=train)
        weight = scenario.pick(nn.softmax(scenario_SC @ self.weight_CK), one_hot_BS, hidden.ndim)
        networks = jnp.split(hidden, self.num_shared, axis=-1)
        weights = jnp.split(weight, self.num_shared, axis=-1)
        terms = (w * network for w, network in zip(weights, networks, strict=True))
        return functools.reduce(jnp.add, terms)

    def _block(self, width: int) -> mlp.NormBlock:
        return mlp.NormBlock(self.norm, self.num_scenarios, width, self.momentum, dropout=0.0)


def _gate(
    gate_SCH: Float[jax.Array, "S C H"],
    scenario_SC: Float[jax.Array, "S C"],
    one_hot_BS: Float[jax.Array, "B S"],
    ndim: int,
) -> Float[jax.Array, "B ... H"]:
    """sigmoid(e_s W_s), which depends on the scenario alone."""
    table_SH = nn.sigmoid(jnp.einsum("sc,sch->sh", scenario_SC, gate_SCH))
    return scenario.pick(table_SH, one_hot_BS, ndim)
