"""Joint-input rankers' base class: the joint input and its switches; each ranker adds a trunk.

Owns the input [user; item; scenario; attended history; user * item; pooled history * item;
collaborative vectors], the linear terms of the logit and the split of what is multiplied once per
user, once per item and once per pair. Every ranker gets the same inputs by the same fields, so that
teachers differ in their trunks. The student cannot see what is joint here: that is what it is
taught.

Letters: B examples, G candidates, S scenarios, E one field's embedding, C width of the
collaborative vectors, L history length, V items, I a part's width, O outputs of the first layer.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from dsmoe_jax import batch as batch_lib
from dsmoe_jax import features
from dsmoe_jax.config import fields, schema
from dsmoe_jax.models.ranking import ranker
from dsmoe_jax.nn import attention, dsbn, embed, mlp, scenario
from dsmoe_jax.nn import dropout as dropout_lib

POOLINGS = ("mean", "sqrt")
HISTORY = "history"


@dataclasses.dataclass
class JointRankerConfig(schema.RankerConfig):
    """The joint input's hyper-parameters; each ranker adds its trunk's.

    Attributes:
      norm: Normalisation of the trunk's layers: "dsbn", "bn" or "none".
      bn_momentum: Share of a batch in the running statistics, in (0, 1].
      dropout: Rate in [0, 1) after every layer of the experts.
      input_dropout: Rate in [0, 1) on the joint input.
      attention_sequences: Histories that the candidate attends to; none turns attention off.
      attention_length: Most recent events of them that it attends to.
      attention_hidden: Hidden widths of the attention unit, e.g. (16,) or (36, 16).
      use_log_prior: Whether the logit starts from the item's log share of the scenario's clicks,
        relative to a uniform one, with one learned weight per scenario.
      collaborative: Whether truncated-SVD vectors of training-period behaviour join the input: the
        candidate's, the pooled one of the user's history, their product and inner product, which
        is also a linear term of the logit. The student has no such input, so what it gains from
        this teacher is not interaction awareness alone.
      collaborative_pooling: "mean" or "sqrt": sum over the history's events divided by their
        number or by its root.
      collaborative_dim: C, width of these vectors.
    """

    norm: str = fields.field("dsbn", choices=dsbn.KINDS)
    bn_momentum: float = fields.share(0.1)
    dropout: float = fields.rate(0.1)
    input_dropout: float = fields.rate()
    attention_sequences: tuple[str, ...] = (HISTORY,)
    attention_length: int = fields.field(50, at_least=1)
    attention_hidden: tuple[int, ...] = fields.widths((16,))
    use_log_prior: bool = False
    collaborative: bool = False
    collaborative_pooling: str = fields.field("mean", choices=POOLINGS)
    collaborative_dim: int = fields.field(48, at_least=1)

    def check(self, spec: features.FeatureSpec) -> None:
        sequences = {sequence.name: sequence.fields for sequence in spec.sequences}
        for name in self.attention_sequences:
            if name not in sequences:
                raise ValueError(
                    f"teacher.model.attention_sequences: expected names among "
                    f"{tuple(sequences)}, got {name!r}"
                )
        if self.collaborative and sequences.get(HISTORY) != ("item_id",):
            raise ValueError(
                f"teacher.model.collaborative: expected a sequence {HISTORY!r} of item ids, got "
                f"sequences {tuple(sequences)}"
            )


class Encoded(NamedTuple):
    """What scoring needs of a user."""

    first_BO: Float[jax.Array, "B O"]  # The user's part of the first layer
    # The user id's embedding, None where the features hold no user id.
    user_id_BE: Float[jax.Array, "B E"] | None
    pooled: dict[str, jax.Array]  # Mean of every history's events
    attended: dict[str, attention.EncodedHistory]  # The histories that candidates attend to
    # The pooled collaborative vector, None without.
    collaborative_BC: Float[jax.Array, "B C"] | None


class JointRanker(ranker.Ranker):
    """A ranker on the joint input.

    Its first linear layers, side by side, are split into a user's, an item's and a pair's part, so
    that scoring a catalogue computes the first once per user and the second once per item. A
    subclass creates them in `setup`, as `first` with pieces of `part_widths`, and adds `_trunk`;
    one whose first layer depends on the scenario overrides `_project`.
    """

    cfg: JointRankerConfig

    def setup(self) -> None:
        cfg = self.cfg
        self.embedder = embed.Embedder(self.spec)
        self.drop = dropout_lib.Dropout(cfg.input_dropout)
        widths = self._sequence_widths
        self.attention = {
            name: attention.DINAttention(widths[name], cfg.attention_hidden)
            for name in cfg.attention_sequences
        }
        ones = nn.initializers.ones_init()
        if cfg.use_log_prior:
            shape_S = (self.spec.num_scenarios,)
            self.prior_weight_S = self.param("prior_weight", ones, shape_S, jnp.float32)
        if cfg.collaborative:
            self.collaborative_weight = self.param("collaborative_weight", ones, (1,), jnp.float32)

    @property
    def constant_shapes(self) -> dict[str, tuple[int, ...]]:
        """Log prior [S, V] and item vectors [V, C], as far as they are used."""
        shapes: dict[str, tuple[int, ...]] = {}
        if self.cfg.use_log_prior:
            shapes["log_prior_SV"] = (self.spec.num_scenarios, self.spec.num_items)
        if self.cfg.collaborative:
            shapes["item_vector_VC"] = (self.spec.num_items, self.cfg.collaborative_dim)
        return shapes

    @property
    def part_widths(self) -> tuple[int, int, int]:
        """I of the user's, the item's and the pair's part of the input; in `setup` only."""
        cfg = self.cfg
        E, widths = self.spec.embedding_dim, self._sequence_widths
        C = cfg.collaborative_dim * cfg.collaborative
        pair = sum(widths.values()) + sum(widths[name] for name in cfg.attention_sequences)
        has_user_id = any(feature.name == "user_id" for feature in self.spec.user_sparse)
        pair += E * has_user_id + (C + 1) * cfg.collaborative
        return (self.embedder.user_dim + E + C, self.embedder.item_dim + C, pair)

    def encode_user(
        self, users: batch_lib.Users, scenario_B: Int[jax.Array, "B"], *, train: bool
    ) -> Encoded:
        """Everything that does not depend on the candidate."""
        sequences = {name: embed.recent_first(s) for name, s in users.sequences.items()}
        users = users._replace(sequences=sequences)
        embedded = self.embedder.users(users)
        one_hot_BS = scenario.one_hot(scenario_B, self.spec.num_scenarios)
        parts = [embedded.input_BI, scenario.pick(self.embedder.scenarios(), one_hot_BS)]
        collaborative_BC = self._pool_collaborative(sequences) if self.cfg.collaborative else None
        if collaborative_BC is not None:
            parts.append(collaborative_BC)
        attended = {}
        for name in self.cfg.attention_sequences:
            recent = jax.tree.map(
                lambda x: x[:, : self.cfg.attention_length], embedded.events[name]
            )
            attended[name] = self.attention[name].encode(recent)
        return Encoded(
            first_BO=self._project(0, jnp.concatenate(parts, axis=-1), one_hot_BS, train),
            user_id_BE=embedded.fields.get("user_id"),
            pooled=embedded.pooled,
            attended=attended,
            collaborative_BC=collaborative_BC,
        )

    def score(
        self,
        encoded: Encoded,
        items: batch_lib.Items,
        scenario_B: Int[jax.Array, "B"],
        *,
        train: bool,
    ) -> Float[jax.Array, "B G"]:
        one_hot_BS = scenario.one_hot(scenario_B, self.spec.num_scenarios)
        item_BG = items.sparse_VF[..., 0]
        embedded = self.embedder.items(items)
        item_parts, pair_parts = [embedded.input_BI], []
        linear_BG: jax.Array | float = 0.0
        for sequence in self.spec.sequences:
            query_BGE = jnp.concatenate([embedded.fields[f] for f in sequence.fields], axis=-1)
            pair_parts.append(encoded.pooled[sequence.name][:, None] * query_BGE)
            if sequence.name in encoded.attended:
                history = encoded.attended[sequence.name]
                pair_parts.append(self.attention[sequence.name](history, query_BGE))
        if encoded.user_id_BE is not None:
            pair_parts.append(encoded.user_id_BE[:, None] * embedded.fields["item_id"])
        if encoded.collaborative_BC is not None:
            item_vector_BGC = self._constant("item_vector_VC")[item_BG]
            product_BGC = encoded.collaborative_BC[:, None] * item_vector_BGC
            inner_BG = product_BGC.sum(axis=-1)
            item_parts.append(item_vector_BGC)
            pair_parts.extend([product_BGC, inner_BG[..., None]])
            linear_BG = self.collaborative_weight[None] * inner_BG
        if self.cfg.use_log_prior:
            # Relative to uniform: 0 for an item of average popularity, like the sampled negatives.
            log_prior_BG = self._constant("log_prior_SV")[scenario_B[:, None], item_BG]
            log_prior_BG = log_prior_BG + math.log(max(self.spec.num_items - 1, 1))
            weight_B = (one_hot_BS * self.prior_weight_S[None]).sum(axis=-1)
            linear_BG = linear_BG + weight_B[:, None] * log_prior_BG
        item = self._project(1, jnp.concatenate(item_parts, axis=-1), one_hot_BS, train)
        pair = self._project(2, jnp.concatenate(pair_parts, axis=-1), one_hot_BS, train)
        first_BGO = encoded.first_BO[:, None] + item + pair
        return self._trunk(first_BGO, one_hot_BS, train) + linear_BG

    def _project(
        self,
        index: int,
        part: Float[jax.Array, "_ ... I"],
        one_hot_BS: Float[jax.Array, "B S"],
        train: bool,
    ) -> Float[jax.Array, "_ ... O"]:
        """The product of one part, 0 the user's, 1 the item's, 2 the pair's."""
        product: jax.Array = self.first(index, self.drop(part, train=train))
        return product

    def _trunk(
        self, first_BGO: Float[jax.Array, "B G O"], one_hot_BS: Float[jax.Array, "B S"], train: bool
    ) -> Float[jax.Array, "B G"]:
        """Logits from the sum of the parts' products."""
        raise NotImplementedError

    def _pool_collaborative(
        self, sequences: dict[str, batch_lib.Sequence]
    ) -> Float[jax.Array, "B C"]:
        """Collaborative vector of a user: the pooled ones of the history's items."""
        ids_BL = sequences[HISTORY].ids_BLF[..., 0]
        mask_BL = ids_BL > 0
        vector_BLC: jax.Array = self._constant("item_vector_VC")[ids_BL]
        vector_BLC = vector_BLC * mask_BL[..., None].astype(jnp.float32)
        count_B1 = jnp.maximum(mask_BL.sum(axis=-1, keepdims=True), 1).astype(jnp.float32)
        if self.cfg.collaborative_pooling == "sqrt":
            count_B1 = jnp.sqrt(count_B1)
        return vector_BLC.sum(axis=1) / count_B1

    def _constant(self, name: str) -> jax.Array:
        """A constant of the corpus, from the root of the tree: members of an ensemble share it."""
        scope: Any = self.scope
        root = scope.root
        if not root.has_variable("constants", name):
            shape = self.constant_shapes[name]
            root.put_variable("constants", name, jnp.zeros(shape, jnp.float32))
        value: jax.Array = root.get_variable("constants", name)
        return value

    @property
    def _sequence_widths(self) -> dict[str, int]:
        E = self.spec.embedding_dim
        return {sequence.name: len(sequence.fields) * E for sequence in self.spec.sequences}

    def _make_block(self, width: int) -> mlp.NormBlock:
        S = self.spec.num_scenarios
        return mlp.NormBlock(self.cfg.norm, S, width, self.cfg.bn_momentum, self.cfg.dropout)

    def _make_experts(self, num_experts: int, dims: tuple[int, ...]) -> mlp.ExpertStack:
        S = self.spec.num_scenarios
        return mlp.ExpertStack(
            num_experts, dims, self.cfg.norm, S, self.cfg.bn_momentum, self.cfg.dropout
        )

    def _make_tower(self, in_dim: int, dims: tuple[int, ...]) -> mlp.ScenarioTower:
        return mlp.ScenarioTower(
            self.spec.num_scenarios, in_dim, dims, self.cfg.norm, self.cfg.bn_momentum
        )
