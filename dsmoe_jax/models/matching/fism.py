"""FISM: an item's factors beside those of what the user did and was shown; a linear model.

Kabbur, Ning and Karypis, "FISM: Factored Item Similarity Models for Top-N Recommender Systems",
KDD 2013, with the pairwise loss of Rendle et al., "BPR", UAI 2009. A user is the sum of the factors
of the items in the history, so that one whom training never met is as good as any other; the target
is never part of its own input.

**Deviation:** ours beside the paper's form: events weigh less the older they are; what was shown
without a positive is a bag of its own, and a weak target; every kind of target (a scenario's
positive, one from before the log, an exposure) has a vector and negatives of its own kind; a
scenario's prior is a coordinate of the inner product.

Letters: B examples, L events, X candidates for targets, T targets of an example, N negatives of a
target, K kinds of targets (scenarios, before the log, shown), D factors, S scenarios, V rows of the
corpus, M interests (1).
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from dsmoe_jax import batch as batch_lib
from dsmoe_jax import features
from dsmoe_jax.config import fields, schema
from dsmoe_jax.data import statistics
from dsmoe_jax.models.matching import two_tower
from dsmoe_jax.nn import tables

FACTOR_STD = 0.1
# Of a score over the items, below which it is not divided any more.
LEAST_VARIANCE = 1e-12
_SEQUENCES = (features.HISTORY, features.EXPOSURES, features.SCENARIO_HISTORIES)


@dataclasses.dataclass
class FISMConfig(schema.MatcherConfig):
    """Hyper-parameters of FISM; the values were chosen on validation days of KuaiRand-Pure.

    Attributes:
      output_dim: D, factors of an item, of an event and of an exposure; both towers' outputs have
        two entries more, the bias and the prior.
      recency: Weight in (0, 1] of an event relative to the next one.
      recency_floor: Least weight of an event, in [0, 1].
      exposure_recency: As `recency`, of an exposure.
      exposure_recency_floor: As `recency_floor`, of an exposure.
      score_weight: Weight > 0 of the score, divided by its deviation over the items, beside the log
        of the prior.
      targets: T, events of a user that an epoch learns from, drawn anew each time, and as many
        exposures.
      negatives: N, negatives of a target: other targets of its kind in the batch, so that they are
        drawn by popularity in the scenario.
      mixing: Share in [0, 1] of a scenario's negatives that are drawn from all scenarios.
      earlier_weight: Weight >= 0 of a positive from before the log as a target.
      exposure_weight: Weight >= 0 of an exposure as a target.
      l2: Weight >= 0 of the squared norms of the factors that a batch draws.
    """

    output_dim: int = fields.field(64, at_least=1)
    recency: float = fields.share(0.95)
    recency_floor: float = fields.field(0.2, at_least=0, at_most=1)
    exposure_recency: float = fields.field(0.98, above=0, at_most=1, added_later=True)
    exposure_recency_floor: float = fields.field(0.3, at_least=0, at_most=1, added_later=True)
    score_weight: float = fields.field(1.5, above=0, search=(1.0, 1.5, 2.0))
    targets: int = fields.field(48, at_least=1, search=(24, 48))
    negatives: int = fields.field(1, at_least=1)
    mixing: float = fields.field(0.1, at_least=0, at_most=1)
    earlier_weight: float = fields.field(1.0, at_least=0)
    exposure_weight: float = fields.field(0.3, at_least=0, search=(0.1, 0.3, 1.0))
    l2: float = fields.field(0.005, at_least=0, search=(0.002, 0.005, 0.01))

    recipe: ClassVar[dict[str, Any]] = {
        "batch_size": 256,
        "num_negatives": 1,
        "max_epochs": 20,
        "patience": 20,
        "learning_rate": 1e-2,
        "weight_decay": 0.0,
        "decay_epochs": 20,
        "steps_per_dispatch": 8,
    }

    @property
    def scenario_histories(self) -> bool:
        """They tell which event is of which scenario."""
        return True

    def objective(self) -> schema.Objective:
        """All that a user did and was shown, once an epoch."""
        return schema.Objective("pairwise_loss", last_only=True)

    def reads(self, spec: features.FeatureSpec) -> features.FeatureSpec:
        """The sequences of items and the item's id."""
        read = tuple(s for s in spec.sequences if s.name in _SEQUENCES)
        return features.item_ids_alone(spec, read)

    def check(self, spec: features.FeatureSpec) -> None:
        if self.known_prior:
            raise ValueError(
                "model.known_prior: expected False with FISM, whose score has the prior anyway"
            )
        if features.HISTORY not in [s.name for s in spec.sequences]:
            raise ValueError(
                f"features.exclude: expected FISM to see the sequence {features.HISTORY!r}, which "
                "is all that it knows of a user"
            )
        if spec.history_encoder != "mean":
            raise ValueError(
                "features.history_encoder: expected 'mean' with FISM, which sums the history "
                f"itself, got {spec.history_encoder!r}"
            )

    def make(self, spec: features.FeatureSpec) -> "FISM":
        return self.build(FISM, spec)


