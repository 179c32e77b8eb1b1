"""Serving costs of a method: multiplications of one forward pass, per side and per pair.

Owns the paper's Table 3 as this project reads it: a multiply-accumulate is one MAC and two FLOPs,
and a forward pass is of 4,096 pairs of a user and an item. Parameters are counted where they are
trained; seconds are measured there.

A pair needs the branch of its own scenario alone, while the program computes those of all and keeps
each example's own (`nn/scenario.py`). So the matrix products are counted of the same method on data
of one scenario; a method that is given a user's histories of all scenarios is counted with all of
them. Sums, norms, activations and picks of a scenario's row are not counted. On KuaiRand's four
scenarios this is within 1.2 % of a count that follows every product to the branch that is kept, and
3 % above it for M5; ADIN with self-training and SASS with its contrastive stage, which alone read
these histories, are counted with all branches.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dsmoe_jax import features
from dsmoe_jax.config import schema
from dsmoe_jax.data import store as store_lib
from dsmoe_jax.models.matching import two_tower
from dsmoe_jax.run import inputs
from dsmoe_jax.training import train_state

PAIRS = 4096


def count(experiment: schema.Experiment, store: store_lib.Store) -> dict[str, int]:
    """MACs of the method of an experiment on its prepared data; see `count_method`."""
    return count_method(experiment.model, inputs.select_features(store, experiment))


def count_method(
    method: schema.MatcherConfig, spec: features.FeatureSpec, pairs: int = PAIRS
) -> dict[str, int]:
    """MACs of a method on some features; nothing is computed or allocated.

    Returns:
      `user` and `item`: of the towers on `pairs` rows; `score`: of the inner products; `query`: of
      the user tower on one user; `corpus`: of the item vectors of one index, over all scenarios
      that have one of their own; `indexes`: how many there are.
    """
    read = spec.scenarios if method.scenario_histories else spec.scenarios[:1]
    matcher: two_tower.Matcher = method.make(dataclasses.replace(spec, scenarios=read))
    example = jax.eval_shape(lambda: train_state.example_inputs(matcher.spec))
    variables = jax.eval_shape(
        lambda key, *inputs: matcher.init({"params": key}, *inputs, train=False),
        jax.random.key(0),
        *example,
    )

    def side(name: str, rows: int) -> tuple[int, Any]:
        users, items, scenario_B = example
        # Of items the axis of candidates goes.
        inputs, dropped = (users, 1) if name == "user" else (items, 2)
        inputs = jax.tree.map(lambda leaf: _shape(rows, leaf, dropped), inputs)
        scenario_B = _shape(rows, scenario_B, 1)

        def embed(variables: Any, inputs: Any, scenario_B: jax.Array) -> jax.Array:
            vector, _ = matcher.apply(
                variables, inputs, scenario_B, train=False, method=f"embed_{name}"
            )
            return jnp.asarray(vector)

        counted = count_macs(embed, variables, inputs, scenario_B)
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


def _shape(rows: int, leaf: Any, dropped: int) -> jax.ShapeDtypeStruct:
    make: Any = jax.ShapeDtypeStruct
    found: jax.ShapeDtypeStruct = make((rows, *leaf.shape[dropped:]), leaf.dtype)
    return found


def count_macs(function: Callable[..., Any], *inputs: Any, least_depth: int = 2) -> int:
    """Multiply-accumulates of the matrix products of a function on inputs, or on their shapes.

    A product of a lesser depth is not counted: one of depth 1 picks the row of the one scenario.

    Raises:
      ValueError: Where the program has a loop whose length is not known, or a convolution.
    """
    return _count(jax.make_jaxpr(function)(*inputs).jaxpr, least_depth)


def _count(jaxpr: Any, least_depth: int) -> int:
    total = 0
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name in ("while", "conv_general_dilated"):
            raise ValueError(f"count of multiplications: expected none of {name!r}, got one")
        if name == "dot_general":
            [contracted, _], _ = eqn.params["dimension_numbers"]
            depth = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
            if depth >= least_depth:
                total += math.prod(eqn.outvars[0].aval.shape) * depth
        elif name == "cond":
            total += max(_count(branch.jaxpr, least_depth) for branch in eqn.params["branches"])
        else:
            # A call, or the body of a loop: a program with its own equations.
            inner = (eqn.params.get(key) for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"))
            for program in (getattr(entry, "jaxpr", entry) for entry in inner if entry is not None):
                total += eqn.params.get("length", 1) * _count(program, least_depth)
    return total
