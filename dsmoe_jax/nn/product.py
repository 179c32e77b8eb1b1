"""Matrix products over many rows, with a gradient that compilers leave alone.

Owns one function. For the gradient with respect to w, of two operands as tall as the batch, one is
transposed first. XLA chooses without regard to their widths, and then computes what it transposes
element by element within whatever element-wise work came before. Here it is the narrower one, and
the gradient of the outputs is computed once for both products.

Letters: N rows, I input, O output.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

# Types in which operands are read. Sums, and all that is stored, are float32.
DTYPES = ("float32", "bfloat16")


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def multiply(
    x: Float[jax.Array, "*rows I"], w: Float[jax.Array, "I O"], dtype: str = "float32"
) -> jax.Array:
    """The product, [*rows, O] in float32, of operands rounded to a type of `DTYPES`.

    So are those of the two products of its gradient.
    """
    return _matmul(x, w, dtype)


def _forward(
    x: jax.Array, w: jax.Array, dtype: str
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _matmul(x, w, dtype), (x, w)


def _backward(
    dtype: str, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, w = saved
    # A barrier keeps XLA from merging what it separates: it is no operation.
    keep: Any = jax.lax.optimization_barrier
    gradient_NO = keep(gradient).reshape(-1, w.shape[1])
    x_NI = x.reshape(-1, w.shape[0])
    if w.shape[0] <= w.shape[1]:
        gradient_IO = _matmul(x_NI.T, gradient_NO, dtype)
    else:
        gradient_IO = keep(_matmul(gradient_NO.T, x_NI, dtype)).T
    return _matmul(gradient_NO, w.T, dtype).reshape(x.shape), gradient_IO


multiply.defvjp(_forward, _backward)


def _matmul(a: jax.Array, b: jax.Array, dtype: str) -> jax.Array:
    return jnp.matmul(a.astype(dtype), b.astype(dtype), preferred_element_type=jnp.float32)