class Bag(NamedTuple):
    """The events of one kind that a user's vector sums.

    Attributes:
      ids_BL: Items, 0 at padding.
      weight_BL: Their weights, 0 at padding.
      factor_VD: The table of their factors.
      extra: What is added to the sum of squared weights; the bag is divided by its root, or by 1.
      sum_BD: The weighted sum of their factors.
      square_B: The sum of the squared weights.
    """

    ids_BL: Int[jax.Array, "B L"]
    weight_BL: Float[jax.Array, "B L"]
    factor_VD: Float[jax.Array, "V D"]
    extra: float
    sum_BD: Float[jax.Array, "B D"]
    square_B: Float[jax.Array, "B"]

    @classmethod
    def make(
        cls, ids_BL: jax.Array, weight_BL: jax.Array, factor_VD: jax.Array, extra: float
    ) -> "Bag":
        """The bag of these events; padding has weight 0."""
        sum_BD = jnp.einsum("bl,bld->bd", weight_BL, factor_VD[ids_BL])
        return cls(ids_BL, weight_BL, factor_VD, extra, sum_BD, (weight_BL**2).sum(axis=1))

    def pool(self) -> Float[jax.Array, "B D"]:
        """The sum by its norm."""
        return self._normalise(self.sum_BD, self.square_B)

    def pool_without(
        self, item_BT: Int[jax.Array, "B T"]
    ) -> tuple[Float[jax.Array, "B T D"], Float[jax.Array, "B T D"]]:
        """What the bag pools to without each of T items, and these items' factors."""
        weight_BTL = self.weight_BL[:, None] * (item_BT[:, :, None] == self.ids_BL[:, None])
        factor_BTD = self.factor_VD[item_BT]
        sum_BTD = self.sum_BD[:, None] - weight_BTL.sum(axis=2)[..., None] * factor_BTD
        square_BT = self.square_B[:, None] - (weight_BTL**2).sum(axis=2)
        return self._normalise(sum_BTD, square_BT), factor_BTD

    def _normalise(self, sum_: jax.Array, square: jax.Array) -> jax.Array:
        return sum_ / jnp.sqrt(jnp.maximum(square + self.extra, 1.0))[..., None]


class Targets(NamedTuple):
    """Items that a step learns to rank.

    Attributes:
      item_BT: Items, 0 where a user has fewer.
      kind_BT: Their kinds: a scenario, S for before the log, S + 1 for shown.
      weight_BT: What each counts; 0 where a user has fewer.
    """

    item_BT: Int[jax.Array, "B T"]
    kind_BT: Int[jax.Array, "B T"]
    weight_BT: Float[jax.Array, "B T"]


