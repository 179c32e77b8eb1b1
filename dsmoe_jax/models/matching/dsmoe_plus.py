"""DSMOE beside a linear skip: its two towers add to the score of FISM, and start from it.

Owns the stages, the towers' inputs and how both scores become one inner product. The linear
form is in `fism.py`, DSMOE's layers in `nn/mixture.py`.

**Deviation:** ours, no paper has it. A user's tower reads what the user did and was shown as FISM
sums it up; FISM is trained first, then everything on a softmax over items.

Letters: B examples, G candidates of an example (1 + N), X all candidates of a batch, S scenarios, C
scenario embedding, D a vector, F factors of FISM, I a tower's input.
"""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from dsmoe_jax import batch as batch_lib
from dsmoe_jax import features
from dsmoe_jax.config import fields, schema
from dsmoe_jax.models.matching import fism, two_tower
from dsmoe_jax.nn import dropout, dsbn, embed, mixture, sampled_softmax, scenario, tables

# Stages of FISM; the towers' begins where the first ends.
_LINEAR = ("linear", "second", "third", "fourth", "fifth")


@dataclasses.dataclass
class DSMOEPlusConfig(fism.FISMConfig):
    """Hyper-parameters of DSMOE beside FISM, whose fields it has.

    The values were chosen on validation days of KuaiRand-Pure.

    Attributes:
      pretrain_epochs: Passes of FISM's own stage, over users; the step size falls during it.
      pretrain_rate: Its first step size.
      pretrain_steps: Steps that it takes at least, by further passes where users are few.
      tower_dim: Entries that the towers add to a vector.
      num_experts: K, experts per tower.
      rank: R of the low-rank scenario correction in every SAP layer.
      use_sap: Whether linear layers adapt to the scenario.
      hidden_dim: Width of each expert.
      input_dropout: Rate in [0, 1) at which entries of both towers' inputs are dropped in training.
      norm: "dsbn"; "bn" shares one batch normalisation among the scenarios; "none".
      bn_momentum: Share of a batch in the running statistics, in (0, 1].
      teachers: FISMs that are trained, each with random numbers of its own, and teach by their mean
        score; what learns starts from the first of them. 0 for one FISM and no teacher.
      teacher_weight: lambda > 0 of the divergence from the teacher, beside the cross entropy.
    """

    pretrain_epochs: int = fields.field(30, at_least=1)
    pretrain_rate: float = fields.field(1e-2, above=0)
    pretrain_steps: int = fields.field(1000, at_least=0, added_later=True)
    targets: int = fields.field(24, at_least=1, search=(12, 24, 48))
    l2: float = fields.field(0.01, at_least=0, search=(0.005, 0.01, 0.02))
    tower_dim: int = fields.field(32, at_least=1)
    num_experts: int = fields.field(3, at_least=1)
    rank: int = fields.field(4, at_least=1, search=(2, 4, 8))
    use_sap: bool = fields.field(True, added_later=True)
    hidden_dim: int = fields.field(64, at_least=1, search=(32, 64, 128))
    input_dropout: float = fields.rate(0.3)
    norm: str = fields.field("dsbn", choices=dsbn.KINDS)
    bn_momentum: float = fields.share(0.1)
    teachers: int = fields.field(0, at_least=0, at_most=len(_LINEAR), added_later=True)
    teacher_weight: float = fields.field(3.0, above=0, added_later=True)

    recipe: ClassVar[dict[str, Any]] = {
        "batch_size": 256,
        "num_negatives": 4,
        "max_epochs": 3,
        "patience": 3,
        "learning_rate": 1e-4,
        "weight_decay": 0.0,
        "decay_epochs": 3,
        "average_decay": 0.99,
        "steps_per_dispatch": 8,
    }

    def objective(self) -> schema.Objective:
        """A softmax over items."""
        return schema.Objective(
            "softmax_loss", logit_method="candidate_logits", teacher_weight=self.teacher_weight
        )

    def pretraining(self) -> tuple[schema.Pretraining, ...]:
        """FISM's own stage, once, or for every teacher."""
        return tuple(
            schema.Pretraining(
                name,
                "pairwise_loss",
                self.pretrain_epochs,
                last_only=True,
                learning_rate=self.pretrain_rate,
                decays=True,
                least_steps=self.pretrain_steps,
                is_start=name == _LINEAR[0],
                is_teacher=self.teachers > 0,
            )
            for name in _LINEAR[: max(1, self.teachers)]
        )

    def calibrated(self) -> str:
        """The scale of FISM's score, which changes little in the few epochs after it."""
        return "log_scale"

    def reads(self, spec: features.FeatureSpec) -> features.FeatureSpec:
        """FISM's sequences and every field of users and items."""
        linear = super().reads(spec)
        return dataclasses.replace(spec, sequences=linear.sequences)

    def make(self, spec: features.FeatureSpec) -> "DSMOEPlus":
        return self.build(DSMOEPlus, spec)


