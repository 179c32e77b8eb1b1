"""MIND: several vectors per user, one for each interest found in the history.

Owns the user tower over interests and the plain item tower. The routing is in
`models/matching/mind_capsules.py`, the search with several vectors in `retrieval/index.py`.

Letters: B examples, S scenarios, M interests, E event width, I profile width, D output.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from dsmoe_jax import batch as batch_lib
from dsmoe_jax import features
from dsmoe_jax.config import fields
from dsmoe_jax.models.matching import mind_capsules, two_tower
from dsmoe_jax.nn import dropout, embed, mlp, perceptron, scenario, tables


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
        self.routing = mind_capsules.DynamicRouting(
            event_dim, cfg.num_interests, cfg.routing_iterations
        )
        profile_dim = self.embedder.user_dim - event_dim + C
        self.first = mlp.Split((profile_dim, event_dim), cfg.hidden_dims[0])
        self.first_block = cfg.make_block(S, cfg.hidden_dims[0])
        dims = (*cfg.hidden_dims, cfg.output_dim)
        self.user_tower = perceptron.Perceptron(dims, S, cfg.norm, cfg.bn_momentum)
        dims = (self.embedder.item_dim, *dims)
        self.item_tower = perceptron.Perceptron(dims, 1, cfg.norm, cfg.bn_momentum)

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
