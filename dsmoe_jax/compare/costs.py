"""What a method costs to serve: multiplications of one forward pass, per side and per pair.

Owns the paper's Table 3 as this project reads it: a multiply-accumulate is one MAC and two FLOPs,
and a forward pass is of 4,096 pairs of a user and an item, each with its own scenario. Parameters
are counted where they are trained; seconds are measured there.
"""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from dsmoe_jax.compare import macs
from dsmoe_jax.config import schema
from dsmoe_jax.data import store as store_lib
from dsmoe_jax.models.matching import two_tower
from dsmoe_jax.run import stages
from dsmoe_jax.training import train_state

PAIRS = 4096


def count(experiment: schema.Experiment, store_dir: pathlib.Path) -> dict[str, int]:
    """MACs of the method of an experiment on its prepared data; see `count_matcher`."""
    store = store_lib.Store.open(store_dir)
    spec = stages.select_features(store, experiment)
    return count_matcher(experiment.model.make(spec))


def count_matcher(matcher: two_tower.Matcher, pairs: int = PAIRS) -> dict[str, int]:
    """MACs of a matcher; nothing is computed or allocated.

    Returns:
      `user` and `item`: of the towers on `pairs` rows; `score`: of the inner products; `query`: of
      the user tower on one user; `corpus`: of the item vectors of one index, over all scenarios
      that have one of their own; `indexes`: how many there are.
    """
    spec = matcher.spec
    example = jax.eval_shape(lambda: train_state.example_inputs(spec))
    variables = jax.eval_shape(
        lambda key, *inputs: matcher.init({"params": key}, *inputs, train=False),
        jax.random.key(0),
        *example,
    )

    def side(name: str, rows: int) -> tuple[int, Any]:
        users, items, scenario_B = example
        # Of items the axis of candidates goes.
        items = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((rows, *leaf.shape[2:]), leaf.dtype), items
        )
        users, scenario_B = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype),
            (users, scenario_B),
        )
        inputs = users if name == "user" else items

        def embed(variables: Any, inputs: Any, scenario_B: jax.Array) -> jax.Array:
            vector, _ = matcher.apply(
                variables, inputs, scenario_B, train=False, method=f"embed_{name}"
            )
            return jnp.asarray(vector)

        counted = macs.count_macs(embed, variables, inputs, scenario_B)
        return counted, jax.eval_shape(embed, variables, inputs, scenario_B).shape

    user, (_, interests, width) = side("user", pairs)
    item, _ = side("item", pairs)
    indexes = spec.num_scenarios if matcher.item_uses_scenario else 1
    return {
        "user": user,
        "item": item,
        "score": pairs * interests * width,
        "query": side("user", 1)[0],
        "corpus": indexes * side("item", spec.num_items - 1)[0],
        "indexes": indexes,
    }