class DSMOEPlus(fism.FISM):
    """Two towers of scenario-adaptive experts whose inner product adds to FISM's score.

    The user's tower reads the user's fields and FISM's bags, the item's tower the item's fields and
    FISM's factors; it is shared by the scenarios, whose indices differ in the prior alone. The sum
    is one inner product: <[c a u, c a, 1, t_u], [v, b, log P, g t_i]> with a scale c of every
    scenario and gains g of the towers' entries, which are 0 at the start.
    """

    cfg: DSMOEPlusConfig

    def setup(self) -> None:
        super().setup()
        cfg, S, C = self.cfg, self.spec.num_scenarios, self.spec.embedding_dim
        self.embedder = embed.Embedder(dataclasses.replace(self.spec, sequences=()))
        self.drop = dropout.Dropout(cfg.input_dropout)
        num_bags = 1 + (features.EXPOSURES in [s.name for s in self.spec.sequences])
        user_dim = self.embedder.user_dim + num_bags * cfg.output_dim
        self.user_tower = self._make_tower(user_dim, S)
        self.item_tower = self._make_tower(self.embedder.item_dim + cfg.output_dim, 1)
        normal = nn.initializers.normal(embed.SCENARIO_STD)
        self.item_constant_1C = self.param("item_scenario_constant", normal, (1, C), jnp.float32)
        zeros = nn.initializers.zeros
        self.gain_D = self.param("gain", zeros, (cfg.tower_dim,), jnp.float32)
        self.log_scale_S = self.param("log_scale", zeros, (S,), jnp.float32)

    def embed_user(
        self, users: batch_lib.Users, scenario_B: Int[jax.Array, "B"], *, train: bool
    ) -> tuple[Float[jax.Array, "B M D"], two_tower.Aux]:
        pooled = [bag.pool() for bag in self._bags(users)]
        return self._embed_pooled(pooled, users, scenario_B, train)[:, None], {}

    def embed_item(
        self, items: batch_lib.Items, scenario_B: Int[jax.Array, "B"], *, train: bool
    ) -> tuple[Float[jax.Array, "B ... D"], two_tower.Aux]:
        linear, aux = super().embed_item(items, scenario_B, train=train)
        parts = (self.embedder.items(items).input_BI, self.item_VD[items.sparse_VF[..., 0]])
        one_B1 = jnp.ones((len(scenario_B), 1))
        tower = self._run(self.item_tower, parts, self.item_constant_1C, one_B1, train)
        gain = self.gain_D.reshape(*(1,) * (tower.ndim - 1), -1)
        return jnp.concatenate([linear, gain * tower], axis=-1), aux

    def gate_weights(self) -> dict[str, Float[jax.Array, "S K"]]:
        """Expert weights per scenario of each tower; the item's is shared."""
        towers = {side: self._side(side) for side in ("user", "item")}
        return {side: tower.gate_weights(e_SC) for side, (tower, e_SC) in towers.items()}

    def fold_tower(self, side: str) -> mixture.FoldedTower:
        """The "user" or "item" tower as one plain perceptron per scenario, gains included."""
        tower, scenario_SC = self._side(side)
        folded = tower.fold(scenario_SC)
        if side == "user":
            return folded
        return folded._replace(
            second_SFD=folded.second_SFD * self.gain_D[None, None],
            second_bias_SD=folded.second_bias_SD * self.gain_D[None],
        )

    def run_tower(
        self, side: str, input_BI: Float[jax.Array, "B I"], scenario_B: Int[jax.Array, "B"]
    ) -> Float[jax.Array, "B D"]:
        """A side's tower on the input that `input_slots` describes, gains included."""
        tower, scenario_SC = self._side(side)
        if side == "item":
            scenario_B = jnp.zeros_like(scenario_B)
        one_hot_BS = scenario.one_hot(scenario_B, len(scenario_SC))
        output_BD = tower((input_BI,), scenario_SC, one_hot_BS, train=False)
        return output_BD if side == "user" else output_BD * self.gain_D[None]

    def input_slots(self, side: str) -> list[tables.Slot]:
        """What the input of a side's tower is made of: its fields, then what the linear form sums
        of a user, or has of an item.
        """
        slots = self.embedder.input_slots(side)
        if side == "item":
            return [*slots, tables.Slot("sparse", "item_id", 0, "linear_item", 0)]
        bags = self.linear_form()["bags"]
        return [*slots, *(tables.Slot("pooled", b["sequence"], 0, b["table"], 0) for b in bags)]

    def embedding_arrays(self) -> dict[str, Float[jax.Array, "V E"]]:
        """The arrays that `input_slots` names, but for those of the linear form."""
        return self.embedder.arrays()

    def linear_arrays(self) -> dict[str, jax.Array]:
        arrays = super().linear_arrays()
        return {**arrays, "linear_scale": arrays["linear_scale"] * jnp.exp(self.log_scale_S)}

    def _side(self, side: str) -> tuple[mixture.ScenarioMixture, Float[jax.Array, "S C"]]:
        if side == "user":
            return self.user_tower, self.embedder.scenarios()
        return self.item_tower, self.item_constant_1C

    def softmax_loss(
        self,
        users: batch_lib.Users,
        items: batch_lib.Items,
        scenario_B: Int[jax.Array, "B"],
        *,
        train: bool,
    ) -> tuple[Float[jax.Array, "B 1"], two_tower.Aux]:
        """Cross entropy of an example's item under a softmax over all items, in nats."""
        logit_BX = self.candidate_logits(users, items, scenario_B, train=train)[0]
        return sampled_softmax.first_among(logit_BX), {}

    def candidate_logits(
        self,
        users: batch_lib.Users,
        items: batch_lib.Items,
        scenario_B: Int[jax.Array, "B"],
        *,
        train: bool,
    ) -> tuple[Float[jax.Array, "B _"], two_tower.Aux]:
        """Logits of an example's item and of the uniform negatives of the whole batch.

        Each negative stands for (V - 2) / X of all other items, whose log is in its logit; -inf
        where it is the example's own item. That is taken out of its own input.
        """
        own_B1 = items.sparse_VF[:, :1, 0]
        pooled = [bag.pool_without(own_B1)[0][:, 0] for bag in self._bags(users)]
        user_BD = self._embed_pooled(pooled, users, scenario_B, train)
        item_BGD, _ = self.embed_item(items, scenario_B, train=train)
        own_B = jnp.einsum("bd,bd->b", user_BD, item_BGD[:, 0])
        # A negative of another example has the prior of its own scenario there, not of this one's.
        negative_BG = items.sparse_VF[:, 1:, 0]
        negative_X = negative_BG.reshape(-1)
        place = self.cfg.output_dim + 1
        other_XD = item_BGD[:, 1:].reshape(len(negative_X), -1).at[:, place].set(0.0)
        prior_SX = self.log_prior_SV.value[:, negative_X]
        one_hot_BS = scenario.one_hot(scenario_B, self.spec.num_scenarios)
        other_BX = user_BD @ other_XD.T + scenario.pick(prior_SX, one_hot_BS)
        other_BX = jnp.where(negative_X[None] == own_B1, -jnp.inf, other_BX)
        share = (self.spec.num_items - 2) / len(negative_X)
        return jnp.concatenate([own_B[:, None], other_BX + jnp.log(share)], axis=1), {}

    def _embed_pooled(
        self,
        pooled: list[Float[jax.Array, "B F"]],
        users: batch_lib.Users,
        scenario_B: Int[jax.Array, "B"],
        train: bool,
    ) -> Float[jax.Array, "B D"]:
        """The user vector of what the bags pool to."""
        one_hot_BS = scenario.one_hot(scenario_B, self.spec.num_scenarios)
        linear_BD = self._combine(pooled, scenario_B)
        scale_B1 = scenario.pick(jnp.exp(self.log_scale_S)[:, None], one_hot_BS)
        score_BD, one_B1 = linear_BD[:, :-1] * scale_B1, linear_BD[:, -1:]
        parts = tuple(pooled)
        if self.embedder.user_dim:
            parts = (self.embedder.users(users).input_BI, *parts)
        tower_BD = self._run(self.user_tower, parts, self.embedder.scenarios(), one_hot_BS, train)
        return jnp.concatenate([score_BD, one_B1, tower_BD], axis=1)

    def _run(
        self,
        tower: mixture.ScenarioMixture,
        parts: tuple[jax.Array, ...],
        scenario_SC: Float[jax.Array, "S C"],
        one_hot_BS: Float[jax.Array, "B S"],
        train: bool,
    ) -> Float[jax.Array, "B ... D"]:
        """A tower's output on an input in pieces."""
        dropped = tuple(self.drop(part, train=train) for part in parts)
        return tower(dropped, scenario_SC, one_hot_BS, train=train)

    def _make_tower(self, in_dim: int, num_scenarios: int) -> mixture.ScenarioMixture:
        cfg = self.cfg
        return mixture.ScenarioMixture(
            in_dim=in_dim,
            hidden_dim=cfg.hidden_dim,
            output_dim=cfg.tower_dim,
            scenario_dim=self.spec.embedding_dim,
            num_scenarios=num_scenarios,
            num_experts=cfg.num_experts,
            rank=cfg.rank,
            use_sap=cfg.use_sap,
            norm=cfg.norm,
            momentum=cfg.bn_momentum,
        )
