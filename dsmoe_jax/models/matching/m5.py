"""M5-style: interests per scenario in two modalities, fused by a split mixture of experts.

Owns the reading of one channel's histories (a transformer block, calibrated pooling and masking),
the masked-item loss that trains it, and both towers: what the two channels embed, the split mixture
and the weights of the channels.

Letters: B examples, S scenarios, N = B * S histories, L events of one, E one field's embedding,
W an interest's width, H attention heads, X negatives, K experts, I width of the joint input, O an
expert's output, D output of both channels together, M interests (1), V items, P ids in a padded
bag, F feature fields.
"""

import dataclasses
import functools
import itertools
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from dsmoe_jax import batch as batch_lib
from dsmoe_jax import features
from dsmoe_jax.config import fields
from dsmoe_jax.models.matching import two_tower
from dsmoe_jax.nn import attention, embed, mlp, scenario, tables
from dsmoe_jax.nn import dropout as dropout_lib

# Embeddings of the items' ids, and of their other fields.
CHANNELS = ("id", "content")


@dataclasses.dataclass
class M5Config(two_tower.TowerConfig):
    """Hyper-parameters of M5.

    Attributes:
      attention_length: Most recent events of a scenario's history that are read.
      attention_dim: W, width of a token in the transformer block and of an interest.
      num_heads: Attention heads, which divide `attention_dim`.
      num_experts: K.
      expert_dims: Widths of each expert's layers, at least one.
      output_dim: D of the index, even: half of it for each channel.
      input_dropout: Rate in [0, 1) at which entries of the experts' and gates' input, and of the
        items' embeddings, are dropped in training.
      mask_rate: Rate in [0, 1) at which events are hidden in training.
      mask_negatives: Uniform negatives of the masked-item loss.
      mask_weight: Its weight >= 0.
    """

    scenario_histories: ClassVar[bool] = True

    attention_length: int = fields.field(50, at_least=1)
    attention_dim: int = fields.field(64, at_least=1, search=(32, 64))
    num_heads: int = fields.field(2, at_least=1)
    num_experts: int = fields.field(4, at_least=1)
    expert_dims: tuple[int, ...] = fields.widths((256, 128), search=((64,), (128, 64), (256, 128)))
    output_dim: int = 128
    input_dropout: float = 0.0
    mask_rate: float = fields.rate(0.2)
    mask_negatives: int = fields.field(64, at_least=1)
    mask_weight: float = fields.field(0.1, at_least=0)

    def make(self, spec: features.FeatureSpec) -> "M5":
        return self.build(M5, spec)

    def check(self, spec: features.FeatureSpec) -> None:
        for name, expected, holds in (
            ("attention_dim", "a multiple of num_heads", self.attention_dim % self.num_heads == 0),
            ("output_dim", "an even number", self.output_dim % 2 == 0),
        ):
            if not holds:
                raise ValueError(f"model.{name}: expected {expected}, got {getattr(self, name)!r}")
        names = tuple(sequence.name for sequence in spec.sequences)
        if features.SCENARIO_HISTORIES not in names:
            raise ValueError(
                f"features: expected the sequence {features.SCENARIO_HISTORIES!r}, got {names}"
            )
        if not (spec.item_sparse[1:] or spec.item_dense or spec.item_bags):
            raise ValueError("features: expected an item feature beside 'item_id', got none")


class Block(nn.Module):
    """A pre-norm transformer block: h + Attention(LN(h)), then h + FFN(LN(h)) with GELU."""

    width: int  # W, which the heads divide
    num_heads: int  # H
    expansion: int = 2  # Width of the FFN's hidden layer, in W

    def setup(self) -> None:
        self.attention_norm, self.ffn_norm = nn.LayerNorm(), nn.LayerNorm()
        self.query_key_value = nn.Dense(3 * self.width)
        self.output = nn.Dense(self.width)
        self.ffn_up, self.ffn_down = nn.Dense(self.expansion * self.width), nn.Dense(self.width)

    def __call__(
        self, hidden_NLW: Float[jax.Array, "N L W"], mask_NL: Bool[jax.Array, "N L"]
    ) -> Float[jax.Array, "N L W"]:
        """Every position reads all positions in the mask; what those outside hold is no matter."""
        joint = self.query_key_value(self.attention_norm(hidden_NLW))
        query, key, value = (
            part.reshape(*part.shape[:2], self.num_heads, -1)
            for part in jnp.split(joint, 3, axis=-1)
        )
        logit_NHLL = jnp.einsum("nlhz,nmhz->nhlm", query, key) * query.shape[-1] ** -0.5
        low = jnp.finfo(logit_NHLL.dtype).min
        weight_NHLL = nn.softmax(jnp.where(mask_NL[:, None, None], logit_NHLL, low))
        read = jnp.einsum("nhlm,nmhz->nlhz", weight_NHLL, value)
        hidden_NLW = hidden_NLW + self.output(read.reshape(hidden_NLW.shape))
        return hidden_NLW + self.ffn_down(nn.gelu(self.ffn_up(self.ffn_norm(hidden_NLW))))


