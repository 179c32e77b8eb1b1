"""The default teacher: a multi-gate mixture of experts over user, candidate and attended history.

Owns the joint input and the trunk. The student cannot see what is joint here (attention of the
candidate over the history, products of user and item): that is what it is taught.

Letters: B examples, G candidates, S scenarios, K experts, E one field's embedding, C width of the
collaborative vectors, L history length, V items, O outputs of the first layer.
"""

import dataclasses
import functools
import itertools
import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from dsmoe_jax import batch as batch_lib
from dsmoe_jax import checks, config, features
from dsmoe_jax.models.ranking import ranker
from dsmoe_jax.nn import attention, dsbn, embed, mlp, scenario
from dsmoe_jax.nn import dropout as dropout_lib

POOLINGS = ("mean", "sqrt")
HISTORY = "history"


@dataclasses.dataclass
class MMoEDINConfig(config.RankerConfig):
    """Hyper-parameters of the default teacher. The paper leaves its "fused" teacher open.

    Attributes:
      num_experts: K.
      expert_dims: Widths of each expert's layers.
      tower_dims: Widths of each scenario's tower between the experts' output and the logit.
      norm: Normalisation after every linear layer: "dsbn", "bn" or "none".
      bn_momentum: Share of a batch in the running statistics, in (0, 1].
      dropout: Rate in [0, 1) after every layer of the experts.
      input_dropout: Rate in [0, 1) on the joint input.
      attention_sequences: Histories that the candidate attends to.
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

    num_experts: int = 4
    expert_dims: tuple[int, ...] = (256, 128)
    tower_dims: tuple[int, ...] = (64,)
    norm: str = "dsbn"
    bn_momentum: float = 0.1
    dropout: float = 0.1
    input_dropout: float = 0.0
    attention_sequences: tuple[str, ...] = (HISTORY,)
    attention_length: int = 50
    attention_hidden: tuple[int, ...] = (16,)
    use_log_prior: bool = False
    collaborative: bool = False
    collaborative_pooling: str = "mean"
    collaborative_dim: int = 48

    def make(self, spec: features.FeatureSpec) -> "MMoEDIN":
        """Builds the model.

        Raises:
          ValueError: When a field is out of range, or names a history that the features lack.
        """
        checks.check_fields(
            self,
            "teacher.model",
            counts=("num_experts", "attention_length", "collaborative_dim"),
            widths=("expert_dims", "tower_dims", "attention_hidden"),
            rates=("dropout", "input_dropout"),
            shares=("bn_momentum",),
            choices={"norm": dsbn.KINDS, "collaborative_pooling": POOLINGS},
        )
        for name in ("expert_dims", "attention_hidden"):
            if not getattr(self, name):
                raise ValueError(f"teacher.model.{name}: expected at least one width, got none")
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
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name in ("expert_dims", "tower_dims", "attention_sequences", "attention_hidden"):
            values[name] = tuple(values[name])
        return MMoEDIN(spec=spec, **values)


class Encoded(NamedTuple):
    """What scoring needs of a user.

    Attributes:
      first_BO: The user's part of the first layer, gates included.
      user_id_BE: The user id's embedding, None where the features hold no user id.
      pooled: Mean of every history's events.
      attended: The histories that candidates attend to.
      collaborative_BC: The pooled collaborative vector, None without.
    """

    first_BO: Float[jax.Array, "B O"]
    user_id_BE: Float[jax.Array, "B E"] | None
    pooled: dict[str, jax.Array]
    attended: dict[str, attention.EncodedHistory]
    collaborative_BC: Float[jax.Array, "B C"] | None


class MMoEDIN(ranker.Ranker):
    """MMOE over [user; item; scenario; attended history; user * item; pooled history * item].

    The first layer of experts and gates is split into a user's, an item's and a pair's part, so
    that scoring a catalogue computes the first once per user and the second once per item.

    **Paper:** section "Distillation" of DSMOE names a fused teacher on joint user-item features;
    the trunk is Ma et al., "Modeling Task Relationships in Multi-task Learning with Multi-gate
    Mixture-of-Experts", section 4, with scenarios as tasks; the attention is DIN's.
    **Deviation:** the whole architecture is our choice.

    Attributes: see `MMoEDINConfig`.
    """

    num_experts: int
    expert_dims: tuple[int, ...]
    tower_dims: tuple[int, ...]
    norm: str
    bn_momentum: float
    dropout: float
    input_dropout: float
    attention_sequences: tuple[str, ...]
    attention_length: int
    attention_hidden: tuple[int, ...]
    use_log_prior: bool
    collaborative: bool
    collaborative_pooling: str
    collaborative_dim: int

    def setup(self) -> None:
        """Creates the parameters."""
        spec, K, S, E = self.spec, self.num_experts, self.spec.num_scenarios, self._dim
        self.embedder = embed.Embedder(spec)
        self.drop = dropout_lib.Dropout(self.input_dropout)
        widths = {sequence.name: len(sequence.fields) * E for sequence in spec.sequences}
        C = self.collaborative_dim * self.collaborative
        pair = sum(widths.values()) + sum(widths[name] for name in self.attention_sequences)
        pair += E * self._has_user_id + (C + 1) * self.collaborative
        self.first = mlp.Split(
            (self.embedder.user_dim + E + C, self.embedder.item_dim + C, pair),
            K * self.expert_dims[0] + S * K,
        )
        self.attention = {
            name: attention.DINAttention(widths[name], self.attention_hidden)
            for name in self.attention_sequences
        }
        self.expert_layers = [
            mlp.ExpertLinear(K, *shape) for shape in itertools.pairwise(self.expert_dims)
        ]
        self.expert_blocks = [self._block(K * width, self.dropout) for width in self.expert_dims]
        dims = (self.expert_dims[-1], *self.tower_dims, 1)
        self.tower_layers = [mlp.ScenarioLinear(S, *shape) for shape in itertools.pairwise(dims)]
        self.tower_blocks = [self._block(width, 0.0) for width in self.tower_dims]
        ones = nn.initializers.ones_init()
        constants = {
            name: self.variable("constants", name, jnp.zeros, shape, jnp.float32)
            for name, shape in self.constant_shapes.items()
        }
        if self.use_log_prior:
            self.log_prior = constants["log_prior_SV"]
            self.prior_weight_S = self.param("prior_weight", ones, (S,), jnp.float32)
        if self.collaborative:
            self.item_vector = constants["item_vector_VC"]
            self.collaborative_weight = self.param("collaborative_weight", ones, (1,), jnp.float32)

    @property
    def constant_shapes(self) -> dict[str, tuple[int, ...]]:
        """Log prior [S, V] and item vectors [V, C], as far as they are used."""
        shapes: dict[str, tuple[int, ...]] = {}
        if self.use_log_prior:
            shapes["log_prior_SV"] = (self.spec.num_scenarios, self.spec.num_items)
        if self.collaborative:
            shapes["item_vector_VC"] = (self.spec.num_items, self.collaborative_dim)
        return shapes

    def encode_user(
        self, users: batch_lib.Users, scenario_B: Int[jax.Array, "B"], *, train: bool
    ) -> Encoded:
        """Everything that does not depend on the candidate."""
        sequences = {name: embed.recent_first(s) for name, s in users.sequences.items()}
        users = users._replace(sequences=sequences)
        embedded = self.embedder.users(users)
        one_hot_BS = scenario.one_hot(scenario_B, self.spec.num_scenarios)
        parts = [embedded.input_BI, scenario.pick(self.embedder.scenarios(), one_hot_BS)]
        collaborative_BC = self._pool_collaborative(sequences) if self.collaborative else None
        if collaborative_BC is not None:
            parts.append(collaborative_BC)
        input_BI = self.drop(jnp.concatenate(parts, axis=-1), train=train)
        attended = {}
        for name in self.attention_sequences:
            recent = jax.tree.map(lambda x: x[:, : self.attention_length], embedded.events[name])
            attended[name] = self.attention[name].encode(recent)
        return Encoded(
            first_BO=self.first(0, input_BI),
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
        """Logits of candidates [B, G], or [1, G] shared by all users."""
        K, one_hot_BS = self.num_experts, scenario.one_hot(scenario_B, self.spec.num_scenarios)
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
            item_vector_BGC = self.item_vector.value[item_BG]
            product_BGC = encoded.collaborative_BC[:, None] * item_vector_BGC
            inner_BG = product_BGC.sum(axis=-1)
            item_parts.append(item_vector_BGC)
            pair_parts.extend([product_BGC, inner_BG[..., None]])
            linear_BG = self.collaborative_weight[None] * inner_BG
        if self.use_log_prior:
            # Relative to uniform: 0 for an item of average popularity, like the sampled negatives.
            log_prior_BG = self.log_prior.value[scenario_B[:, None], item_BG]
            log_prior_BG = log_prior_BG + math.log(max(self.spec.num_items - 1, 1))
            weight_B = (one_hot_BS * self.prior_weight_S[None]).sum(axis=-1)
            linear_BG = linear_BG + weight_B[:, None] * log_prior_BG
        item = self.drop(jnp.concatenate(item_parts, axis=-1), train=train)
        pair = self.drop(jnp.concatenate(pair_parts, axis=-1), train=train)
        first = encoded.first_BO[:, None] + self.first(1, item) + self.first(2, pair)
        hidden, gate = jnp.split(first, [K * self.expert_dims[0]], axis=-1)
        return self._trunk(hidden, gate, one_hot_BS, train) + linear_BG

    def _trunk(
        self,
        hidden: Float[jax.Array, "B G KO"],
        gate: Float[jax.Array, "B G SK"],
        one_hot_BS: Float[jax.Array, "B S"],
        train: bool,
    ) -> Float[jax.Array, "B G"]:
        """Experts after their first product, the scenario's gate and the scenario's tower."""
        K = self.num_experts
        hidden = self.expert_blocks[0](hidden, one_hot_BS, train=train)
        for layer, block in zip(self.expert_layers, self.expert_blocks[1:], strict=True):
            hidden = block(layer(hidden), one_hot_BS, train=train)
        weight = nn.softmax(mlp.keep_own(gate, one_hot_BS, K))
        experts = jnp.split(hidden, K, axis=-1)
        mixed = functools.reduce(jnp.add, (weight[..., k : k + 1] * experts[k] for k in range(K)))
        for tower, block in zip(self.tower_layers, self.tower_blocks, strict=False):
            mixed = block(tower(mixed, one_hot_BS), one_hot_BS, train=train)
        return self.tower_layers[-1](mixed, one_hot_BS)[..., 0]

    def _pool_collaborative(
        self, sequences: dict[str, batch_lib.Sequence]
    ) -> Float[jax.Array, "B C"]:
        """Collaborative vector of a user: the pooled ones of the history's items."""
        ids_BL = sequences[HISTORY].ids_BLF[..., 0]
        mask_BL = ids_BL > 0
        vector_BLC = self.item_vector.value[ids_BL] * mask_BL[..., None].astype(jnp.float32)
        count_B1 = jnp.maximum(mask_BL.sum(axis=-1, keepdims=True), 1).astype(jnp.float32)
        if self.collaborative_pooling == "sqrt":
            count_B1 = jnp.sqrt(count_B1)
        return vector_BLC.sum(axis=1) / count_B1

    @property
    def _dim(self) -> int:
        return self.spec.embedding_dim

    @property
    def _has_user_id(self) -> bool:
        return any(feature.name == "user_id" for feature in self.spec.user_sparse)

    def _block(self, width: int, dropout: float) -> mlp.NormBlock:
        S = self.spec.num_scenarios
        return mlp.NormBlock(self.norm, S, width, self.bn_momentum, dropout)
