"""Per-scenario embedding tables, for models that share nothing between scenarios.

Owns the ids: in one table of all scenarios, those of scenario s lie behind those of s - 1. A lookup
costs what it costs in a shared table, and an example touches its own scenario's rows alone.

Letters: B examples (items may have more leading axes), S scenarios, F fields, E one field's width,
I the width of a tower's input.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from dsmoe_jax import batch as batch_lib
from dsmoe_jax import features
from dsmoe_jax.nn import embed, scenario, tables


def spread(spec: features.FeatureSpec) -> features.FeatureSpec:
    """The features with ids of their own in every scenario; id 0, unknown, stays one.

    Raises:
      ValueError: When a feature gets more ids than int32 can number.
    """

    def spread_side(side: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(
            dataclasses.replace(f, num_ids=1 + spec.num_scenarios * (f.num_ids - 1)) for f in side
        )

    return dataclasses.replace(
        spec,
        user_sparse=spread_side(spec.user_sparse),
        user_bags=spread_side(spec.user_bags),
        item_sparse=spread_side(spec.item_sparse),
        item_bags=spread_side(spec.item_bags),
    )


class ScenarioEmbedder(nn.Module):
    """`embed.Embedder` with tables and dense features' vectors per scenario.

    A history is embedded with its example's scenario's item tables. There is no embedding of the
    scenario: within one it would be a constant.
    """

    spec: features.FeatureSpec  # The features

    def setup(self) -> None:
        spec = self.spec
        # A dense feature has no id to move: its vectors are this module's.
        sparse = dataclasses.replace(spread(spec), user_dense=(), item_dense=())
        self.embedder = embed.Embedder(sparse, scenario_std=None)
        init = nn.initializers.truncated_normal(tables.TABLE_STD)
        self.dense = {
            side: self.param(f"{side}_dense", init, shape_SFE, jnp.float32)
            for side in ("user", "item")
            if (shape_SFE := self._dense_shape(side))[1]
        }

    @property
    def user_dim(self) -> int:
        """I of the user side."""
        return self.embedder.user_dim + len(self.spec.user_dense) * self.spec.embedding_dim

    @property
    def item_dim(self) -> int:
        """I of the item side."""
        return self.embedder.item_dim + len(self.spec.item_dense) * self.spec.embedding_dim

    def users(
        self, users: batch_lib.Users, scenario_B: Int[jax.Array, "B"]
    ) -> Float[jax.Array, "B I"]:
        """The user side's fields, concatenated."""
        num_ids = {f.name: f.num_ids for f in self.spec.item_sparse}
        sequences = {
            s.name: users.sequences[s.name]._replace(
                ids_BLF=_move(
                    users.sequences[s.name].ids_BLF, [num_ids[f] for f in s.fields], scenario_B
                )
            )
            for s in self.spec.sequences
        }
        sparse_BF, bags = self._move_side("user", users.sparse_BF, users.bags, scenario_B)
        moved = users._replace(sparse_BF=sparse_BF, bags=bags, sequences=sequences)
        return self._join("user", self.embedder.users(moved), users.dense_BF, scenario_B)

    def items(
        self, items: batch_lib.Items, scenario_B: Int[jax.Array, "B"]
    ) -> Float[jax.Array, "B ... I"]:
        """The item side's fields, concatenated; `items` has leading axes [B, ...]."""
        sparse_VF, bags = self._move_side("item", items.sparse_VF, items.bags, scenario_B)
        moved = items._replace(sparse_VF=sparse_VF, bags=bags)
        return self._join("item", self.embedder.items(moved), items.dense_VF, scenario_B)

    def _dense_shape(self, side: str) -> tuple[int, int, int]:
        spec = self.spec
        return spec.num_scenarios, len(getattr(spec, f"{side}_dense")), spec.embedding_dim

    def _move_side(
        self, side: str, sparse: Any, bags: dict[str, Any], scenario_B: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        num_ids = [f.num_ids for f in getattr(self.spec, f"{side}_sparse")]
        moved = {
            f.name: _move(bags[f.name], [f.num_ids], scenario_B)
            for f in getattr(self.spec, f"{side}_bags")
        }
        return _move(sparse, num_ids, scenario_B), moved

    def _join(
        self,
        side: str,
        embedded: embed.Embedded,
        dense_BF: Float[Any, "B ... F"],
        scenario_B: Int[jax.Array, "B"],
    ) -> Float[jax.Array, "B ... I"]:
        """Appends the dense features, each times its scenario's vector."""
        if side not in self.dense:
            return embedded.input_BI
        S, F, E = self._dense_shape(side)
        table_SF = self.dense[side].reshape(S, F * E)
        vector = scenario.pick(table_SF, scenario.one_hot(scenario_B, S), dense_BF.ndim)
        scaled = jnp.repeat(dense_BF, E, axis=-1) * vector
        return jnp.concatenate([embedded.input_BI, scaled], axis=-1)


def _move(
    ids: Int[Any, "B ... F"], num_ids: list[int], scenario_B: Int[jax.Array, "B"]
) -> Int[jax.Array, "B ... F"]:
    """Ids of the examples' scenarios, of F fields or along a bag; 0 stays 0 and counts as an id."""
    step_F = jnp.asarray(num_ids, jnp.int32) - 1
    step_F = step_F.reshape(*(1,) * (ids.ndim - 1), -1)
    first = scenario_B.reshape(-1, *(1,) * (ids.ndim - 1)) * step_F
    return jnp.where(ids > 0, ids + first, 0)
