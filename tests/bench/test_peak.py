import jax
import jax.numpy as jnp

from dsmoe_jax.bench import peak


def test_products_are_counted_inside_calls_and_loops():
    def layer(x, w):
        return jnp.tanh(x @ w)

    def function(x, w):
        x = jax.jit(layer)(x, w)
        x, _ = jax.lax.scan(lambda carry, _: (layer(carry, w), None), x, None, length=3)
        return x

    found = peak.count_matmul_flops(function, jnp.ones((5, 7)), jnp.ones((7, 7)))
    assert found == 4 * 2 * 5 * 7 * 7


def test_the_gradient_of_a_product_costs_two_more():
    gradient = jax.grad(lambda w, x: (x @ w).sum(), argnums=(0, 1))
    found = peak.count_matmul_flops(gradient, jnp.ones((7, 3)), jnp.ones((5, 7)))
    assert found == 3 * 2 * 5 * 7 * 3
