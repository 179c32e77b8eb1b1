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


LOGIT_BG = jnp.array([[1.0, 0.0, 2.0], [-1.0, 3.0, 0.5]], jnp.float32)
IS_OTHER_BN = jnp.array([[True, True], [False, True]])


def test_pairwise_equals_literal_values():
    expected = [[0.3132617, 1.3132617], [4.0181499, 1.7014133]]
    np.testing.assert_allclose(losses.pairwise(LOGIT_BG, None), expected, rtol=1e-6)
    # The first negative of the second row is the positive: the other counts for both.
    expected = [[0.3132617, 1.3132617], [0.0, 2 * 1.7014133]]
    np.testing.assert_allclose(losses.pairwise(LOGIT_BG, IS_OTHER_BN), expected, rtol=1e-6)


def test_bce_of_candidates_leaves_out_negatives_that_are_the_positive():
    plain = losses.candidates_bce(LOGIT_BG, None)
    expected = losses.bce_with_logits(LOGIT_BG, jnp.array([[1.0, 0.0, 0.0]] * 2))
    np.testing.assert_allclose(plain, expected, rtol=1e-6)
    masked = losses.candidates_bce(LOGIT_BG, IS_OTHER_BN)
    np.testing.assert_allclose(masked[0], plain[0], rtol=1e-6)
    np.testing.assert_allclose(masked[1], plain[1] * np.array([1.5, 0, 1.5]), rtol=1e-6)


def test_losses_without_any_negative_are_finite():
    none = jnp.zeros((2, 2), bool)
    np.testing.assert_array_equal(losses.pairwise(LOGIT_BG, none), np.zeros((2, 2)))
    np.testing.assert_array_equal(losses.sampled_softmax(LOGIT_BG, none), np.zeros((2, 1)))
    gradient = jax.grad(lambda z: losses.sampled_softmax(z, none).sum())(LOGIT_BG)
    np.testing.assert_array_equal(gradient, np.zeros((2, 3)))
    bce = losses.candidates_bce(LOGIT_BG, none)
    expected = 3 * losses.bce_with_logits(LOGIT_BG[:, 0], jnp.ones(2))
    np.testing.assert_allclose(bce, jnp.pad(expected[:, None], ((0, 0), (0, 2))), rtol=1e-6)


def test_softmax_over_candidates_equals_literal_values():
    got = losses.sampled_softmax(LOGIT_BG, None)
    np.testing.assert_allclose(got, [[1.4076059], [4.0956743]], rtol=1e-6)
    got = losses.sampled_softmax(LOGIT_BG, IS_OTHER_BN)
    np.testing.assert_allclose(got, [[1.4076059], [1.7014133]], rtol=1e-6)


def test_corrected_draws_estimate_the_softmax_over_the_corpus_without_bias():
    """The expectation over all pairs of draws, each by its probability, is the sum over items."""
    own, other_V = 0.7, np.array([1.5, -0.3, 0.2])
    share_V = np.array([0.6, 0.3, 0.1])
    expected = np.exp(other_V).sum()
    mean = 0.0
    for first in range(3):
        for second in range(3):
            drawn = np.array([first, second])
            logit_BG = jnp.float32([[own, *other_V[drawn]]])
            log_share_BN = jnp.log(jnp.float32(share_V[drawn]))[None]
            loss = float(losses.sampled_softmax(logit_BG, None, log_share_BN)[0, 0])
            # exp(loss) is 1 + the estimate / exp(own).
            mean += share_V[drawn].prod() * (np.exp(loss) - 1) * np.exp(own)
    np.testing.assert_allclose(mean, expected, rtol=1e-5)


def test_corrected_uniform_draws_of_every_item_are_the_softmax_over_the_corpus():
    logit_BG = jax.random.normal(jax.random.key(0), (4, 9))
    log_share_BN = jnp.full((4, 8), -jnp.log(8.0))
    expected = -jax.nn.log_softmax(logit_BG, axis=1)[:, :1]
    got = losses.sampled_softmax(logit_BG, None, log_share_BN)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_listwise_kl_equals_the_probability_form():
    rng = np.random.default_rng(0)
    teacher, student = rng.normal(size=(2, 5, 4))

    def softmax(x):
        return np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)

    for temperature in (1.0, 2.5):
        p, q = softmax(teacher / temperature), softmax(student / temperature)
        expected = temperature**2 * (p * np.log(p / q)).sum(axis=1, keepdims=True)
        got = losses.listwise_kl(
            jnp.float32(teacher), jnp.float32(student), temperature=temperature
        )
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)
    assert not jax.grad(lambda t: losses.listwise_kl(t, jnp.float32(student)).sum())(
        jnp.float32(teacher)
    ).any()
    # What is out of both lists is as if it were not there, in the gradient too.
    out = jnp.full((5, 1), -jnp.inf)
    wide = [jnp.concatenate([jnp.float32(x), out], axis=1) for x in (teacher, student)]
    kept = losses.listwise_kl(jnp.float32(teacher), jnp.float32(student))
    np.testing.assert_allclose(losses.listwise_kl(*wide), kept, rtol=1e-6)
    gradient_BG = jax.grad(lambda s: losses.listwise_kl(wide[0], s).sum())(wide[1])
    assert np.isfinite(gradient_BG).all() and not gradient_BG[:, -1].any()
