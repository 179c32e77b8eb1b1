"""The weight of a score beside a known prior, chosen on validation queries before the last stage.

How much a score may move a prior depends on how much the log says of a user: with a hundred events
each on KuaiRand-Pure the configured weight is the best, with a dozen on generated rows a fourth of
it. Nothing in training tells, where every score is one of its own examples.
"""

import math
from collections.abc import Callable

from dsmoe_jax.training import train_state

# Factors of the weight go in these steps, so far apart that chance does not choose among them.
_STEPS = (0.5, 2.0)
_MOST_STEPS = 5


def climb(score: Callable[[float], float]) -> dict[float, float]:
    """Scores of the factors 1, 1/2, 1/4, ... while they rise; of 2, 4, ... where 1/2 is no better.

    At most five steps are taken.
    """
    found = {1.0: score(1.0)}
    for step in _STEPS:
        last = factor = 1.0
        for _ in range(_MOST_STEPS):
            factor *= step
            found[factor] = score(factor)
            if found[factor] <= found[last]:
                break
            last = factor
        if last != 1.0:
            break
    return found


def choose(found: dict[float, float]) -> float:
    """The factor of the highest score; of equal ones the first that was tried."""
    return max(found, key=lambda factor: found[factor])


def scale(frozen: train_state.Frozen, name: str, factor: float) -> train_state.Frozen:
    """A model with `factor` times the weight whose logarithm the parameter `name` is."""
    moved = frozen.params[name] + math.log(factor)
    return frozen._replace(params={**frozen.params, name: moved})


def describe(found: dict[float, float], score_name: str) -> str:
    """One line: the factor that was chosen, and the score of each in percent."""
    tried = ", ".join(f"x{factor:g} {100 * found[factor]:.1f}" for factor in sorted(found))
    return (
        f"weight of the score beside the prior: x{choose(found):g} "
        f"(validation {score_name} % macro: {tried})"
    )
