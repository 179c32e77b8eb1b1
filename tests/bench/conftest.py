"""Measurements start processes of their own: what those inherit."""

import jax
import pytest


@pytest.fixture(autouse=True)
def quick_children(monkeypatch, tmp_path_factory):
    """What a measurement starts has one device and skips the compiler's costly passes."""
    jax.devices()  # this process keeps its eight, which the first use fixes
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "cache"))
