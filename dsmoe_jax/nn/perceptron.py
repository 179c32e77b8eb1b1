"""Plain tower: the multi-layer perceptron of methods whose contribution lies elsewhere.

Letters: B examples, S scenarios, I input, O output. Inputs may have axes between B and I
(candidates of an example).
"""

import itertools

import flax.linen as nn
import jax
from jaxtyping import Float

from dsmoe_jax.nn import mlp


class Perceptron(nn.Module):
    """Linear -> normalisation -> ReLU for each hidden width, then a linear layer."""

    dims: tuple[int, ...]  # Widths from the input to the output, both included: at least two
    num_scenarios: int  # S, of the normalisation and of `per_scenario`
    norm: str  # "dsbn", "bn" or "none"
    momentum: float  # Of the running statistics
    # Whether every scenario has linear layers of its own, of which each example uses its
    # scenario's.
    per_scenario: bool = False

    def setup(self) -> None:
        S = self.num_scenarios
        self.layers = [
            mlp.ScenarioLinear(S, *shape) if self.per_scenario else nn.Dense(shape[1])
            for shape in itertools.pairwise(self.dims)
        ]
        self.blocks = [
            mlp.NormBlock(self.norm, S, width, self.momentum, 0.0) for width in self.dims[1:-1]
        ]

    def __call__(
        self, x: Float[jax.Array, "B ... I"], one_hot_BS: Float[jax.Array, "B S"], *, train: bool
    ) -> Float[jax.Array, "B ... O"]:
        for layer, block in zip(self.layers, self.blocks, strict=False):
            x = block(self._multiply(layer, x, one_hot_BS), one_hot_BS, train=train)
        return self._multiply(self.layers[-1], x, one_hot_BS)

    def _multiply(self, layer: nn.Module, x: jax.Array, one_hot_BS: jax.Array) -> jax.Array:
        product: jax.Array = layer(x, one_hot_BS) if self.per_scenario else layer(x)
        return product
