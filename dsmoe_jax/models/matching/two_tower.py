"""Matcher interface: two towers whose inner product is the logit.

Owns the contract between methods, the training step, evaluation and export, and what symmetric
methods share. Methods subclass `Matcher`; nothing else in the package knows which one it holds.

Letters: B examples, G candidates per example, X unlabelled items, M interests, I a tower's input, D
tower output, S scenarios.
"""

import dataclasses
import functools
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from dsmoe_jax import batch as batch_lib
from dsmoe_jax import features
from dsmoe_jax.config import fields, schema
from dsmoe_jax.data import statistics
from dsmoe_jax.nn import dsbn, mlp, scenario

Aux = dict[str, jax.Array]


@dataclasses.dataclass
class TowerConfig(schema.MatcherConfig):
    """Hyper-parameters of both towers that many methods share.

    Attributes:
      output_dim: D, width of both towers' outputs. Unstated in DSMOE's paper.
      input_dropout: Rate in [0, 1) at which entries of both towers' inputs are dropped in training.
        DSMOE's paper states none; few examples need it.
      norm: Normalisation of the towers' layers: "bn"; "dsbn" with statistics and affine parameters
        of every scenario; or "none".
      bn_momentum: Share of a batch in the running statistics, in (0, 1]. Unstated; 0.1 is PyTorch's
        default.
    """

    output_dim: int = fields.field(128, at_least=1)
    input_dropout: float = fields.rate()
    norm: str = fields.field("bn", choices=dsbn.KINDS)
    bn_momentum: float = fields.share(0.1)

    def make_block(self, num_scenarios: int, width: int) -> mlp.NormBlock:
        """What follows a linear layer of a tower: normalisation and ReLU."""
        return mlp.NormBlock(self.norm, num_scenarios, width, self.bn_momentum, 0.0)


class Matcher(nn.Module):
    """A two-tower model.

    `embed_user` and `embed_item` can be called alone (`apply(..., method="embed_item")`); neither
    sees the other's input, which is what lets an index serve the model. Batch statistics and other
    non-trained state live in mutable collections.

    Attributes:
      spec: The features the run uses.
    """

    spec: features.FeatureSpec

    # Whether `end_epoch` is to be called: a method that defines it says so.
    has_end_epoch: ClassVar[bool] = False
    # Names of parameters of its own with a row per item, which updates of rows do not know; those
    # that are not there are ignored.
    own_item_tables: ClassVar[tuple[str, ...]] = ()

    @property
    def constant_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the wanted corpus constants, in the collection `constants`.

        See `data/statistics.py` for the known names.
        """
        return {}

    @property
    def item_uses_scenario(self) -> bool:
        """Whether item vectors differ between scenarios: one index per scenario, or one in all."""
        raise NotImplementedError

    @classmethod
    def with_known_prior(cls) -> "type[Matcher]":
        """The method with the scenarios' popularity in its inner product; see `KnownPrior`."""
        method: Any = cls
        form: Any = cls.known_prior_form()
        found: type[Matcher] = _add_known_prior(method, form)
        return found

    @classmethod
    def known_prior_form(cls) -> "type[KnownPrior]":
        """What adds that popularity; another form where a loss of the method's own wants one."""
        return KnownPrior

    def complete_user(self, user: Float[jax.Array, "... D"]) -> Float[jax.Array, "... _"]:
        """A user's vector as it is compared; a loss of the method's own calls it too."""
        return user

    def complete_item(
        self,
        item: Float[jax.Array, "B ... D"],
        id_B: Int[jax.Array, "B ..."],
        scenario_B: Int[jax.Array, "B"],
    ) -> Float[jax.Array, "B ... _"]:
        """An item's vector as it is compared; a loss of the method's own calls it too."""
        return item

    def embed_user(
        self, users: batch_lib.Users, scenario_B: Int[jax.Array, "B"], *, train: bool
    ) -> tuple[Float[jax.Array, "B M D"], Aux]:
        """User vectors, one per interest, and auxiliary losses by name (scalars)."""
        raise NotImplementedError

    def embed_item(
        self, items: batch_lib.Items, scenario_B: Int[jax.Array, "B"], *, train: bool
    ) -> tuple[Float[jax.Array, "B ... D"], Aux]:
        """Item vectors in the scenarios, and auxiliary losses.

        `items` has leading axes [B, ...]: candidates of an example share its scenario.
        """
        raise NotImplementedError

    def draw_unlabelled(
        self, users: batch_lib.Users, scenario_B: Int[jax.Array, "B"], key: jax.Array
    ) -> Int[jax.Array, "B X"] | None:
        """Items that a method learns from in training without knowing whether they are positives.

        A function of the batch, called without parameters. The step then calls the model with
        their features, [B, X], as the argument `unlabelled`; only such a method needs to have it.

        Returns:
          Item ids, of which 0 stands for none; None, as here, asks for no items.
        """
        return None

    def end_epoch(self) -> Aux:
        """What a method does after every epoch of training, to its parameters or its statistics.

        Called where `has_end_epoch` is set. Applied with every collection but `constants` mutable
        and the random stream `dropout`.

        Returns:
          Numbers of the epoch (scalars) by name, which are logged.
        """
        return {}

    def __call__(
        self,
        users: batch_lib.Users,
        items: batch_lib.Items,
        scenario_B: Int[jax.Array, "B"],
        *,
        train: bool,
    ) -> tuple[Float[jax.Array, "B G"], Aux]:
        """Logits of G candidates per example; `items` has leading axes [B, G].

        **Paper:** section "Prediction": the score is sigmoid(<e_u, e_v>); this returns the inner
        product, the maximum over interests where a method has several. A user is embedded once
        for all its candidates.
        """
        user_BMD, user_aux = self.embed_user(users, scenario_B, train=train)
        item_BGD, item_aux = self.embed_item(items, scenario_B, train=train)
        logit_BGM = jnp.einsum("bmd,bgd->bgm", user_BMD, item_BGD)
        return logit_BGM.max(axis=-1), {**user_aux, **item_aux}


