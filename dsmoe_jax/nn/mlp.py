"""Multi-layer perceptrons of experts side by side, normalised per scenario.

Owns the block Linear -> normalisation -> ReLU -> dropout of rankers, stacks of it, plain towers and
the weighted sum of experts. Does not own gates.

Letters: B examples, S scenarios, K experts, I input, O output of one expert. Inputs may have axes
between B and I (candidates of an example).
"""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from dsmoe_jax.nn import dropout as dropout_lib
from dsmoe_jax.nn import dsbn

_STACKED = nn.initializers.lecun_normal(batch_axis=(0,))

# Normalisations of a block: those per batch, and layer normalisation.
NORMS = (*dsbn.KINDS, "ln")


class Split(nn.Module):
    """A linear layer on an input in pieces, each multiplied where it is small.

    y = x W + bias with x = [part_0; part_1; ...]: a user's piece is multiplied once per user, an
    item's once per item, and only the sum is spread over pairs.
    """

    widths: tuple[int, ...]  # Width of each piece
    out_dim: int  # O

    def setup(self) -> None:
        shape_IO = (sum(self.widths), self.out_dim)
        zeros = nn.initializers.zeros_init()
        self.kernel_IO = self.param("kernel", nn.initializers.lecun_normal(), shape_IO, jnp.float32)
        self.bias_O = self.param("bias", zeros, (self.out_dim,), jnp.float32)

    def __call__(self, index: int, part: Float[jax.Array, "... I"]) -> Float[jax.Array, "... O"]:
        """The product of one piece; the first carries the bias."""
        start = sum(self.widths[:index])
        product = part @ self.kernel_IO[start : start + self.widths[index]]
        if index:
            return product
        return product + self.bias_O.reshape(*(1,) * (product.ndim - 1), -1)


class ExpertLinear(nn.Module):
    """K linear layers, each on its own input: [B, ..., K * I] to [B, ..., K * O]."""

    num_experts: int  # K
    in_dim: int  # I
    out_dim: int  # O

    @nn.compact
    def __call__(self, x: Float[jax.Array, "B ... KI"]) -> Float[jax.Array, "B ... KO"]:
        K, inputs, outputs = self.num_experts, self.in_dim, self.out_dim
        kernel_KIO = self.param("kernel", _STACKED, (K, inputs, outputs), jnp.float32)
        bias_O = self.param("bias", nn.initializers.zeros_init(), (K * outputs,), jnp.float32)
        # Apart, not one batched product: that would transpose input and output.
        flat = x.reshape(-1, x.shape[-1])
        own = jnp.split(flat, K, axis=-1)
        product = jnp.concatenate([own[k] @ kernel_KIO[k] for k in range(K)], axis=-1)
        product = product + bias_O[None]
        return product.reshape(*x.shape[:-1], -1)


class ScenarioLinear(nn.Module):
    """One linear layer per scenario, of which each example uses its own.

    All S products are computed and one is kept: with few scenarios that is cheaper than moving
    rows.
    """

    num_scenarios: int  # S
    in_dim: int  # I
    out_dim: int  # O

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "B ... I"], one_hot_BS: Float[jax.Array, "B S"]
    ) -> Float[jax.Array, "B ... O"]:
        S, outputs = self.num_scenarios, self.out_dim
        kernel_SIO = self.param("kernel", _STACKED, (S, self.in_dim, outputs), jnp.float32)
        bias_SO = self.param("bias", nn.initializers.zeros_init(), (S, outputs), jnp.float32)
        joint = x @ kernel_SIO.transpose(1, 0, 2).reshape(self.in_dim, S * outputs)
        joint = joint + bias_SO.reshape(*(1,) * (x.ndim - 1), -1)
        return keep_own(joint, one_hot_BS, outputs)


def keep_own(
    joint: Float[jax.Array, "_ ... SO"], one_hot_BS: Float[jax.Array, "B S"], out_dim: int
) -> Float[jax.Array, "B ... O"]:
    """Of S outputs side by side, the one of each example's scenario.

    Outputs [1, ...], those of candidates that all examples share, are spread over the examples.
    """
    own = one_hot_BS.reshape(one_hot_BS.shape[0], *(1,) * (joint.ndim - 2), -1, 1)
    split = joint.reshape(*joint.shape[:-1], one_hot_BS.shape[1], out_dim)
    return (split * own).sum(axis=-2)


def mix(
    hidden: Float[jax.Array, "B ... KO"], weight: Float[jax.Array, "B ... K"]
) -> Float[jax.Array, "B ... O"]:
    """Sum over the experts, which lie side by side, each times its weight."""
    K = weight.shape[-1]
    # `split`, not a reshape: its gradient is one concatenation.
    experts = jnp.split(hidden, K, axis=-1)
    return functools.reduce(jnp.add, (weight[..., k : k + 1] * experts[k] for k in range(K)))


