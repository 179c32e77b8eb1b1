"""HiNet-style: shared and per-scenario mixtures of sub-experts, and attention over other scenarios.

Owns the trunk; the joint input is `joint_ranker.py`'s.

Letters: B examples, G candidates, S scenarios, K sub-experts of a mixture, T experts of the task
layer, E the scenario embedding, O outputs of the first layer.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from dsmoe_jax import features
from dsmoe_jax.config import fields
from dsmoe_jax.models.ranking import joint_ranker
from dsmoe_jax.nn import mlp, scenario


@dataclasses.dataclass
class HiNetConfig(joint_ranker.JointRankerConfig):
    """Hyper-parameters of HiNet.

    Attributes:
      sub_experts: K, of the shared mixture and of each scenario's.
      expert_dims: Widths of each sub-expert's layers.
      task_experts: T, experts of the task layer.
      task_dims: Widths of each one's layers.
      tower_dims: Widths between the task layer and the logit.
    """

    sub_experts: int = fields.field(2, at_least=1, search=(1, 2))
    expert_dims: tuple[int, ...] = fields.widths((128, 64), search=((64, 32), (128, 64)))
    task_experts: int = fields.field(2, at_least=1)
    task_dims: tuple[int, ...] = fields.widths((64,))
    tower_dims: tuple[int, ...] = fields.field((32,), at_least=1)

    def make(self, spec: features.FeatureSpec) -> "HiNet":
        return self.build(HiNet, spec)


class HiNet(joint_ranker.JointRanker):
    """tower(CGC([G; S_i; A_i])): what is shared, the scenario's own, what others know.

    G and every S_m are mixtures sum_k softmax(x W)_k Q_k(x) of sub-experts. The scenario-aware
    attention network adds A_i = sum_{m != i} softmax_m(e_i W) S_m, so all S_m are computed for
    every row. With one scenario A is 0.

    **Paper:** Zhou et al., "HiNet: Novel Multi-Scenario & Multi-Task Learning with Hierarchical
    Information Extraction", section III.
    **Deviation:** HiNet-style: written from a summary. With one task the customized gate control of
    the task layer is a gated mixture of T experts, as a task's own expert and a shared one then do
    not differ; task layer and tower are shared by all scenarios.
    """

    cfg: HiNetConfig

    def setup(self) -> None:
        super().setup()
        cfg = self.cfg
        S, K, T = self.spec.num_scenarios, cfg.sub_experts, cfg.task_experts
        num_experts = (S + 1) * K
        self.first = mlp.Split(self.part_widths, num_experts * (cfg.expert_dims[0] + 1))
        self.experts = self._make_experts(num_experts, cfg.expert_dims)
        shape_ES = (self.spec.embedding_dim, S)
        lecun = nn.initializers.lecun_normal()
        self.attention_ES = self.param("scenario_attention", lecun, shape_ES, jnp.float32)
        self.task_first = nn.Dense(T * (cfg.task_dims[0] + 1))
        self.task_layer = self._make_experts(T, cfg.task_dims)
        tower_dims = (*cfg.tower_dims, 1)
        self.tower_first = nn.Dense(tower_dims[0])
        self.tower = mlp.ReluStack(1, tower_dims)

    def _trunk(
        self, first_BGO: Float[jax.Array, "B G O"], one_hot_BS: Float[jax.Array, "B S"], train: bool
    ) -> Float[jax.Array, "B G"]:
        """Scenario layer, task layer and tower."""
        cfg = self.cfg
        S, K, T = self.spec.num_scenarios, cfg.sub_experts, cfg.task_experts
        hidden, gate = jnp.split(first_BGO, [(S + 1) * K * cfg.expert_dims[0]], axis=-1)
        hidden = self.experts(hidden, one_hot_BS, train=train)
        # The scenarios' mixtures come first, the shared one last.
        *own, shared = (
            mlp.mix(h, nn.softmax(g))
            for h, g in zip(
                jnp.split(hidden, S + 1, axis=-1), jnp.split(gate, S + 1, axis=-1), strict=True
            )
        )
        every = jnp.concatenate(own, axis=-1)
        weight = scenario.pick(self._attend_scenarios(), one_hot_BS, every.ndim)
        joint = [shared, mlp.keep_own(every, one_hot_BS, shared.shape[-1]), mlp.mix(every, weight)]
        task = self.task_first(jnp.concatenate(joint, axis=-1))
        hidden, gate = jnp.split(task, [T * cfg.task_dims[0]], axis=-1)
        mixed = mlp.mix(self.task_layer(hidden, one_hot_BS, train=train), nn.softmax(gate))
        return self.tower(self.tower_first(mixed))[..., 0]

    def _attend_scenarios(self) -> Float[jax.Array, "S S"]:
        """Weight of every other scenario; rows sum to 1, their diagonal is 0."""
        logit_SS = self.embedder.scenarios() @ self.attention_ES
        is_other_SS = ~jnp.eye(self.spec.num_scenarios, dtype=bool)
        low = jnp.finfo(logit_SS.dtype).min
        return nn.softmax(jnp.where(is_other_SS, logit_SS, low)) * is_other_SS
