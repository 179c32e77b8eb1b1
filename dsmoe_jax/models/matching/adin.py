"""ADIN-style: shared and per-scenario networks behind per-scenario gates on the fields (CIKM 2022).

Owns the towers and self-training on what a user clicked in other scenarios; how these items reach
the model is the training step's.

Letters: B examples, S scenarios, C scenario embedding, N fields, E one field's embedding, I = N * E
a tower's input, K shared networks, H the networks' last width, G candidates, X unlabelled items, L
events, M interests (1), D output. Inputs may have axes between B and I (candidates of an example).
"""

import dataclasses
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from dsmoe_jax import batch as batch_lib
from dsmoe_jax import features
from dsmoe_jax.config import fields
from dsmoe_jax.models.matching import two_tower
from dsmoe_jax.nn import dropout, embed, mlp, scenario

FUSIONS = ("concat", "sum")


@dataclasses.dataclass
class ADINConfig(two_tower.TowerConfig):
    """Hyper-parameters of ADIN. The paper's own values were not at hand; these are ours.

    Attributes:
      num_shared: K, networks that all scenarios share.
      hidden_dims: Widths of every network's layers, shared or of one scenario.
      reduction: The gates on fields are computed through N / reduction hidden units.
      fusion: "concat" joins the scenario's network, the shared ones and their product; "sum" adds
        the two.
      norm: "dsbn", one normalisation per scenario; "bn" one in all; "none".
      self_training_weight: Weight >= 0 of a pseudo-positive beside a candidate's 1; 0 switches
        self-training off.
      self_training_threshold: Probability in (0, 1] above which an unlabelled item is taken for a
        positive.
      self_training_items: X, unlabelled items drawn per example and step.
    """

    num_shared: int = fields.field(2, at_least=1, search=(1, 2, 4))
    hidden_dims: tuple[int, ...] = fields.widths((256,), search=((64,), (128,), (256,)))
    reduction: int = fields.field(4, at_least=1)
    fusion: str = fields.field("concat", choices=FUSIONS)
    norm: str = "dsbn"
    self_training_weight: float = fields.field(0.0, at_least=0)
    self_training_threshold: float = fields.share(0.9)
    self_training_items: int = fields.field(4, at_least=1)

    @property
    def scenario_histories(self) -> bool:
        """Self-training draws from the histories of other scenarios; nothing else reads them."""
        return self.self_training_weight > 0

    def make(self, spec: features.FeatureSpec) -> "ADIN":
        return self.build(ADIN, spec)

    def check(self, spec: features.FeatureSpec) -> None:
        names = tuple(sequence.name for sequence in spec.sequences)
        if self.scenario_histories and features.SCENARIO_HISTORIES not in names:
            raise ValueError(
                f"model.self_training_weight: expected 0 without a sequence "
                f"{features.SCENARIO_HISTORIES!r}, got {self.self_training_weight!r} and sequences "
                f"{names}"
            )


