"""SASS-style: towers that let a scenario's path take from a global path, layer by layer.

Owns the multi-layer scenario adaptive transfer, and the optional first stage: which views of a user
or an item are contrasted, and the loss over a batch of pairs.

Letters: B examples or pairs, G candidates, S scenarios, C scenario embedding, I a tower's input, O
a layer's output, D a tower's output, V items, F feature fields, N rows of both views, X contrasted
sides. Inputs may have axes between B and I (candidates of an example).
"""

import dataclasses
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from dsmoe_jax import batch as batch_lib
from dsmoe_jax import features
from dsmoe_jax.config import fields, schema
from dsmoe_jax.models.matching import two_tower
from dsmoe_jax.nn import causal, dropout, embed, mlp, scenario

CONTRASTIVE_SIDES = ("both", "item")
# The history that a user has in the example's own scenario.
OWN_HISTORY = "scenario_history"


@dataclasses.dataclass
class SASSConfig(two_tower.TowerConfig):
    """Hyper-parameters of SASS; without pre-training it is "SASS-base".

    Attributes:
      hidden_dims: Widths of the layers, at least one.
      bias_dim: Hidden width of the scenario bias network.
      pretrain_epochs: Passes of the contrastive stage before the main one; 0 for none.
      contrastive_sides: "both"; or "item", where a user has only one scenario.
      contrastive_temperature: tau in (0, 1] of the contrastive stage.
    """

    hidden_dims: tuple[int, ...] = fields.widths((256, 128), search=((64,), (64, 64), (128, 64)))
    bias_dim: int = fields.field(64, at_least=1)
    pretrain_epochs: int = fields.field(0, at_least=0, search=(0, 3))
    contrastive_sides: str = fields.field("both", choices=CONTRASTIVE_SIDES)
    contrastive_temperature: float = fields.share(0.1)

    @property
    def scenario_histories(self) -> bool:
        """True where users are contrasted: it tells in which scenarios they are active."""
        return self.pretrain_epochs > 0 and self.contrastive_sides == "both"

    def pretraining(self) -> tuple[schema.Pretraining, ...]:
        """The contrastive stage, where there is one."""
        if not self.pretrain_epochs:
            return ()
        return (schema.Pretraining("contrast", "contrastive_loss", self.pretrain_epochs),)

    def make(self, spec: features.FeatureSpec) -> "SASS":
        return self.build(SASS, spec)

    def check(self, spec: features.FeatureSpec) -> None:
        names = tuple(sequence.name for sequence in spec.sequences)
        if self.scenario_histories and features.SCENARIO_HISTORIES not in names:
            raise ValueError(
                f"model.contrastive_sides: 'both' needs the sequence "
                f"{features.SCENARIO_HISTORIES!r}, got {names}"
            )


class AdaptiveTower(nn.Module):
    """A global path g and a scenario path s that takes from it at every layer.

    g = ReLU(BN(g W + b));  q = ReLU(BN(s W_s + b_s));  r, z = sigmoid([g; q; e_s] W_rz + b_rz)
    c = tanh([r * g; q] W_c + b_c);  s = (1 - z) * q + z * c;  output s W_o + b_o + MLP(e_s).

    **Paper:** the multi-layer scenario adaptive transfer module. **Deviation:** written without the
    paper's equations; that the gates read both paths and the scenario embedding, and that the
    update is a gated recurrent unit's, is inferred.
    """

    in_dim: int  # I; both paths start from the input
    spec: features.FeatureSpec  # The features, whose scenarios are S and whose fields are C wide
    cfg: SASSConfig  # See `SASSConfig`: `bias_dim` is the hidden width of the MLP above

    def setup(self) -> None:
        cfg, S, C = self.cfg, self.spec.num_scenarios, self.spec.embedding_dim
        widths, pairs = cfg.hidden_dims, itertools.pairwise((self.in_dim, *cfg.hidden_dims))
        self.global_layers = [nn.Dense(width) for width in widths]
        self.scenario_layers = [mlp.ScenarioLinear(S, *pair) for pair in pairs]
        self.global_blocks = [cfg.make_block(S, width) for width in widths]
        self.scenario_blocks = [cfg.make_block(S, width) for width in widths]
        self.gates = [mlp.Split((2 * width, C), 2 * width) for width in widths]
        self.transfers = [nn.Dense(width) for width in widths]
        self.output = nn.Dense(cfg.output_dim)
        self.bias_hidden = nn.Dense(cfg.bias_dim)
        self.bias_output = nn.Dense(cfg.output_dim)

    def __call__(
        self,
        x: Float[jax.Array, "B ... I"],
        scenario_SC: Float[jax.Array, "S C"],
        one_hot_BS: Float[jax.Array, "B S"],
        *,
        train: bool,
    ) -> Float[jax.Array, "B ... D"]:
        """Runs both paths; the scenario's is the one that leaves."""
        shared = own = x
        for n in range(len(self.cfg.hidden_dims)):
            shared = self.global_blocks[n](self.global_layers[n](shared), one_hot_BS, train=train)
            own = self.scenario_layers[n](own, one_hot_BS)
            own = self.scenario_blocks[n](own, one_hot_BS, train=train)
            both = jnp.concatenate([shared, own], axis=-1)
            of_scenario = scenario.pick(self.gates[n](1, scenario_SC), one_hot_BS, x.ndim)
            gate = nn.sigmoid(self.gates[n](0, both) + of_scenario)
            reset, update = jnp.split(gate, 2, axis=-1)
            taken = jnp.concatenate([reset * shared, own], axis=-1)
            own = (1 - update) * own + update * jnp.tanh(self.transfers[n](taken))
        bias_SD = self.bias_output(nn.relu(self.bias_hidden(scenario_SC)))
        return self.output(own) + scenario.pick(bias_SD, one_hot_BS, x.ndim)


