"""History encoders of a tower's input, where it is not the mean of the history's events.

Owns the choice of the encoder and its sizes, for any tower: the blocks are in `nn/hstu_encoder.py`
and `nn/fuxi_encoder.py`, and matchers that train them on the next item set their own sizes.

Letters: B examples, L positions, E width of an event.
"""

import flax.linen as nn
import jax
from jaxtyping import Float

from dsmoe_jax import batch as batch_lib
from dsmoe_jax.nn import causal, fuxi_encoder, hstu_encoder

NUM_SUBSPACES = 2
NUM_EXPERTS = 4
EXPERTS_PER_TOKEN = 2


class HistoryEncoder(nn.Module):
    """The last position's output of two blocks with one head, without dropout.

    **Deviation:** ours, the encoders' papers know no other features. The tower drops its inputs
    out, this one among them; experts are not balanced. The output is divided by sqrt(E), which the
    encoder's input was multiplied with, so that it is of the size of other fields.
    """

    kind: str  # "hstu", "fuxi" or "fuxi_mme"
    dim: int  # E
    max_len: int  # Positions of the longest history

    def setup(self) -> None:
        if self.kind == "hstu":
            self.encoder: causal.Encoder = hstu_encoder.Encoder(self.dim, max_len=self.max_len)
        elif self.kind == "fuxi":
            self.encoder = fuxi_encoder.Encoder(self.dim, max_len=self.max_len)
        elif self.dim % NUM_SUBSPACES:
            raise ValueError(
                f"features.embedding_dim: expected a multiple of {NUM_SUBSPACES} with "
                f"features.history_encoder='fuxi_mme', got {self.dim}"
            )
        else:
            self.encoder = fuxi_encoder.Encoder(
                self.dim,
                num_subspaces=NUM_SUBSPACES,
                num_experts=NUM_EXPERTS,
                experts_per_token=EXPERTS_PER_TOKEN,
                max_len=self.max_len,
            )

    def __call__(
        self,
        event_BLE: Float[jax.Array, "B L E"],
        sequence: batch_lib.Sequence,
        time_B: jax.Array,
    ) -> Float[jax.Array, "B E"]:
        """One vector per user; an empty history has a learned one. `time_B` is the request's."""
        timeline = causal.make_timeline(sequence.ids_BLF[..., 0] > 0, sequence.time_BL, time_B)
        state_BLE, _ = self.encoder(event_BLE, timeline, train=False)
        scale: float = self.dim**0.5
        return causal.last_position(state_BLE, timeline.mask_BL) / scale