class Interests(nn.Module):
    """One interest vector per history: sum_t w_t h_t, w = softmax_t(v tanh(h_t W + b)).

    h is a transformer block over projected tokens e_t + position_t, of which the most recent event
    has position 0. The parameters are shared by all histories. In training masked events are
    replaced by a learned token, and predicted from what surrounds them.
    """

    event_dim: int  # E
    width: int  # W
    num_heads: int  # H
    max_len: int  # L

    def setup(self) -> None:
        init = nn.initializers.truncated_normal(tables.TABLE_STD)
        shape_LE = (self.max_len, self.event_dim)
        self.position_LE = self.param("position", init, shape_LE, jnp.float32)
        self.masked_E = self.param("masked_event", init, (self.event_dim,), jnp.float32)
        self.project = nn.Dense(self.width)
        self.block = Block(self.width, self.num_heads)
        self.calibrate = nn.Dense(self.width)
        # A bias would cancel in the softmax.
        self.intensity = nn.Dense(1, use_bias=False)
        self.predict = nn.Dense(self.event_dim)

    def __call__(
        self,
        event_NLE: Float[jax.Array, "N L E"],
        mask_NL: Bool[jax.Array, "N L"],
        masked_NL: Bool[jax.Array, "N L"],
    ) -> tuple[Float[jax.Array, "N W"], Float[jax.Array, "N L E"]]:
        """Interests, 0 where the history is empty, and what event each position predicts.

        The most recent event comes first; those in `masked_NL` are hidden. A prediction should have
        the largest inner product with the event that is there.
        """
        token_NLE = jnp.where(masked_NL[..., None], self.masked_E[None, None], event_NLE)
        hidden_NLW = self.block(self.project(token_NLE + self.position_LE[None]), mask_NL)
        logit_NL1 = self.intensity(jnp.tanh(self.calibrate(hidden_NLW)))
        weight_NL1 = attention.masked_softmax(logit_NL1, mask_NL[..., None])
        return (weight_NL1 * hidden_NLW).sum(axis=1), self.predict(hidden_NLW)


