"""MMOE-DIN, the default teacher: a multi-gate mixture of experts on the joint input.

Owns the trunk; the joint input is `joint_ranker.py`'s.

Letters: B examples, G candidates, S scenarios, K experts, O outputs of the first layer.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from dsmoe_jax import features
from dsmoe_jax.config import fields
from dsmoe_jax.models.ranking import joint_ranker
from dsmoe_jax.nn import mlp


@dataclasses.dataclass
class MMoEDINConfig(joint_ranker.JointRankerConfig):
    """Hyper-parameters of the default teacher. The paper leaves its "fused" teacher open.

    Attributes:
      num_experts: K.
      expert_dims: Widths of each expert's layers.
      tower_dims: Widths of each scenario's tower between the experts' output and the logit.
    """

    num_experts: int = fields.field(4, at_least=1, search=(2, 4, 8))
    expert_dims: tuple[int, ...] = fields.widths(
        (256, 128), search=((64, 64), (128, 64), (256, 128))
    )
    tower_dims: tuple[int, ...] = fields.field((64,), at_least=1)

    def make(self, spec: features.FeatureSpec) -> "MMoEDIN":
        return self.build(MMoEDIN, spec)


class MMoEDIN(joint_ranker.JointRanker):
    """MMOE over [user; item; scenario; attended history; user * item; pooled history * item].

    **Paper:** section "Distillation" of DSMOE names a fused teacher on joint user-item features;
    the trunk is Ma et al., "Modeling Task Relationships in Multi-task Learning with Multi-gate
    Mixture-of-Experts", section 4, with scenarios as tasks; the attention is DIN's.
    **Deviation:** the whole architecture is our choice.
    """

    cfg: MMoEDINConfig

    def setup(self) -> None:
        super().setup()
        cfg = self.cfg
        K, S = cfg.num_experts, self.spec.num_scenarios
        self.first = mlp.Split(self.part_widths, K * cfg.expert_dims[0] + S * K)
        self.experts = self._make_experts(K, cfg.expert_dims)
        self.tower = self._make_tower(cfg.expert_dims[-1], cfg.tower_dims)
        # The names that checkpoints hold: no level of their own in the tree of parameters.
        nn.share_scope(self, self.experts)
        nn.share_scope(self, self.tower)

    def _trunk(
        self, first_BGO: Float[jax.Array, "B G O"], one_hot_BS: Float[jax.Array, "B S"], train: bool
    ) -> Float[jax.Array, "B G"]:
        """Experts after their first product, the scenario's gate and the scenario's tower."""
        K = self.cfg.num_experts
        hidden, gate = jnp.split(first_BGO, [K * self.cfg.expert_dims[0]], axis=-1)
        hidden = self.experts(hidden, one_hot_BS, train=train)
        mixed = mlp.mix(hidden, nn.softmax(mlp.keep_own(gate, one_hot_BS, K)))
        return self.tower(mixed, one_hot_BS, train=train)
