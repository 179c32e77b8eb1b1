"""Graphs over the fields of an input, made by and for each row, and what is read along them.

Owns generators, refinement and graph layers. Does not own what is done with the interactions.

Letters: B rows (any leading axes), F fields, E one field's width, I = F * E.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

# Entries of [0, 1] are compared by their first 15 bits, which fit a 16-bit integer.
_BITS = 15


class GraphGenerator(nn.Module):
    """The raw graph of a row: its row f is MLP_f([x; onehot_f]), with two hidden layers of F units.

    A generator's one-hot is constant, so that of its weights only F are ever used, and as a bias:
    they are kept as the first layer's bias, with their initial values. The generators lie side by
    side: one product does for all first layers.

    **Paper:** PERSCEN, user-specific feature graph, after the public code of EmerG.
    """

    num_fields: int  # F
    in_dim: int  # I

    @nn.compact
    def __call__(self, x: Float[jax.Array, "B I"]) -> Float[jax.Array, "B F F"]:
        F, inputs = self.num_fields, self.in_dim + self.num_fields
        as_one_hot, zeros = nn.initializers.normal(inputs**-0.5), nn.initializers.zeros_init()
        stacked = nn.initializers.lecun_normal(batch_axis=(0,))
        first_IF = self.param("kernel_0", as_one_hot, (self.in_dim, F * F), jnp.float32)
        bias_F = self.param("bias_0", as_one_hot, (F * F,), jnp.float32)
        hidden = (x @ first_IF + bias_F[None]).reshape(-1, F, F)
        # The generators' axis leads, as a batch of products wants it.
        hidden_FBF = hidden.swapaxes(0, 1)
        for n in (1, 2):
            kernel_FFF = self.param(f"kernel_{n}", stacked, (F, F, F), jnp.float32)
            bias_FF = self.param(f"bias_{n}", zeros, (F, F), jnp.float32)
            hidden_FBF = nn.relu(hidden_FBF) @ kernel_FFF + bias_FF[:, None]
        return hidden_FBF.swapaxes(0, 1)


def scale_to_unit(graph_BFF: Float[jax.Array, "B F F"]) -> Float[jax.Array, "B F F"]:
    """Each row's entries mapped linearly onto [0, 1]; 0 where they are all equal."""
    low_B11 = graph_BFF.min(axis=(1, 2), keepdims=True)
    range_B11 = graph_BFF.max(axis=(1, 2), keepdims=True) - low_B11
    return (graph_BFF - low_B11) / jnp.where(range_B11 > 0, range_B11, 1)


def keep_largest_half(unit_BFF: Float[jax.Array, "B F F"]) -> Bool[jax.Array, "B F F"]:
    """Marks the larger half of each row's F^2 entries in [0, 1], rounded up: exactly so many.

    The diagonal counts as largest. Entries that agree in 15 bits count as equal; of those at the
    limit the first ones in row order are marked.
    """
    F = unit_BFF.shape[-1]
    size = F * F
    half = (size + 1) // 2
    # Half as wide an integer is counted twice as fast; it must hold an entry's place, too.
    dtype = jnp.int16 if size < 2**_BITS else jnp.int32
    top = 2**_BITS - 1
    level_BFF = (jax.lax.stop_gradient(unit_BFF) * (top - 1)).astype(dtype)
    level_BFF = jnp.where(jnp.eye(F, dtype=bool)[None], top, level_BFF)
    level_BV = level_BFF.reshape(-1, size)
    limit_B1 = _find_kth_largest(level_BV, jnp.full((level_BV.shape[0], 1), half, dtype), _BITS)
    above_BV = level_BV > limit_B1
    missing_B1 = half - above_BV.sum(axis=1, keepdims=True, dtype=dtype)
    turn_BV = jnp.where(level_BV == limit_B1, size - jnp.arange(size, dtype=dtype)[None], 0)
    last_B1 = _find_kth_largest(turn_BV, missing_B1, size.bit_length())
    return (above_BV | (turn_BV >= last_B1)).reshape(unit_BFF.shape)


def _find_kth_largest(
    value_BV: Int[jax.Array, "B V"], k_B1: Int[jax.Array, "B 1"], bits: int
) -> Int[jax.Array, "B 1"]:
    """The k-th largest of each row's numbers in [0, 2^bits), bit by bit from the highest.

    A bit takes one pass, which counts what is not below a number. Sorting, or `lax.top_k`, takes
    ten times as long as all passes, on a CPU.
    """
    dtype = value_BV.dtype

    def set_bit(step: jax.Array, found_B1: jax.Array) -> jax.Array:
        higher_B1 = found_B1 + (1 << (bits - 1 - step)).astype(dtype)
        count_B1 = (value_BV >= higher_B1).sum(axis=1, keepdims=True, dtype=dtype)
        return jnp.where(count_B1 >= k_B1, higher_B1, found_B1)

    kth_B1: jax.Array = jax.lax.fori_loop(0, bits, set_bit, jnp.zeros(k_B1.shape, dtype))
    return kth_B1


