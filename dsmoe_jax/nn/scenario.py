"""Per-scenario tables and how each example picks its row.

Everything that depends on the scenario alone (coefficients, gate weights, normalisation) is
computed once as a table [S, F] and picked with the examples' one-hot matrix.

Letters: B examples, S scenarios, F features.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

# GPUs and TPUs round float32 products by default; picking a row or summing rows must not.
EXACT = jax.lax.Precision.HIGHEST


def one_hot(scenario_B: Int[jax.Array, "B"], num_scenarios: int) -> Float[jax.Array, "B S"]:
    """float32 rows with a single 1."""
    return jax.nn.one_hot(scenario_B, num_scenarios, dtype=jnp.float32)


def pick(
    table_SF: Float[jax.Array, "S F"], one_hot_BS: Float[jax.Array, "B S"], ndim: int = 2
) -> Float[jax.Array, "B ... F"]:
    """Each example's row of the table, shaped [B, 1, ..., F] with `ndim` axes.

    A product, so that its gradient is a product as well and not a contended scatter.
    """
    row_BF = jnp.matmul(one_hot_BS, table_SF, precision=EXACT)
    return row_BF.reshape(row_BF.shape[0], *(1,) * (ndim - 2), row_BF.shape[1])


def append(
    x: Float[jax.Array, "B ... F"],
    table_SC: Float[jax.Array, "S C"],
    one_hot_BS: Float[jax.Array, "B S"],
) -> Float[jax.Array, "B ... F+C"]:
    """Each example's row of the table behind its input, the same for all its candidates."""
    row = pick(table_SC, one_hot_BS, x.ndim)
    row = jnp.broadcast_to(row, (*x.shape[:-1], row.shape[-1]))
    return jnp.concatenate([x, row], axis=-1)
