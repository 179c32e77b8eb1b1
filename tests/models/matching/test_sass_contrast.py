import jax
import jax.numpy as jnp
import numpy as np

from dsmoe_jax.models.matching import sass

B, D = 7, 3
PAIRED_B = np.array([True, True, False, True, True, True, True])
ENTITY_B = np.array([0, 1, 2, 1, 3, 4, 2])
SAME_BB = ENTITY_B[:, None] == ENTITY_B[None]


def draw(seed=0):
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.normal(size=(B, D)), jnp.float32) for _ in range(2))


def loss(first_BD, second_BD, paired_B=PAIRED_B, same_BB=SAME_BB, temperature=0.3):
    paired_B, same_BB = jnp.asarray(paired_B), jnp.asarray(same_BB)
    return sass.info_nce(first_BD, second_BD, paired_B, same_BB, temperature)


def cosine(a, b):
    return a @ b / np.sqrt((a @ a) * (b @ b))


def test_loss_is_that_of_a_literal_loop():
    first_BD, second_BD = draw()
    got_B = loss(first_BD, second_BD)
    a, b = (np.asarray(x, np.float64) for x in (first_BD, second_BD))
    for i in range(B):
        if not PAIRED_B[i]:
            assert got_B[i] == 0
            continue
        others = [j for j in range(B) if PAIRED_B[j] and ENTITY_B[j] != ENTITY_B[i]]
        own = np.exp(cosine(a[i], b[i]) / 0.3)
        of_second = own + sum(np.exp(cosine(a[i], b[j]) / 0.3) for j in others)
        of_first = own + sum(np.exp(cosine(a[j], b[i]) / 0.3) for j in others)
        expected = -(np.log(own / of_second) + np.log(own / of_first)) / 2
        np.testing.assert_allclose(got_B[i], expected, rtol=1e-5)


def test_length_has_no_say_and_views_can_be_exchanged():
    first_BD, second_BD = draw()
    scale_B1 = jnp.arange(1.0, B + 1, dtype=jnp.float32)[:, None]
    expected_B = loss(first_BD, second_BD)
    np.testing.assert_allclose(loss(scale_B1 * first_BD, second_BD), expected_B, rtol=1e-5)
    np.testing.assert_allclose(loss(second_BD, first_BD), expected_B, rtol=1e-5)


def test_a_row_without_a_pair_moves_nobody():
    first_BD, second_BD = draw()
    gradient = jax.grad(lambda *views: loss(*views).sum(), argnums=(0, 1))
    for side_BD in gradient(first_BD, second_BD):
        assert not np.asarray(side_BD)[2].any()
        assert np.abs(side_BD[0]).max() > 0


def test_alone_with_itself_an_entity_costs_nothing():
    first_BD, second_BD = draw()
    np.testing.assert_allclose(
        loss(first_BD, second_BD, same_BB=np.ones((B, B), bool)), np.zeros(B), atol=1e-6
    )
    nobody_B = loss(first_BD, second_BD, paired_B=np.zeros(B, bool))
    np.testing.assert_array_equal(nobody_B, np.zeros(B))


def test_views_without_direction_leave_the_gradient_finite():
    first_BD, second_BD = draw()
    zeroed_BD = first_BD.at[0].set(0)
    value, gradient = jax.value_and_grad(lambda first: loss(first, second_BD).sum())(zeroed_BD)
    assert np.isfinite(value) and np.isfinite(gradient).all()
