"""Largest batch of one accelerator, beside what `dsmoe plan` says of it.

Owns the search: steps are compiled, not run, and held against the device's memory by the account of
its own compiler; a step of the batch that is found is run at last. The plan counts with the
compiler for CPUs, in a process of its own.
"""

import dataclasses
import functools
import gc
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dsmoe_jax.bench import device_timing
from dsmoe_jax.capacity import abstract, cases, estimate, simulated
from dsmoe_jax.models.matching import dsmoe
from dsmoe_jax.training import optimizer, sharding

# The batch is found to this share of itself.
_PRECISION = 0.02
# A guess in parts as large as the first step beyond it.
_STRIDE = 16


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search ended with.

    Attributes:
      largest: The largest batch that fits of those that were tried; 0 for none.
      bytes: By batch, what its step holds.
      is_narrow: Whether a batch hardly larger does not fit; else time was up.
    """

    largest: int
    bytes: dict[int, int]
    is_narrow: bool


def list_batches(sizes: device_timing.Sizes, budget: device_timing.Budget) -> device_timing.Listed:
    """One job a shape, dense and in float32."""
    for shape in sizes.shapes:
        yield f"{shape} dense float32", functools.partial(_measure, sizes, budget, shape)


def _measure(
    sizes: device_timing.Sizes, budget: device_timing.Budget, shape: str
) -> dict[str, Any]:
    memory_bytes = sizes.memory_bytes or find_memory()
    setup = make_setup(shape, sizes.overrides, cases.POSITIVES)
    programs: dict[int, Any] = {}

    def count(batch_size: int) -> int:
        lowered = dataclasses.replace(setup, batch_size=batch_size).lower_step()
        programs[batch_size] = lowered.compile()
        return count_bytes(programs[batch_size])

    found = search(
        count,
        memory_bytes,
        unit=setup.mesh.size,
        first=setup.batch_size,
        most=estimate.most_positives(setup),
        left_s=budget.left_s,
    )
    entry: dict[str, Any] = {
        "largest_batch": found.largest,
        "largest_bytes": found.bytes.get(found.largest, 0),
        "memory_bytes": memory_bytes,
        "is_narrow": found.is_narrow,
        "tried": {str(size): held for size, held in found.bytes.items()},
    }
    if not found.largest:
        return entry
    largest = dataclasses.replace(setup, batch_size=found.largest)
    entry["why_not_run"] = try_step(programs.pop(found.largest), largest)
    arguments = (shape, sizes.overrides, found.largest, memory_bytes)
    try:
        [planned] = simulated.run(
            predict, arguments, devices=jax.device_count(), limit_s=budget.left_s()
        )
    except ValueError as error:
        return {**entry, "why_no_plan": str(error)}
    return {**entry, "plan": planned}


def find_memory() -> int:
    """Bytes of the first device that JAX may still take.

    Raises:
      ValueError: When the device does not say how many it has.
    """
    gc.collect()  # what an earlier job held
    statistics = jax.devices()[0].memory_stats() or {}
    if not statistics.get("bytes_limit"):
        raise ValueError(f"memory: {jax.default_backend()} does not say how much it has")
    return int(statistics["bytes_limit"] - statistics.get("bytes_in_use", 0))


def make_setup(shape: str, overrides: dict[str, Any], batch_size: int) -> abstract.Setup:
    """The step of `cases.make_case`'s shape on all devices, dense and without a teacher.

    The batch is rounded up to what the devices divide.
    """
    mesh = sharding.make_mesh()
    return abstract.Setup(
        dsmoe.DSMOEConfig(**overrides).make(cases.make_spec(shape)),
        optimizer.Dense(optimizer.make_optimizer(1e-4, 1e-6)),
        mesh,
        batch_size=-(-batch_size // mesh.size) * mesh.size,
        num_negatives=cases.NEGATIVES,
    )


def count_bytes(compiled: Any) -> int:
    """Bytes that a step holds on each device, as its compiler counts them.

    Arguments whose memory is used again for results count once.
    """
    memory = compiled.memory_analysis()
    size: int = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )
    return size


def search(
    count: Callable[[int], int],
    memory_bytes: int,
    *,
    unit: int,
    first: int,
    most: int,
    left_s: Callable[[], float],
) -> Found:
    """The largest multiple of `unit` up to `most` whose bytes fit, by few counts.

    Bytes grow nearly in proportion: two counts give a guess. From there ever larger steps, each
    twice the one before, go up or down to the other side of the limit, and halving narrows it.

    Args:
      count: Bytes of a batch; RuntimeError and MemoryError count as too many.
      memory_bytes: The limit.
      unit: What divides every batch.
      first: The batch to begin with, a multiple of `unit`.
      most: Upper bound of the batch.
      left_s: Seconds that are left; nothing is counted that would take longer than any before.
    """
    held: dict[int, int] = {}
    longest_s = 0.0

    def fits(batch_size: int) -> bool:
        nonlocal longest_s
        if batch_size not in held:
            before_s = left_s()
            if before_s <= longest_s:
                raise TimeoutError
            try:
                held[batch_size] = count(batch_size)
            except (RuntimeError, MemoryError):  # a compiler may refuse what is far too large
                held[batch_size] = 2 * memory_bytes
            if math.isfinite(before_s):
                longest_s = max(longest_s, before_s - left_s())
        return held[batch_size] <= memory_bytes

    def is_narrow() -> bool:
        low, high = _bracket(held, memory_bytes)
        return low >= most // unit * unit or high - low <= max(unit, _PRECISION * low)

    try:
        if fits(first):
            fits(4 * first)
            slope = (held[4 * first] - held[first]) / (3 * first)
            guess = first + (memory_bytes - held[first]) / max(slope, 1e-9)
            _gallop(fits, round(guess), unit, most)
        while not is_narrow():
            low, high = _bracket(held, memory_bytes)
            middle = (low + high) // 2 // unit * unit
            if middle <= low:
                break
            fits(middle)
    except TimeoutError:
        pass
    return Found(_bracket(held, memory_bytes)[0], held, bool(held) and is_narrow())


def _gallop(fits: Callable[[int], bool], guess: int, unit: int, most: int) -> None:
    """Tries batches from a guess on until one lies on the other side of the limit."""

    def clip(batch_size: int) -> int:
        return max(unit, min(batch_size, most) // unit * unit)

    at = clip(guess)
    goes_up = fits(at)
    step = max(unit, at // _STRIDE)
    while fits(at) == goes_up:
        last, at = at, clip(at + step if goes_up else at - step)
        step *= 2
        if at == last:
            return


def _bracket(held: dict[int, int], memory_bytes: int) -> tuple[int, int]:
    """The largest batch that fits, and the smallest that does not: it fits no batch above."""
    low = max((size for size, used in held.items() if used <= memory_bytes), default=0)
    above = (size for size, used in held.items() if used > memory_bytes and size > low)
    return low, min(above, default=2 * low)


def try_step(compiled: Any, setup: abstract.Setup) -> str:
    """Runs one compiled step on zeros; why it could not, empty where it could."""

    def fill(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        return jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding)

    try:
        state, corpus, batch = jax.tree.map(fill, (setup.state(), setup.corpus(), setup.batch()))
        stepped = compiled(state, None, corpus, batch, jnp.float32(1.0), jax.random.key(0))
        jax.block_until_ready(stepped)
    except (RuntimeError, MemoryError) as error:
        return str(error).strip().partition("\n")[0] or type(error).__name__
    return ""


def predict(
    shape: str, overrides: dict[str, Any], batch_size: int, memory_bytes: int
) -> dict[str, int]:
    """What `dsmoe plan` says of a batch and of the largest, on all devices of this process."""
    planned = estimate.plan_setup(make_setup(shape, overrides, batch_size), float(memory_bytes))
    return {"bytes": planned["total_bytes"], "largest_batch": planned["largest_batch"]}


def describe(entry: dict[str, Any]) -> str:
    """The cell of an entry: what was found, and what the plan says."""
    limit = f"of {entry['memory_bytes'] / 1e9:,.3g} GB"
    if not entry["largest_batch"]:
        return f"no batch that was tried fits {limit}"
    said = (
        f"{entry['largest_batch']:,} positives, {entry['largest_bytes'] / 1e9:,.3g} {limit}"
        f"{'' if entry['is_narrow'] else ', not narrowed down in time'}; "
    )
    said += f"its step failed: {entry['why_not_run']}" if entry["why_not_run"] else "its step ran"
    if "plan" not in entry:
        return f"{said}; no plan: {entry['why_no_plan']}"
    planned = entry["plan"]
    ratio = planned["largest_batch"] / entry["largest_batch"]
    return (
        f"{said}; plan: {planned['bytes'] / 1e9:,.3g} GB for it, at most "
        f"{planned['largest_batch']:,} ({ratio:.2f} x)"
    )
