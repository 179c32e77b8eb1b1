"""Test-wide settings: eight simulated devices and strict broadcasting.

Annotated shapes are checked too: pyproject.toml turns the hook on.
"""

import os
import pathlib
import signal
import tempfile

from tests import compilation

# Before the first import of jax: the device count is fixed when its backend starts.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        compilation.XLA_FLAGS,
        "--xla_force_host_platform_device_count=8",
    ]
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
# XLA prints an error about pseudo features of the host for every cached CPU program it loads.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import pytest
from absl import flags

jax.config.update("jax_numpy_rank_promotion", "raise")
# Most of a test's time is compilation, and its costly passes change no result.
jax.config.update("jax_disable_most_optimizations", True)
# Tests that build the same model share its compilation.
_CACHE = tempfile.TemporaryDirectory(prefix="dsmoe_jax_test_")
jax.config.update("jax_compilation_cache_dir", _CACHE.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
# Grain reads absl flags, which nobody parses under pytest.
flags.FLAGS.mark_as_parsed()
# A suite in a shell's background ignores Ctrl-C, and what its tests start and interrupt would too.
signal.signal(signal.SIGINT, signal.default_int_handler)

_TESTS = pathlib.Path(__file__).parent
# What the tests of a folder cost, where it is more than a quick test.
_MARKS = {
    **dict.fromkeys(("e2e", "launch"), "e2e"),
    **dict.fromkeys(("baselines", "bench", "capacity", "golden"), "model"),
    **dict.fromkeys(("models", "nn", "serving", "training"), "model"),
}


def _mark(path: pathlib.Path) -> str:
    return _MARKS.get(path.relative_to(_TESTS).parts[0], "unit")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(_mark(item.path))


def pytest_ignore_collect(collection_path: pathlib.Path, config: pytest.Config) -> bool | None:
    # Importing tests that are not asked for takes longer than running those that are.
    is_other = collection_path != _TESTS and _mark(collection_path) != "unit"
    return True if config.option.markexpr == "unit" and is_other else None


_MAPS = pathlib.Path("/proc/self/maps")
# A third of what Linux grants a process by default, 65,530; the costliest module takes 6,000.
_MOST_MAPS = 20_000


@pytest.fixture(scope="module", autouse=True)
def bounded_memory_maps():
    """Forgets compiled programs in time: each holds a dozen maps, and XLA dies without one."""
    yield
    if _MAPS.exists() and len(_MAPS.read_bytes().splitlines()) > _MOST_MAPS:
        jax.clear_caches()
