"""M3oE: a star layer, then shared experts and every scenario's expert in learned proportions.

Owns the trunk; the joint input is `joint_ranker.py`'s.

Letters: B examples, G candidates, S scenarios, K shared experts, O outputs of the first layers.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from dsmoe_jax import features
from dsmoe_jax.config import fields
from dsmoe_jax.models.ranking import joint_ranker
from dsmoe_jax.nn import mlp, star_topology


@dataclasses.dataclass
class M3oEConfig(joint_ranker.JointRankerConfig):
    """Hyper-parameters of M3oE, whose normalisation may also be "ln".

    Attributes:
      star_dim: Width of the star layer.
      representation_dim: Width of what experts and gates read.
      num_experts: K, shared experts; each scenario has one more.
      expert_dims: Widths of each expert's layers.
      tower_dims: Widths of each scenario's tower between the experts' output and the logit.
    """

    norm: str = fields.field("ln", choices=mlp.NORMS)
    star_dim: int = fields.field(128, at_least=1, search=(64, 128))
    representation_dim: int = fields.field(64, at_least=1)
    num_experts: int = fields.field(4, at_least=1, search=(2, 4))
    expert_dims: tuple[int, ...] = fields.widths((32,))
    tower_dims: tuple[int, ...] = fields.field((32,), at_least=1)

    def make(self, spec: features.FeatureSpec) -> "M3oE":
        return self.build(M3oE, spec)


class M3oE(joint_ranker.JointRanker):
    """tower_i(sum_k gate_ik shared_k + a (b own_i + (1 - b) mean_{j != i} own_j)).

    Experts read r = block(star(x) W) + block(x V); the scenario's gate reads r without sending a
    gradient back. a and b are sigmoids of two learned numbers.

    **Paper:** Zhang et al., "M3oE: Multi-Domain Multi-Task Mixture-of Experts Recommendation
    Framework", section 3, with one task and so without its task experts.
    **Deviation:** a and b, which the authors choose with a second optimiser on validation rows,
    are trained like all else, from 1/2; the star layer starts at the shared one.
    """

    cfg: M3oEConfig

    def setup(self) -> None:
        super().setup()
        cfg = self.cfg
        S, K, width = self.spec.num_scenarios, cfg.num_experts, cfg.representation_dim
        self.first = star_topology.StarLinear(S, self.part_widths, cfg.star_dim)
        self.skip_first = mlp.Split(self.part_widths, width)
        self.star_layer = nn.Dense(width)
        self.star_block, self.skip_block = self._make_block(width), self._make_block(width)
        self.expert_first = nn.Dense((K + S) * cfg.expert_dims[0])
        self.experts = self._make_experts(K + S, cfg.expert_dims)
        self.gate = mlp.ScenarioLinear(S, width, K)
        zeros = nn.initializers.zeros_init()
        # Of the scenarios' experts beside the shared ones, and of the own one among them.
        self.share_logit = self.param("share_logit", zeros, (1,), jnp.float32)
        self.own_logit = self.param("own_logit", zeros, (1,), jnp.float32)
        self.tower = self._make_tower(cfg.expert_dims[-1], cfg.tower_dims)

    def _project(
        self,
        index: int,
        part: Float[jax.Array, "_ ... I"],
        one_hot_BS: Float[jax.Array, "B S"],
        train: bool,
    ) -> Float[jax.Array, "B ... O"]:
        """Products of the star layer and of the one that skips it, side by side."""
        part = self.drop(part, train=train)
        star = self.first(part, one_hot_BS, index)
        skip = self.skip_first(index, part)
        skip = jnp.broadcast_to(skip, (*star.shape[:-1], skip.shape[-1]))
        return jnp.concatenate([star, skip], axis=-1)

    def _trunk(
        self, first_BGO: Float[jax.Array, "B G O"], one_hot_BS: Float[jax.Array, "B S"], train: bool
    ) -> Float[jax.Array, "B G"]:
        """Representation, experts in proportion, the scenario's tower."""
        star, skip = jnp.split(first_BGO, [self.cfg.star_dim], axis=-1)
        star = self.star_block(self.star_layer(star), one_hot_BS, train=train)
        shared = star + self.skip_block(skip, one_hot_BS, train=train)
        hidden = self.experts(self.expert_first(shared), one_hot_BS, train=train)
        gate = nn.softmax(self.gate(jax.lax.stop_gradient(shared), one_hot_BS))
        own = jnp.broadcast_to(
            self._own_weights(one_hot_BS), (*gate.shape[:-1], one_hot_BS.shape[1])
        )
        mixed = mlp.mix(hidden, jnp.concatenate([gate, own], axis=-1))
        return self.tower(mixed, one_hot_BS, train=train)

    def _own_weights(self, one_hot_BS: Float[jax.Array, "B S"]) -> Float[jax.Array, "B 1 S"]:
        """Weights of the scenarios' experts."""
        share, own = nn.sigmoid(self.share_logit)[None], nn.sigmoid(self.own_logit)[None]
        others = max(self.spec.num_scenarios - 1, 1)
        weight_BS = one_hot_BS * own + (1 - one_hot_BS) * (1 - own) / others
        return (share * weight_BS)[:, None]
