"""Vector quantisation: the nearest of a codebook's vectors in place of a vector.

Owns the codebook, its losses and what is remembered of its use (collection `codes`).

Letters: B examples, N codes, H width, M remembered vectors.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from dsmoe_jax.nn import scenario

# Of every batch so many vectors are remembered that a full memory spans the last eight.
_BATCHES = 8


class VectorQuantizer(nn.Module):
    """Nearest-neighbour quantisation with a straight-through gradient.

    In training it counts how often each code was the nearest, and remembers some of the vectors
    that came last: the first rows of each batch, whose order is random anyway.

    **Paper:** van den Oord et al., "Neural Discrete Representation Learning", section 3; the
    codebook is learned by its loss, not by moving averages.
    **Deviation:** unused codes are re-seeded, see `reseed`.
    """

    num_codes: int  # N
    dim: int  # H
    commitment: float  # beta >= 0, the weight of the loss that draws vectors to their codes

    def setup(self) -> None:
        shape_NH = (self.num_codes, self.dim)
        init = nn.initializers.normal(self.dim**-0.5)
        self.codebook_NH = self.param("codebook", init, shape_NH, jnp.float32)
        self.count_N = self.variable("codes", "count", jnp.zeros, (self.num_codes,), jnp.int32)
        self.recent_MH = self.variable("codes", "recent", jnp.zeros, shape_NH, jnp.float32)
        self.num_recent = self.variable("codes", "num_recent", jnp.zeros, (), jnp.int32)

    def __call__(
        self, z_BH: Float[jax.Array, "B H"], *, train: bool
    ) -> tuple[Float[jax.Array, "B H"], Float[jax.Array, "B"]]:
        """Every vector's nearest code q, of equally near ones the first, and the loss.

        The value is q and its gradient that of z itself. The loss is |sg(z) - q|^2 + beta
        |z - sg(q)|^2, the first term being all that moves the codebook.
        """
        one_hot_BN = self._choose(z_BH)
        code_BH = jnp.matmul(one_hot_BN, self.codebook_NH, precision=scenario.EXACT)
        still = jax.lax.stop_gradient
        loss_B = jnp.square(still(z_BH) - code_BH).sum(axis=1)
        loss_B = loss_B + self.commitment * jnp.square(z_BH - still(code_BH)).sum(axis=1)
        if train and not self.is_initializing():
            self._record(still(z_BH), one_hot_BN)
        return z_BH + still(code_BH - z_BH), loss_B

    def perplexity(self) -> Float[jax.Array, ""]:
        """Codes in use since the last `reseed`: exp of the entropy of their shares, 1 to N."""
        count_N = self.count_N.value.astype(jnp.float32)
        share_N = count_N / jnp.maximum(count_N.sum(), 1)
        return jnp.exp(-jax.scipy.special.xlogy(share_N, share_N).sum())

    def reseed(self, key: jax.Array) -> None:
        """Puts remembered vectors in the place of codes never used since the last call.

        Which goes where is drawn with the key, none twice. A code in use stays as it is; so does
        an unused one when there are more of them than vectors. The counts start anew.
        """
        unused_N = self.count_N.value == 0
        held = self.num_recent.value
        draw_M = jax.random.uniform(key, (self.num_codes,))
        order_M = jnp.argsort(jnp.where(jnp.arange(self.num_codes) < held, draw_M, 2.0))
        turn_N = jnp.cumsum(unused_N) - 1
        found_NH = self.recent_MH.value[order_M[jnp.maximum(turn_N, 0)]]
        replaced_N1 = (unused_N & (turn_N < held))[:, None]
        self.put_variable("params", "codebook", jnp.where(replaced_N1, found_NH, self.codebook_NH))
        self.count_N.value = jnp.zeros_like(self.count_N.value)

    def _choose(self, z_BH: Float[jax.Array, "B H"]) -> Float[jax.Array, "B N"]:
        """One-hot rows of the nearest codes."""
        inner_BN = jnp.matmul(z_BH, self.codebook_NH.T, precision=scenario.EXACT)
        distance_BN = jnp.square(self.codebook_NH).sum(axis=1)[None] - 2 * inner_BN
        nearest_B = jnp.argmin(distance_BN, axis=1)
        return jax.nn.one_hot(nearest_B, self.num_codes, dtype=jnp.float32)

    def _record(self, z_BH: Float[jax.Array, "B H"], one_hot_BN: Float[jax.Array, "B N"]) -> None:
        used_N: Int[jax.Array, "N"] = one_hot_BN.sum(axis=0).astype(jnp.int32)
        self.count_N.value = self.count_N.value + used_N
        rows = z_BH[: max(1, self.num_codes // _BATCHES)]
        joint_MH = jnp.concatenate([rows, self.recent_MH.value])
        self.recent_MH.value = joint_MH[: self.num_codes]
        self.num_recent.value = jnp.minimum(self.num_recent.value + len(rows), self.num_codes)
