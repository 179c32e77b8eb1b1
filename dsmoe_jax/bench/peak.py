"""Peak rates of this machine: products per second and bytes per second.

Owns the yardsticks, measured here and now, and the count of a function's matrix products.
"""

import statistics
import timeit
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dsmoe_jax.compare import costs

_SIZE = 2048
_STREAM_FLOATS = 32 * 2**20


def matmul_flops() -> float:
    """Floating-point operations per second of a large float32 product, the best of five."""
    a = jnp.ones((_SIZE, _SIZE), jnp.float32)
    product = jax.jit(lambda x: x @ x)
    return 2 * _SIZE**3 / _best(lambda: product(a))


def stream_bytes() -> float:
    """Bytes per second, read and written, of a copy larger than any cache, the best of five."""
    a = jnp.ones(_STREAM_FLOATS, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    return 8 * _STREAM_FLOATS / _best(lambda: copy(a))


def count_matmul_flops(function: Callable[..., Any], *arguments: Any) -> int:
    """Operations of all matrix products of a traced function: two per multiply-add."""
    return 2 * costs.count_macs(function, *arguments, least_depth=1)


def median_seconds(run: Callable[[], Any]) -> float:
    """Seconds of a call that blocks, the median of fifteen after three."""
    return statistics.median(timeit.repeat(run, number=1, repeat=18)[3:])


def _best(run: Callable[[], jax.Array]) -> float:
    return min(timeit.repeat(lambda: run().block_until_ready(), number=1, repeat=6)[1:])
