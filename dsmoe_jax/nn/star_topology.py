"""Star topology: weights of a scenario are shared ones times its own, on an input in pieces.

Owns the star linear layer and the partitioned normalisation of its input. Both depend on the
scenario alone, so that they fold into one matrix per scenario and nothing is normalised row by row.

Letters: B examples, S scenarios, I input, O output. Inputs may have axes between B and I, and a
leading axis of 1 where all examples share them (candidates of a catalogue).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from dsmoe_jax.nn import dsbn, mlp

Affine = tuple[Float[jax.Array, "S I"], Float[jax.Array, "S I"]]


class StarLinear(nn.Module):
    """y = x (W * W_s) + b + b_s.

    The product of weights is element by element, so it splits by rows as a plain linear layer does
    (see `mlp.Split`): each piece is multiplied by its rows, where it is small.

    **Paper:** Sheng et al., "One Model to Serve All: Star Topology Adaptive Recommender for
    Multi-Domain CTR Prediction", section 3.4.
    **Deviation:** W_s starts at 1 and b_s at 0, so that the start is the shared network; the paper
    states no initial values.
    """

    num_scenarios: int  # S
    widths: tuple[int, ...]  # Width of each piece of the input; one for an input in one
    out_dim: int  # O

    def setup(self) -> None:
        S, inputs, outputs = self.num_scenarios, sum(self.widths), self.out_dim
        lecun, ones = nn.initializers.lecun_normal(), nn.initializers.ones_init()
        zeros = nn.initializers.zeros_init()
        self.kernel_IO = self.param("kernel", lecun, (inputs, outputs), jnp.float32)
        self.bias_O = self.param("bias", zeros, (outputs,), jnp.float32)
        self.own_SIO = self.param("scenario_kernel", ones, (S, inputs, outputs), jnp.float32)
        self.own_SO = self.param("scenario_bias", zeros, (S, outputs), jnp.float32)

    def __call__(
        self,
        part: Float[jax.Array, "_ ... I"],
        one_hot_BS: Float[jax.Array, "B S"],
        index: int = 0,
        affine: Affine | None = None,
    ) -> Float[jax.Array, "B ... O"]:
        """The product of piece `index` with the weights of each example's scenario.

        The first piece carries the biases. `affine` is a gain and a shift of the piece's columns in
        every scenario, applied before the product.
        """
        start = sum(self.widths[:index])
        rows = slice(start, start + self.widths[index])
        kernel_SIO = self.kernel_IO[rows][None] * self.own_SIO[:, rows]
        bias_SO = jnp.zeros_like(self.own_SO) if index else self.bias_O[None] + self.own_SO
        if affine is not None:
            gain_SI, shift_SI = affine
            bias_SO = bias_SO + jnp.einsum("si,sio->so", shift_SI, kernel_SIO)
            kernel_SIO = kernel_SIO * gain_SI[..., None]
        # All S products, of which one is kept: with few scenarios cheaper than moving rows.
        joint = part @ kernel_SIO.transpose(1, 0, 2).reshape(part.shape[-1], -1)
        joint = joint + bias_SO.reshape(*(1,) * (part.ndim - 1), -1)
        return mlp.keep_own(joint, one_hot_BS, self.out_dim)


class PartitionedNorm(nn.Module):
    """y = gamma gamma_s (x - mean_s) / sqrt(var_s + 1e-5) + beta + beta_s, as gain and shift of x.

    Statistics are each scenario's, with running ones for inference.

    **Paper:** as `StarLinear`, section 3.3.
    """

    num_scenarios: int  # S
    num_features: int  # I
    momentum: float  # Of the running statistics

    def setup(self) -> None:
        ones, zeros = nn.initializers.ones_init(), nn.initializers.zeros_init()
        shape = (self.num_features,)
        self.scale_I = self.param("scale", ones, shape, jnp.float32)
        self.bias_I = self.param("bias", zeros, shape, jnp.float32)
        self.own = dsbn.ScenarioNorm("dsbn", self.num_scenarios, self.num_features, self.momentum)

    def __call__(
        self, x: Float[jax.Array, "_ ... I"], one_hot_BS: Float[jax.Array, "B S"], *, train: bool
    ) -> Affine:
        """Gain and shift of every scenario; `train` uses and records the batch's moments.

        In training `x` has a row, or rows, for each example.
        """
        if train:
            gain_SI, shift_SI = self.own.affine(x, one_hot_BS, train=True)
        else:
            gain_SI, shift_SI = self.own.running_affine()
        # The mean is scaled by both gains, the scenario's shift by neither.
        own_SI, scale_I = self.own.bias_SF, self.scale_I[None]
        return scale_I * gain_SI, self.bias_I[None] + own_SI + scale_I * (shift_SI - own_SI)
