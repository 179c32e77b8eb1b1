"""HSTU as a matcher: pointwise attention over the history, next-item training (ICML 2024).

Owns the choice of the encoder, which is `nn/hstu_encoder.py`; all else is in `next_item.py`.
"""

import dataclasses
from typing import Any

from dsmoe_jax import features
from dsmoe_jax.models.matching import next_item
from dsmoe_jax.nn import causal, hstu_encoder


@dataclasses.dataclass
class HSTUConfig(next_item.NextItemConfig):
    """Hyper-parameters of HSTU; see `NextItemConfig`."""

    def make(self, spec: features.FeatureSpec) -> "HSTU":
        return self.build(HSTU, spec)


class HSTU(next_item.NextItemMatcher):
    """HSTU on the history of all scenarios.

    **Paper:** Zhai et al., "Actions Speak Louder than Words", as in its public code's sequential
    experiments.
    """

    cfg: HSTUConfig

    def make_encoder(self, **sizes: Any) -> causal.Encoder:
        return hstu_encoder.Encoder(**sizes)
