import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsmoe_jax.nn import product


@pytest.mark.parametrize("inputs, outputs", [(3, 7), (7, 3), (4, 4)])
@pytest.mark.parametrize("rows", [(5,), (5, 2), (2, 1, 3)])
def test_value_and_both_gradients_are_those_of_a_plain_product(rows, inputs, outputs):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(*rows, inputs)).astype(np.float32)
    w_IO = rng.normal(size=(inputs, outputs)).astype(np.float32)
    weight = rng.normal(size=(*rows, outputs)).astype(np.float32)

    def weighted(x, w_IO):
        return (product.multiply(x, w_IO) * weight).sum()

    gradient_x, gradient_IO = jax.grad(weighted, argnums=(0, 1))(jnp.asarray(x), jnp.asarray(w_IO))
    value = product.multiply(jnp.asarray(x), jnp.asarray(w_IO))
    np.testing.assert_allclose(value, x @ w_IO, atol=1e-5)
    np.testing.assert_allclose(gradient_x, weight @ w_IO.T, atol=1e-5)
    flat_NI, flat_NO = x.reshape(-1, inputs), weight.reshape(-1, outputs)
    np.testing.assert_allclose(gradient_IO, flat_NI.T @ flat_NO, atol=1e-5)


def test_bfloat16_rounds_operands_and_nothing_else():
    rng = np.random.default_rng(1)
    x_NI, w_IO, weight_NO = (
        rng.normal(size=s).astype(np.float32) for s in ((9, 5), (5, 3), (9, 3))
    )

    def weighted(x_NI, w_IO):
        return (product.multiply(x_NI, w_IO, "bfloat16") * weight_NO).sum()

    def rounded(array):
        return np.asarray(jnp.asarray(array, jnp.bfloat16), np.float32)

    value_NO = product.multiply(jnp.asarray(x_NI), jnp.asarray(w_IO), "bfloat16")
    gradients = jax.grad(weighted, argnums=(0, 1))(jnp.asarray(x_NI), jnp.asarray(w_IO))
    assert {value_NO.dtype, *(g.dtype for g in gradients)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(value_NO, rounded(x_NI) @ rounded(w_IO), rtol=1e-5, atol=1e-6)
    expected = rounded(weight_NO) @ rounded(w_IO).T, rounded(x_NI).T @ rounded(weight_NO)
    for gradient, wanted in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(gradient, wanted, rtol=1e-5, atol=1e-6)
    assert np.abs(value_NO - x_NI @ w_IO).max() > 1e-4