class M5(two_tower.Matcher):
    """A user's interests per scenario, in ids and in content, and two user vectors made of them.

    The user's vector is [w_id u_id; w_content u_content] and the item's [v_id; v_content], so that
    their inner product is the weighted sum of both preferences and one index serves all scenarios.

    The content of an item of a history is that of a candidate: its side fields, embedded by the
    item tower's own tables. A batch holds ids alone; the fields are constants of the model.

    **Paper:** Zhao et al., "M5: Multi-Modal Multi-Interest Multi-Scenario Matching for Over-the-Top
    Recommendation" (KDD 2023): id and content embeddings of every item, mirrored towers,
    self-attention with masked-item training, calibrated pooling, features crossed with the
    scenario, a split mixture of experts, dynamic weights of the two preferences.
    **Deviation:** written from the abstract, hence "M5-style": every formula is inferred. Content
    is embedded from side fields instead of a pre-trained content graph; behaviour is grouped by
    scenario; events have no strength, so tokens and pooling go without it; the user's fields and
    their cross, equal in both channels, stand once in the joint input; the masked histories are
    also what the recommendation is trained on, so that the block runs once.
    """

    item_uses_scenario = False

    cfg: M5Config

    def setup(self) -> None:
        cfg, spec = self.cfg, self.spec
        K, W, E = cfg.num_experts, cfg.attention_dim, spec.embedding_dim
        self.embedder = embed.Embedder(spec)
        self.content = nn.Dense(E)
        self.interests = {
            channel: Interests(E, W, cfg.num_heads, self._length) for channel in CHANNELS
        }
        self.cross_user = nn.Dense(W, use_bias=False)
        self.cross_scenario = nn.Dense(W, use_bias=False)
        self.drop = dropout_lib.Dropout(cfg.input_dropout)
        in_dim = self.embedder.user_dim + len(CHANNELS) * spec.num_scenarios * W + W
        self.first = nn.Dense(K * cfg.expert_dims[0])
        self.layers = [mlp.ExpertLinear(K, *pair) for pair in itertools.pairwise(cfg.expert_dims)]
        self.blocks = [cfg.make_block(spec.num_scenarios, K * width) for width in cfg.expert_dims]
        # For each channel a gate of the experts, then the channels' weights.
        self.gates = mlp.Split((in_dim, E), len(CHANNELS) * (K + 1))
        half = cfg.output_dim // 2
        self.user_heads = {channel: nn.Dense(half) for channel in CHANNELS}
        self.item_heads = {channel: nn.Dense(half) for channel in CHANNELS}
        item_fields = {}
        for name, shape in self._field_shapes.items():
            dtype = jnp.float32 if name.startswith("dense_") else jnp.int32
            item_fields[name] = self.variable("constants", name, jnp.zeros, shape, dtype)
        self.item_fields = item_fields

    @property
    def constant_shapes(self) -> dict[str, tuple[int, ...]]:
        """The items' fields, by which the content of a history is known."""
        return self._field_shapes

    @property
    def _field_shapes(self) -> dict[str, tuple[int, ...]]:
        spec, V = self.spec, self.spec.num_items
        return {
            **{f"sparse_{f.name}_V": (V,) for f in spec.item_sparse[1:]},
            **{f"dense_{f.name}_V": (V,) for f in spec.item_dense},
            **{f"bag_{f.name}_VP": (V, f.max_len) for f in spec.item_bags},
        }

    def embed_user(
        self, users: batch_lib.Users, scenario_B: Int[jax.Array, "B"], *, train: bool
    ) -> tuple[Float[jax.Array, "B M D"], two_tower.Aux]:
        """One vector per user, and in training the masked-item loss."""
        S, K = self.spec.num_scenarios, self.cfg.num_experts
        users = self._order(users)
        embedded = self.embedder.users(users)
        interest_BX, aux = self._read_histories(embedded, users, train)
        scenario_SE, one_hot_BS = self.embedder.scenarios(), scenario.one_hot(scenario_B, S)
        crossing_BW = scenario.pick(self.cross_scenario(scenario_SE), one_hot_BS)
        cross_BW = self.cross_user(embedded.input_BI) * crossing_BW
        input_BI = jnp.concatenate([embedded.input_BI, interest_BX, cross_BW], axis=-1)
        input_BI = self.drop(input_BI, train=train)
        expert_BKO = self._run_experts(input_BI, one_hot_BS, train)
        of_scenario_BX = scenario.pick(self.gates(1, scenario_SE), one_hot_BS)
        *gates, preference = jnp.split(self.gates(0, input_BI) + of_scenario_BX, [K, 2 * K], axis=1)
        weights = jnp.split(nn.softmax(preference), len(CHANNELS), axis=1)
        vectors = []
        for channel, gate_BK, weight_B1 in zip(CHANNELS, gates, weights, strict=True):
            mixed_BO = (nn.softmax(gate_BK)[..., None] * expert_BKO).sum(axis=1)
            vectors.append(weight_B1 * self.user_heads[channel](mixed_BO))
        return jnp.concatenate(vectors, axis=-1)[:, None], aux

    def embed_item(
        self, items: batch_lib.Items, scenario_B: Int[jax.Array, "B"], *, train: bool
    ) -> tuple[Float[jax.Array, "B ... D"], two_tower.Aux]:
        found = self._embed_channels(items)
        heads = (self.item_heads[c](self.drop(found[c], train=train)) for c in CHANNELS)
        return jnp.concatenate(list(heads), axis=-1), {}

    @property
    def _length(self) -> int:
        """L."""
        joined = {s.name: s for s in self.spec.sequences}[features.SCENARIO_HISTORIES]
        return min(joined.max_len // self.spec.num_scenarios, self.cfg.attention_length)

    def _order(self, users: batch_lib.Users) -> batch_lib.Users:
        """The last events of every scenario's history, the most recent first."""
        name, S = features.SCENARIO_HISTORIES, self.spec.num_scenarios
        apart = jax.tree.map(
            lambda leaf: leaf.reshape(-1, leaf.shape[1] // S, *leaf.shape[2:]),
            users.sequences[name],
        )
        L = self._length
        ordered = jax.tree.map(
            lambda leaf: leaf[:, :L].reshape(-1, S * L, *leaf.shape[2:]), embed.recent_first(apart)
        )
        return users._replace(sequences={**users.sequences, name: ordered})

    def _read_histories(
        self, embedded: embed.Embedded, users: batch_lib.Users, train: bool
    ) -> tuple[Float[jax.Array, "B X"], two_tower.Aux]:
        """The interests of all channels and scenarios side by side, and the masked-item loss."""
        name = features.SCENARIO_HISTORIES
        item_NL = users.sequences[name].ids_BLF[..., 0].reshape(-1, self._length)
        mask_NL = item_NL > 0
        masked_NL = self._draw_masked(mask_NL) if train else jnp.zeros_like(mask_NL)
        event_NLE = embedded.events[name].event_BLE.reshape(*item_NL.shape, -1)
        events = {"id": event_NLE, "content": self._embed_contents(item_NL)}
        read = {c: self.interests[c](events[c], mask_NL, masked_NL) for c in CHANNELS}
        rows = users.sparse_BF.shape[0]
        interest_BX = jnp.concatenate([read[c][0].reshape(rows, -1) for c in CHANNELS], axis=-1)
        if not train:
            return interest_BX, {}
        key, V = self.make_rng("dropout"), self.spec.num_items
        negative_X = jax.random.randint(key, (self.cfg.mask_negatives,), 1, V, jnp.int32)
        negatives = self._embed_channels(self._take_items(negative_X))
        losses = [
            masked_item_loss(read[c][1], events[c], item_NL, negatives[c], negative_X, masked_NL)
            for c in CHANNELS
        ]
        loss = functools.reduce(jnp.add, losses) / len(CHANNELS)
        return interest_BX, {"masked_items": self.cfg.mask_weight * loss}

    def _draw_masked(self, mask_NL: Bool[jax.Array, "N L"]) -> Bool[jax.Array, "N L"]:
        seed = jax.random.bits(self.make_rng("dropout"), (2,), jnp.uint32)
        lot_NL = dropout_lib.hash_positions(seed, mask_NL.shape)
        drawn_NL: jax.Array = lot_NL < jnp.uint32(self.cfg.mask_rate * 2**32)
        return mask_NL & drawn_NL

    def _run_experts(
        self, input_BI: Float[jax.Array, "B I"], one_hot_BS: Float[jax.Array, "B S"], train: bool
    ) -> Float[jax.Array, "B K O"]:
        """Every expert's output; both channels share the experts."""
        hidden = self.blocks[0](self.first(input_BI), one_hot_BS, train=train)
        for layer, block in zip(self.layers, self.blocks[1:], strict=True):
            hidden = block(layer(hidden), one_hot_BS, train=train)
        return hidden.reshape(hidden.shape[0], self.cfg.num_experts, -1)

    def _embed_contents(self, item_NL: Int[jax.Array, "N L"]) -> Float[jax.Array, "N L E"]:
        """The content of the items of histories; that of padding is no matter."""
        V = self.spec.num_items
        # An exported program's size is no number: it is for any batch.
        if not isinstance(item_NL.size, int) or item_NL.size < V:
            return self._embed_channels(self._take_items(item_NL))["content"]
        # Each item once, where histories hold more than there are.
        content_VE = self._embed_channels(self._take_items(jnp.arange(V)))["content"]
        return content_VE.at[item_NL].get(mode="clip")

    def _embed_channels(self, items: batch_lib.Items) -> dict[str, jax.Array]:
        """Both embeddings [..., E] of items: the id's, and a linear map of all other fields'."""
        embedded, E = self.embedder.items(items), self.spec.embedding_dim
        names = [slot.name for slot in self.embedder.input_slots("item")]
        start = names.index("item_id") * E
        side = (embedded.input_BI[..., :start], embedded.input_BI[..., start + E :])
        content = self.content(jnp.concatenate(side, axis=-1))
        return {"id": embedded.fields["item_id"], "content": content}

    def _take_items(self, ids: Int[jax.Array, "..."]) -> batch_lib.Items:
        """The items with their fields, from the model's constants."""
        spec = self.spec

        def take(kind: str, names: list[str]) -> list[jax.Array]:
            return [self.item_fields[f"{kind}_{name}_V"].value[ids] for name in names]

        sparse = [ids, *take("sparse", [f.name for f in spec.item_sparse[1:]])]
        dense = take("dense", [f.name for f in spec.item_dense])
        empty = jnp.zeros((*ids.shape, 0), jnp.float32)
        return batch_lib.Items(
            sparse_VF=jnp.stack(sparse, axis=-1),
            dense_VF=jnp.stack(dense, axis=-1) if dense else empty,
            bags={f.name: self.item_fields[f"bag_{f.name}_VP"].value[ids] for f in spec.item_bags},
        )


def masked_item_loss(
    predicted_NLE: Float[jax.Array, "N L E"],
    event_NLE: Float[jax.Array, "N L E"],
    item_NL: Int[jax.Array, "N L"],
    negative_XE: Float[jax.Array, "X E"],
    negative_X: Int[jax.Array, "X"],
    masked_NL: Bool[jax.Array, "N L"],
) -> Float[jax.Array, ""]:
    """Sampled softmax of the hidden items, its mean over the masked positions; 0 without any.

    All positions share the uniform negatives; one that is a position's own item does not count
    there.
    """
    own_NL = (predicted_NLE * event_NLE).sum(axis=-1)
    logit_NLX = predicted_NLE @ negative_XE.T
    hits_NLX = item_NL[..., None] == negative_X[None, None]
    logit_NLX = jnp.where(hits_NLX, jnp.finfo(logit_NLX.dtype).min, logit_NLX)
    loss_NL = jnp.logaddexp(own_NL, jax.nn.logsumexp(logit_NLX, axis=-1)) - own_NL
    return jnp.where(masked_NL, loss_NL, 0).sum() / jnp.maximum(masked_NL.sum(), 1)
