"""Optimizers: the paper's recipe, and the protocol of everything that updates parameters."""

import dataclasses
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Int

from dsmoe_jax import batch as batch_lib

# PyTorch's and Optax's defaults.
BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8


# What a step size that falls has at its end.
FINAL_SHARE = 0.05


def make_schedule(learning_rate: float, decay_steps: int) -> optax.ScalarOrSchedule:
    """The step size, or half a cosine over so many steps from it to a twentieth."""
    if not decay_steps:
        return learning_rate
    schedule: optax.Schedule = optax.cosine_decay_schedule(learning_rate, decay_steps, FINAL_SHARE)
    return schedule


def make_optimizer(
    learning_rate: optax.ScalarOrSchedule, weight_decay: float, beta_2: float = BETA_2
) -> optax.GradientTransformation:
    """Adam with coupled L2, as `torch.optim.Adam(weight_decay=...)`.

    The L2 term joins the gradient before Adam's moments; `optax.adamw` would decay the parameters
    beside them, which is another recipe.

    **Paper:** "Implementation details": Adam, learning rate 1e-4, weight decay 1e-6.

    Args:
      learning_rate: Step size > 0, or what gives it for a step.
      weight_decay: Factor of the parameters that is added to their gradient, >= 0.
      beta_2: Decay of the second moments.
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.adam(learning_rate, b1=BETA_1, b2=beta_2, eps=EPSILON),
    )


class Gathered(NamedTuple):
    """What a step gives the model.

    Attributes:
      params: The parameters to differentiate with respect to.
      users: The user side; its ids index `params`.
      items: The candidates, likewise.
      constants: The corpus constants, whose item axis these ids index too.
      opt_state: With what the update needs to know.
      touched_rows: The rows that a batch touches, by table, where not all are updated.
    """

    params: Any
    users: batch_lib.Users
    items: batch_lib.Items
    constants: dict[str, jax.Array]
    opt_state: Any
    touched_rows: dict[str, Any]


@runtime_checkable
class Updater(Protocol):
    """How parameters are updated; by default the model is given all of them in every step."""

    def init(self, params: Any) -> Any:
        """The initial state."""

    def gather(
        self,
        params: Any,
        opt_state: Any,
        users: batch_lib.Users,
        items: batch_lib.Items,
        constants: dict[str, jax.Array],
    ) -> Gathered:
        """What the model is given in a step."""
        return Gathered(params, users, items, constants, opt_state, {})

    def update(
        self, gradient: Any, params: Any, gathered: Gathered, step: Int[jax.Array, ""]
    ) -> tuple[Any, Any]:
        """The next parameters and state, after `step` steps before this one.

        The gradient is with respect to `gathered.params`; `params` are whole.
        """

    def average(self, average: Any, params: Any, gathered: Gathered, share: jax.Array) -> Any:
        """The averaged parameters, moved by a share towards the new ones."""
        return move_towards(average, params, share)


@dataclasses.dataclass(frozen=True)
class Dense(Updater):
    """All parameters in every step: the paper's recipe."""

    optimizer: optax.GradientTransformation

    def init(self, params: Any) -> Any:
        """Moments of 0."""
        return self.optimizer.init(params)

    def update(
        self, gradient: Any, params: Any, gathered: Gathered, step: Int[jax.Array, ""]
    ) -> tuple[Any, Any]:
        """See `Updater`."""
        updates, opt_state = self.optimizer.update(gradient, gathered.opt_state, params)
        return optax.apply_updates(params, updates), opt_state


def move_towards(old: Any, new: Any, share: jax.Array) -> Any:
    """Old + share (new - old), leaf by leaf; integers are taken as they are."""

    def move(old: jax.Array, new: jax.Array) -> jax.Array:
        if not jnp.issubdtype(new.dtype, jnp.floating):
            return new
        return old + share * (new - old)

    return jax.tree.map(move, old, new)
