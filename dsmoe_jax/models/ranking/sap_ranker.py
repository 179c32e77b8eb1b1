"""SAP ranker, the small teacher: the student's trunk on the joint input of user and item.

Owns the joining and the logit head; the trunk is `nn/mixture.py`.

Letters: B examples, G candidates, S scenarios, I width of the user's input, D the trunk's output.
"""

import dataclasses

import flax.linen as nn
import jax
from jaxtyping import Float, Int

from dsmoe_jax import batch as batch_lib
from dsmoe_jax import features
from dsmoe_jax.config import fields, schema
from dsmoe_jax.models.ranking import ranker
from dsmoe_jax.nn import dropout, dsbn, embed, mixture, scenario


@dataclasses.dataclass
class SAPRankerConfig(schema.RankerConfig):
    """Hyper-parameters of the small teacher; they mean what they mean for the student.

    Attributes:
      num_experts: K.
      rank: R of every SAP layer.
      hidden_dim: Width of each expert.
      output_dim: D, what the linear logit head reads.
      input_dropout: Rate in [0, 1) on the joint input.
      norm: "dsbn", "bn" or "none".
      bn_momentum: Share of a batch in the running statistics, in (0, 1].
    """

    num_experts: int = fields.field(3, at_least=1)
    rank: int = fields.field(4, at_least=1, search=(2, 4, 8))
    hidden_dim: int = fields.field(256, at_least=1, search=(64, 128, 256))
    output_dim: int = fields.field(128, at_least=1)
    input_dropout: float = fields.rate()
    norm: str = fields.field("dsbn", choices=dsbn.KINDS)
    bn_momentum: float = fields.share(0.1)

    def make(self, spec: features.FeatureSpec) -> "SAPRanker":
        return self.build(SAPRanker, spec)


class SAPRanker(ranker.Ranker):
    """SAP experts, scenario gate and SAP forward layer on [user; item], and a linear logit head.

    The smallest reading of the paper's teacher: joint features, the student's own layers. Both
    inputs are multiplied before they are spread over pairs.

    **Paper:** section "Distillation", "joint user-item features".
    """

    cfg: SAPRankerConfig

    def setup(self) -> None:
        cfg = self.cfg
        self.embedder = embed.Embedder(self.spec)
        self.drop = dropout.Dropout(cfg.input_dropout)
        self.trunk = mixture.ScenarioMixture(
            in_dim=self.embedder.user_dim + self.embedder.item_dim,
            hidden_dim=cfg.hidden_dim,
            output_dim=cfg.output_dim,
            scenario_dim=self.spec.embedding_dim,
            num_scenarios=self.spec.num_scenarios,
            num_experts=cfg.num_experts,
            rank=cfg.rank,
            norm=cfg.norm,
            momentum=cfg.bn_momentum,
        )
        self.head = nn.Dense(1)

    def encode_user(
        self, users: batch_lib.Users, scenario_B: Int[jax.Array, "B"], *, train: bool
    ) -> Float[jax.Array, "B I"]:
        """The user's part of the input."""
        input_BI = self.embedder.users(users).input_BI
        return self.drop(input_BI, train=train)

    def score(
        self,
        encoded: Float[jax.Array, "B I"],
        items: batch_lib.Items,
        scenario_B: Int[jax.Array, "B"],
        *,
        train: bool,
    ) -> Float[jax.Array, "B G"]:
        one_hot_BS = scenario.one_hot(scenario_B, self.spec.num_scenarios)
        item = self.drop(self.embedder.items(items).input_BI, train=train)
        parts = (encoded[:, None], item)
        output_BGD = self.trunk(parts, self.embedder.scenarios(), one_hot_BS, train=train)
        return self.head(output_BGD)[..., 0]
