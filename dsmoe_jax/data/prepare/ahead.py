"""Prefetching: a generator that runs in a thread, one value ahead of its consumer.

Owns nothing else. Parsing, sorting and hashing leave the interpreter free, so two cores share them.
"""

import concurrent.futures
from collections.abc import Generator, Iterator
from typing import Any, TypeVar, cast

T = TypeVar("T")


def one_ahead(values: Generator[T, None, None]) -> Iterator[T]:
    """The same values in the same order; the next one is made while one is used.

    What the generator raises is raised here, in its turn. At most two values are alive at once.
    """
    end: Any = object()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        try:
            coming = pool.submit(next, values, end)
            while (value := coming.result()) is not end:
                coming = pool.submit(next, values, end)
                yield cast(T, value)
        finally:
            # A consumer that leaves early leaves the generator suspended.
            concurrent.futures.wait([coming])
            values.close()