def refine(
    raw_BFF: Float[jax.Array, "B F F"],
) -> tuple[Float[jax.Array, "B F F"], Bool[jax.Array, "B F F"]]:
    """The graph of first order and its support, both symmetric.

    Entries are mapped onto [0, 1], the diagonal is set to 1, the larger half is kept (see
    `keep_largest_half`; no gradient passes through the choice) and the rest averaged with its
    transpose.

    **Paper:** PERSCEN, refinement by normalisation, sparsification and symmetry. **Deviation:** the
    bounds of the normalisation, the share that is kept and the order of the steps are EmerG's; here
    they are taken per row and not over a batch.
    """
    unit_BFF = scale_to_unit(raw_BFF)
    unit_BFF = jnp.where(jnp.eye(raw_BFF.shape[-1], dtype=bool)[None], 1, unit_BFF)
    kept_BFF = keep_largest_half(unit_BFF)
    graph_BFF = jnp.where(kept_BFF, unit_BFF, 0)
    return _symmetrise(graph_BFF), kept_BFF | kept_BFF.swapaxes(1, 2)


def raise_order(
    graph_BFF: Float[jax.Array, "B F F"],
    first_BFF: Float[jax.Array, "B F F"],
    support_BFF: Bool[jax.Array, "B F F"],
) -> Float[jax.Array, "B F F"]:
    """The graph of the next order: A^(l) A^(1), mapped onto [0, 1], within the first one's support.

    **Paper:** PERSCEN, A^(l) = A^(l-1) A^(1). **Deviation:** that of EmerG is left as it is; here
    it is made symmetric again, which it no longer is from the third order on.
    """
    unit_BFF = scale_to_unit(graph_BFF @ first_BFF)
    return _symmetrise(jnp.where(support_BFF, unit_BFF, 0))


def _symmetrise(graph_BFF: Float[jax.Array, "B F F"]) -> Float[jax.Array, "B F F"]:
    return (graph_BFF + graph_BFF.swapaxes(1, 2)) / 2


class FeatureGraph(nn.Module):
    """Interactions of a row's fields of every order up to 1 + the number of layers.

    H^0 = X, the fields [F, E]; A^(l) the row's graph of order l; a^l = act(A^(l) X W^l), act being
    LeakyReLU and the identity in the last layer; H^l = a^l * H^(l-1). Every layer reads X again, so
    that H^l is of degree l + 1.

    **Paper:** PERSCEN, lightweight graph neural network on the user-specific graph; its layers and
    the activation's place are those of EmerG's public code.
    """

    num_fields: int  # F
    dim: int  # E
    num_layers: int  # Graph layers >= 1

    def setup(self) -> None:
        self.generator = GraphGenerator(self.num_fields, self.num_fields * self.dim)
        self.kernel_LEE = self.param(
            "kernel",
            nn.initializers.lecun_normal(batch_axis=(0,)),
            (self.num_layers, self.dim, self.dim),
            jnp.float32,
        )

    def graphs(self, x: Float[jax.Array, "B I"]) -> list[Float[jax.Array, "B F F"]]:
        first_BFF, support_BFF = refine(self.generator(x))
        found = [first_BFF]
        for _ in range(1, self.num_layers):
            found.append(raise_order(found[-1], first_BFF, support_BFF))
        return found

    def __call__(self, x: Float[jax.Array, "*rows I"]) -> list[Float[jax.Array, "*rows I"]]:
        """H^1, H^2, ..., each flattened."""
        rows = x.reshape(-1, x.shape[-1])
        field_BFE = rows.reshape(-1, self.num_fields, self.dim)
        flat = rows.reshape(-1, self.dim)
        found, product_BFE = [], field_BFE
        for layer, graph_BFF in enumerate(self.graphs(rows)):
            # Flat, as a product per row of the batch would sum the kernel's gradient row by row.
            mapped_BFE = (flat @ self.kernel_LEE[layer]).reshape(field_BFE.shape)
            read_BFE = graph_BFF @ mapped_BFE
            if layer + 1 < self.num_layers:
                read_BFE = nn.leaky_relu(read_BFE)
            product_BFE = read_BFE * product_BFE
            found.append(product_BFE.reshape(x.shape))
        return found