class KnownPrior(Matcher):
    """What a method becomes with `known_prior`: its logits have log (V P(i | s)) as a fixed term.

    P(i | s) is item i's share of what is known of scenario s (`statistics.known_log_prior`, or
    `log_prior` without exposures) and V the number of items, so that an item of average popularity
    has the logit that the method gives it. The term is there in training and at serving (sequential
    matchers: see `next_item.SequencePrior`); it is one more entry of the item vectors, which users
    meet with a 1, and it is not learned. Every scenario has an index of its own.

    **Deviation:** ours, of no method's paper. Menon et al., "Long-tail learning via logit
    adjustment", ICLR 2021, section 4.2, add log priors in training alone, to rank without them.
    """

    def setup(self) -> None:
        super().setup()
        shape = (self.spec.num_scenarios, self.spec.num_items)
        self.known_prior_SV = self.variable(
            "constants", statistics.KNOWN_PRIOR, jnp.zeros, shape, jnp.float32
        )

    @property
    def constant_shapes(self) -> dict[str, tuple[int, ...]]:
        """The method's own, and the scenarios' priors."""
        shape = (self.spec.num_scenarios, self.spec.num_items)
        return {**super().constant_shapes, statistics.KNOWN_PRIOR: shape}

    @property
    def item_uses_scenario(self) -> bool:
        return True

    def complete_user(self, user: Float[jax.Array, "... D"]) -> Float[jax.Array, "... _"]:
        return jnp.concatenate([user, jnp.ones_like(user[..., :1])], axis=-1)

    def complete_item(
        self,
        item: Float[jax.Array, "B ... D"],
        id_B: Int[jax.Array, "B ..."],
        scenario_B: Int[jax.Array, "B"],
    ) -> Float[jax.Array, "B ... _"]:
        scenario_B = scenario_B.reshape(-1, *(1,) * (id_B.ndim - 1))
        return self.append_prior(item, self.known_prior_SV.value[scenario_B, id_B])

    def append_prior(
        self, item: Float[jax.Array, "B ... D"], log_share_B: Float[jax.Array, "B ..."]
    ) -> Float[jax.Array, "B ... _"]:
        """An item's vector with one entry more: log (V P) of the log of its share P."""
        prior_B = log_share_B + jnp.log(self.spec.num_items - 1.0)
        return jnp.concatenate([item, prior_B[..., None]], axis=-1)

    def embed_user(
        self, users: batch_lib.Users, scenario_B: Int[jax.Array, "B"], *, train: bool
    ) -> tuple[Float[jax.Array, "B M D"], Aux]:
        user_BMD, aux = super().embed_user(users, scenario_B, train=train)
        return self.complete_user(user_BMD), aux

    def embed_item(
        self, items: batch_lib.Items, scenario_B: Int[jax.Array, "B"], *, train: bool
    ) -> tuple[Float[jax.Array, "B ... D"], Aux]:
        item_BD, aux = super().embed_item(items, scenario_B, train=train)
        return self.complete_item(item_BD, items.sparse_VF[..., 0], scenario_B), aux


@functools.cache
def _add_known_prior(method: Any, form: Any) -> Any:
    """The subclass of a method that a form of `KnownPrior` makes, under the method's name."""
    return type(method.__name__, (form, method), {"__module__": method.__module__})


class SymmetricMatcher(Matcher):
    """Towers of one architecture: both read their side's concatenated features and the scenario.

    There is one index per scenario. A method's `setup` creates what is used here: `embedder`, an
    `embed.Embedder`; `drop`, the dropout of both towers' inputs; `user_tower` and `item_tower`.
    """

    @property
    def item_uses_scenario(self) -> bool:
        return True

    def embed_user(
        self, users: batch_lib.Users, scenario_B: Int[jax.Array, "B"], *, train: bool
    ) -> tuple[Float[jax.Array, "B M D"], Aux]:
        input_BI = self.embedder.users(users).input_BI
        return self.run_tower("user", input_BI, scenario_B, train=train)[:, None], {}

    def embed_item(
        self, items: batch_lib.Items, scenario_B: Int[jax.Array, "B"], *, train: bool
    ) -> tuple[Float[jax.Array, "B ... D"], Aux]:
        input_BI = self.embedder.items(items).input_BI
        return self.run_tower("item", input_BI, scenario_B, train=train), {}

    def run_tower(
        self,
        side: str,
        input_BI: Float[jax.Array, "B ... I"],
        scenario_B: Int[jax.Array, "B"],
        *,
        train: bool = False,
    ) -> Float[jax.Array, "B ... D"]:
        """Output of the "user" or "item" tower; towers of other arguments have another method."""
        one_hot_BS = scenario.one_hot(scenario_B, self.spec.num_scenarios)
        input_BI = self.drop(input_BI, train=train)
        tower: nn.Module = getattr(self, f"{side}_tower")
        output: jax.Array = tower(input_BI, self.embedder.scenarios(), one_hot_BS, train=train)
        return output
