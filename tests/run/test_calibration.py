import jax.numpy as jnp
import numpy as np
import pytest

from dsmoe_jax.run import calibration
from dsmoe_jax.training import train_state


def tried(scores):
    """What is tried where these are the scores by factor, and what is chosen."""
    found = calibration.climb(lambda factor: scores[factor])
    return list(found), calibration.choose(found)


@pytest.mark.parametrize(
    ("scores", "factors", "chosen"),
    [
        ({1: 0.32, 0.5: 0.29, 2: 0.30}, [1, 0.5, 2], 1),
        ({1: 0.29, 0.5: 0.32, 0.25: 0.33, 0.125: 0.31}, [1, 0.5, 0.25, 0.125], 0.25),
        ({1: 0.29, 0.5: 0.28, 2: 0.30, 4: 0.30}, [1, 0.5, 2, 4], 2),
        ({1: 0.3, 0.5: 0.3, 2: 0.3}, [1, 0.5, 2], 1),
    ],
)
def test_a_factor_is_followed_while_the_score_rises(scores, factors, chosen):
    assert tried(scores) == (factors, chosen)


def test_five_steps_are_the_most():
    factors, chosen = tried({2.0**-n: n / 10 for n in range(20)})
    assert factors == [1, 0.5, 0.25, 0.125, 0.0625, 0.03125]
    assert chosen == 0.03125


def test_a_weight_is_scaled_and_nothing_else():
    params = {"log_scale": jnp.array([0.0, 0.5]), "gain": jnp.ones(3)}
    frozen = train_state.Frozen(params, {"constants": {}})
    scaled = calibration.scale(frozen, "log_scale", 0.25)
    np.testing.assert_allclose(np.exp(scaled.params["log_scale"]), [0.25, 0.25 * np.exp(0.5)])
    assert scaled.params["gain"] is params["gain"]
    # By 1 no bit moves: results of before the weight was chosen stay where it is the best.
    assert np.array_equal(calibration.scale(frozen, "log_scale", 1.0).params["log_scale"], [0, 0.5])
    np.testing.assert_array_equal(frozen.params["log_scale"], [0.0, 0.5])


def test_the_line_tells_what_was_tried():
    line = calibration.describe({1.0: 0.2, 0.5: 0.25, 0.25: 0.21}, "recall@5")
    assert line == (
        "weight of the score beside the prior: x0.5 "
        "(validation recall@5 % macro: x0.25 21.0, x0.5 25.0, x1 20.0)"
    )
