"""Held variables: what item vectors are made of, kept as it is while the rest of a model trains.

Owns which variables an item's vector depends on, found in the traced item tower, and the step that
leaves them alone. Rows of new ids train.

Letters: V rows of a table.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from dsmoe_jax.training import train_state, warm_start

# Which rows of a variable are held, by its path in a state; None holds all of it.
Held = Mapping[str, Bool[np.ndarray, "_"] | None]


def find(
    model: nn.Module,
    like: train_state.TrainState,
    sources: Mapping[str, warm_start.Sources],
) -> dict[str, Bool[np.ndarray, "_"] | None]:
    """What of a state has to stay for the vectors of known items to stay.

    Args:
      model: A matcher.
      like: Shapes of its state.
      sources: Where rows of its tables were before; rows that are new are not held.

    Raises:
      ValueError: When item vectors depend on what is counted in the log, which changes with it.
    """
    read = read_by_items(model, like)
    counted = sorted(path for path in read if path.startswith("model_state/constants/"))
    if counted:
        raise ValueError(
            f"train.hold_items: expected False with {type(model).__name__}, whose item vectors "
            f"hold what is counted in the log ({counted[0].rpartition('/')[2]}), got True"
        )
    found: dict[str, Bool[np.ndarray, "_"] | None] = {}
    for path in read:
        name = path.removeprefix("params/")
        known = warm_start.known_rows(sources[name]) if name in sources else None
        found[path] = known
        if like.average is not None:
            found[f"average/{path}"] = known
    return found


def read_by_items(model: nn.Module, like: train_state.TrainState) -> set[str]:
    """Paths in a state of all variables that item vectors depend on at inference."""
    variables = {"params": like.params, "model_state": like.model_state}
    leaves, structure = jax.tree_util.tree_flatten_with_path(variables)
    _, items, scenario_B = train_state.example_inputs(model.spec)

    def embed(*values: jax.Array) -> jax.Array:
        tree = jax.tree.unflatten(structure, values)
        frozen = train_state.Frozen(tree["params"], tree["model_state"])
        vector_BGD, _ = model.apply(
            frozen.variables, items, scenario_B, train=False, method="embed_item"
        )
        found: jax.Array = vector_BGD
        return found

    shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for _, leaf in leaves]
    program = jax.make_jaxpr(embed)(*shapes).jaxpr
    needed = _variables(program.outvars)
    for equation in reversed(program.eqns):
        if needed & _variables(equation.outvars):
            needed |= _variables(equation.invars)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for (path, _), variable in zip(leaves, program.invars, strict=True)
        if variable in needed
    }


def hold(step: Callable[..., Any], held: Held) -> Callable[..., Any]:
    """A step, `(state, ...) -> (state, metrics)`, after which what is held is as before."""

    def run(state: train_state.TrainState, *arguments: Any) -> tuple[Any, Any]:
        moved, metrics = step(state, *arguments)

        def keep(path: Any, new: jax.Array, old: jax.Array) -> jax.Array:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            if name not in held:
                return new
            known_V = held[name]
            if known_V is None:
                return old
            # Rows that pad a table to a number of devices may do as they do.
            known_V = np.pad(known_V, (0, new.shape[0] - len(known_V)))
            return jnp.where(known_V.reshape(-1, *(1,) * (new.ndim - 1)), old, new)

        return jax.tree_util.tree_map_with_path(keep, moved, state), metrics

    return run


def _variables(atoms: Any) -> set[Any]:
    return {atom for atom in atoms if isinstance(atom, jax.extend.core.Var)}
