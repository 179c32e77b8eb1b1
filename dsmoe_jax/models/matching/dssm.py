"""DSSM: the plain two-tower model, for all scenarios together or one model for each.

Owns the two variants that multi-scenario methods are measured against: "mixed" (DSSM-M), one model
that reads the scenario as a feature, and "per_scenario" (DSSM-S), which shares nothing. In tables
that share nothing the ids of scenario s lie behind those of s - 1: a lookup costs what it costs in
a shared table, and an example touches its own scenario's rows alone.

Letters: B examples (items may have more leading axes), S scenarios, F fields, E one field's width,
I the width of a tower's input, M interests (1), D output.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from dsmoe_jax import batch as batch_lib
from dsmoe_jax import features
from dsmoe_jax.config import fields
from dsmoe_jax.models.matching import two_tower
from dsmoe_jax.nn import dropout, embed, mlp, scenario, tables

SHARINGS = ("mixed", "per_scenario")
SCENARIO_INPUTS = ("both", "user", "none")


@dataclasses.dataclass
class DSSMConfig(two_tower.TowerConfig):
    """Hyper-parameters of DSSM.

    Attributes:
      sharing: "mixed": one model for all scenarios. "per_scenario": a model for each, embedding
        tables included.
      scenario_input: With "mixed", whose input the scenario embedding is appended to: "both"
        towers', which makes an index per scenario; the "user" tower's alone, with one index for
        all; or "none". A model for each scenario has no use for it.
      hidden_dims: Widths of each tower's hidden layers; none leaves a linear map.
      norm: "bn"; "dsbn" with statistics and affine parameters of every scenario where the tower
        sees scenarios; or "none". A model for each scenario is normalised over its own rows.
    """

    sharing: str = fields.field("mixed", choices=SHARINGS)
    scenario_input: str = fields.field("both", choices=SCENARIO_INPUTS)
    hidden_dims: tuple[int, ...] = fields.field(
        (256,), at_least=1, search=((64,), (128,), (256,), (128, 64))
    )
    norm: str = "bn"

    def make(self, spec: features.FeatureSpec) -> "DSSM":
        return self.build(DSSM, spec)


@dataclasses.dataclass
class DSSMPerScenarioConfig(DSSMConfig):
    """DSSM-S: see `DSSMConfig`."""

    sharing: str = "per_scenario"


def spread(spec: features.FeatureSpec) -> features.FeatureSpec:
    """The features with ids of their own in every scenario; id 0, unknown, stays one.

    Raises:
      ValueError: When a feature gets more ids than int32 can number.
    """
    S, sides = spec.num_scenarios, ("user_sparse", "user_bags", "item_sparse", "item_bags")
    wider: dict[str, Any] = {
        side: tuple(
            dataclasses.replace(f, num_ids=1 + S * (f.num_ids - 1)) for f in getattr(spec, side)
        )
        for side in sides
    }
    return dataclasses.replace(spec, **wider)


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


class DSSM(two_tower.Matcher):
    """Two perceptrons on concatenated field embeddings, scored by an inner product.

    Per scenario, the model of scenario s is a function of the rows of s alone: tables, layers and
    normalisation are stacked, each example uses its own scenario's, and no gradient and no
    statistic crosses. All are trained in one run: they share its batches, its optimiser's step
    count and the choice of the epoch.

    **Paper:** Huang et al., "Learning Deep Structured Semantic Models for Web Search using
    Clickthrough Data", section 3.1; the rows DSSM-M and DSSM-S of multi-scenario papers.
    **Deviation:** Linear -> BN -> ReLU in place of tanh on letter trigrams; the score is the plain
    inner product, not a cosine, whose logits in [-1, 1] are too flat for the cross entropy.
    """

    cfg: DSSMConfig

    def setup(self) -> None:
        self.drop = dropout.Dropout(self.cfg.input_dropout)
        if self._is_per_scenario:
            own = self.scenario_embedder = ScenarioEmbedder(self.spec)
            user_dim, item_dim = own.user_dim, own.item_dim
        else:
            std = None if self.cfg.scenario_input == "none" else tables.TABLE_STD
            joint = self.embedder = embed.Embedder(self.spec, std)
            user_dim = joint.user_dim + self.spec.embedding_dim * self._reads_scenario("user")
            item_dim = joint.item_dim + self.spec.embedding_dim * self._reads_scenario("item")
        self.user_tower = self._make_tower(user_dim, self.spec.num_scenarios)
        item_scenarios = self.spec.num_scenarios if self.item_uses_scenario else 1
        self.item_tower = self._make_tower(item_dim, item_scenarios)

    @property
    def item_uses_scenario(self) -> bool:
        """False where only the user tower, or neither, sees the scenario."""
        return self._is_per_scenario or self.cfg.scenario_input == "both"

    def embed_user(
        self, users: batch_lib.Users, scenario_B: Int[jax.Array, "B"], *, train: bool
    ) -> tuple[Float[jax.Array, "B M D"], two_tower.Aux]:
        if self._is_per_scenario:
            input_BI = self.scenario_embedder.users(users, scenario_B)
        else:
            input_BI = self.embedder.users(users).input_BI
        return self._run("user", input_BI, scenario_B, train)[:, None], {}

    def embed_item(
        self, items: batch_lib.Items, scenario_B: Int[jax.Array, "B"], *, train: bool
    ) -> tuple[Float[jax.Array, "B ... D"], two_tower.Aux]:
        """Item vectors; the scenarios are not used where the item tower sees none."""
        if self._is_per_scenario:
            input_BI = self.scenario_embedder.items(items, scenario_B)
        else:
            input_BI = self.embedder.items(items).input_BI
        return self._run("item", input_BI, scenario_B, train), {}

    @property
    def _is_per_scenario(self) -> bool:
        return self.cfg.sharing == "per_scenario"

    def _reads_scenario(self, side: str) -> bool:
        """Whether the scenario embedding is part of a side's input."""
        return not self._is_per_scenario and self.cfg.scenario_input in ("both", side)

    def _make_tower(self, in_dim: int, num_scenarios: int) -> mlp.Perceptron:
        cfg = self.cfg
        dims = (in_dim, *cfg.hidden_dims, cfg.output_dim)
        own = self._is_per_scenario
        # One model's batch normalisation sees its own scenario's rows.
        norm = "dsbn" if own and cfg.norm == "bn" else cfg.norm
        return mlp.Perceptron(dims, num_scenarios, norm, cfg.bn_momentum, own)

    def _run(
        self,
        side: str,
        input_BI: Float[jax.Array, "B ... I"],
        scenario_B: Int[jax.Array, "B"],
        train: bool,
    ) -> Float[jax.Array, "B ... D"]:
        tower = self.user_tower if side == "user" else self.item_tower
        if tower.num_scenarios == 1:
            scenario_B = jnp.zeros_like(scenario_B)
        one_hot_BS = scenario.one_hot(scenario_B, tower.num_scenarios)
        if self._reads_scenario(side):
            input_BI = scenario.append(input_BI, self.embedder.scenarios(), one_hot_BS)
        output: jax.Array = tower(self.drop(input_BI, train=train), one_hot_BS, train=train)
        return output


def _move(
    ids: Int[Any, "B ... F"], num_ids: list[int], scenario_B: Int[jax.Array, "B"]
) -> Int[jax.Array, "B ... F"]:
    """Ids of the examples' scenarios, of F fields or along a bag; 0 stays 0 and counts as an id."""
    step_F = jnp.asarray(num_ids, jnp.int32) - 1
    step_F = step_F.reshape(*(1,) * (ids.ndim - 1), -1)
    first = scenario_B.reshape(-1, *(1,) * (ids.ndim - 1)) * step_F
    return jnp.where(ids > 0, ids + first, 0)
