"""PLE: levels of experts, some of each scenario and some shared, mixed by gates.

Owns the levels; the joint input is `joint_ranker.py`'s.

Letters: B examples, G candidates, S scenarios, M experts of a scenario, N shared experts, O outputs
of the first layer or of an expert. A level has S streams [.., S * O] and a shared one.
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
class PLEConfig(joint_ranker.JointRankerConfig):
    """Hyper-parameters of PLE.

    Attributes:
      num_levels: Levels of experts; 1 is customized gate control (CGC).
      scenario_experts: M, experts of each scenario at every level.
      shared_experts: N, experts of all scenarios at every level.
      expert_dims: Widths of each expert's layers.
      tower_dims: Widths of each scenario's tower between the last level and the logit.
    """

    num_levels: int = fields.field(2, at_least=1)
    scenario_experts: int = fields.field(2, at_least=1)
    shared_experts: int = fields.field(1, at_least=1, search=(1, 2))
    expert_dims: tuple[int, ...] = fields.widths((64, 32), search=((32, 16), (64, 32), (128, 64)))
    tower_dims: tuple[int, ...] = fields.field((16,), at_least=1)

    def make(self, spec: features.FeatureSpec) -> "PLE":
        return self.build(PLE, spec)


class PLE(joint_ranker.JointRanker):
    """Progressive layered extraction with scenarios as tasks.

    A scenario's stream mixes its own and the shared experts, by a gate that reads the stream; the
    shared stream mixes all experts. Experts of the next level read their streams, all of which are
    computed for every row: the shared one needs them. The tower of the row's scenario reads the
    last level's.

    **Paper:** Tang et al., "Progressive Layered Extraction (PLE): A Novel Multi-Task Learning
    Model for Personalized Recommendations", sections 4.1 and 4.2.
    """

    cfg: PLEConfig

    def setup(self) -> None:
        super().setup()
        cfg = self.cfg
        S, M, N = self.spec.num_scenarios, cfg.scenario_experts, cfg.shared_experts
        num_experts, width = S * M + N, cfg.expert_dims[0]
        is_last = cfg.num_levels == 1
        gates = S * (M + N) + (0 if is_last else num_experts)
        self.first = mlp.Split(self.part_widths, num_experts * width + gates)
        inputs = cfg.expert_dims[-1]
        later = range(1, cfg.num_levels)
        self.scenario_layers = [mlp.ExpertLinear(S, inputs, M * width) for _ in later]
        self.shared_layers = [nn.Dense(N * width) for _ in later]
        self.scenario_gates = [mlp.ExpertLinear(S, inputs, M + N) for _ in later]
        self.shared_gates = [nn.Dense(num_experts) for _ in later[:-1]]
        self.experts = [
            self._make_experts(num_experts, cfg.expert_dims) for _ in range(cfg.num_levels)
        ]
        self.tower = self._make_tower(inputs, cfg.tower_dims)

    def _trunk(
        self, first_BGO: Float[jax.Array, "B G O"], one_hot_BS: Float[jax.Array, "B S"], train: bool
    ) -> Float[jax.Array, "B G"]:
        """Levels after their first product, and the scenario's tower."""
        cfg = self.cfg
        S, M, N = self.spec.num_scenarios, cfg.scenario_experts, cfg.shared_experts
        experts, gates = (S * M + N) * cfg.expert_dims[0], S * (M + N)
        hidden, gate, shared_gate = jnp.split(first_BGO, [experts, experts + gates], axis=-1)
        for level in range(cfg.num_levels):
            output = self.experts[level](hidden, one_hot_BS, train=train)
            streams = self._mix_streams(output, gate)
            if level + 1 == cfg.num_levels:
                break
            shared = mlp.mix(output, nn.softmax(shared_gate))
            own = self.scenario_layers[level](streams)
            hidden = jnp.concatenate([own, self.shared_layers[level](shared)], axis=-1)
            gate = self.scenario_gates[level](streams)
            if level + 2 < cfg.num_levels:
                shared_gate = self.shared_gates[level](shared)
        own = mlp.keep_own(streams, one_hot_BS, cfg.expert_dims[-1])
        return self.tower(own, one_hot_BS, train=train)

    def _mix_streams(
        self, output: Float[jax.Array, "B G KO"], gate: Float[jax.Array, "B G _"]
    ) -> Float[jax.Array, "B G SO"]:
        """Each scenario's mixture of its own experts and the shared ones, side by side."""
        S, M = self.spec.num_scenarios, self.cfg.scenario_experts
        own, shared = jnp.split(output, [S * M * self.cfg.expert_dims[-1]], axis=-1)
        streams = []
        for own_s, gate_s in zip(
            jnp.split(own, S, axis=-1), jnp.split(gate, S, axis=-1), strict=True
        ):
            weight = nn.softmax(gate_s)
            streams.append(mlp.mix(own_s, weight[..., :M]) + mlp.mix(shared, weight[..., M:]))
        return jnp.concatenate(streams, axis=-1)
