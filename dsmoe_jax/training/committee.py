"""Committee: matchers of one kind, trained apart, whose mean logits teach another of that kind.

Owns how their states are joined, and how what they say is.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dsmoe_jax.models.matching import two_tower
from dsmoe_jax.training import train_state


class Committee:
    """A `train_step.Teacher` of several states of a matcher."""

    def __init__(self, model: two_tower.Matcher, logit_method: str):
        """Takes the matcher and its method that gives logits and auxiliary losses."""
        self._model, self._logit_method = model, logit_method

    def apply(self, variables: Any, *inputs: Any, train: bool) -> tuple[jax.Array, dict[str, Any]]:
        """Mean logits [B, X] of the members, whose variables `join` has joined."""

        def judge(own: Any) -> jax.Array:
            logit_BX: jax.Array = self._model.apply(
                own, *inputs, train=train, method=self._logit_method
            )[0]
            return logit_BX

        return jax.vmap(judge)(variables).mean(axis=0), {}


def join(members: Sequence[train_state.Frozen]) -> train_state.Frozen:
    """The states of all members, stacked along a new first axis."""
    joined: train_state.Frozen = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    return joined