class SASS(two_tower.SymmetricMatcher):
    """Two adaptive-transfer towers with one scenario table, optionally pre-trained by contrast.

    **Paper:** Zhang et al., "Scenario-Adaptive and Self-Supervised Model for Multi-Scenario
    Personalized Recommendation" (arXiv 2208.11457): shared embedding, global and scenario networks,
    adaptive and update gates at every layer, a scenario bias network, symmetric towers; a first
    stage that contrasts an entity's representations in two scenarios.
    **Deviation:** written without the paper's equations, hence "SASS-style": the algebra of the
    gates and what they read, all widths, temperature and epochs are inferred. The first stage
    learns from training clicks alone, not from exposures.
    """

    cfg: SASSConfig

    def setup(self) -> None:
        # The histories of all scenarios tell where a user is active; their events are not embedded.
        self.embedder = embed.Embedder(
            dataclasses.replace(self.spec, sequences=self.spec.pooled_sequences)
        )
        self.drop = dropout.Dropout(self.cfg.input_dropout)
        self.user_tower = AdaptiveTower(self.embedder.user_dim, self.spec, self.cfg)
        self.item_tower = AdaptiveTower(self.embedder.item_dim, self.spec, self.cfg)
        if self.cfg.pretrain_epochs:
            shape = (self.spec.num_scenarios, self.spec.num_items)
            self.clicked_SV = self.variable(
                "constants", "clicked_SV", jnp.zeros, shape, jnp.float32
            )

    @property
    def constant_shapes(self) -> dict[str, tuple[int, ...]]:
        """Where each item has training clicks, for the contrastive stage."""
        if not self.cfg.pretrain_epochs:
            return {}
        return {"clicked_SV": (self.spec.num_scenarios, self.spec.num_items)}

    def contrastive_loss(
        self,
        users: batch_lib.Users,
        items: batch_lib.Items,
        scenario_B: Int[jax.Array, "B"],
        *,
        train: bool,
    ) -> tuple[Float[jax.Array, "B X"], two_tower.Aux]:
        """InfoNCE between an entity in the example's scenario and in another, per example and side.

        Users are contrasted where they have clicks in another scenario, positives (candidate 0)
        where they have training clicks in one; of several, `train` draws one at random. Values are
        scaled so that the mean over the batch is the mean over the pairs there are. Rows of users
        with equal profiles, and of the same item, are not each other's negatives.

        **Paper:** the self-supervised stage. **Deviation:** in the other scenario a user's own
        history is the one of that scenario, as the tower would see it there.
        """
        sides = [self._contrast_items(items, scenario_B, train)]
        if self.cfg.contrastive_sides == "both":
            sides.append(self._contrast_users(users, scenario_B, train))
        return jnp.stack(sides, axis=1), {}

    def _contrast_items(
        self, items: batch_lib.Items, scenario_B: Int[jax.Array, "B"], train: bool
    ) -> Float[jax.Array, "B"]:
        positives = jax.tree.map(lambda leaf: leaf[:, 0], items)
        item_B = positives.sparse_VF[:, 0]
        clicked_BS = self.clicked_SV.value.T[item_B] > 0
        other_B, paired_B = draw_other(clicked_BS, scenario_B, self._make_key(train))
        input_BI = self.embedder.items(positives).input_BI
        same_BB = item_B[:, None] == item_B[None]
        views, scenarios = (input_BI, input_BI), (scenario_B, other_B)
        return self._contrast("item", views, scenarios, paired_B, same_BB, train)

    def _contrast_users(
        self, users: batch_lib.Users, scenario_B: Int[jax.Array, "B"], train: bool
    ) -> Float[jax.Array, "B"]:
        ids_BLF = users.sequences[features.SCENARIO_HISTORIES].ids_BLF
        apart = ids_BLF.reshape(len(ids_BLF), self.spec.num_scenarios, -1)
        active_BS = (apart > 0).any(axis=2)
        other_B, paired_B = draw_other(active_BS, scenario_B, self._make_key(train))
        moved = self._move(users, other_B)
        views = (self.embedder.users(users).input_BI, self.embedder.users(moved).input_BI)
        scenarios, same_BB = (scenario_B, other_B), _have_equal_profiles(users)
        return self._contrast("user", views, scenarios, paired_B, same_BB, train)

    def _contrast(
        self,
        side: str,
        views: tuple[Float[jax.Array, "B I"], Float[jax.Array, "B I"]],
        scenarios: tuple[Int[jax.Array, "B"], Int[jax.Array, "B"]],
        paired_B: Bool[jax.Array, "B"],
        same_BB: Bool[jax.Array, "B B"],
        train: bool,
    ) -> Float[jax.Array, "B"]:
        """Both views in one pass, so that they share the statistics of their normalisation."""
        vector_ND = self.run_tower(
            side, jnp.concatenate(views), jnp.concatenate(scenarios), train=train
        )
        first_BD, second_BD = jnp.split(vector_ND, 2)
        loss_B = info_nce(first_BD, second_BD, paired_B, same_BB, self.cfg.contrastive_temperature)
        return loss_B * (len(loss_B) / jnp.maximum(paired_B.sum(), 1))

    def _move(self, users: batch_lib.Users, other_B: Int[jax.Array, "B"]) -> batch_lib.Users:
        """The users as the tower sees them in other scenarios: their own history is from there."""
        if OWN_HISTORY not in users.sequences:
            return users
        rows_B, S = jnp.arange(len(other_B)), self.spec.num_scenarios
        moved = jax.tree.map(
            lambda leaf: leaf.reshape(len(leaf), S, -1, *leaf.shape[2:])[rows_B, other_B],
            users.sequences[features.SCENARIO_HISTORIES],
        )
        return users._replace(sequences={**users.sequences, OWN_HISTORY: moved})

    def _make_key(self, train: bool) -> jax.Array | None:
        return self.make_rng("dropout") if train else None