class LayerNorm(nn.Module):
    """Each expert's outputs of a row with mean 0 and variance 1, then a learned gain and shift."""

    num_experts: int  # K
    num_features: int  # K * O

    @nn.compact
    def __call__(self, x: Float[jax.Array, "B ... KO"]) -> Float[jax.Array, "B ... KO"]:
        ones, zeros = nn.initializers.ones_init(), nn.initializers.zeros_init()
        shape, like = (self.num_features,), (*(1,) * (x.ndim - 1), self.num_features)
        scale = self.param("scale", ones, shape, jnp.float32).reshape(like)
        bias = self.param("bias", zeros, shape, jnp.float32).reshape(like)
        own = x.reshape(*x.shape[:-1], self.num_experts, -1)
        around = own - own.mean(axis=-1, keepdims=True)
        variance = jnp.square(around).mean(axis=-1, keepdims=True)
        return (around * jax.lax.rsqrt(variance + dsbn.EPSILON)).reshape(x.shape) * scale + bias


class NormBlock(nn.Module):
    """Normalisation -> ReLU -> dropout, after a linear layer."""

    norm: str  # One of `NORMS`
    num_scenarios: int  # S
    num_features: int  # K * O
    momentum: float  # Of the running statistics
    dropout: float  # Rate
    num_experts: int = 1  # K, of which layer normalisation takes each by itself

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "B ... O"], one_hot_BS: Float[jax.Array, "B S"], *, train: bool
    ) -> Float[jax.Array, "B ... O"]:
        if self.norm == "ln":
            normal = LayerNorm(self.num_experts, self.num_features, name="norm")(x)
        else:
            norm = dsbn.ScenarioNorm(
                self.norm, self.num_scenarios, self.num_features, self.momentum, name="norm"
            )
            normal = norm(x, one_hot_BS, train=train)
        return dropout_lib.Dropout(self.dropout)(nn.relu(normal), train=train)


class ExpertStack(nn.Module):
    """K perceptrons side by side from their first product on: a block after every linear layer.

    The first product is the caller's: where experts read one input it is one product for all, and
    of a joint input it is split.
    """

    num_experts: int  # K
    dims: tuple[int, ...]  # Width O of every layer, the first product's first
    norm: str  # One of `NORMS`
    num_scenarios: int  # S
    momentum: float  # Of the running statistics
    dropout: float  # Rate, after every layer

    def setup(self) -> None:
        K = self.num_experts
        self.expert_layers = [ExpertLinear(K, *shape) for shape in itertools.pairwise(self.dims)]
        self.expert_blocks = [
            NormBlock(self.norm, self.num_scenarios, K * width, self.momentum, self.dropout, K)
            for width in self.dims
        ]

    def __call__(
        self,
        first: Float[jax.Array, "B ... KI"],
        one_hot_BS: Float[jax.Array, "B S"],
        *,
        train: bool,
    ) -> Float[jax.Array, "B ... KO"]:
        hidden = self.expert_blocks[0](first, one_hot_BS, train=train)
        for layer, block in zip(self.expert_layers, self.expert_blocks[1:], strict=True):
            hidden = block(layer(hidden), one_hot_BS, train=train)
        return hidden


class ScenarioTower(nn.Module):
    """One perceptron per scenario that ends in a logit; each example uses its own."""

    num_scenarios: int  # S
    in_dim: int  # I
    dims: tuple[int, ...]  # Widths between I and the logit; a block follows each
    norm: str  # One of `NORMS`
    momentum: float  # Of the running statistics

    def setup(self) -> None:
        S, dims = self.num_scenarios, (self.in_dim, *self.dims, 1)
        self.tower_layers = [ScenarioLinear(S, *shape) for shape in itertools.pairwise(dims)]
        self.tower_blocks = [
            NormBlock(self.norm, S, width, self.momentum, 0.0) for width in self.dims
        ]

    def __call__(
        self, x: Float[jax.Array, "B ... I"], one_hot_BS: Float[jax.Array, "B S"], *, train: bool
    ) -> Float[jax.Array, "B ..."]:
        for layer, block in zip(self.tower_layers, self.tower_blocks, strict=False):
            x = block(layer(x, one_hot_BS), one_hot_BS, train=train)
        return self.tower_layers[-1](x, one_hot_BS)[..., 0]


class Perceptron(nn.Module):
    """Plain tower: Linear -> normalisation -> ReLU for each hidden width, then a linear layer.

    It is that of methods whose contribution lies elsewhere.
    """

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
            ScenarioLinear(S, *shape) if self.per_scenario else nn.Dense(shape[1])
            for shape in itertools.pairwise(self.dims)
        ]
        self.blocks = [
            NormBlock(self.norm, S, width, self.momentum, 0.0) for width in self.dims[1:-1]
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


class ReluStack(nn.Module):
    """K perceptrons side by side from their first product on, with nothing but ReLU between."""

    num_experts: int  # K
    # Width O of every layer, the first product's first; the last is not rectified.
    dims: tuple[int, ...]

    @nn.compact
    def __call__(self, first: Float[jax.Array, "B ... KI"]) -> Float[jax.Array, "B ... KO"]:
        hidden = first
        for shape in itertools.pairwise(self.dims):
            hidden = ExpertLinear(self.num_experts, *shape)(nn.relu(hidden))
        return hidden
