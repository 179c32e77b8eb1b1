"""Graceful shutdown on SIGINT and SIGTERM."""

import signal
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils


class InterruptedRunError(Exception):
    """The run was asked to stop; its state is saved."""


class Interrupt:
    """Turns SIGTERM and Ctrl-C into a request that the loop honours at its next step.

    With several processes all must stop at the same step: JAX's preemption service, which listens
    to SIGTERM, agrees on it. A second Ctrl-C ends the process at once.
    """

    def __init__(self, handle_signals: bool = True) -> None:
        """Nothing is requested yet.

        Args:
          handle_signals: False leaves the process's signal handlers as they are: nothing ever asks.
        """
        self._handle_signals = handle_signals
        self._requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Interrupt":
        if not self._handle_signals:
            return self
        handled = [signal.SIGINT] if jax.process_count() > 1 else [signal.SIGINT, signal.SIGTERM]
        for number in handled:
            self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    @property
    def requested(self) -> bool:
        """Whether this process was asked to stop."""
        return self._requested

    def reached(self, step: int) -> bool:
        """Whether to save and stop after `step`; all processes answer alike."""
        if jax.process_count() > 1:
            return bool(multihost_utils.reached_preemption_sync_point(step))
        return self._requested

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._requested:
            # A third one is for whoever handled signals before.
            handler = self._previous.get(number)
            self.__exit__()
            if callable(handler):
                handler(number, frame)
            raise KeyboardInterrupt
        self._requested = True
        if jax.process_count() > 1:
            signal.raise_signal(signal.SIGTERM)
