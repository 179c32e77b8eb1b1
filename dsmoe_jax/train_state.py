"""What a stage of training carries from step to step."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from dsmoe_jax import batch as batch_lib
from dsmoe_jax import features, sharding


class TrainState(NamedTuple):
    """The state of one stage.

    Attributes:
      step: int32 scalar, steps taken.
      params: Trained parameters.
      model_state: Flax collections beside the parameters: `batch_stats`, `constants`, ...
      opt_state: The optimiser's moments.
    """

    step: jax.Array
    params: Any
    model_state: dict[str, Any]
    opt_state: Any


class Frozen(NamedTuple):
    """A model that is applied and never trained: a teacher, or a model under evaluation."""

    params: Any
    model_state: dict[str, Any]


def freeze(state: TrainState) -> Frozen:
    """The part of a state that inference needs."""
    return Frozen(state.params, state.model_state)


def init_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    *,
    key: jax.Array,
    mesh: jax.sharding.Mesh,
    constants: dict[str, np.ndarray] | None = None,
) -> TrainState:
    """Initial state, created in its sharded layout.

    Args:
      model: A matcher or a ranker.
      optimizer: Its optimiser.
      key: Random key of the initial parameters.
      mesh: The devices.
      constants: Values of the model's `constants` collection by name.

    Raises:
      ValueError: When the given constants are not those the model declares.
    """
    users, items, scenario_B = example_inputs(model.spec)

    def init(key: jax.Array) -> TrainState:
        variables = dict(model.init({"params": key}, users, items, scenario_B, train=False))
        params = variables.pop("params")
        return TrainState(jnp.zeros((), jnp.int32), params, variables, optimizer.init(params))

    shape = jax.eval_shape(init, key)
    declared = {name: leaf.shape for name, leaf in shape.model_state.get("constants", {}).items()}
    given = {name: value.shape for name, value in (constants or {}).items()}
    if declared != given:
        raise ValueError(f"constants: the model declares {declared}, got {given}")
    layout = sharding.state_sharding(mesh, shape)
    state = jax.jit(init, out_shardings=layout)(key)
    if constants:
        placed = sharding.put_replicated(mesh, constants)
        state = state._replace(model_state={**state.model_state, "constants": placed})
    return state


def example_inputs(
    spec: features.FeatureSpec,
) -> tuple[batch_lib.Users, batch_lib.Items, jax.Array]:
    """Two examples of padding with one candidate each: the shapes a model is initialised with."""
    B = 2
    users = batch_lib.Users(
        sparse_BF=jnp.zeros((B, len(spec.user_sparse)), jnp.int32),
        dense_BF=jnp.zeros((B, len(spec.user_dense)), jnp.float32),
        bags={f.name: jnp.zeros((B, f.max_len), jnp.int32) for f in spec.user_bags},
        sequences={
            f.name: batch_lib.Sequence(
                ids_BLF=jnp.zeros((B, f.max_len, len(f.fields)), jnp.int32),
                time_BL=jnp.zeros((B, f.max_len), jnp.int32),
            )
            for f in spec.sequences
        },
        time_B=jnp.zeros(B, jnp.int32),
    )
    items = batch_lib.Items(
        sparse_VF=jnp.zeros((B, 1, len(spec.item_sparse)), jnp.int32),
        dense_VF=jnp.zeros((B, 1, len(spec.item_dense)), jnp.float32),
        bags={f.name: jnp.zeros((B, 1, f.max_len), jnp.int32) for f in spec.item_bags},
    )
    return users, items, jnp.zeros(B, jnp.int32)
