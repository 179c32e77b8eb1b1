"""DSSM: the plain two-tower model, for all scenarios together or one model for each.

Owns the two variants that multi-scenario methods are measured against: "mixed" (DSSM-M), one model
that reads the scenario as a feature, and "per_scenario" (DSSM-S), which shares nothing.

Letters: B examples, S scenarios, C scenario embedding, M interests (1), D output.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from dsmoe_jax import batch as batch_lib
from dsmoe_jax import features
from dsmoe_jax.config import fields
from dsmoe_jax.models.matching import dssm_tables, two_tower
from dsmoe_jax.nn import dropout, embed, perceptron, scenario, tables

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
            own = self.scenario_embedder = dssm_tables.ScenarioEmbedder(self.spec)
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

    def _make_tower(self, in_dim: int, num_scenarios: int) -> perceptron.Perceptron:
        cfg = self.cfg
        dims = (in_dim, *cfg.hidden_dims, cfg.output_dim)
        own = self._is_per_scenario
        # One model's batch normalisation sees its own scenario's rows.
        norm = "dsbn" if own and cfg.norm == "bn" else cfg.norm
        return perceptron.Perceptron(dims, num_scenarios, norm, cfg.bn_momentum, own)

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
