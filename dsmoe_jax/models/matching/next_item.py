"""Sequential matchers' base class: item table, last position, next-item objective.

Owns everything but the encoder, which a method's file makes. The user tower reads the history and
the request's time and nothing else; an item is its id's row of the table that embeds the history.

Letters: B examples, G candidates (0 is the positive), N negatives, L positions, M interests (1),
S scenarios, D width of the table, the encoder and both towers' outputs.
"""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from dsmoe_jax import batch as batch_lib
from dsmoe_jax import features
from dsmoe_jax.config import fields, schema
from dsmoe_jax.data import statistics
from dsmoe_jax.models.matching import two_tower
from dsmoe_jax.nn import causal, sampled_softmax, scenario, tables


@dataclasses.dataclass
class NextItemConfig(schema.MatcherConfig):
    """Hyper-parameters of every sequential matcher.

    The defaults are those of the public code of HSTU and FuXi-alpha for MovieLens-1M.

    Attributes:
      output_dim: D: width of the item table, of the encoder and of both towers' outputs. The width
        of other methods' fields is ignored.
      num_blocks: Blocks of the encoder.
      num_heads: Attention heads of a block.
      input_dropout: Rate in [0, 1) on the first block's input.
      dropout: Rate in [0, 1) inside the blocks.
      temperature: In (0, 1]; divides the cosine of user and item.
      scenario_token: Whether an embedding of the request's scenario is added to every position of
        the first block's input. Ours: these methods know no scenarios.
    """

    output_dim: int = fields.field(50, at_least=1)
    num_blocks: int = fields.field(2, at_least=1, search=(1, 2, 4))
    num_heads: int = fields.field(1, at_least=1)
    input_dropout: float = fields.rate(0.2)
    dropout: float = fields.field(0.2, at_least=0, below=1, search=(0.1, 0.2, 0.5))
    temperature: float = fields.share(0.05)
    scenario_token: bool = False

    divides_output: ClassVar[str] = "num_heads"  # The field that is to divide `output_dim`
    recipe: ClassVar[dict[str, Any]] = {
        "batch_size": 128,
        "num_negatives": 128,
        "learning_rate": 1e-3,
        "weight_decay": 0.0,
        "beta_2": 0.98,
    }

    def objective(self) -> schema.Objective:
        """Every position of a user's whole history, once an epoch."""
        return schema.Objective("next_item_loss", last_only=True)

    def reads(self, spec: features.FeatureSpec) -> features.FeatureSpec:
        """The history and the item id."""
        return features.item_ids_alone(spec, _histories(spec))

    def check(self, spec: features.FeatureSpec) -> None:
        if not _histories(spec):
            raise ValueError(
                f"model: expected features with the sequence {features.HISTORY!r} of item ids, got "
                f"{[s.name for s in spec.sequences]}; leave it out of features.exclude"
            )
        if spec.history_encoder != "mean":
            raise ValueError(
                f"features.history_encoder: expected 'mean' with {type(self).__name__}, which "
                f"encodes the history itself, got {spec.history_encoder!r}"
            )
        value = getattr(self, self.divides_output)
        if self.output_dim % value:
            raise ValueError(
                f"model.{self.divides_output}: expected a divisor of "
                f"model.output_dim={self.output_dim}, got {value}"
            )


def _histories(spec: features.FeatureSpec) -> tuple[features.SequenceFeature, ...]:
    """The history of all scenarios, if the features hold it with item ids and nothing else."""
    return tuple(
        s for s in spec.sequences if s.name == features.HISTORY and s.fields == ("item_id",)
    )


class ItemTable(nn.Module):
    """The table of item ids, under the name that updates of single rows know it by."""

    feature: features.SparseFeature  # The item id
    dim: int  # D

    def setup(self) -> None:
        self.item_tables = tables.FieldTables((self.feature,), (), (self.feature.name,), self.dim)

    def __call__(self, ids: Int[jax.Array, "..."]) -> Float[jax.Array, "... D"]:
        return self.item_tables.field(self.feature.name, ids)


