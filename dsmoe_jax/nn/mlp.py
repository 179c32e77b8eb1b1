"""Layers of multi-layer perceptrons whose experts lie side by side, normalised per scenario.

Owns the block Linear -> normalisation -> ReLU -> dropout of rankers. Does not own gates.

Letters: B examples, S scenarios, K experts, I input, O output of one expert. Inputs may have axes
between B and I (candidates of an example).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from dsmoe_jax.nn import dropout as dropout_lib
from dsmoe_jax.nn import dsbn

_STACKED = nn.initializers.lecun_normal(batch_axis=(0,))


class Split(nn.Module):
    """A linear layer on an input in pieces, each multiplied where it is small.

    y = x W + bias with x = [part_0; part_1; ...]: a user's piece is multiplied once per user, an
    item's once per item, and only the sum is spread over pairs.

    Attributes:
      widths: Width of each piece.
      out_dim: O.
    """

    widths: tuple[int, ...]
    out_dim: int

    def setup(self) -> None:
        """Creates the parameters."""
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
    """K linear layers, each on its own input: [B, ..., K * I] to [B, ..., K * O].

    Attributes:
      num_experts: K.
      in_dim: I.
      out_dim: O.
    """

    num_experts: int
    in_dim: int
    out_dim: int

    @nn.compact
    def __call__(self, x: Float[jax.Array, "B ... KI"]) -> Float[jax.Array, "B ... KO"]:
        """Multiplies."""
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

    Attributes:
      num_scenarios: S.
      in_dim: I.
      out_dim: O.
    """

    num_scenarios: int
    in_dim: int
    out_dim: int

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "B ... I"], one_hot_BS: Float[jax.Array, "B S"]
    ) -> Float[jax.Array, "B ... O"]:
        """Multiplies."""
        S, outputs = self.num_scenarios, self.out_dim
        kernel_SIO = self.param("kernel", _STACKED, (S, self.in_dim, outputs), jnp.float32)
        bias_SO = self.param("bias", nn.initializers.zeros_init(), (S, outputs), jnp.float32)
        joint = x @ kernel_SIO.transpose(1, 0, 2).reshape(self.in_dim, S * outputs)
        joint = joint + bias_SO.reshape(*(1,) * (x.ndim - 1), -1)
        return keep_own(joint, one_hot_BS, outputs)


def keep_own(
    joint: Float[jax.Array, "B ... SO"], one_hot_BS: Float[jax.Array, "B S"], out_dim: int
) -> Float[jax.Array, "B ... O"]:
    """Of S outputs side by side, the one of each example's scenario."""
    own = one_hot_BS.reshape(one_hot_BS.shape[0], *(1,) * (joint.ndim - 2), -1, 1)
    split = joint.reshape(*joint.shape[:-1], one_hot_BS.shape[1], out_dim)
    return (split * own).sum(axis=-2)


class NormBlock(nn.Module):
    """Normalisation -> ReLU -> dropout, after a linear layer.

    Attributes:
      norm: "dsbn", "bn" or "none".
      num_scenarios: S.
      num_features: O.
      momentum: Of the running statistics.
      dropout: Rate.
    """

    norm: str
    num_scenarios: int
    num_features: int
    momentum: float
    dropout: float

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "B ... O"], one_hot_BS: Float[jax.Array, "B S"], *, train: bool
    ) -> Float[jax.Array, "B ... O"]:
        """Applies the block."""
        norm = dsbn.ScenarioNorm(
            self.norm, self.num_scenarios, self.num_features, self.momentum, name="norm"
        )
        hidden = nn.relu(norm(x, one_hot_BS, train=train))
        return dropout_lib.Dropout(self.dropout)(hidden, train=train)
