"""FuXi-alpha (arXiv 2502.03036) and Fuxi-MME-style (arXiv 2510.25285) matchers.

Owns the choice of the encoder, which is `nn/fuxi_encoder.py`; all else is in `next_item.py`.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Float

from dsmoe_jax import features
from dsmoe_jax.config import fields
from dsmoe_jax.models.matching import next_item, two_tower
from dsmoe_jax.nn import causal, fuxi_encoder

EXPERT_PARTS = ("ffn", "ffn+proj")


@dataclasses.dataclass
class FuxiConfig(next_item.NextItemConfig):
    """Hyper-parameters of FuXi-alpha; see `NextItemConfig`.

    Attributes:
      ffn_multiple: Hidden width of the feed-forward networks, in their input's (m of the paper).
    """

    ffn_multiple: int = fields.field(1, at_least=1)

    def make(self, spec: features.FeatureSpec) -> "Fuxi":
        return self.build(Fuxi, spec)


@dataclasses.dataclass
class FuxiMMEConfig(next_item.NextItemConfig):
    """Hyper-parameters of Fuxi-MME-style, whose text was not available.

    Inferred: everything but the sub-spaces, their shared encoder and that a sparsely gated mixture
    of experts replaces a part of the block.

    Attributes:
      ffn_multiple: As in `FuxiConfig`, of every expert.
      num_subspaces: M, parts of the item embedding that go through the encoder on their own.
      num_experts: Experts of a layer that is a mixture.
      experts_per_token: How many of them a position uses.
      moe_in: What is a mixture of experts: "ffn", the feed-forward network, or "ffn+proj", the
        projections before and after attention as well.
      normalize_parts: Whether outputs and items are brought to one length in each sub-space, so
        that all weigh the same, and not as a whole.
      subspace_token: Whether a learned vector per sub-space joins the first block's input.
      balance_weight: Of the loss that spreads positions over experts, >= 0.
    """

    divides_output: ClassVar[str] = "num_subspaces"

    output_dim: int = 64
    ffn_multiple: int = fields.field(1, at_least=1)
    num_subspaces: int = fields.field(2, at_least=1)
    num_experts: int = fields.field(4, at_least=1)
    experts_per_token: int = fields.field(2, at_least=1)
    moe_in: str = fields.field("ffn", choices=EXPERT_PARTS)
    normalize_parts: bool = False
    subspace_token: bool = False
    balance_weight: float = fields.field(0.01, at_least=0)

    def make(self, spec: features.FeatureSpec) -> "FuxiMME":
        return self.build(FuxiMME, spec)

    def check(self, spec: features.FeatureSpec) -> None:
        super().check(spec)
        M = self.num_subspaces
        if self.output_dim // M % self.num_heads:
            raise ValueError(
                f"model.num_heads: expected a divisor of a sub-space's width "
                f"{self.output_dim // M}, got {self.num_heads}"
            )
        if self.experts_per_token > self.num_experts:
            raise ValueError(
                f"model.experts_per_token: expected at most model.num_experts="
                f"{self.num_experts}, got {self.experts_per_token}"
            )


class Fuxi(next_item.NextItemMatcher):
    """FuXi-alpha on the history of all scenarios.

    **Paper:** Ye et al., "FuXi-alpha: Scaling Recommendation Model with Feature Interaction
    Enhanced Transformer", as in its public code.
    """

    cfg: FuxiConfig

    def make_encoder(self, **sizes: Any) -> causal.Encoder:
        return fuxi_encoder.Encoder(ffn_multiple=self.cfg.ffn_multiple, **sizes)


class FuxiMME(next_item.NextItemMatcher):
    """Fuxi-MME-style: sub-spaces of the item table, one encoder for all, mixtures of experts.

    The score is the sum of the sub-spaces' inner products, which is one inner product of what is
    joined; so is the length that outputs are brought to, but for `normalize_parts`.

    **Paper:** "Fuxi-MME", its abstract. **Deviation:** see `FuxiMMEConfig` and
    `nn/fuxi_encoder.py`.
    """

    cfg: FuxiMMEConfig

    def make_encoder(self, **sizes: Any) -> causal.Encoder:
        cfg = self.cfg
        return fuxi_encoder.Encoder(
            ffn_multiple=cfg.ffn_multiple,
            num_subspaces=cfg.num_subspaces,
            num_experts=cfg.num_experts,
            experts_per_token=cfg.experts_per_token,
            expert_projections=cfg.moe_in == "ffn+proj",
            subspace_token=cfg.subspace_token,
            **sizes,
        )

    def normalize(self, vector: Float[jax.Array, "... D"]) -> Float[jax.Array, "... D"]:
        """See `next_item.NextItemMatcher`; the parts' lengths are M^-0.5 where each has its own."""
        if not self.cfg.normalize_parts:
            return super().normalize(vector)
        M = self.cfg.num_subspaces
        parts = causal.unit_norm(vector.reshape(*vector.shape[:-1], M, -1)) * M**-0.5
        return jnp.reshape(parts, vector.shape)

    def weigh(self, aux: two_tower.Aux) -> two_tower.Aux:
        return {name: self.cfg.balance_weight * value for name, value in aux.items()}
