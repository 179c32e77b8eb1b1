"""Counts the multiplications of a model's matrix products, of the scenario's own branch alone.

Owns the count for a traced function. Layers with parameters per scenario compute all S branches and
keep each example's own by its one-hot scenario (`nn/scenario.py`): that is how the program is fast,
not what the method needs. So the count walks the traced program backwards and knows of every
intermediate array along which axes only a part is asked for; a product is counted for that part.
Picking a row of a table by a one-hot product is no multiplication either.

What is counted is otherwise what the program does: a bias that is a row of a product counts as one,
and so do the zero blocks of stacked low-rank factors. Sums, norms and activations are not counted.

An axis of an array is asked for in part when what reads it multiplies by a one-hot matrix, whose
other axes tell which part: the part differs from example to example. An array without those axes is
shared by all examples and asked for as a whole.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core as jax_core

from dsmoe_jax.compare import axes


def count_macs(function: Callable[..., Any], *inputs: Any) -> int:
    """Multiply-accumulates of the matrix products of a function.

    Args:
      function: Traceable; its outputs are all asked for.
      inputs: Its arguments, or their shapes and types.

    Raises:
      ValueError: Where the program has a loop whose length is not known, or a convolution.
    """
    closed = jax.make_jaxpr(function)(*inputs)
    known = [_known_input(var.aval.shape) for var in closed.jaxpr.invars]
    total, _ = _Walk(closed).run(known, [{} for _ in closed.jaxpr.outvars])
    return round(total)


class _Walk:
    """One traced program: what is known of its arrays, then what is asked of them."""

    def __init__(self, closed: Any):
        self._jaxpr = closed.jaxpr
        self._constants = list(zip(closed.jaxpr.constvars, closed.consts, strict=True))
        self._known: dict[Any, axes.Known] = {}
        self._demand: dict[Any, axes.Demand] = {}
        self._inner: dict[int, _Walk] = {}

    def learn(self, known: Sequence[axes.Known]) -> list[axes.Known]:
        """Forward: from what is known of the inputs to what is known of the outputs."""
        for var, value in self._constants:
            self._known[var] = _known_constant(value)
        self._known.update(zip(self._jaxpr.invars, known, strict=True))
        for number, eqn in enumerate(self._jaxpr.eqns):
            inputs = [self._read(var) for var in eqn.invars]
            inner = _inner_jaxpr(eqn)
            if inner is not None:
                self._inner[number] = _Walk(inner)
                found = self._inner[number].learn(inputs)
            else:
                found = [_learn(eqn, inputs)] * len(eqn.outvars)
            for var, entry in zip(eqn.outvars, found, strict=True):
                self._known[var] = entry
        return [self._read(var) for var in self._jaxpr.outvars]

    def run(
        self, known: Sequence[axes.Known], demands: Sequence[axes.Demand]
    ) -> tuple[float, list[axes.Demand]]:
        """Multiplications for what is asked of the outputs, and what that asks of the inputs."""
        self.learn(known)
        return self.ask(demands)

    def ask(self, demands: Sequence[axes.Demand]) -> tuple[float, list[axes.Demand]]:
        """Backward, after `learn`."""
        for var, demand in zip(self._jaxpr.outvars, demands, strict=True):
            self._add(var, demand)
        total = 0.0
        for number, eqn in reversed(list(enumerate(self._jaxpr.eqns))):
            outs = [self._demand.get(var) for var in eqn.outvars]
            if all(out is None for out in outs):
                continue
            cost, wanted = self._ask_equation(number, eqn, outs)
            total += cost
            for var, demand in zip(eqn.invars, wanted, strict=True):
                self._add(var, demand)
        return total, [self._demand.get(var) for var in self._jaxpr.invars]

    def _ask_equation(
        self, number: int, eqn: Any, outs: list[axes.Demand]
    ) -> tuple[float, list[axes.Demand]]:
        name = eqn.primitive.name
        whole: list[axes.Demand] = [{} for _ in eqn.invars]
        if number in self._inner:
            return self._inner[number].ask(outs)
        if name == "dot_general":
            return _ask_product(eqn, [self._read(var) for var in eqn.invars], outs[0])
        if name == "scan":
            # Only what does not change from step to step keeps what is known of it.
            fixed = [self._read(var) for var in eqn.invars[: eqn.params["num_consts"]]]
            return _ask_whole(eqn.params["jaxpr"], fixed) * eqn.params["length"], whole
        if name == "cond":
            return max(_ask_whole(branch, []) for branch in eqn.params["branches"]), whole
        if name in ("while", "conv_general_dilated"):
            raise ValueError(f"count of multiplications: expected none of {name!r}, got one")
        known = [self._read(var) for var in eqn.invars]
        return 0.0, axes.ask(eqn, known, outs)

    def _read(self, var: Any) -> axes.Known:
        if isinstance(var, jax_core.Literal):
            return axes.Known(frozenset(range(np.ndim(var.val))))
        return self._known[var]

    def _add(self, var: Any, demand: axes.Demand) -> None:
        if demand is None or isinstance(var, jax_core.Literal):
            return
        known = self._demand.get(var)
        self._demand[var] = demand if known is None else _join(known, demand)


def _inner_jaxpr(eqn: Any) -> Any:
    """The program that an equation calls with its own inputs and outputs, if any."""
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        inner = eqn.params.get(key)
        if inner is not None and eqn.primitive.name != "scan":
            return inner if hasattr(inner, "consts") else jax_core.ClosedJaxpr(inner, ())
    return None


def _ask_whole(closed: Any, known: list[axes.Known]) -> float:
    """Multiplications of a program all of whose outputs are asked for.

    Args:
      closed: The program.
      known: What is known of its first inputs.
    """
    shapes = [var.aval.shape for var in closed.jaxpr.invars]
    free = [_known_input(shape) for shape in shapes[len(known) :]]
    cost, _ = _Walk(closed).run([*known, *free], [{} for _ in closed.jaxpr.outvars])
    return cost


def _join(first: dict[int, axes.Part], second: dict[int, axes.Part]) -> axes.Demand:
    """What two readers ask for together."""
    both = first.keys() & second.keys()
    return {axis: axes.join([first[axis], second[axis]]) for axis in both}


def _known_input(shape: tuple[int, ...]) -> axes.Known:
    return axes.Known(frozenset(axis for axis, size in enumerate(shape) if size == 1))


def _known_constant(value: Any) -> axes.Known:
    """A constant of the program: it may count along an axis."""
    shape = np.shape(value)
    free = [axis for axis, size in enumerate(shape) if size > 1]
    counts = None
    if len(free) == 1 and np.array_equal(np.ravel(value), np.arange(shape[free[0]])):
        counts = free[0]
    return _known_input(shape)._replace(counts=counts)


def _learn(eqn: Any, inputs: list[axes.Known]) -> axes.Known:
    """What is known of an equation's result."""
    name, shape = eqn.primitive.name, eqn.outvars[0].aval.shape
    if name == "iota":
        axis = eqn.params["dimension"]
        return axes.Known(frozenset(range(len(shape))) - {axis}, counts=axis)
    if name == "eq":
        for one, other in (inputs, inputs[::-1]):
            if one.counts is not None and one.counts in other.constant:
                return axes.Known(one.constant & other.constant, one_hot=one.counts)
    moved = axes.follow(eqn)
    ones = _known_input(shape).constant
    if moved is None:
        return axes.Known(ones)
    [source] = inputs[:1]
    to = {axis: place for axis, place in moved.items() if place is not None}
    fresh = frozenset(range(len(shape))) - frozenset(to.values())
    constant = ones | fresh | {to[axis] for axis in source.constant if axis in to}
    # No axis is at no place.
    counts, one_hot = (
        None if axis is None else to.get(axis) for axis in (source.counts, source.one_hot)
    )
    return axes.Known(constant, counts, one_hot)


