import jax
import jax.numpy as jnp
import numpy as np

from dsmoe_jax.training import losses


def test_bce_equals_literal_values():
    logit = jnp.array([0.0, 0.0, 2.0, -2.0], jnp.float32)
    label = jnp.array([0.0, 1.0, 1.0, 1.0], jnp.float32)
    expected = [0.6931472, 0.6931472, 0.1269280, 2.1269280]
    np.testing.assert_allclose(losses.bce_with_logits(logit, label), expected, rtol=1e-6)


def test_bce_falls_when_a_positive_scores_higher():
    gradient = jax.grad(lambda z: losses.bce_with_logits(z, jnp.float32(1.0)))(jnp.float32(0.5))
    np.testing.assert_allclose(gradient, 1 / (1 + np.exp(-0.5)) - 1, rtol=1e-6)


def test_bernoulli_kl_equals_the_probability_form():
    rng = np.random.default_rng(0)
    teacher, student = rng.normal(size=(2, 50)) * 3
    p, q = 1 / (1 + np.exp(-teacher)), 1 / (1 + np.exp(-student))
    expected = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    got = losses.bernoulli_kl(jnp.float32(teacher), jnp.float32(student))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)
    assert (np.asarray(got) >= -1e-7).all()


def test_bernoulli_kl_is_zero_at_the_teacher_and_finite_for_sure_logits():
    logit = jnp.array([-60.0, -3.0, 0.0, 3.0, 60.0], jnp.float32)
    np.testing.assert_array_equal(losses.bernoulli_kl(logit, logit), np.zeros(5))
    np.testing.assert_allclose(losses.bernoulli_kl(logit, -logit)[jnp.array([0, 4])], 60.0)
    gradient = jax.grad(lambda z: losses.bernoulli_kl(logit, z).sum())(-logit)
    assert np.isfinite(gradient).all()


def test_bernoulli_kl_gradient_is_the_difference_of_probabilities():
    teacher = jnp.array([-4.0, 0.3, 2.0], jnp.float32)
    student = jnp.array([1.0, 0.3, -5.0], jnp.float32)
    gradient = jax.grad(lambda z: losses.bernoulli_kl(teacher, z).sum())(student)
    expected = jax.nn.sigmoid(student) - jax.nn.sigmoid(teacher)
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_no_gradient_reaches_the_teacher():
    student = jnp.array([1.0, -2.0], jnp.float32)
    gradient = jax.grad(lambda t: losses.bernoulli_kl(t, student).sum())(student + 1)
    np.testing.assert_array_equal(gradient, np.zeros(2))


def test_distillation_equals_training_on_an_interpolated_label():
    logit = jnp.array([0.7, -1.2, 3.0], jnp.float32)
    teacher = jnp.array([-0.4, 2.0, 1.0], jnp.float32)
    label = jnp.array([1.0, 0.0, 0.0], jnp.float32)
    weight = 3.0

    def objective(z):
        return (losses.bce_with_logits(z, label) + weight * losses.bernoulli_kl(teacher, z)).sum()

    soft = (label + weight * jax.nn.sigmoid(teacher)) / (1 + weight)
    soft_label = jax.grad(lambda z: losses.bce_with_logits(z, soft).sum())(logit)
    np.testing.assert_allclose(jax.grad(objective)(logit), (1 + weight) * soft_label, atol=1e-5)


def test_temperature_divides_the_logits_and_scales_by_its_square():
    teacher, student = jnp.float32(1.5), jnp.float32(-0.5)
    got = losses.bernoulli_kl(teacher, student, temperature=2.0)
    np.testing.assert_allclose(got, 4 * losses.bernoulli_kl(teacher / 2, student / 2), rtol=1e-6)
