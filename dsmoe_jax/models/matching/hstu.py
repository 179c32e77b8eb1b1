"""HSTU as a matcher: pointwise attention over the history, next-item training (ICML 2024).

Owns the choice of the encoder, which is `nn/hstu_encoder.py`; all else is in `next_item.py`.
"""

import dataclasses

from dsmoe_jax import features
from dsmoe_jax.models.matching import next_item
from dsmoe_jax.nn import causal, hstu_encoder


@dataclasses.dataclass
class HSTUConfig(next_item.NextItemConfig):
    """Hyper-parameters of HSTU; see `NextItemConfig`."""

    def make(self, spec: features.FeatureSpec) -> "HSTU":
        """Builds the model.

        Raises:
          ValueError: When a field is out of range.
        """
        fields = self.check(spec)
        next_item.check_division("num_heads", self.num_heads, "output_dim", self.output_dim)
        return HSTU(**fields)


class HSTU(next_item.NextItemMatcher):
    """HSTU on the history of all scenarios.

    **Paper:** Zhai et al., "Actions Speak Louder than Words", as in its public code's sequential
    experiments.

    Attributes: see `next_item.NextItemConfig`.
    """

    def make_encoder(self, max_len: int) -> causal.Encoder:
        """See `next_item.NextItemMatcher`."""
        return hstu_encoder.Encoder(
            self.output_dim,
            num_blocks=self.num_blocks,
            num_heads=self.num_heads,
            max_len=max_len,
            dropout=self.dropout,
            input_dropout=self.input_dropout,
        )