def _ask_product(
    eqn: Any, known: list[axes.Known], out: axes.Demand
) -> tuple[float, list[axes.Demand]]:
    """Multiplications of a matrix product, and what it asks of its two operands."""
    contracted, batched = eqn.params["dimension_numbers"]
    shapes = [var.aval.shape for var in eqn.invars]
    places = _places(shapes, contracted, batched)
    wanted: list[axes.Demand] = [axes.carry(out or {}, place) for place in places]
    for own, other in ((0, 1), (1, 0)):
        hot = known[own].one_hot
        if hot not in contracted[own]:
            continue
        # A lookup: the rows that other examples pick are not asked for.
        axis = contracted[other][list(contracted[own]).index(hot)]
        selecting = frozenset(range(len(shapes[own]))) - known[own].constant - {hot}
        beside = dict(zip(batched[own], batched[other], strict=True))
        if selecting <= beside.keys():
            by = frozenset(beside[a] for a in selecting)
            wanted[other] = {**(wanted[other] or {}), axis: axes.Part(1 / shapes[other][axis], by)}
        return 0.0, wanted
    size = math.prod(eqn.outvars[0].aval.shape)
    depth = math.prod(shapes[0][axis] for axis in contracted[0])
    share = math.prod(part.share for part in (out or {}).values())
    return float(size * depth * share), wanted


def _places(shapes: list[tuple[int, ...]], contracted: Any, batched: Any) -> list[dict[int, int]]:
    """For each operand, its axis by the axis of the result that it becomes."""
    places, start = [], len(batched[0])
    for shape, own, own_batch in zip(shapes, contracted, batched, strict=True):
        free = [axis for axis in range(len(shape)) if axis not in (*own, *own_batch)]
        place = dict(enumerate(own_batch))
        place.update({start + n: axis for n, axis in enumerate(free)})
        start += len(free)
        places.append(place)
    return places
