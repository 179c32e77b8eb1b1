"""DSMOE: a two-tower matcher of scenario-adaptive experts (arXiv 2601.02368), the student.

Owns the two towers and the choices the paper leaves open. The layers are in `nn/sap.py`,
`nn/dsbn.py` and `nn/mixture.py`; the teacher and the distillation loss are elsewhere.

Letters: B examples, S scenarios, C scenario embedding, K experts, R rank, D output.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from dsmoe_jax import features
from dsmoe_jax.config import fields
from dsmoe_jax.models.matching import two_tower
from dsmoe_jax.nn import dropout, embed, mixture, product, scenario, tables

ITEM_SCENARIOS = ("conditioned", "shared")

# The paper's Table 4 and the choices beside it, as changes of `DSMOEConfig`'s fields.
ABLATIONS: dict[str, dict[str, Any]] = {
    "no_sap": {"use_sap": False},
    "no_dsbn": {"norm": "bn"},
    "no_norm": {"norm": "none"},
    "shared_item_tower": {"item_scenario": "shared"},
}


@dataclasses.dataclass
class DSMOEConfig(two_tower.TowerConfig):
    """Hyper-parameters of DSMOE; the defaults are the paper's where it states one.

    It states neither `output_dim` nor `bn_momentum`, whose default is PyTorch's, and no dropout,
    which few examples need.

    Attributes:
      num_experts: K, experts per tower (paper: 3).
      rank: R of the low-rank scenario correction in every SAP layer (paper: 4).
      hidden_dim: Width of each expert, which is one SAP layer. Unstated in the paper.
      use_sap: Whether linear layers adapt to the scenario. False is the ablation "w/o SAP", in
        experts and forward layers alike.
      norm: "dsbn"; "bn" shares one batch normalisation among the scenarios, which is how the
        ablation "w/o DSBN" is read here, so that only "domain-specific" is taken away; "none"
        removes normalisation, the other reading.
      gate_input: "scenario" as printed: the gate sees the scenario embedding alone and its weights
        are the same for all users of a scenario. "scenario_and_features" adds the tower's input.
      input_includes_scenario: Whether the scenario embedding is also concatenated to both towers'
        inputs. The paper's "concatenated field embeddings" can be read either way.
      item_scenario: "conditioned": the item tower sees the scenario too and every scenario has an
        index of its own. "shared": it sees a learned constant and one index serves all; the paper
        does not say which it uses.
      product_dtype: "float32", or "bfloat16" to round the operands of the towers' matrix products
        to it; sums, statistics, losses and parameters stay float32.
    """

    num_experts: int = fields.field(3, at_least=1)
    rank: int = fields.field(4, at_least=1, search=(2, 4, 8))
    hidden_dim: int = fields.field(256, at_least=1, search=(64, 128, 256))
    use_sap: bool = True
    norm: str = "dsbn"
    gate_input: str = fields.field("scenario", choices=mixture.GATE_INPUTS)
    input_includes_scenario: bool = False
    item_scenario: str = fields.field("conditioned", choices=ITEM_SCENARIOS)
    product_dtype: str = fields.field("float32", choices=product.DTYPES, added_later=True)

    def make(self, spec: features.FeatureSpec) -> "DSMOE":
        return self.build(DSMOE, spec)


class DSMOE(two_tower.SymmetricMatcher):
    """Two towers of the same architecture, with their own parameters and one scenario table.

    **Paper:** sections "Scenario-adaptive projection", "Experts", "Gate", "Forward network",
    "Prediction". **Deviation:** the item tower's architecture is unstated; it is the user tower's
    on item features.
    """

    cfg: DSMOEConfig

    def setup(self) -> None:
        C = self.spec.embedding_dim
        self.embedder = embed.Embedder(self.spec)
        self.drop = dropout.Dropout(self.cfg.input_dropout)
        self.user_tower = self._make_tower(self.embedder.user_dim, self.spec.num_scenarios)
        item_scenarios = self.spec.num_scenarios if self.item_uses_scenario else 1
        self.item_tower = self._make_tower(self.embedder.item_dim, item_scenarios)
        if not self.item_uses_scenario:
            init = nn.initializers.normal(embed.SCENARIO_STD)
            self.item_constant_1C = self.param("item_scenario_constant", init, (1, C), jnp.float32)

    @property
    def item_uses_scenario(self) -> bool:
        """False for the shared item tower."""
        return self.cfg.item_scenario == "conditioned"

    def scenario_coefficients(self) -> dict[str, Float[jax.Array, "S R"]]:
        """b_s of every SAP layer by `<tower>/<layer>`, for the paper's Fig. 4a; [1, R] in an item
        tower that is shared, none without SAP.
        """
        found = {}
        for side in ("user", "item"):
            tower, scenario_SC = self._side(side)
            for layer, coef_SR in tower.coefficients(scenario_SC).items():
                found[f"{side}/{layer}"] = coef_SR
        return found

    def gate_weights(self) -> dict[str, Float[jax.Array, "S K"]]:
        """Expert weights per scenario of each tower, for the paper's Fig. 4b."""
        towers = {side: self._side(side) for side in ("user", "item")}
        return {side: tower.gate_weights(e_SC) for side, (tower, e_SC) in towers.items()}

    def fold_tower(self, side: str) -> mixture.FoldedTower:
        """The "user" or "item" tower as one plain perceptron per scenario, for serving.

        The scenario's own place in the input, where it has one, is folded away too: the folded
        tower reads the features of `input_slots` alone. A shared item tower has one scenario.

        **Paper:** follows from the equations: b_s, gate and normalisation depend on the scenario
        alone.

        Raises:
          ValueError: When the gate reads features.
        """
        tower, scenario_SC = self._side(side)
        folded = tower.fold(scenario_SC)
        if not self.cfg.input_includes_scenario:
            return folded
        width = folded.first_SIF.shape[1] - scenario_SC.shape[1]
        constant_SF = jnp.einsum("sc,scf->sf", scenario_SC, folded.first_SIF[:, width:])
        return folded._replace(
            first_SIF=folded.first_SIF[:, :width],
            first_bias_SF=folded.first_bias_SF + constant_SF,
        )

    def run_tower(
        self,
        side: str,
        input_BI: Float[jax.Array, "B ... I"],
        scenario_B: Int[jax.Array, "B"],
        *,
        train: bool = False,
    ) -> Float[jax.Array, "B ... D"]:
        """A side's tower on the input that `input_slots` describes.

        The scenarios are not used where the item tower is shared.
        """
        tower, scenario_SC = self._side(side)
        if scenario_SC.shape[0] == 1:
            scenario_B = jnp.zeros_like(scenario_B)
        one_hot_BS = scenario.one_hot(scenario_B, scenario_SC.shape[0])
        if self.cfg.input_includes_scenario:
            input_BI = scenario.append(input_BI, scenario_SC, one_hot_BS)
        input_BI = self.drop(input_BI, train=train)
        return tower((input_BI,), scenario_SC, one_hot_BS, train=train)

    def input_slots(self, side: str) -> list[tables.Slot]:
        """What the input of a side's tower is made of; see `nn.tables.Slot`."""
        return self.embedder.input_slots(side)

    def embedding_arrays(self) -> dict[str, Float[jax.Array, "V E"]]:
        """The arrays that `input_slots` names."""
        return self.embedder.arrays()

    def history_form(self) -> dict[str, Any]:
        """The history encoder, where there is one; see `embed.Embedder.history_form`."""
        return self.embedder.history_form()

    def history_arrays(self) -> dict[str, jax.Array]:
        """The history encoder's arrays."""
        return self.embedder.history_arrays()

    def _side(self, side: str) -> tuple[mixture.ScenarioMixture, Float[jax.Array, "S C"]]:
        """A side's tower and the scenario embeddings it reads: one row where it is shared."""
        if side == "user":
            return self.user_tower, self.embedder.scenarios()
        if self.item_uses_scenario:
            return self.item_tower, self.embedder.scenarios()
        return self.item_tower, self.item_constant_1C

    def _make_tower(self, in_dim: int, num_scenarios: int) -> mixture.ScenarioMixture:
        cfg = self.cfg
        C = self.spec.embedding_dim
        return mixture.ScenarioMixture(
            in_dim=in_dim + C * cfg.input_includes_scenario,
            hidden_dim=cfg.hidden_dim,
            output_dim=cfg.output_dim,
            scenario_dim=C,
            num_scenarios=num_scenarios,
            num_experts=cfg.num_experts,
            rank=cfg.rank,
            use_sap=cfg.use_sap,
            norm=cfg.norm,
            momentum=cfg.bn_momentum,
            gate_input=cfg.gate_input,
            product_dtype=cfg.product_dtype,
        )
