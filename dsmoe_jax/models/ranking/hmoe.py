"""HMoE-style: a mixture of experts whose scenarios' scores are mixed, each trained by its own rows.

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
class HMoEConfig(joint_ranker.JointRankerConfig):
    """Hyper-parameters of HMoE. `norm` and `dropout` are the experts'.

    Attributes:
      num_experts: K.
      expert_dims: Widths of each expert's layers.
      gate_dims: Hidden widths of each scenario's gate.
      tower_dims: Widths of each scenario's tower between the experts' output and its score.
      weight_dims: Hidden widths of each scenario's net that weighs the scores.
    """

    num_experts: int = fields.field(4, at_least=1, search=(2, 4))
    expert_dims: tuple[int, ...] = fields.widths(
        (256, 128), search=((64, 64), (128, 64), (256, 128))
    )
    gate_dims: tuple[int, ...] = fields.field((64,), at_least=1)
    tower_dims: tuple[int, ...] = fields.field((64,), at_least=1)
    weight_dims: tuple[int, ...] = fields.field((64,), at_least=1)

    def make(self, spec: features.FeatureSpec) -> "HMoE":
        return self.build(HMoE, spec)


class HMoE(joint_ranker.JointRanker):
    """logit_i = w_ii s_i + sum_{j != i} w_ij stop_gradient(s_j), w_i = softmax(MLP_i(x)).

    Every scenario's score s_j is computed for every row; rows of scenario i leave the gates and
    towers of other scenarios as they are.

    **Paper:** Li et al., "Improving Multi-Scenario Learning to Rank in E-commerce by Exploiting
    Task Relationships in the Label Space", section 4.
    **Deviation:** HMoE-style: written from a summary. Gates, towers and weighing nets have no
    normalisation: with the statistics of another scenario's rows a tower would be another function
    than the one trained.
    """

    cfg: HMoEConfig

    def setup(self) -> None:
        super().setup()
        cfg = self.cfg
        K, S = cfg.num_experts, self.spec.num_scenarios
        gate_dims, weight_dims = (*cfg.gate_dims, K), (*cfg.weight_dims, S)
        self.first_widths = (K * cfg.expert_dims[0], S * gate_dims[0], S * weight_dims[0])
        self.first = mlp.Split(self.part_widths, sum(self.first_widths))
        self.experts = self._make_experts(K, cfg.expert_dims)
        self.gates = mlp.ReluStack(S, gate_dims)
        self.weights = mlp.ReluStack(S, weight_dims)
        tower_dims = (*cfg.tower_dims, 1)
        self.tower_first = mlp.ExpertLinear(S, cfg.expert_dims[-1], tower_dims[0])
        self.towers = mlp.ReluStack(S, tower_dims)

    def _trunk(
        self, first_BGO: Float[jax.Array, "B G O"], one_hot_BS: Float[jax.Array, "B S"], train: bool
    ) -> Float[jax.Array, "B G"]:
        """Every scenario's score, mixed by the row's scenario."""
        S = self.spec.num_scenarios
        experts, gates, _ = self.first_widths
        hidden, gate, weight = jnp.split(first_BGO, [experts, experts + gates], axis=-1)
        hidden = self.experts(hidden, one_hot_BS, train=train)
        gate_of = jnp.split(self.gates(gate), S, axis=-1)
        mixed = jnp.concatenate([mlp.mix(hidden, nn.softmax(g)) for g in gate_of], axis=-1)
        score_BGS = self.towers(self.tower_first(mixed))
        is_own = one_hot_BS[:, None] > 0
        score_BGS = jnp.where(is_own, score_BGS, jax.lax.stop_gradient(score_BGS))
        weight_BGS = nn.softmax(mlp.keep_own(self.weights(weight), one_hot_BS, S))
        return (weight_BGS * score_BGS).sum(axis=-1)
