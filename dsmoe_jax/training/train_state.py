"""Training state: parameters, statistics, optimizer state and their moving average."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dsmoe_jax import batch as batch_lib
from dsmoe_jax import features
from dsmoe_jax.training import optimizer, sharding


class TrainState(NamedTuple):
    """The state of one stage."""

    step: jax.Array  # int32 scalar, steps taken
    params: Any  # Trained parameters
    # Flax collections beside the parameters: `batch_stats`, `constants`, ...
    model_state: dict[str, Any]
    opt_state: Any  # The optimiser's moments
    # The moving average of the parameters and of what the model tracks, or None.
    average: "Frozen | None" = None


class Frozen(NamedTuple):
    """A model that is applied and never trained: a teacher, or a model under evaluation."""

    params: Any
    model_state: dict[str, Any]

    @property
    def variables(self) -> dict[str, Any]:
        """What Flax applies a model with."""
        return {"params": self.params, **self.model_state}


def freeze(state: TrainState) -> Frozen:
    """The part of a state that inference needs: the average where one is kept."""
    if state.average is None:
        return Frozen(state.params, state.model_state)
    return Frozen(state.average.params, {**state.model_state, **state.average.model_state})


def move_average(
    state: TrainState, decay: float, move_params: Callable[[Any, Any, jax.Array], Any]
) -> TrainState:
    """The state after its step with its average moved towards the new values.

    average += (1 - d) (values - average), d = min(decay, (1 + step) / (10 + step)), so that early
    on the average forgets the initial values; the share is that of TensorFlow's
    `ExponentialMovingAverage`. Integers are taken as they are.

    **Deviation:** the paper evaluates the last parameters.

    `decay` in [0, 1) is d of late steps; `move_params(average, params, 1 - d)` averages parameters.
    """
    if state.average is None:
        return state
    step = state.step.astype(jnp.float32)
    share = 1.0 - jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    old, new = state.average, _averaged(state)
    return state._replace(
        average=Frozen(
            move_params(old.params, new.params, share),
            optimizer.move_towards(old.model_state, new.model_state, share),
        )
    )


def _averaged(state: TrainState) -> Frozen:
    changing = {name: tree for name, tree in state.model_state.items() if name != "constants"}
    return Frozen(state.params, changing)


def init_state(
    model: nn.Module,
    updater: optimizer.Updater,
    *,
    key: jax.Array,
    mesh: jax.sharding.Mesh,
    constants: dict[str, np.ndarray] | None = None,
    averaged: bool = False,
) -> TrainState:
    """Initial state, created in its sharded layout.

    `constants` are the values of the model's collection of that name; `averaged` says whether a
    moving average of the parameters is kept.

    Raises:
      ValueError: When the given constants are not those the model declares.
    """
    like = abstract_state(model, updater, mesh=mesh, averaged=averaged)
    declared = {name: leaf.shape for name, leaf in like.model_state.get("constants", {}).items()}
    given = {name: value.shape for name, value in (constants or {}).items()}
    if declared != given:
        raise ValueError(f"constants: the model declares {declared}, got {given}")
    layout = sharding.state_sharding(mesh, like)
    init = _make_padded_init(model, updater, averaged, mesh)
    state: TrainState = jax.jit(init, out_shardings=layout)(key)
    if constants:
        placed = sharding.put_replicated(mesh, constants)
        state = state._replace(model_state={**state.model_state, "constants": placed})
    return state


def start_from(state: TrainState, frozen: Frozen) -> TrainState:
    """An initial state with the parameters, and what the model tracks, of an earlier stage."""
    # A step frees the state it is given, so every part of it needs arrays of its own.
    params = jax.tree.map(jnp.copy, frozen.params)
    model_state = {**state.model_state, **jax.tree.map(jnp.copy, frozen.model_state)}
    state = state._replace(params=params, model_state=model_state)
    if state.average is None:
        return state
    return state._replace(average=jax.tree.map(jnp.copy, _averaged(state)))


def abstract_state(
    model: nn.Module,
    updater: optimizer.Updater,
    *,
    mesh: sharding.AnyMesh,
    averaged: bool = False,
) -> TrainState:
    """Shapes, types and layout of what `init_state` makes, on devices that need not exist."""
    shapes = jax.eval_shape(_make_padded_init(model, updater, averaged, mesh), jax.random.key(0))
    layout = sharding.state_sharding(mesh, shapes)
    like: TrainState = sharding.abstract(shapes, layout)
    return like


def make_init(
    model: nn.Module, updater: optimizer.Updater, averaged: bool
) -> Callable[[jax.Array], TrainState]:
    """Builds `init(key)`, the initial state of a stage, its constants being 0.

    Raises:
      ValueError: When single rows are to be updated of a model that looks items up in other tables
        too: ids that point into what a batch touches would read wrong rows there.
    """
    if getattr(model, "own_item_tables", ()) and getattr(updater, "names", ()):
        raise ValueError(
            f"optim.embedding: expected 'dense' for {type(model).__name__}, which looks items up "
            "in tables of its own, got 'row_sparse'"
        )
    users, items, scenario_B = example_inputs(model.spec)

    def init(key: jax.Array) -> TrainState:
        variables = dict(model.init({"params": key}, users, items, scenario_B, train=False))
        params = variables.pop("params")
        state = TrainState(jnp.zeros((), jnp.int32), params, variables, updater.init(params))
        return state._replace(average=_averaged(state)) if averaged else state

    return init


def _make_padded_init(
    model: nn.Module, updater: optimizer.Updater, averaged: bool, mesh: sharding.AnyMesh
) -> Callable[[jax.Array], TrainState]:
    """As `make_init`, with tables that the devices divide and the values of any other number."""
    init = make_init(model, updater, averaged)

    def padded(key: jax.Array) -> TrainState:
        state: TrainState = sharding.pad_tables(mesh, init(key))
        return state

    return padded


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
