"""DSMOE: a two-tower matcher of scenario-adaptive experts (arXiv 2601.02368), the student.

Owns the two towers and the choices the paper leaves open. The layers are in `nn/sap.py`,
`nn/dsbn.py` and `nn/mixture.py`; the teacher and the distillation loss are elsewhere.

Letters: B examples, S scenarios, C scenario embedding, K experts, R rank, M interests (1), D
output.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from dsmoe_jax import batch as batch_lib
from dsmoe_jax import config, features
from dsmoe_jax.models.matching import two_tower
from dsmoe_jax.nn import dropout, dsbn, embed, mixture, scenario

ITEM_SCENARIOS = ("conditioned", "shared")

# The paper's Table 4 and the choices beside it, as changes of `DSMOEConfig`'s fields.
ABLATIONS: dict[str, dict[str, Any]] = {
    "no_sap": {"use_sap": False},
    "no_dsbn": {"norm": "bn"},
    "no_norm": {"norm": "none"},
    "shared_item_tower": {"item_scenario": "shared"},
}


@dataclasses.dataclass
class DSMOEConfig(config.MatcherConfig):
    """Hyper-parameters of DSMOE; the defaults are the paper's where it states one.

    Attributes:
      num_experts: K, experts per tower (paper: 3).
      rank: R of the low-rank scenario correction in every SAP layer (paper: 4).
      hidden_dim: Width of each expert, which is one SAP layer. Unstated in the paper.
      output_dim: D, width of both towers' outputs. Unstated in the paper.
      input_dropout: Rate in [0, 1) at which entries of both towers' inputs are dropped in training.
        The paper states none; few examples need it.
      use_sap: Whether linear layers adapt to the scenario. False is the ablation "w/o SAP", in
        experts and forward layers alike.
      norm: "dsbn"; "bn" shares one batch normalisation among the scenarios, which is how the
        ablation "w/o DSBN" is read here, so that only "domain-specific" is taken away; "none"
        removes normalisation, the other reading.
      bn_momentum: Share of a batch in the running statistics, in (0, 1]. Unstated; 0.1 is
        PyTorch's default.
      gate_input: "scenario" as printed: the gate sees the scenario embedding alone and its weights
        are the same for all users of a scenario. "scenario_and_features" adds the tower's input.
      input_includes_scenario: Whether the scenario embedding is also concatenated to both towers'
        inputs. The paper's "concatenated field embeddings" can be read either way.
      item_scenario: "conditioned": the item tower sees the scenario too and every scenario has an
        index of its own. "shared": it sees a learned constant and one index serves all; the paper
        does not say which it uses.
    """

    num_experts: int = 3
    rank: int = 4
    hidden_dim: int = 256
    output_dim: int = 128
    input_dropout: float = 0.0
    use_sap: bool = True
    norm: str = "dsbn"
    bn_momentum: float = 0.1
    gate_input: str = "scenario"
    input_includes_scenario: bool = False
    item_scenario: str = "conditioned"

    def make(self, spec: features.FeatureSpec) -> "DSMOE":
        """Builds the model.

        Raises:
          ValueError: When a field is out of range.
        """
        for name in ("num_experts", "rank", "hidden_dim", "output_dim"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"model.{name}: expected a number >= 1, got {getattr(self, name)!r}"
                )
        if not 0 <= self.input_dropout < 1:
            raise ValueError(
                f"model.input_dropout: expected a rate in [0, 1), got {self.input_dropout!r}"
            )
        if not 0 < self.bn_momentum <= 1:
            raise ValueError(
                f"model.bn_momentum: expected a number in (0, 1], got {self.bn_momentum!r}"
            )
        for name, known in (
            ("norm", dsbn.KINDS),
            ("gate_input", mixture.GATE_INPUTS),
            ("item_scenario", ITEM_SCENARIOS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"model.{name}: expected one of {known}, got {getattr(self, name)!r}"
                )
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return DSMOE(spec=spec, **fields)


class DSMOE(two_tower.Matcher):
    """Two towers of the same architecture, with their own parameters and one scenario table.

    **Paper:** sections "Scenario-adaptive projection", "Experts", "Gate", "Forward network",
    "Prediction". **Deviation:** the item tower's architecture is unstated; it is the user tower's
    on item features.

    Attributes: see `DSMOEConfig`.
    """

    num_experts: int
    rank: int
    hidden_dim: int
    output_dim: int
    input_dropout: float
    use_sap: bool
    norm: str
    bn_momentum: float
    gate_input: str
    input_includes_scenario: bool
    item_scenario: str

    def setup(self) -> None:
        """Creates the parameters."""
        C = self.spec.embedding_dim
        self.embedder = embed.Embedder(self.spec)
        self.drop = dropout.Dropout(self.input_dropout)
        self.user_tower = self._make_tower(self.embedder.user_dim, self.spec.num_scenarios)
        item_scenarios = self.spec.num_scenarios if self.item_uses_scenario else 1
        self.item_tower = self._make_tower(self.embedder.item_dim, item_scenarios)
        if not self.item_uses_scenario:
            init = nn.initializers.truncated_normal(embed.TABLE_STD)
            self.item_constant_1C = self.param("item_scenario_constant", init, (1, C), jnp.float32)

    @property
    def item_uses_scenario(self) -> bool:
        """False for the shared item tower."""
        return self.item_scenario == "conditioned"

    def embed_user(
        self, users: batch_lib.Users, scenario_B: Int[jax.Array, "B"], *, train: bool
    ) -> tuple[Float[jax.Array, "B M D"], two_tower.Aux]:
        """One vector per user."""
        input_BI = self.embedder.users(users).input_BI
        one_hot_BS = scenario.one_hot(scenario_B, self.spec.num_scenarios)
        user_BD = self._run(self.user_tower, input_BI, self._user_scenarios(), one_hot_BS, train)
        return user_BD[:, None], {}

    def embed_item(
        self, items: batch_lib.Items, scenario_B: Int[jax.Array, "B"], *, train: bool
    ) -> tuple[Float[jax.Array, "B D"], two_tower.Aux]:
        """Item vectors; the scenarios are not used when the item tower is shared."""
        input_BI = self.embedder.items(items).input_BI
        if self.item_uses_scenario:
            one_hot_BS = scenario.one_hot(scenario_B, self.spec.num_scenarios)
        else:
            one_hot_BS = jnp.ones((scenario_B.shape[0], 1), jnp.float32)
        scenario_SC = self._item_scenarios()
        return self._run(self.item_tower, input_BI, scenario_SC, one_hot_BS, train), {}

    def scenario_coefficients(self) -> dict[str, Float[jax.Array, "S R"]]:
        """b_s of every SAP layer by `<tower>/<layer>`, for the paper's Fig. 4a; [1, R] in an item
        tower that is shared, none without SAP.
        """
        user = self.user_tower.coefficients(self._user_scenarios())
        item = self.item_tower.coefficients(self._item_scenarios())
        return {
            f"{tower}/{layer}": coef_SR
            for tower, table in (("user", user), ("item", item))
            for layer, coef_SR in table.items()
        }

    def gate_weights(self) -> dict[str, Float[jax.Array, "S K"]]:
        """Expert weights per scenario of each tower, for the paper's Fig. 4b."""
        return {
            "user": self.user_tower.gate_weights(self._user_scenarios()),
            "item": self.item_tower.gate_weights(self._item_scenarios()),
        }

    def _user_scenarios(self) -> Float[jax.Array, "S C"]:
        return self.embedder.scenarios()

    def _item_scenarios(self) -> Float[jax.Array, "S C"]:
        return self.embedder.scenarios() if self.item_uses_scenario else self.item_constant_1C

    def _make_tower(self, in_dim: int, num_scenarios: int) -> mixture.ScenarioMixture:
        C = self.spec.embedding_dim
        return mixture.ScenarioMixture(
            in_dim=in_dim + C * self.input_includes_scenario,
            hidden_dim=self.hidden_dim,
            output_dim=self.output_dim,
            scenario_dim=C,
            num_scenarios=num_scenarios,
            num_experts=self.num_experts,
            rank=self.rank,
            use_sap=self.use_sap,
            norm=self.norm,
            momentum=self.bn_momentum,
            gate_input=self.gate_input,
        )

    def _run(
        self,
        tower: mixture.ScenarioMixture,
        input_BI: Float[jax.Array, "B I"],
        scenario_SC: Float[jax.Array, "S C"],
        one_hot_BS: Float[jax.Array, "B S"],
        train: bool,
    ) -> Float[jax.Array, "B D"]:
        if self.input_includes_scenario:
            embedding_BC = scenario.pick(scenario_SC, one_hot_BS)
            input_BI = jnp.concatenate([input_BI, embedding_BC], axis=-1)
        input_BI = self.drop(input_BI, train=train)
        return tower((input_BI,), scenario_SC, one_hot_BS, train=train)