class InterestAdaptation(nn.Module):
    """Every field times a gate of its scenario: a_s = 2 sigmoid(W2_s ReLU(W1_s mean_E(field))).

    Embeddings are small at the start, so that gates are then near 1.
    """

    num_scenarios: int  # S
    num_fields: int  # N
    reduction: int  # N / reduction hidden units, at least one

    def setup(self) -> None:
        S, N = self.num_scenarios, self.num_fields
        hidden = max(N // self.reduction, 1)
        self.squeeze = mlp.ScenarioLinear(S, N, hidden)
        self.excite = mlp.ScenarioLinear(S, hidden, N)

    def __call__(
        self, input_BI: Float[jax.Array, "B ... I"], one_hot_BS: Float[jax.Array, "B S"]
    ) -> Float[jax.Array, "B ... I"]:
        """Gates fields that lie side by side."""
        field_BNE = input_BI.reshape(*input_BI.shape[:-1], self.num_fields, -1)
        hidden = nn.relu(self.squeeze(field_BNE.mean(axis=-1), one_hot_BS))
        gate_BN = 2 * nn.sigmoid(self.excite(hidden, one_hot_BS))
        return (field_BNE * gate_BN[..., None]).reshape(input_BI.shape)


class Tower(nn.Module):
    """Adaptation of the input, shared and per-scenario networks, their fusion and a last layer."""

    in_dim: int  # I
    # The features, whose scenarios are S and whose fields are of width E = C.
    spec: features.FeatureSpec
    cfg: ADINConfig  # See `ADINConfig`

    def setup(self) -> None:
        cfg, S, C = self.cfg, self.spec.num_scenarios, self.spec.embedding_dim
        K, H = cfg.num_shared, cfg.hidden_dims[-1]
        self.adaptation = InterestAdaptation(S, self.in_dim // C, cfg.reduction)
        # The first layer of all shared networks reads one input: one product for all K.
        self.shared_first = nn.Dense(K * cfg.hidden_dims[0])
        self.shared_layers = [
            mlp.ExpertLinear(K, *shape) for shape in itertools.pairwise(cfg.hidden_dims)
        ]
        self.shared_blocks = [cfg.make_block(S, K * width) for width in cfg.hidden_dims]
        dims = (self.in_dim, *cfg.hidden_dims)
        self.specific_layers = [mlp.ScenarioLinear(S, *shape) for shape in itertools.pairwise(dims)]
        self.specific_blocks = [cfg.make_block(S, width) for width in cfg.hidden_dims]
        lecun = nn.initializers.lecun_normal()
        stacked = nn.initializers.lecun_normal(batch_axis=(0,))
        self.weight_CK = self.param("shared_weight", lecun, (C, K), jnp.float32)
        self.specific_gate_SCH = self.param("specific_gate", stacked, (S, C, H), jnp.float32)
        self.shared_gate_SCH = self.param("shared_gate", stacked, (S, C, H), jnp.float32)
        fused = 3 * H if cfg.fusion == "concat" else H
        self.forward = mlp.ScenarioLinear(S, fused, cfg.output_dim)

    def __call__(
        self,
        input_BI: Float[jax.Array, "B ... I"],
        scenario_SC: Float[jax.Array, "S C"],
        one_hot_BS: Float[jax.Array, "B S"],
        *,
        train: bool,
    ) -> Float[jax.Array, "B ... D"]:
        adapted = self.adaptation(input_BI, one_hot_BS)
        shared = self._run_shared(adapted, scenario_SC, one_hot_BS, train)
        specific = adapted
        for layer, block in zip(self.specific_layers, self.specific_blocks, strict=True):
            specific = block(layer(specific, one_hot_BS), one_hot_BS, train=train)
        specific = specific * _gate(self.specific_gate_SCH, scenario_SC, one_hot_BS, specific.ndim)
        shared = shared * _gate(self.shared_gate_SCH, scenario_SC, one_hot_BS, shared.ndim)
        if self.cfg.fusion == "concat":
            fused = jnp.concatenate([specific, specific * shared, shared], axis=-1)
        else:
            fused = specific + shared
        return self.forward(fused, one_hot_BS)

    def _run_shared(
        self,
        adapted: Float[jax.Array, "B ... I"],
        scenario_SC: Float[jax.Array, "S C"],
        one_hot_BS: Float[jax.Array, "B S"],
        train: bool,
    ) -> Float[jax.Array, "B ... H"]:
        """The shared networks, summed with the scenario's weights."""
        hidden = self.shared_blocks[0](self.shared_first(adapted), one_hot_BS, train=train)
        for layer, block in zip(self.shared_layers, self.shared_blocks[1:], strict=True):
            hidden = block(layer(hidden), one_hot_BS, train=train)
        weight = scenario.pick(nn.softmax(scenario_SC @ self.weight_CK), one_hot_BS, hidden.ndim)
        return mlp.mix(hidden, weight)


class ADIN(two_tower.SymmetricMatcher):
    """ADIN-style: two towers of one architecture, both conditioned on the scenario.

    **Paper:** Jiang et al., "Adaptive Domain Interest Network for Multi-domain Recommendation"
    (CIKM 2022, arXiv 2206.09672): domain interest adaptation, shared and domain-specific networks,
    fusion, domain-specific forward network, domain-specific batch normalisation, self-training.
    **Deviation:** the order and the kind of these layers are the paper's; their formulas were not
    at hand and are inferred. A gate on a field is twice a sigmoid, so that it starts near 1; the
    weights of shared networks are a softmax; normalisation follows the linear layers of the
    networks, not the gates of the fusion, which are constant within a scenario; the last layer is
    linear. Trained on the binary cross entropy that all methods share, where the original has a
    sampled softmax. Self-training, off by default, labels unlabelled items in every step with the
    model as it is, where the original freezes it from time to time.
    """

    cfg: ADINConfig

    def setup(self) -> None:
        # Histories of other scenarios are drawn from, not embedded.
        spec = dataclasses.replace(self.spec, sequences=self.spec.pooled_sequences)
        self.embedder = embed.Embedder(spec)
        self.drop = dropout.Dropout(self.cfg.input_dropout)
        self.user_tower = Tower(self.embedder.user_dim, self.spec, self.cfg)
        self.item_tower = Tower(self.embedder.item_dim, self.spec, self.cfg)

    def draw_unlabelled(
        self, users: batch_lib.Users, scenario_B: Int[jax.Array, "B"], key: jax.Array
    ) -> Int[jax.Array, "B X"] | None:
        """Items of events in other scenarios, uniform with replacement; 0 where there are none."""
        if not self.cfg.self_training_weight:
            return None
        ids_BL = jnp.asarray(users.sequences[features.SCENARIO_HISTORIES].ids_BLF[..., 0])
        S, (B, L) = self.spec.num_scenarios, ids_BL.shape
        scenario_L = jnp.repeat(jnp.arange(S), L // S)
        other_BL = (ids_BL > 0) & (scenario_L[None] != scenario_B[:, None])
        # The n-th event of other scenarios is where n of them lie before.
        rank_BL = jnp.cumsum(other_BL, axis=1)
        count_B1 = rank_BL[:, -1:]
        draw_BX = jax.random.randint(
            key, (B, self.cfg.self_training_items), 0, jnp.maximum(count_B1, 1)
        )
        position_BX = (rank_BL[:, None] <= draw_BX[:, :, None]).sum(axis=-1)
        item_BX = jnp.take_along_axis(ids_BL, position_BX, axis=1, mode="clip")
        return jnp.where(count_B1 > 0, item_BX, 0)

    def __call__(
        self,
        users: batch_lib.Users,
        items: batch_lib.Items,
        scenario_B: Int[jax.Array, "B"],
        *,
        train: bool,
        unlabelled: batch_lib.Items | None = None,
    ) -> tuple[Float[jax.Array, "B G"], two_tower.Aux]:
        """As in `Matcher`; `unlabelled` [B, X] adds the loss of self-training."""
        if unlabelled is None:
            return super().__call__(users, items, scenario_B, train=train)
        # As at inference, and first: running statistics are those before the step, and those of
        # the batch are the candidates' alone, whose logits stay what they are without this.
        item_BXD, _ = self.embed_item(unlabelled, scenario_B, train=False)
        user_BMD, _ = self.embed_user(users, scenario_B, train=train)
        item_BGD, _ = self.embed_item(items, scenario_B, train=train)
        logit_BG = jnp.einsum("bmd,bgd->bg", user_BMD, item_BGD)
        logit_BX = jnp.einsum("bmd,bxd->bx", user_BMD, item_BXD)
        known_BX = unlabelled.sparse_VF[..., 0] > 0
        probability_BX = nn.sigmoid(jax.lax.stop_gradient(logit_BX))
        positive_BX = known_BX & (probability_BX > self.cfg.self_training_threshold)
        # The cross entropy of label 1, over the number of candidates: with weight 1 it counts as
        # much as one of them.
        loss = jnp.where(positive_BX, nn.softplus(-logit_BX), 0).sum() / logit_BG.size
        return logit_BG, {"self_training": self.cfg.self_training_weight * loss}


def _gate(
    gate_SCH: Float[jax.Array, "S C H"],
    scenario_SC: Float[jax.Array, "S C"],
    one_hot_BS: Float[jax.Array, "B S"],
    ndim: int,
) -> Float[jax.Array, "B ... H"]:
    """sigmoid(e_s W_s), which depends on the scenario alone."""
    table_SH = nn.sigmoid(jnp.einsum("sc,sch->sh", scenario_SC, gate_SCH))
    return scenario.pick(table_SH, one_hot_BS, ndim)
