"""A tower whose scenario path takes from a global path at every layer, as in SASS.

Owns the multi-layer scenario adaptive transfer. Does not own embeddings.

Letters: B examples, S scenarios, C scenario embedding, I input, O a layer's output, D the tower's
output. Inputs may have axes between B and I (candidates of an example).
"""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from dsmoe_jax.nn import mlp, scenario


class AdaptiveTower(nn.Module):
    """A global path g and a scenario path s that takes from it at every layer.

    g = ReLU(BN(g W + b));  q = ReLU(BN(s W_s + b_s));  r, z = sigmoid([g; q; e_s] W_rz + b_rz)
    c = tanh([r * g; q] W_c + b_c);  s = (1 - z) * q + z * c;  output s W_o + b_o + MLP(e_s).

    **Paper:** the multi-layer scenario adaptive transfer module. **Deviation:** written without the
    paper's equations; that the gates read both paths and the scenario embedding, and that the
    update is a gated recurrent unit's, is inferred.
    """

    in_dim: int  # I; both paths start from the input
    hidden_dims: tuple[int, ...]  # O of each layer
    output_dim: int  # D
    bias_dim: int  # Hidden width of the scenario bias network, the MLP above
    scenario_dim: int  # C
    num_scenarios: int  # S
    norm: str  # "bn", "dsbn" or "none"
    momentum: float  # Of the running statistics

    def setup(self) -> None:
        S, widths = self.num_scenarios, (self.in_dim, *self.hidden_dims)
        self.global_layers = [nn.Dense(width) for width in self.hidden_dims]
        self.scenario_layers = [mlp.ScenarioLinear(S, *pair) for pair in itertools.pairwise(widths)]
        self.global_blocks = [self._block(width) for width in self.hidden_dims]
        self.scenario_blocks = [self._block(width) for width in self.hidden_dims]
        self.gates = [
            mlp.Split((2 * width, self.scenario_dim), 2 * width) for width in self.hidden_dims
        ]
        self.transfers = [nn.Dense(width) for width in self.hidden_dims]
        self.output = nn.Dense(self.output_dim)
        self.bias_hidden = nn.Dense(self.bias_dim)
        self.bias_output = nn.Dense(self.output_dim)

    def __call__(
        self,
        x: Float[jax.Array, "B ... I"],
        scenario_SC: Float[jax.Array, "S C"],
        one_hot_BS: Float[jax.Array, "B S"],
        *,
        train: bool,
    ) -> Float[jax.Array, "B ... D"]:
        """Runs both paths; the scenario's is the one that leaves."""
        shared = own = x
        for n in range(len(self.hidden_dims)):
            shared = self.global_blocks[n](self.global_layers[n](shared), one_hot_BS, train=train)
            own = self.scenario_layers[n](own, one_hot_BS)
            own = self.scenario_blocks[n](own, one_hot_BS, train=train)
            both = jnp.concatenate([shared, own], axis=-1)
            of_scenario = scenario.pick(self.gates[n](1, scenario_SC), one_hot_BS, x.ndim)
            gate = nn.sigmoid(self.gates[n](0, both) + of_scenario)
            reset, update = jnp.split(gate, 2, axis=-1)
            taken = jnp.concatenate([reset * shared, own], axis=-1)
            own = (1 - update) * own + update * jnp.tanh(self.transfers[n](taken))
        bias_SD = self.bias_output(nn.relu(self.bias_hidden(scenario_SC)))
        return self.output(own) + scenario.pick(bias_SD, one_hot_BS, x.ndim)

    def _block(self, width: int) -> mlp.NormBlock:
        return mlp.NormBlock(self.norm, self.num_scenarios, width, self.momentum, 0.0)
