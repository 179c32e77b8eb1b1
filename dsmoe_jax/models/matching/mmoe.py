"""MMOE as a two-tower model: shared experts, a gate and an output layer for every scenario.

Owns both towers. As a ranker on the joint input it is in `models/ranking/mmoe_din.py`.

Letters: B examples, S scenarios, K experts, H an expert's width, D output. Inputs may have
axes between B and I (candidates of an example).
"""

import dataclasses
import itertools

import flax.linen as nn
import jax
from jaxtyping import Float, Int

from dsmoe_jax import features
from dsmoe_jax.config import fields
from dsmoe_jax.models.matching import two_tower
from dsmoe_jax.nn import dropout, embed, mlp, scenario, tables


@dataclasses.dataclass
class MMoEConfig(two_tower.TowerConfig):
    """Hyper-parameters of the two-tower MMOE.

    Attributes:
      num_experts: K, experts per tower; as many as scenarios on the paper's data sets.
      expert_dims: Widths of each expert's layers, at least one.
      input_includes_scenario: Whether the scenario embedding is appended to both towers' inputs.
        Without it scenarios differ by gate and output layer alone, as tasks do in MMOE.
    """

    num_experts: int = fields.field(4, at_least=1, search=(2, 4, 8))
    expert_dims: tuple[int, ...] = fields.widths((256,), search=((64,), (128,), (256,)))
    input_includes_scenario: bool = False

    def make(self, spec: features.FeatureSpec) -> "MMoE":
        return self.build(MMoE, spec)


class MMoETower(nn.Module):
    """y = W_s sum_k softmax(x G_s)_k f_k(x), with f_k of Linear -> norm -> ReLU layers.

    The gates of all scenarios stand beside the experts in the first product, so that x is read
    once.

    **Paper:** Ma et al., "Modeling Task Relationships in Multi-task Learning with Multi-gate
    Mixture-of-Experts", section 4.2, with scenarios as tasks.
    **Deviation:** a task's tower is one linear layer, since its output is a vector; libraries that
    normalise the gate's logits over the batch are not followed, the paper does not.
    """

    num_scenarios: int  # S
    cfg: MMoEConfig  # See `MMoEConfig`

    def setup(self) -> None:
        cfg, S = self.cfg, self.num_scenarios
        K, dims = cfg.num_experts, cfg.expert_dims
        self.first = nn.Dense(K * dims[0] + S * K)
        self.layers = [mlp.ExpertLinear(K, *shape) for shape in itertools.pairwise(dims)]
        self.blocks = [cfg.make_block(S, K * width) for width in dims]
        self.output = mlp.ScenarioLinear(S, dims[-1], cfg.output_dim)

    def gate_weights(
        self, x: Float[jax.Array, "B ... I"], one_hot_BS: Float[jax.Array, "B S"]
    ) -> Float[jax.Array, "B ... K"]:
        """Expert weights of every row, from its scenario's gate; they sum to 1."""
        return self._gate(self.first(x), one_hot_BS)

    def __call__(
        self, x: Float[jax.Array, "B ... I"], one_hot_BS: Float[jax.Array, "B S"], *, train: bool
    ) -> Float[jax.Array, "B ... D"]:
        K = self.cfg.num_experts
        first = self.first(x)
        hidden = self.blocks[0](first[..., : K * self.cfg.expert_dims[0]], one_hot_BS, train=train)
        for layer, block in zip(self.layers, self.blocks[1:], strict=True):
            hidden = block(layer(hidden), one_hot_BS, train=train)
        mixed = mlp.mix(hidden, self._gate(first, one_hot_BS))
        output: jax.Array = self.output(mixed, one_hot_BS)
        return output

    def _gate(
        self, first: Float[jax.Array, "B ... X"], one_hot_BS: Float[jax.Array, "B S"]
    ) -> Float[jax.Array, "B ... K"]:
        logit = first[..., self.cfg.num_experts * self.cfg.expert_dims[0] :]
        return nn.softmax(mlp.keep_own(logit, one_hot_BS, self.cfg.num_experts))


class MMoE(two_tower.SymmetricMatcher):
    """The MMOE trunk twice, on user features and on item features.

    **Paper:** Ma et al., see `MMoETower`.
    **Deviation:** MMOE ranks on a joint input; as two towers, each scenario's scalar output becomes
    a vector and the logit is their inner product, so that an index can serve it.
    """

    cfg: MMoEConfig

    def setup(self) -> None:
        cfg = self.cfg
        std = tables.TABLE_STD if cfg.input_includes_scenario else None
        self.embedder = embed.Embedder(self.spec, std)
        self.drop = dropout.Dropout(cfg.input_dropout)
        self.user_tower = MMoETower(self.spec.num_scenarios, cfg)
        self.item_tower = MMoETower(self.spec.num_scenarios, cfg)

    def run_tower(
        self,
        side: str,
        input_BI: Float[jax.Array, "B ... I"],
        scenario_B: Int[jax.Array, "B"],
        *,
        train: bool = False,
    ) -> Float[jax.Array, "B ... D"]:
        """A tower's output: its gates know the scenario by number, an embedding joins the input."""
        tower = self.user_tower if side == "user" else self.item_tower
        one_hot_BS = scenario.one_hot(scenario_B, self.spec.num_scenarios)
        if self.cfg.input_includes_scenario:
            input_BI = scenario.append(input_BI, self.embedder.scenarios(), one_hot_BS)
        output: jax.Array = tower(self.drop(input_BI, train=train), one_hot_BS, train=train)
        return output