def draw_other(
    present_BS: Bool[jax.Array, "B S"], scenario_B: Int[jax.Array, "B"], key: jax.Array | None
) -> tuple[Int[jax.Array, "B"], Bool[jax.Array, "B"]]:
    """A scenario other than the example's in which something is present, and whether there is one.

    The example's own where there is none; of several one at random, without a key the first.
    """
    own_BS = scenario.one_hot(scenario_B, present_BS.shape[1]) > 0
    possible_BS = present_BS & ~own_BS
    lot_BS = jnp.zeros(possible_BS.shape, jnp.float32)
    if key is not None:
        lot_BS = jax.random.uniform(key, possible_BS.shape)
    other_B = jnp.argmax(jnp.where(possible_BS, lot_BS, -1), axis=1).astype(jnp.int32)
    paired_B = possible_BS.any(axis=1)
    return jnp.where(paired_B, other_B, scenario_B), paired_B


def _have_equal_profiles(users: batch_lib.Users) -> Bool[jax.Array, "B B"]:
    """Which rows agree in every categorical and numerical field, as all rows of a user do.

    The id alone would not do: a run may leave it out.
    """
    same_BBF = users.sparse_BF[:, None] == users.sparse_BF[None]
    near_BBF = users.dense_BF[:, None] == users.dense_BF[None]
    return jnp.all(same_BBF, axis=2) & jnp.all(near_BBF, axis=2)


def info_nce(
    first_BD: Float[jax.Array, "B D"],
    second_BD: Float[jax.Array, "B D"],
    paired_B: Bool[jax.Array, "B"],
    same_BB: Bool[jax.Array, "B B"],
    temperature: float,
) -> Float[jax.Array, "B"]:
    """Symmetrised InfoNCE with the other pairs of the batch as negatives, one value per pair.

    -1/2 [log softmax_j(cos(a_i, b_j) / tau) + log softmax_j(cos(b_i, a_j) / tau)] at j = i, over
    pair i and the pairs j of other entities. 0 where there is no pair.

    Args:
      first_BD: a, of any length.
      second_BD: b, the other view of the same row's entity.
      paired_B: Which rows are pairs; others are neither trained on nor anybody's negative.
      same_BB: Which rows hold the same entity; they are not each other's negatives. Symmetric.
      temperature: tau > 0.
    """
    logit_BB = causal.unit_norm(first_BD) @ causal.unit_norm(second_BD).T / temperature
    compared_BB = paired_B[None] & (~same_BB | jnp.eye(len(paired_B), dtype=bool))
    low = jnp.finfo(logit_BB.dtype).min
    first_B = jax.nn.logsumexp(jnp.where(compared_BB, logit_BB, low), axis=1)
    second_B = jax.nn.logsumexp(jnp.where(compared_BB, logit_BB.T, low), axis=1)
    return jnp.where(paired_B, (first_B + second_B) / 2 - jnp.diagonal(logit_BB), 0)