class FISM(two_tower.Matcher):
    """A linear two-tower model: sums of factors against an item's factors, bias and prior.

    With u = sum_h w_h E_h / sqrt(sum_h w_h^2 + 1) + sum_x w_x G_x / sqrt(sum_x w_x^2) + T_s the
    score is w (u.v + b) / sd(u) + log P(i | s). The deviation sd(u) of u.v + b over the items is a
    quadratic form of u, so that the score is one inner product; a scenario's index differs from
    another's in its last coordinate alone.
    """

    item_uses_scenario = True
    own_item_tables = ("history_table", "exposure_table", "item_table", "bias_table")

    cfg: FISMConfig

    def setup(self) -> None:
        D, S = self.cfg.output_dim, self.spec.num_scenarios
        rows = tables.padded_rows(self.spec.num_items)
        normal, zeros = nn.initializers.normal(FACTOR_STD), nn.initializers.zeros
        self.history_VD = self.param("history_table", normal, (rows, D), jnp.float32)
        if features.EXPOSURES in [s.name for s in self.spec.sequences]:
            self.exposure_VD = self.param("exposure_table", normal, (rows, D), jnp.float32)
        self.item_VD = self.param("item_table", normal, (rows, D), jnp.float32)
        self.bias_V = self.param("bias_table", zeros, (rows,), jnp.float32)
        self.kind_KD = self.param("kinds", zeros, (S + 2, D), jnp.float32)
        shape = self.constant_shapes[statistics.KNOWN_PRIOR]
        self.log_prior_SV = self.variable(
            "constants", statistics.KNOWN_PRIOR, jnp.zeros, shape, jnp.float32
        )

    @property
    def constant_shapes(self) -> dict[str, tuple[int, ...]]:
        """The scenarios' priors, from what was shown where the store knows it."""
        return {statistics.KNOWN_PRIOR: (self.spec.num_scenarios, self.spec.num_items)}

    def embed_user(
        self, users: batch_lib.Users, scenario_B: Int[jax.Array, "B"], *, train: bool
    ) -> tuple[Float[jax.Array, "B M D"], two_tower.Aux]:
        return self._combine([bag.pool() for bag in self._bags(users)], scenario_B)[:, None], {}

    def embed_item(
        self, items: batch_lib.Items, scenario_B: Int[jax.Array, "B"], *, train: bool
    ) -> tuple[Float[jax.Array, "B ... D"], two_tower.Aux]:
        ids = items.sparse_VF[..., 0]
        scenario_B = scenario_B.reshape(-1, *(1,) * (ids.ndim - 1))
        last = jnp.stack([self.bias_V[ids], self.log_prior_SV.value[scenario_B, ids]], axis=-1)
        return jnp.concatenate([self.item_VD[ids], last], axis=-1), {}

    def linear_form(self) -> dict[str, Any]:
        """What `linear_arrays` means, for readers that hold no model; see `serving/towers.py`."""
        cfg, names = self.cfg, [s.name for s in self.spec.sequences]
        settings = {
            features.HISTORY: ("history", cfg.recency, cfg.recency_floor, 1.0),
            features.EXPOSURES: (
                "exposure",
                cfg.exposure_recency,
                cfg.exposure_recency_floor,
                0.0,
            ),
        }
        bags = [
            {
                "sequence": name,
                "table": f"linear_{table}",
                "recency": recency,
                "floor": floor,
                "extra": extra,
            }
            for name, (table, recency, floor, extra) in settings.items()
            if name in names
        ]
        return {"bags": bags, "least_variance": LEAST_VARIANCE}

    def linear_arrays(self) -> dict[str, jax.Array]:
        """Factors, kinds, prior and the quadratic form of the deviation, by name.

        Row 0 stands for an item that training did not meet: without factors, with the least prior.
        """
        V, S = self.spec.num_items, self.spec.num_scenarios
        prior_SV = self.log_prior_SV.value
        arrays = {
            "linear_history": self.history_VD[:V],
            "linear_item": self.item_VD[:V].at[0].set(0.0),
            "linear_bias": self.bias_V[:V].at[0].set(0.0),
            "linear_kind": self.kind_KD[:S],
            "linear_covariance": self._covariance(),
            "linear_scale": jnp.full(S, self.cfg.score_weight),
            "linear_log_prior": prior_SV.at[:, 0].set(prior_SV[:, 1:].min(axis=1)),
        }
        if features.EXPOSURES in [s.name for s in self.spec.sequences]:
            arrays["linear_exposure"] = self.exposure_VD[:V]
        return arrays

    def pairwise_loss(
        self,
        users: batch_lib.Users,
        items: batch_lib.Items,
        scenario_B: Int[jax.Array, "B"],
        *,
        train: bool,
    ) -> tuple[Float[jax.Array, "B 1"], two_tower.Aux]:
        """-log sigmoid(score of a target - score of a negative), and L2 of what was drawn.

        Scores are u.v + b: neither the prior nor the deviation is learned from. Rows are scaled so
        that their mean is the mean over the targets.
        """
        cfg, S = self.cfg, self.spec.num_scenarios
        target_key, negative_key = jax.random.split(self.make_rng("dropout"))
        own_B1 = items.sparse_VF[:, :1, 0]
        bags = self._bags(users)
        targets = self._draw_targets(target_key, users, own_B1, scenario_B)
        user_BTD = self.kind_KD[targets.kind_BT]
        l2_BT = jnp.zeros_like(targets.weight_BT)
        for bag in bags:
            pooled_BTD, factor_BTD = bag.pool_without(targets.item_BT)
            user_BTD += pooled_BTD
            l2_BT += 0.5 * (factor_BTD**2).sum(axis=-1)
        negative_BTN = draw_negatives(
            negative_key, targets, num=cfg.negatives, num_scenarios=S, mixing=cfg.mixing
        )
        target_BTD, other_BTND = self.item_VD[targets.item_BT], self.item_VD[negative_BTN]
        l2_BT += (target_BTD**2).sum(axis=-1) + (other_BTND**2).sum(axis=-1).mean(axis=-1)
        score_BT = (user_BTD * target_BTD).sum(axis=-1) + self.bias_V[targets.item_BT]
        other_BTN = jnp.einsum("btd,btnd->btn", user_BTD, other_BTND) + self.bias_V[negative_BTN]
        known_BL = jnp.concatenate([bags[0].ids_BL, own_B1], axis=1)
        is_known_BTN = (negative_BTN[..., None] == known_BL[:, None, None]).any(axis=-1)
        is_known_BTN |= negative_BTN == targets.item_BT[..., None]
        loss_BTN = jnp.where(is_known_BTN, 0.0, jax.nn.softplus(other_BTN - score_BT[..., None]))
        row_BT = targets.weight_BT * (loss_BTN.mean(axis=-1) + cfg.l2 * l2_BT)
        total = jnp.maximum(targets.weight_BT.sum(), 1.0)
        return row_BT.sum(axis=1, keepdims=True) * (len(row_BT) / total), {}

    def _combine(
        self, pooled: list[Float[jax.Array, "B F"]], scenario_B: Int[jax.Array, "B"]
    ) -> Float[jax.Array, "B D"]:
        """The user vector of what the bags pool to."""
        user_BD = sum(pooled, start=self.kind_KD[scenario_B])
        one_B1 = jnp.ones_like(user_BD[:, :1])
        user_BD = jnp.concatenate([user_BD, one_B1], axis=1)
        scale_B = self.cfg.score_weight / self._deviation(user_BD)
        return jnp.concatenate([user_BD * scale_B[:, None], one_B1], axis=1)

    def _bags(self, users: batch_lib.Users) -> list[Bag]:
        """The history, and what was shown."""
        cfg = self.cfg
        ids_BL, weight_BL = _weigh(users, features.HISTORY, cfg.recency, cfg.recency_floor)
        bags = [Bag.make(ids_BL, weight_BL, self.history_VD, extra=1.0)]
        if features.EXPOSURES in users.sequences:
            recency, floor = cfg.exposure_recency, cfg.exposure_recency_floor
            ids_BL, weight_BL = _weigh(users, features.EXPOSURES, recency, floor)
            bags.append(Bag.make(ids_BL, weight_BL, self.exposure_VD, extra=0.0))
        return bags

    def _draw_targets(
        self,
        key: jax.Array,
        users: batch_lib.Users,
        own_B1: Int[jax.Array, "B 1"],
        scenario_B: Int[jax.Array, "B"],
    ) -> Targets:
        """Of every user's events some, and as many exposures."""
        cfg, S = self.cfg, self.spec.num_scenarios
        history = users.sequences[features.HISTORY]
        earlier_BL = history.ids_BLF[..., 0] * (history.time_BL == 0)
        clicked_BL = users.sequences[features.SCENARIO_HISTORIES].ids_BLF[..., 0]
        kind_1L = jnp.repeat(jnp.arange(S), clicked_BL.shape[1] // S)[None]
        clicked_kind_BL = jnp.broadcast_to(kind_1L, clicked_BL.shape)
        kinds_BX = [jnp.full_like(earlier_BL, S), clicked_kind_BL, scenario_B[:, None]]
        groups = [
            (
                jnp.concatenate([earlier_BL, clicked_BL, own_B1], axis=1),
                jnp.concatenate(kinds_BX, axis=1),
            )
        ]
        if features.EXPOSURES in users.sequences:
            shown_BL = users.sequences[features.EXPOSURES].ids_BLF[..., 0]
            groups.append((shown_BL, jnp.full_like(shown_BL, S + 1)))
        weight_K = jnp.array([1.0] * S + [cfg.earlier_weight, cfg.exposure_weight])
        found = [
            _sample(jax.random.fold_in(key, n), *group, weight_K, cfg.targets)
            for n, group in enumerate(groups)
        ]
        return Targets(*(jnp.concatenate(parts, axis=1) for parts in zip(*found, strict=True)))

    def _deviation(self, user_BD: Float[jax.Array, "B D"]) -> Float[jax.Array, "B"]:
        """The deviation of the score, without the prior, over the items."""
        variance_B = jnp.einsum("bd,de,be->b", user_BD, self._covariance(), user_BD)
        return jnp.sqrt(jnp.maximum(variance_B, LEAST_VARIANCE))

    def _covariance(self) -> Float[jax.Array, "D D"]:
        """Covariance of the items' factors and biases."""
        item_VD = jnp.concatenate([self.item_VD, self.bias_V[:, None]], axis=1)
        item_VD = item_VD[1 : self.spec.num_items]
        item_VD = item_VD - item_VD.mean(axis=0, keepdims=True)
        return item_VD.T @ item_VD / len(item_VD)


def _weigh(
    users: batch_lib.Users, sequence: str, recency: float, floor: float
) -> tuple[Int[jax.Array, "B L"], Float[jax.Array, "B L"]]:
    """Items of a sequence and max(recency^age, floor), the last event's age being 0."""
    ids_BL = users.sequences[sequence].ids_BLF[..., 0]
    is_event_BL = ids_BL > 0
    age_BL = jnp.cumsum(is_event_BL[:, ::-1], axis=1)[:, ::-1] - 1
    return ids_BL, jnp.maximum(recency**age_BL, floor) * is_event_BL


def draw_negatives(
    key: jax.Array, targets: Targets, *, num: int, num_scenarios: int, mixing: float
) -> Int[jax.Array, "B T N"]:
    """For every target `num` targets of its kind, of any user of the batch.

    So they are drawn by popularity among the targets of a kind. A share `mixing` of those of a
    scenario comes from all scenarios: a small one has few of its own.
    """
    shape = (*targets.item_BT.shape, num)
    last = num_scenarios + 2
    kind_X = jnp.where(targets.weight_BT > 0, targets.kind_BT, last).reshape(-1)
    order_X = jnp.argsort(kind_X)
    item_X = targets.item_BT.reshape(-1)[order_X]
    first_K = jnp.searchsorted(kind_X[order_X], jnp.arange(last + 1))
    place_key, mixing_key = jax.random.split(key)
    kind_BTN = jnp.broadcast_to(targets.kind_BT[..., None], shape)
    is_mixed_BTN = jax.random.bernoulli(mixing_key, mixing, shape) & (kind_BTN < num_scenarios)
    start_BTN = jnp.where(is_mixed_BTN, 0, first_K[kind_BTN])
    stop_BTN = jnp.where(is_mixed_BTN, first_K[num_scenarios], first_K[kind_BTN + 1])
    place_BTN = jax.random.uniform(place_key, shape) * (stop_BTN - start_BTN)
    place_BTN = jnp.minimum(start_BTN + place_BTN.astype(jnp.int32), stop_BTN - 1)
    return item_X[jnp.maximum(place_BTN, 0)]


def _sample(
    key: jax.Array,
    item_BX: Int[jax.Array, "B X"],
    kind_BX: Int[jax.Array, "B X"],
    weight_K: Float[jax.Array, "K"],
    most: int,
) -> Targets:
    """At most so many of each row's items, without repetition, which stand for all of them."""
    noise_BX = jnp.where(item_BX > 0, jax.random.uniform(key, item_BX.shape), -1.0)
    place_BT = jax.lax.top_k(noise_BX, min(most, item_BX.shape[1]))[1]
    item_BT = jnp.take_along_axis(item_BX, place_BT, axis=1)
    kind_BT = jnp.take_along_axis(kind_BX, place_BT, axis=1)
    count_B1 = (item_BX > 0).sum(axis=1, keepdims=True)
    share_B1 = jnp.maximum(count_B1 / most, 1.0)
    return Targets(item_BT, kind_BT, weight_K[kind_BT] * share_B1 * (item_BT > 0))
