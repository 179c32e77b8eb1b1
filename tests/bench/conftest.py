"""Measurements start processes of their own: those inherit what runs in tests get."""

import jax
import pytest

from tests.e2e import commands


@pytest.fixture(autouse=True)
def quick_children(monkeypatch):
    jax.devices()  # this process keeps its eight, which the first use fixes
    for name, value in commands.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
