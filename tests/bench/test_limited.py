import os
import time

import pytest

from dsmoe_jax.bench import limited


def add(a, b):
    return a + b


def refuse():
    raise ValueError("too small")


def test_what_a_function_returns_or_refuses_comes_back():
    assert limited.call("sum", 60.0, add, 2, 3) == 5
    with pytest.raises(ValueError, match=r"^sum: too small$"):
        limited.call("sum", 60.0, refuse)


def test_a_process_that_ends_says_so():
    with pytest.raises(ValueError, match=r"^exit: the process ended"):
        limited.call("exit", 60.0, os._exit, 3)


def test_what_lasts_longer_is_ended():
    start_s = time.perf_counter()
    with pytest.raises(ValueError, match=r"^sleep: not done in the 1 s that were left$"):
        limited.call("sleep", 1.0, time.sleep, 300)
    assert time.perf_counter() - start_s < 100
