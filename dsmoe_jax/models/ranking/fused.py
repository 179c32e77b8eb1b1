"""Ensemble teacher ("fused"): the mean of several rankers' logits.

Owns the mean; members are rankers of any kind, each with its own parameters and tables.

Letters: B examples, G candidates.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from dsmoe_jax import batch as batch_lib
from dsmoe_jax import features
from dsmoe_jax.config import fields, schema
from dsmoe_jax.models.ranking import ranker


@dataclasses.dataclass
class FusedConfig(schema.RankerConfig):
    """The members of an ensemble.

    Attributes:
      members: Rankers by name.
    """

    members: dict[str, schema.RankerConfig] = dataclasses.field(default_factory=dict)

    def make(self, spec: features.FeatureSpec) -> "Fused":
        fields.validate(self, self.section)
        if not self.members:
            raise ValueError("teacher.model.members: expected at least one ranker, got none")
        members = {name: member.make(spec) for name, member in self.members.items()}
        shapes: dict[str, tuple[int, ...]] = {}
        for name, member in members.items():
            for constant, shape in member.constant_shapes.items():
                if shapes.setdefault(constant, shape) != shape:
                    raise ValueError(
                        f"teacher.model.members.{name}: expected {constant} of the shape "
                        f"{shapes[constant]} that another member wants, got {shape}"
                    )
        # Frozen, so that the model can be hashed.
        return Fused(spec=spec, members=flax.core.freeze(members))


class Fused(ranker.Ranker):
    """logit = mean over members of their logits.

    **Paper:** section "Distillation" of DSMOE calls its teacher fused; that it averages several
    rankers is a second reading of the word.
    **Deviation:** members are trained together, on the loss of their mean.
    """

    members: Mapping[str, ranker.Ranker]  # Rankers by name

    @property
    def constant_shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        for member in self.members.values():
            shapes.update(member.constant_shapes)
        return shapes

    def encode_user(
        self, users: batch_lib.Users, scenario_B: Int[jax.Array, "B"], *, train: bool
    ) -> dict[str, Any]:
        """Every member's encoding, by name."""
        return {
            name: member.encode_user(users, scenario_B, train=train)
            for name, member in self.members.items()
        }

    def score(
        self,
        encoded: dict[str, Any],
        items: batch_lib.Items,
        scenario_B: Int[jax.Array, "B"],
        *,
        train: bool,
    ) -> Float[jax.Array, "B G"]:
        logits = (
            member.score(encoded[name], items, scenario_B, train=train)
            for name, member in self.members.items()
        )
        return functools.reduce(jnp.add, logits) / len(self.members)
