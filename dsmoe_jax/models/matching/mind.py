"""MIND: several vectors per user, one for each interest found in the history.

Owns the routing of events to interests and the number that a history supports, the user tower over
interests and the plain item tower. The search with several vectors is in `retrieval/index.py`.

Letters: B examples, S scenarios, L history length, M interests, E event width, I profile width, D
output.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from dsmoe_jax import batch as batch_lib
from dsmoe_jax import features
from dsmoe_jax.config import fields
from dsmoe_jax.models.matching import two_tower
from dsmoe_jax.nn import dropout, embed, mlp, scenario, tables

# Of the logits that routing starts from: a constant of the method, not of a run.
_NOISE_SEED = (0x6D696E64, 0x63617073)
_TINY = 1e-9


@dataclasses.dataclass
class MINDConfig(two_tower.TowerConfig):
    """Hyper-parameters of MIND.

    Attributes:
      num_interests: M, most interests of a user; a history of n events has log2(1 + n) of them.
      routing_iterations: Iterations of the routing.
      sequence: The history whose events are routed, of `FeatureSpec.pooled_sequences`.
      hidden_dims: Widths of both towers' hidden layers, at least one.
      input_dropout: Rate in [0, 1) at which entries of both towers' inputs, interests included, are
        dropped in training.
      norm: "bn"; "dsbn", per scenario in the user tower; or "none".
    """

    num_interests: int = fields.field(4, at_least=1, search=(1, 2, 4))
    routing_iterations: int = fields.field(3, at_least=1)
    sequence: str = "history"
    hidden_dims: tuple[int, ...] = fields.widths((256,), search=((64,), (128,), (256,)))
    input_dropout: float = 0.0
    norm: str = "bn"

    def make(self, spec: features.FeatureSpec) -> "MIND":
        return self.build(MIND, spec)

    def check(self, spec: features.FeatureSpec) -> None:
        names = tuple(sequence.name for sequence in spec.pooled_sequences)
        if self.sequence not in names:
            raise ValueError(f"model.sequence: expected one of {names}, got {self.sequence!r}")


def squash(z: Float[jax.Array, "... E"]) -> Float[jax.Array, "... E"]:
    """|z|^2 / (1 + |z|^2) z / |z|: the direction stays, the length falls into [0, 1)."""
    square = jnp.square(z).sum(axis=-1, keepdims=True)
    # At 0, where the length has no derivative, the constant leaves 0 and a gradient of 0.
    return z * (square / (1 + square) * jax.lax.rsqrt(square + _TINY))


def active_interests(length_B: Int[jax.Array, "B"], num_interests: int) -> Bool[jax.Array, "B M"]:
    """Which interests a history of so many events supports: the first clip(log2(1 + n), 1, M).

    Rounded down, and without a logarithm, which would miss whole powers of 2.
    """
    # The first interest needs no event.
    needed_M = np.exp2(np.arange(1, num_interests + 1)) * (np.arange(num_interests) > 0)
    length_B1 = length_B[:, None].astype(jnp.float32)
    return 1 + length_B1 >= needed_M[None].astype(np.float32)


def routing_noise(max_len: int, num_interests: int) -> Float[jax.Array, "L M"]:
    """Standard normal logits of every position and interest, the same in every call.

    A position's values do not depend on the number of positions. They are hashed, not drawn: a
    trained model means these values, whatever later versions of libraries draw.
    """
    seed = jnp.asarray(_NOISE_SEED, jnp.uint32)
    bits_LM = dropout.hash_positions(seed, (max_len, num_interests))
    # The upper 23 bits and a half, which float32 holds exactly, so that neither end is reached.
    uniform_LM = ((bits_LM >> 9).astype(jnp.float32) + 0.5) * 2.0**-23
    return jax.scipy.special.ndtri(uniform_LM)


class DynamicRouting(nn.Module):
    """Interests c_m = squash(sum_l w_lm h_l S), w the softmax of routing logits over interests.

    The logits start from fixed noise, without which all interests would be one, and grow with the
    agreement c_m . h_l S in every iteration but the last. They are not learned, and no gradient
    passes through the weights: S and the events learn from the last sum alone.

    **Paper:** Li et al., "Multi-Interest Network with Dynamic Routing for Recommendation at Tmall",
    section "Multi-interest extractor layer": shared bilinear map, random initial logits, number of
    interests by the history's length.
    **Deviation:** log2(1 + n) interests where the paper has log2(n), so that an empty history has
    its one interest; the noise belongs to the position and is never drawn anew, so that a user's
    vectors are a function of the user.
    """

    event_dim: int  # E, of events and interests alike
    num_interests: int  # M
    iterations: int  # Of the routing, at least 1

    def setup(self) -> None:
        shape_EE = (self.event_dim, self.event_dim)
        # Not scaled down by the width: agreement is of second order in events that start small.
        init = nn.initializers.normal(1.0)
        self.bilinear_EE = self.param("bilinear", init, shape_EE, jnp.float32)

    def weights(self, events: embed.Events) -> Float[jax.Array, "B L M"]:
        """Share of every event in every interest in the last iteration.

        Sums to 1 over the interests that the history supports; 0 at padding.
        """
        mapped_BLE = jax.lax.stop_gradient(events.event_BLE @ self.bilinear_EE)
        return self._route(mapped_BLE, events.mask_BL)

    def __call__(
        self, events: embed.Events
    ) -> tuple[Float[jax.Array, "B M E"], Bool[jax.Array, "B M"]]:
        """Interests, 0 where the history supports fewer, and which ones it supports."""
        mapped_BLE = events.event_BLE @ self.bilinear_EE
        weight_BLM = self._route(jax.lax.stop_gradient(mapped_BLE), events.mask_BL)
        return _gather(weight_BLM, mapped_BLE), self._active(events.mask_BL)

    def _active(self, mask_BL: Bool[jax.Array, "B L"]) -> Bool[jax.Array, "B M"]:
        return active_interests(mask_BL.sum(axis=1), self.num_interests)

    def _route(
        self, mapped_BLE: Float[jax.Array, "B L E"], mask_BL: Bool[jax.Array, "B L"]
    ) -> Float[jax.Array, "B L M"]:
        noise_LM = routing_noise(mapped_BLE.shape[1], self.num_interests)
        logit_BLM = jnp.where(self._active(mask_BL)[:, None], noise_LM[None], -jnp.inf)
        mask_BL1 = mask_BL[..., None].astype(jnp.float32)
        for _ in range(self.iterations - 1):
            interest_BME = _gather(nn.softmax(logit_BLM) * mask_BL1, mapped_BLE)
            logit_BLM = logit_BLM + jnp.einsum("bme,ble->blm", interest_BME, mapped_BLE)
        return nn.softmax(logit_BLM) * mask_BL1


class MIND(two_tower.Matcher):
    """u_m = MLP([interest_m; profile; e_s]) with one MLP for all interests; v = MLP(item).

    The profile is the user's fields and pooled histories but the routed one, which the interests
    stand for. Interests that a history does not support repeat the first one: they change no
    maximum and no retrieved list.

    **Paper:** Li et al., "Multi-Interest Network with Dynamic Routing for Recommendation at Tmall".
    **Deviation:** training takes the interest that scores best, the limit of the paper's
    label-aware attention that libraries use and what serving does, for positives and negatives
    alike; the item tower is DSSM's, on all item fields, so that the two differ by interests alone;
    normalisation before ReLU. The paper knows no scenarios: the user's MLP sees theirs, items do
    not, and one index serves all.
    """

    item_uses_scenario = False

    cfg: MINDConfig

    def setup(self) -> None:
        cfg = self.cfg
        spec, S, C = self.spec, self.spec.num_scenarios, self.spec.embedding_dim
        self.embedder = embed.Embedder(spec, tables.TABLE_STD)
        self.drop = dropout.Dropout(cfg.input_dropout)
        fields = {sequence.name: sequence.fields for sequence in spec.sequences}
        event_dim = C * len(fields[cfg.sequence])
        self.routing = DynamicRouting(event_dim, cfg.num_interests, cfg.routing_iterations)
        profile_dim = self.embedder.user_dim - event_dim + C
        self.first = mlp.Split((profile_dim, event_dim), cfg.hidden_dims[0])
        self.first_block = cfg.make_block(S, cfg.hidden_dims[0])
        dims = (*cfg.hidden_dims, cfg.output_dim)
        self.user_tower = mlp.Perceptron(dims, S, cfg.norm, cfg.bn_momentum)
        dims = (self.embedder.item_dim, *dims)
        self.item_tower = mlp.Perceptron(dims, 1, cfg.norm, cfg.bn_momentum)

    def embed_user(
        self, users: batch_lib.Users, scenario_B: Int[jax.Array, "B"], *, train: bool
    ) -> tuple[Float[jax.Array, "B M D"], two_tower.Aux]:
        one_hot_BS = scenario.one_hot(scenario_B, self.spec.num_scenarios)
        embedded = self.embedder.users(users)
        profile_BI = scenario.append(self._profile(embedded), self.embedder.scenarios(), one_hot_BS)
        interest_BME, active_BM = self.routing(embedded.events[self.cfg.sequence])
        interest_BME = self.drop(interest_BME, train=train)
        # After dropout, so that what repeats the first interest is equal to it in training too.
        interest_BME = jnp.where(active_BM[..., None], interest_BME, interest_BME[:, :1])
        hidden = self.first(0, self.drop(profile_BI, train=train))[:, None]
        hidden = self.first_block(hidden + self.first(1, interest_BME), one_hot_BS, train=train)
        return self.user_tower(hidden, one_hot_BS, train=train), {}

    def embed_item(
        self, items: batch_lib.Items, scenario_B: Int[jax.Array, "B"], *, train: bool
    ) -> tuple[Float[jax.Array, "B ... D"], two_tower.Aux]:
        input_BI = self.drop(self.embedder.items(items).input_BI, train=train)
        one_hot_B1 = jnp.ones((scenario_B.shape[0], 1), jnp.float32)
        return self.item_tower(input_BI, one_hot_B1, train=train), {}

    def _profile(self, embedded: embed.Embedded) -> Float[jax.Array, "B I"]:
        """The user's input without the routed history's mean."""
        blocks, start = [], embedded.input_BI.shape[1]
        # Histories are the last blocks of the input.
        for name, mean_BE in reversed(embedded.pooled.items()):
            start -= mean_BE.shape[1]
            if name != self.cfg.sequence:
                blocks.append(mean_BE)
        return jnp.concatenate([embedded.input_BI[:, :start], *reversed(blocks)], axis=1)


def _gather(
    weight_BLM: Float[jax.Array, "B L M"], mapped_BLE: Float[jax.Array, "B L E"]
) -> Float[jax.Array, "B M E"]:
    return squash(jnp.einsum("blm,ble->bme", weight_BLM, mapped_BLE))