class NextItemMatcher(two_tower.Matcher):
    """The cosine of a history's last state and an item's embedding, over a temperature.

    **Paper:** HSTU and FuXi-alpha as evaluated in their public code. **Deviation:** they know no
    empty histories; here such a history is one position without an event. The time of the request
    is known, as there.
    """

    item_uses_scenario = False

    cfg: NextItemConfig

    def make_encoder(self, **sizes: Any) -> causal.Encoder:
        """The method's encoder, of the given attributes of `causal.Encoder` and its own."""
        raise NotImplementedError(f"{type(self).__name__} makes no encoder")

    def weigh(self, aux: two_tower.Aux) -> two_tower.Aux:
        """The encoder's auxiliary losses with their weights."""
        return aux

    def normalize(self, vector: Float[jax.Array, "... D"]) -> Float[jax.Array, "... D"]:
        """Outputs and items as they are compared, of length 1; 0 stays 0."""
        return causal.unit_norm(vector)

    @classmethod
    def known_prior_form(cls) -> type[two_tower.KnownPrior]:
        return SequencePrior

    def complete_target(
        self, item: Float[jax.Array, "B ... D"], id_B: Int[jax.Array, "B ..."]
    ) -> Float[jax.Array, "B ... _"]:
        """An item's vector as the loss of all positions compares it with users' vectors."""
        return item

    def setup(self) -> None:
        D, S = self.cfg.output_dim, self.spec.num_scenarios
        self.embedder = ItemTable(self.spec.item_sparse[0], D)
        self.encoder = self.make_encoder(
            dim=D,
            num_blocks=self.cfg.num_blocks,
            num_heads=self.cfg.num_heads,
            max_len=self.spec.sequences[0].max_len,
            dropout=self.cfg.dropout,
            input_dropout=self.cfg.input_dropout,
        )
        if self.cfg.scenario_token:
            init = nn.initializers.truncated_normal(D**-0.5)
            self.scenario_SD = self.param("scenario_token", init, (S, D), jnp.float32)

    def embed_user(
        self, users: batch_lib.Users, scenario_B: Int[jax.Array, "B"], *, train: bool
    ) -> tuple[Float[jax.Array, "B M D"], two_tower.Aux]:
        """The last position's output, of length 1 / temperature."""
        event_BLD = self.embedder(users.sequences[features.HISTORY].ids_BLF[..., 0])
        state_BLD, timeline, aux = self._encode(users, event_BLD, scenario_B, train)
        last_BD = causal.last_position(state_BLD, timeline.mask_BL)
        return (self.normalize(last_BD) / self.cfg.temperature)[:, None], aux

    def embed_item(
        self, items: batch_lib.Items, scenario_B: Int[jax.Array, "B"], *, train: bool
    ) -> tuple[Float[jax.Array, "B ... D"], two_tower.Aux]:
        """Embeddings of length 1; the scenarios are not used."""
        return self.normalize(self.embedder(items.sparse_VF[..., 0])), {}

    def next_item_loss(
        self,
        users: batch_lib.Users,
        items: batch_lib.Items,
        scenario_B: Int[jax.Array, "B"],
        *,
        train: bool,
    ) -> tuple[Float[jax.Array, "B 1"], two_tower.Aux]:
        """Sampled softmax of the next item at every position of the history and its positive.

        Rows are scaled so that their mean is the mean over all positions of the batch, as in the
        public code: long histories weigh more. See `nn.sampled_softmax` for the negatives.
        """
        id_BL = users.sequences[features.HISTORY].ids_BLF[..., 0]
        id_BG = items.sparse_VF[..., 0]
        event_BLD = self.embedder(id_BL)
        state_BLD, timeline, aux = self._encode(users, event_BLD, scenario_B, train)
        candidate_BGD = self.embedder(id_BG)
        mask_BL = timeline.mask_BL
        target_BLD = causal.follow(event_BLD, candidate_BGD[:, 0], mask_BL)
        target_BL = causal.follow(id_BL, id_BG[:, 0], mask_BL)
        loss_BL = sampled_softmax.sampled_softmax(
            self.complete_user(self.normalize(state_BLD) / self.cfg.temperature),
            self.complete_target(self.normalize(target_BLD), target_BL),
            self.complete_target(self.normalize(candidate_BGD[:, 1:]), id_BG[:, 1:]),
            target_BL,
            id_BG[:, 1:],
        )
        weight_BL = mask_BL / mask_BL.sum() * mask_BL.shape[0]
        return (loss_BL * weight_BL).sum(axis=1, keepdims=True), aux

    def _encode(
        self,
        users: batch_lib.Users,
        event_BLD: Float[jax.Array, "B L D"],
        scenario_B: Int[jax.Array, "B"],
        train: bool,
    ) -> tuple[Float[jax.Array, "B L D"], causal.Timeline, two_tower.Aux]:
        sequence = users.sequences[features.HISTORY]
        timeline = causal.make_timeline(
            sequence.ids_BLF[..., 0] > 0, sequence.time_BL, users.time_B
        )
        offset_B1D = None
        if self.cfg.scenario_token:
            one_hot_BS = scenario.one_hot(scenario_B, self.spec.num_scenarios)
            offset_B1D = scenario.pick(self.scenario_SD, one_hot_BS, 3)
        state_BLD, aux = self.encoder(event_BLD, timeline, offset_B1D, train=train)
        return state_BLD, timeline, self.weigh(aux)


class SequencePrior(two_tower.KnownPrior):
    """`KnownPrior` of a sequential matcher: serving has the known prior, the loss its targets' own.

    Positions are weeks old and of any scenario. Beside the prior of today, an item that was watched
    then and is rare now needs a large product with every user, and comes first for all once it is
    shown again: HSTU on KuaiRand-Pure lost half of its recall from validation days to test days
    (`docs/results/plus.md`). The loss therefore has the items' share among all that it predicts
    (`statistics.sequence_log_prior`). What is learned, log P(i | user) / P(i), then meets the prior
    of the scenario and the day.
    """

    def setup(self) -> None:
        super().setup()
        shape = (self.spec.num_items,)
        self.sequence_prior_V = self.variable(
            "constants", statistics.SEQUENCE_PRIOR, jnp.zeros, shape, jnp.float32
        )

    @property
    def constant_shapes(self) -> dict[str, tuple[int, ...]]:
        """The method's own, the scenarios' priors and that of the positions."""
        return {**super().constant_shapes, statistics.SEQUENCE_PRIOR: (self.spec.num_items,)}

    def complete_target(
        self, item: Float[jax.Array, "B ... D"], id_B: Int[jax.Array, "B ..."]
    ) -> Float[jax.Array, "B ... _"]:
        return self.append_prior(item, self.sequence_prior_V.value[id_B])
