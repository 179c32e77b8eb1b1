"""PLE: levels of experts, some of each scenario and some shared, mixed by gates.

Owns the levels; the joint input is `joint_ranker.py`'s.

Letters: B examples, G candidates, S scenarios, M experts of a scenario, N shared experts, O outputs
of the first layer or of an expert. A level has S streams [.., S * O] and a shared one.
"""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from dsmoe_jax import features
from dsmoe_jax.models.ranking import joint_ranker
from dsmoe_jax.nn import mlp


@dataclasses.dataclass
class PLEConfig(joint_ranker.JointRankerConfig):
    """Hyper-parameters of PLE.

    Attributes: those of `JointRankerConfig`, and
      num_levels: Levels of experts; 1 is customized gate control (CGC).
      scenario_experts: M, experts of each scenario at every level.
      shared_experts: N, experts of all scenarios at every level.
      expert_dims: Widths of each expert's layers.
      tower_dims: Widths of each scenario's tower between the last level and the logit.
    """

    search_space: ClassVar[dict[str, tuple[Any, ...]]] = {
        "expert_dims": ((32, 16), (64, 32), (128, 64)),
        "shared_experts": (1, 2),
    }

    num_levels: int = 2
    scenario_experts: int = 2
    shared_experts: int = 1
    expert_dims: tuple[int, ...] = (64, 32)
    tower_dims: tuple[int, ...] = (16,)

    def make(self, spec: features.FeatureSpec) -> "PLE":
        """Builds the model.

        Raises:
          ValueError: When a field is out of range, or names a history that the features lack.
        """
        values = self.checked(
            spec,
            counts=("num_levels", "scenario_experts", "shared_experts"),
            widths=("expert_dims",),
            optional_widths=("tower_dims",),
        )
        return PLE(spec=spec, **values)


class PLE(joint_ranker.JointRanker):
    """Progressive layered extraction with scenarios as tasks.

    A scenario's stream mixes its own and the shared experts, by a gate that reads the stream; the
    shared stream mixes all experts. Experts of the next level read their streams, all of which are
    computed for every row: the shared one needs them. The tower of the row's scenario reads the
    last level's.

    **Paper:** Tang et al., "Progressive Layered Extraction (PLE): A Novel Multi-Task Learning
    Model for Personalized Recommendations", sections 4.1 and 4.2.

    Attributes: see `PLEConfig`.
    """

    num_levels: int
    scenario_experts: int
    shared_experts: int
    expert_dims: tuple[int, ...]
    tower_dims: tuple[int, ...]

    def setup(self) -> None:
        """Creates the parameters."""
        super().setup()
        S, M, N = self.spec.num_scenarios, self.scenario_experts, self.shared_experts
        num_experts, width = S * M + N, self.expert_dims[0]
        is_last = self.num_levels == 1
        gates = S * (M + N) + (0 if is_last else num_experts)
        self.first = mlp.Split(self.part_widths, num_experts * width + gates)
        inputs = self.expert_dims[-1]
        later = range(1, self.num_levels)
        self.scenario_layers = [mlp.ExpertLinear(S, inputs, M * width) for _ in later]
        self.shared_layers = [nn.Dense(N * width) for _ in later]
        self.scenario_gates = [mlp.ExpertLinear(S, inputs, M + N) for _ in later]
        self.shared_gates = [nn.Dense(num_experts) for _ in later[:-1]]
        self.experts = [
            self._make_experts(num_experts, self.expert_dims) for _ in range(self.num_levels)
        ]
        self.tower = self._make_tower(inputs, self.tower_dims)

    def _trunk(
        self, first_BGO: Float[jax.Array, "B G O"], one_hot_BS: Float[jax.Array, "B S"], train: bool
    ) -> Float[jax.Array, "B G"]:
        """Levels after their first product, and the scenario's tower."""
        S, M, N = self.spec.num_scenarios, self.scenario_experts, self.shared_experts
        experts, gates = (S * M + N) * self.expert_dims[0], S * (M + N)
        hidden, gate, shared_gate = jnp.split(first_BGO, [experts, experts + gates], axis=-1)
        for level in range(self.num_levels):
            output = self.experts[level](hidden, one_hot_BS, train=train)
            streams = self._mix_streams(output, gate)
            if level + 1 == self.num_levels:
                break
            shared = mlp.mix(output, nn.softmax(shared_gate))
            own = self.scenario_layers[level](streams)
            hidden = jnp.concatenate([own, self.shared_layers[level](shared)], axis=-1)
            gate = self.scenario_gates[level](streams)
            if level + 2 < self.num_levels:
                shared_gate = self.shared_gates[level](shared)
        own = mlp.keep_own(streams, one_hot_BS, self.expert_dims[-1])
        return self.tower(own, one_hot_BS, train=train)

    def _mix_streams(
        self, output: Float[jax.Array, "B G KO"], gate: Float[jax.Array, "B G _"]
    ) -> Float[jax.Array, "B G SO"]:
        """Each scenario's mixture of its own experts and the shared ones, side by side."""
        S, M = self.spec.num_scenarios, self.scenario_experts
        own, shared = jnp.split(output, [S * M * self.expert_dims[-1]], axis=-1)
        streams = []
        for own_s, gate_s in zip(
            jnp.split(own, S, axis=-1), jnp.split(gate, S, axis=-1), strict=True
        ):
            weight = nn.softmax(gate_s)
            streams.append(mlp.mix(own_s, weight[..., :M]) + mlp.mix(shared, weight[..., M:]))
        return jnp.concatenate(streams, axis=-1)
