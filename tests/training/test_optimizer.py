import jax.numpy as jnp
import numpy as np
import optax

from dsmoe_jax.training import optimizer as optim


def test_three_steps_equal_torch_adam_with_weight_decay():
    # torch.optim.Adam([p], lr=0.1, weight_decay=0.5), p = [1, -2, 0.5] and the gradients below,
    # printed by torch 2.13.0:
    expected = [
        [0.9, -1.9, 0.4],
        [0.8051103, -1.8043617, 0.3202814],
        [0.7389208, -1.7142349, 0.2443032],
    ]
    optimizer = optim.make_optimizer(0.1, 0.5)
    params = jnp.array([1.0, -2.0, 0.5], jnp.float32)
    state = optimizer.init(params)
    for gradient, want in zip(
        ([0.3, 0.1, -0.2], [0.0, -1.0, 0.4], [-0.5, 0.2, 0.0]), expected, strict=True
    ):
        updates, state = optimizer.update(jnp.array(gradient, jnp.float32), state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params, want, rtol=1e-5)


def test_the_second_moment_decays_as_fast_as_asked():
    optimizer = optim.make_optimizer(0.1, 0.0, beta_2=0.5)
    params = jnp.zeros(1)
    state = optimizer.init(params)
    # Means 0.1 / 0.1 and 0.09 / 0.19, squares 0.5 / 0.5 and 0.25 / 0.75, each debiased.
    for gradient, move in ((1.0, 0.1), (0.0, 0.1 * 0.4736842 / 0.5773503)):
        updates, state = optimizer.update(jnp.array([gradient]), state, params)
        np.testing.assert_allclose(updates, [-move], rtol=1e-5)


def test_a_step_size_falls_along_half_a_cosine_and_stays():
    schedule = optim.make_schedule(0.2, 10)
    # (1 + cos(pi t / 10)) / 2 of the way from a twentieth to all of it.
    shares = {0: 1.0, 5: 0.525, 10: 0.05, 25: 0.05}
    for step, share in shares.items():
        np.testing.assert_allclose(schedule(step), 0.2 * share, rtol=1e-6)
    assert optim.make_schedule(0.2, 0) == 0.2
