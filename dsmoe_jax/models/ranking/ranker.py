"""Ranker interface: a model that sees user and item together (cross-encoder) and can teach.

Owns the contract between rankers, the training step and evaluation. A ranker is never exported.

Letters: B examples, G candidates per example, S scenarios.
"""

from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Float, Int

from dsmoe_jax import batch as batch_lib
from dsmoe_jax import features


class Ranker(nn.Module):
    """A joint-input model.

    What depends on the user alone is computed by `encode_user`, once per example; `score` adds the
    items. Its items have leading axes [B, G], or [1, G] for candidates that all examples share
    (a chunk of the catalogue): the item-only part is then computed once per item and broadcast.

    Corpus-level constants (log popularity per scenario, collaborative item vectors) live in the
    collection `constants`; `constant_shapes` names those the model wants.

    Attributes:
      spec: The features the run uses.
    """

    spec: features.FeatureSpec

    @property
    def constant_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the wanted constants; see `data/statistics.py` for the known names."""
        return {}

    def encode_user(
        self, users: batch_lib.Users, scenario_B: Int[jax.Array, "B"], *, train: bool
    ) -> Any:
        """A pytree with leading axis B that `score` understands."""
        raise NotImplementedError

    def score(
        self,
        encoded: Any,
        items: batch_lib.Items,
        scenario_B: Int[jax.Array, "B"],
        *,
        train: bool,
    ) -> Float[jax.Array, "B G"]:
        """Logits of the candidates."""
        raise NotImplementedError

    def __call__(
        self,
        users: batch_lib.Users,
        items: batch_lib.Items,
        scenario_B: Int[jax.Array, "B"],
        *,
        train: bool,
    ) -> tuple[Float[jax.Array, "B G"], dict[str, jax.Array]]:
        """Logits of G candidates per example, and no auxiliary losses."""
        encoded = self.encode_user(users, scenario_B, train=train)
        return self.score(encoded, items, scenario_B, train=train), {}
