"""The matrix product of layers over many rows, with a gradient that compilers leave alone.

Owns one function. For the gradient with respect to w, of two operands as tall as the batch, one is
transposed first. XLA chooses without regard to their widths, and then computes what it transposes
element by element within whatever element-wise work came before. Here it is the narrower one, and
the gradient of the outputs is computed once for both products.

Letters: N rows, I input, O output.
"""

import jax
from jaxtyping import Float


@jax.custom_vjp
def multiply(x: Float[jax.Array, "*rows I"], w: Float[jax.Array, "I O"]) -> jax.Array:
    """The product, [*rows, O]."""
    return x @ w


def _forward(x: jax.Array, w: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return x @ w, (x, w)


def _backward(
    saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, w = saved
    # A barrier keeps XLA from merging what it separates: it is no operation.
    keep = jax.lax.optimization_barrier
    gradient_NO = keep(gradient).reshape(-1, w.shape[1])
    x_NI = x.reshape(-1, w.shape[0])
    x_is_narrower = w.shape[0] <= w.shape[1]
    gradient_IO = x_NI.T @ gradient_NO if x_is_narrower else keep(gradient_NO.T @ x_NI).T
    return (gradient_NO @ w.T).reshape(x.shape), gradient_IO


multiply.defvjp(_forward, _backward)
