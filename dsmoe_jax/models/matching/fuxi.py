"""FuXi-alpha (arXiv 2502.03036) and Fuxi-MME-style (arXiv 2510.25285) matchers.

Owns the choice of the encoder, which is `nn/fuxi_encoder.py`; all else is in `next_item.py`.
"""

import dataclasses

import jax
from jaxtyping import Float

from dsmoe_jax import features
from dsmoe_jax.models.matching import next_item, two_tower
from dsmoe_jax.nn import causal, fuxi_encoder


@dataclasses.dataclass
class FuxiConfig(next_item.NextItemConfig):
    """Hyper-parameters of FuXi-alpha; see `NextItemConfig`.

    Attributes:
      ffn_multiple: Hidden width of the feed-forward networks, in their input's (m of the paper).
    """

    ffn_multiple: int = 1

    def make(self, spec: features.FeatureSpec) -> "Fuxi":
        """Builds the model.

        Raises:
          ValueError: When a field is out of range.
        """
        fields = self.check(spec, counts=("ffn_multiple",))
        next_item.check_division("num_heads", self.num_heads, "output_dim", self.output_dim)
        return Fuxi(**fields)


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

    output_dim: int = 64
    ffn_multiple: int = 1
    num_subspaces: int = 2
    num_experts: int = 4
    experts_per_token: int = 2
    moe_in: str = "ffn"
    normalize_parts: bool = False
    subspace_token: bool = False
    balance_weight: float = 0.01

    def make(self, spec: features.FeatureSpec) -> "FuxiMME":
        """Builds the model.

        Raises:
          ValueError: When a field is out of range.
        """
        fields = self.check(
            spec,
            counts=("ffn_multiple", "num_subspaces", "num_experts", "experts_per_token"),
            choices={"moe_in": ("ffn", "ffn+proj")},
        )
        M = self.num_subspaces
        next_item.check_division("num_subspaces", M, "output_dim", self.output_dim)
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
        if not self.balance_weight >= 0:
            raise ValueError(
                f"model.balance_weight: expected a number >= 0, got {self.balance_weight!r}"
            )
        return FuxiMME(**fields)


class Fuxi(next_item.NextItemMatcher):
    """FuXi-alpha on the history of all scenarios.

    **Paper:** Ye et al., "FuXi-alpha: Scaling Recommendation Model with Feature Interaction
    Enhanced Transformer", as in its public code.

    Attributes: see `FuxiConfig`.
    """

    ffn_multiple: int

    def make_encoder(self, max_len: int) -> causal.Encoder:
        """See `next_item.NextItemMatcher`."""
        return fuxi_encoder.Encoder(
            self.output_dim,
            num_blocks=self.num_blocks,
            num_heads=self.num_heads,
            ffn_multiple=self.ffn_multiple,
            max_len=max_len,
            dropout=self.dropout,
            input_dropout=self.input_dropout,
        )


class FuxiMME(next_item.NextItemMatcher):
    """Fuxi-MME-style: sub-spaces of the item table, one encoder for all, mixtures of experts.

    The score is the sum of the sub-spaces' inner products, which is one inner product of what is
    joined; so is the length that outputs are brought to, but for `normalize_parts`.

    **Paper:** "Fuxi-MME", its abstract. **Deviation:** see `FuxiMMEConfig` and
    `nn/fuxi_encoder.py`.

    Attributes: see `FuxiMMEConfig`.
    """

    ffn_multiple: int
    num_subspaces: int
    num_experts: int
    experts_per_token: int
    moe_in: str
    normalize_parts: bool
    subspace_token: bool
    balance_weight: float

    def make_encoder(self, max_len: int) -> causal.Encoder:
        """See `next_item.NextItemMatcher`."""
        return fuxi_encoder.Encoder(
            self.output_dim,
            num_blocks=self.num_blocks,
            num_heads=self.num_heads,
            ffn_multiple=self.ffn_multiple,
            num_subspaces=self.num_subspaces,
            num_experts=self.num_experts,
            experts_per_token=self.experts_per_token,
            expert_projections=self.moe_in == "ffn+proj",
            subspace_token=self.subspace_token,
            max_len=max_len,
            dropout=self.dropout,
            input_dropout=self.input_dropout,
        )

    def normalize(self, vector: Float[jax.Array, "... D"]) -> Float[jax.Array, "... D"]:
        """See `next_item.NextItemMatcher`; the parts' lengths are M^-0.5 where each has its own."""
        if not self.normalize_parts:
            return super().normalize(vector)
        M = self.num_subspaces
        parts = causal.unit_norm(vector.reshape(*vector.shape[:-1], M, -1)) * M**-0.5
        return parts.reshape(vector.shape)

    def weigh(self, aux: two_tower.Aux) -> two_tower.Aux:
        """See `next_item.NextItemMatcher`."""
        return {name: self.balance_weight * value for name, value in aux.items()}
