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
        return self.build(HSTU, spec)

    def check(self, spec: features.FeatureSpec) -> None:
        super().check(spec)
        next_item.check_division("num_heads", self.num_heads, "output_dim", self.output_dim)


class HSTU(next_item.NextItemMatcher):
    """HSTU on the history of all scenarios.

    **Paper:** Zhai et al., "Actions Speak Louder than Words", as in its public code's sequential
    experiments.
    """

    cfg: HSTUConfig

    def make_encoder(self, max_len: int) -> causal.Encoder:
        cfg = self.cfg
        return hstu_encoder.Encoder(
            cfg.output_dim,
            num_blocks=cfg.num_blocks,
            num_heads=cfg.num_heads,
            max_len=max_len,
            dropout=cfg.dropout,
            input_dropout=cfg.input_dropout,
        )
