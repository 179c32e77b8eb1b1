import signal

import pytest

from dsmoe_jax.training import interrupt


def test_the_first_signal_asks_and_the_second_goes_to_whoever_had_it_before():
    got = []
    before = signal.signal(signal.SIGINT, lambda number, frame: got.append(number))
    try:
        with interrupt.Interrupt() as stop, pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
            assert stop.requested and got == []
            signal.raise_signal(signal.SIGINT)
        assert got == [signal.SIGINT]
        # A third one too: cleaning up may hang.
        signal.raise_signal(signal.SIGINT)
        assert len(got) == 2
    finally:
        signal.signal(signal.SIGINT, before)
