import threading

import pytest

from dsmoe_jax.data.prepare import ahead


def count(upto, made, closed):
    try:
        for i in range(upto):
            made.append(i)
            yield i
        if upto == 3:
            raise ValueError("row 3: broken")
    finally:
        closed.append(True)


def test_values_come_in_order_from_another_thread():
    threads = []

    def values():
        for i in range(5):
            threads.append(threading.current_thread())
            yield i

    assert list(ahead.one_ahead(values())) == [0, 1, 2, 3, 4]
    assert threading.current_thread() not in threads


def test_at_most_one_value_is_made_ahead():
    made, closed = [], []
    values = ahead.one_ahead(count(100, made, closed))
    for expected in range(4):
        assert next(values) == expected
        assert len(made) <= expected + 2
    values.close()
    assert len(made) <= 5
    assert closed == [True]


def test_an_error_comes_after_the_values_before_it():
    made, closed = [], []
    values = ahead.one_ahead(count(3, made, closed))
    assert [next(values) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="row 3: broken"):
        next(values)
    assert closed == [True]
