"""Domain-specific batch normalisation: statistics and affine parameters of each scenario.

Owns the normalisation and its running statistics (collection `batch_stats`).

Letters: B examples, S scenarios, F features. Inputs may have axes between B and F (candidates of an
example); they share the example's scenario.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from dsmoe_jax.nn import scenario

EPSILON = 1e-5

KINDS = ("dsbn", "bn", "none")


class ScenarioNorm(nn.Module):
    """y = gamma_s * (x - mean_s) / sqrt(var_s + 1e-5) + beta_s.

    In training the moments are those of the scenario's rows in the batch, in float32 and in two
    passes; the running ones move by `momentum` towards them, the variance unbiased, as in PyTorch.
    A scenario with fewer than two rows keeps its running statistics and is normalised with them.
    Under a sharded batch the moments are global: nothing here is per device.

    **Paper:** section "Experts", domain-specific batch normalisation. The paper names only
    (gamma_d, beta_d); statistics are per scenario too.
    """

    # "dsbn"; "bn" normalises all scenarios together (the ablation "w/o DSBN"); "none" returns its
    # input.
    kind: str
    num_scenarios: int  # S
    num_features: int  # F
    # Share of the batch in the running statistics, in (0, 1] (PyTorch's convention).
    momentum: float = 0.1

    def setup(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"norm: expected one of {KINDS}, got {self.kind!r}")
        if self.kind == "none":
            return
        shape_SF = (self.num_scenarios if self.kind == "dsbn" else 1, self.num_features)
        ones, zeros = nn.initializers.ones_init(), nn.initializers.zeros_init()
        self.scale_SF = self.param("scale", ones, shape_SF, jnp.float32)
        self.bias_SF = self.param("bias", zeros, shape_SF, jnp.float32)
        self.mean_SF = self.variable("batch_stats", "mean", jnp.zeros, shape_SF, jnp.float32)
        self.var_SF = self.variable("batch_stats", "var", jnp.ones, shape_SF, jnp.float32)

    def __call__(
        self, x: Float[jax.Array, "B ... F"], one_hot_BS: Float[jax.Array, "B S"], *, train: bool
    ) -> Float[jax.Array, "B ... F"]:
        """Normalises; `train` uses and records the batch's moments."""
        if self.kind == "none":
            return x
        gain_SF, shift_SF = self.affine(x, one_hot_BS, train=train)
        return x * scenario.pick(gain_SF, one_hot_BS, x.ndim) + scenario.pick(
            shift_SF, one_hot_BS, x.ndim
        )

    def affine(
        self, x: Float[jax.Array, "B ... F"], one_hot_BS: Float[jax.Array, "B S"], *, train: bool
    ) -> tuple[Float[jax.Array, "S F"], Float[jax.Array, "S F"]]:
        """Gain and shift of every scenario: y = x * gain_s + shift_s.

        A caller with more to multiply folds it into these tables instead of into every row.
        `train` uses and records the batch's moments.
        """
        if not train or self.kind == "none":
            return self.running_affine()
        if self.kind == "bn":
            one_hot_BS = jnp.ones_like(one_hot_BS[:, :1])
        count_S1 = one_hot_BS.sum(axis=0)[:, None] * float(math.prod(x.shape[1:-1]))
        enough_S1 = count_S1 >= 2
        mean_SF = jnp.where(enough_S1, _mean(x, one_hot_BS, count_S1), self.mean_SF.value)
        # Around the batch mean the variance does not depend on the mean to first order: stopping
        # that gradient changes no value and spares a pass.
        around = x - scenario.pick(jax.lax.stop_gradient(mean_SF), one_hot_BS, x.ndim)
        biased_SF = _mean(jnp.square(around), one_hot_BS, count_S1)
        var_SF = jnp.where(enough_S1, biased_SF, self.var_SF.value)
        if not self.is_initializing():
            unbiased_SF = biased_SF * count_S1 / jnp.maximum(count_S1 - 1, 1)
            self._record(self.mean_SF, mean_SF, enough_S1)
            self._record(self.var_SF, unbiased_SF, enough_S1)
        return self._to_affine(mean_SF, var_SF)

    def running_affine(self) -> tuple[Float[jax.Array, "S F"], Float[jax.Array, "S F"]]:
        """As `affine`, at inference; 1 and 0 for "none"."""
        if self.kind == "none":
            shape_SF = (self.num_scenarios, self.num_features)
            return jnp.ones(shape_SF, jnp.float32), jnp.zeros(shape_SF, jnp.float32)
        return self._to_affine(self.mean_SF.value, self.var_SF.value)

    def _to_affine(self, mean_SF: jax.Array, var_SF: jax.Array) -> tuple[jax.Array, jax.Array]:
        gain_SF = self.scale_SF * jax.lax.rsqrt(var_SF + EPSILON)
        shift_SF = self.bias_SF - mean_SF * gain_SF
        shape_SF = (self.num_scenarios, self.num_features)
        return jnp.broadcast_to(gain_SF, shape_SF), jnp.broadcast_to(shift_SF, shape_SF)

    def _record(
        self, running: nn.Variable[jax.Array], batch_SF: jax.Array, enough_S1: jax.Array
    ) -> None:
        moved_SF = (1 - self.momentum) * running.value + self.momentum * batch_SF
        running.value = jnp.where(enough_S1, moved_SF, running.value)


def _mean(
    x: Float[jax.Array, "B ... F"],
    one_hot_BS: Float[jax.Array, "B S"],
    count_S1: Float[jax.Array, "S 1"],
) -> Float[jax.Array, "S F"]:
    """Mean of each scenario's rows; 0 where it has none."""
    sum_BF = x.sum(axis=tuple(range(1, x.ndim - 1)))
    sum_SF = jnp.matmul(one_hot_BS.T, sum_BF, precision=scenario.EXACT)
    return sum_SF / jnp.maximum(count_S1, 1)
