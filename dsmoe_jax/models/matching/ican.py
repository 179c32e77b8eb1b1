"""ICAN: a user's histories of every scenario, weighted for the target scenario (IJCAI 2020).

Owns the two attentions over a user's groups of events, the user tower and the choice of the item
vector.

Letters: B examples, S scenarios, L events of one scenario, F fields of an event, E one field's
embedding, G groups (S * F), H attention heads, A an attention head's width, M interests (1), D
output.
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from dsmoe_jax import batch as batch_lib
from dsmoe_jax import features
from dsmoe_jax.config import fields, schema
from dsmoe_jax.models.matching import two_tower
from dsmoe_jax.nn import dropout, embed, scenario, tables

ITEM_VECTORS = ("fields", "id")

# Of the sum that normalises the contextual weights, in the authors' code.
EPSILON = 1e-3


@dataclasses.dataclass
class ICANConfig(schema.MatcherConfig):
    """Hyper-parameters of ICAN; the defaults are the authors' code's.

    Attributes:
      attention_dims: Hidden widths of the unit that weighs a group for the target scenario.
      num_heads: H of the self-attention over groups, a divisor of the width of an embedding.
      hidden_dims: Widths of the user tower's layers before the last.
      output_dim: D, width of the user tower's last layer and of item vectors.
      input_dropout: Rate in [0, 1) at which entries of both towers' inputs are dropped in training.
      item_vector: "fields": a linear map of all fields of the item. "id": the item id's embedding
        itself, as in the original, whose width D must then be.
    """

    scenario_histories: ClassVar[bool] = True

    attention_dims: tuple[int, ...] = fields.field((64, 32), at_least=1, search=((32,), (64, 32)))
    num_heads: int = fields.field(8, at_least=1)
    hidden_dims: tuple[int, ...] = fields.field(
        (128, 64), at_least=1, search=((64,), (128, 64), (256, 128))
    )
    output_dim: int = fields.field(64, at_least=1)
    input_dropout: float = fields.rate()
    item_vector: str = fields.field("fields", choices=ITEM_VECTORS)

    def make(self, spec: features.FeatureSpec) -> "ICAN":
        return self.build(ICAN, spec)

    def check(self, spec: features.FeatureSpec) -> None:
        E = spec.embedding_dim
        if E % self.num_heads:
            raise ValueError(
                f"model.num_heads: expected a divisor of features.embedding_dim, {E}, "
                f"got {self.num_heads}"
            )
        if self.item_vector == "id" and self.output_dim != E:
            raise ValueError(
                f"model.output_dim: with item_vector 'id' expected features.embedding_dim, {E}, "
                f"got {self.output_dim}"
            )


class ContextualAttention(nn.Module):
    """Weights of a user's groups for the target scenario: a_g = exp(s_g) / (sum_g exp(s_g) + 0.001)
    with s_g = tanh(MLP([t; x_g; x_g - t; x_g * t])).
    """

    hidden_dims: tuple[int, ...]  # Widths of the unit's hidden layers, each followed by tanh

    @nn.compact
    def __call__(
        self,
        target_BE: Float[jax.Array, "B E"],
        group_BGE: Float[jax.Array, "B G E"],
        mask_BG: Bool[jax.Array, "B G"],
    ) -> Float[jax.Array, "B G"]:
        """Weights within the mask, 0 outside."""
        target_BGE = jnp.broadcast_to(target_BE[:, None], group_BGE.shape)
        parts = [target_BGE, group_BGE, group_BGE - target_BGE, group_BGE * target_BGE]
        hidden = jnp.concatenate(parts, axis=-1)
        for width in (*self.hidden_dims, 1):
            hidden = nn.tanh(nn.Dense(width)(hidden))
        weight_BG = jnp.where(mask_BG, jnp.exp(hidden[..., 0]), 0)
        return weight_BG / (weight_BG.sum(axis=-1, keepdims=True) + EPSILON)


class InternalAttention(nn.Module):
    """Self-attention among a user's groups: heads of products that are not scaled, then one linear
    map; no residual, normalisation or feed-forward layer.
    """

    num_heads: int  # H

    @nn.compact
    def __call__(
        self, group_BGE: Float[jax.Array, "B G E"], mask_BG: Bool[jax.Array, "B G"]
    ) -> Float[jax.Array, "B G E"]:
        """What each group gathers from those in the mask; 0 outside it."""
        B, G, E = group_BGE.shape
        # No biases: that of the keys would cancel in the softmax.
        joint = nn.Dense(3 * E, use_bias=False, name="query_key_value")(group_BGE)
        query, key, value = (
            part.reshape(B, G, self.num_heads, -1) for part in jnp.split(joint, 3, axis=-1)
        )
        logit_BHGG = jnp.einsum("bgha,bkha->bhgk", query, key)
        low = jnp.finfo(logit_BHGG.dtype).min
        weight_BHGG = nn.softmax(jnp.where(mask_BG[:, None, None], logit_BHGG, low))
        gathered_BGE = jnp.einsum("bhgk,bkha->bgha", weight_BHGG, value).reshape(B, G, E)
        output_BGE = nn.Dense(E, use_bias=False, name="output")(gathered_BGE)
        return jnp.where(mask_BG[..., None], output_BGE, 0)


class ICAN(two_tower.Matcher):
    """An attentive user tower over the histories of all scenarios; item vectors of none.

    **Paper:** Xie et al., "Internal and Contextual Attention Network for Cold-start Multi-channel
    Matching in Recommendation" (IJCAI 2020), where scenarios are channels; the sequence of layers
    is that of the authors' code (contextual attention first, groups weighted and not summed, tanh
    after every layer).
    **Deviation:** trained on the binary cross entropy that all methods share, where the original
    has a softmax over 20 negatives. A group is a history of item ids, whose width is that of the
    embeddings here, 16, not 64; behaviour has no tags or categories. What the code calls the
    profile is the whole input of the user side, pooled histories included, so that no method sees
    other features than the rest. Empty groups are masked in both attentions, which the code leaves
    out. The item vector is a linear map of all item fields by default.
    """

    item_uses_scenario = False

    cfg: ICANConfig

    def setup(self) -> None:
        cfg = self.cfg
        self.embedder = embed.Embedder(self.spec)
        self.drop = dropout.Dropout(cfg.input_dropout)
        self.contextual = ContextualAttention(cfg.attention_dims)
        self.internal = InternalAttention(cfg.num_heads)
        self.user_layers = [nn.Dense(width) for width in (*cfg.hidden_dims, cfg.output_dim)]
        if cfg.item_vector == "fields":
            self.item_layer = nn.Dense(cfg.output_dim)

    def embed_user(
        self, users: batch_lib.Users, scenario_B: Int[jax.Array, "B"], *, train: bool
    ) -> tuple[Float[jax.Array, "B M D"], two_tower.Aux]:
        """One vector per user, its entries in (-1, 1)."""
        embedded = self.embedder.users(users)
        group_BGE, mask_BG = self._pool_groups(embedded.events[features.SCENARIO_HISTORIES])
        one_hot_BS = scenario.one_hot(scenario_B, self.spec.num_scenarios)
        target_BE = scenario.pick(self.embedder.scenarios(), one_hot_BS)
        weight_BG = self.contextual(target_BE, group_BGE, mask_BG)
        group_BGE = self.internal(weight_BG[..., None] * group_BGE, mask_BG)
        parts = [group_BGE.reshape(group_BGE.shape[0], -1), embedded.input_BI]
        hidden = self.drop(jnp.concatenate(parts, axis=-1), train=train)
        for layer in self.user_layers:
            hidden = nn.tanh(layer(hidden))
        return hidden[:, None], {}

    def embed_item(
        self, items: batch_lib.Items, scenario_B: Int[jax.Array, "B"], *, train: bool
    ) -> tuple[Float[jax.Array, "B ... D"], two_tower.Aux]:
        embedded = self.embedder.items(items)
        if self.cfg.item_vector == "id":
            return self.drop(embedded.fields["item_id"], train=train), {}
        return self.item_layer(self.drop(embedded.input_BI, train=train)), {}

    def _pool_groups(
        self, events: embed.Events
    ) -> tuple[Float[jax.Array, "B G E"], Bool[jax.Array, "B G"]]:
        """The mean of every scenario's events, one group per field, and which have events."""
        S, E = self.spec.num_scenarios, self.spec.embedding_dim
        event_BLE, mask_BL = events
        B = event_BLE.shape[0]
        mask_BSL = mask_BL.reshape(B, S, -1)
        mean_BSE = tables.masked_mean(event_BLE.reshape(B, S, mask_BSL.shape[2], -1), mask_BSL)
        group_BGE = mean_BSE.reshape(B, -1, E)
        return group_BGE, jnp.repeat(mask_BSL.any(axis=-1), group_BGE.shape[1] // S, axis=1)
