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
# What a file's tests are, by the start of its path; the longest start counts. `unit`: answers while
# one waits; `model`: compiles models; `e2e`: starts processes or runs a whole command.
_KINDS = {
    "": "unit",
    "baselines": "model",
    "bench": "e2e",
    "bench/test_daily": "unit",
    "capacity": "model",
    "compare/report/test_build": "e2e",
    "compare/report/test_documents": "e2e",
    "compare/report/test_page": "e2e",
    "compare/simulation": "e2e",
    "compare/test_cluster": "e2e",
    "compare/test_costs": "model",
    "compare/test_job": "e2e",
    "compare/test_plan": "e2e",
    "compare/test_runner": "e2e",
    "compare/test_tune": "e2e",
    "data/synthetic": "model",
    "e2e": "e2e",
    "evaluation/test_evaluators": "model",
    "golden": "model",
    "launch": "e2e",
    "models": "model",
    "nn": "model",
    "retrieval": "model",
    "retrieval/test_ann": "unit",
    "retrieval/test_checks": "unit",
    "retrieval/test_choice": "unit",
    "retrieval/test_delta": "unit",
    "retrieval/test_host": "unit",
    "retrieval/test_index": "unit",
    "run": "e2e",
    "run/test_calibration": "unit",
    "serving": "model",
    "serving/test_page": "e2e",
    "serving/test_serve": "e2e",
    "test_documentation": "e2e",
    "test_gate": "e2e",
    "test_malloc": "e2e",
    "test_packaging": "e2e",
    "training": "model",
}
_MAPS = pathlib.Path("/proc/self/maps")
# A third of what Linux grants a process by default, 65,530; the costliest module takes 6,000.
_MOST_MAPS = 20_000


def kind_of(path: pathlib.Path) -> str:
    """The marker of a test file."""
    name = path.relative_to(_TESTS).as_posix()
    return _KINDS[max((start for start in _KINDS if name.startswith(start)), key=len)]


def pytest_ignore_collect(collection_path: pathlib.Path, config: pytest.Config) -> bool | None:
    """`-m unit` imports no file that it would not run."""
    wanted = config.option.markexpr
    is_file = collection_path.suffix == ".py" and _TESTS in collection_path.parents
    return True if is_file and wanted == "unit" and kind_of(collection_path) != "unit" else None


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes are numbered: those of an archive hold the time, and two processes would not agree."""
    return argname if isinstance(val, bytes) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Gives every test the marker of its file; the longest come first, so that none ends alone."""
    for item in items:
        item.add_marker(kind_of(item.path))
    items.sort(key=lambda item: ("e2e", "model", "unit").index(kind_of(item.path)))


@pytest.fixture(scope="module", autouse=True)
def bounded_memory_maps():
    """Forgets compiled programs in time: each holds a dozen maps, and XLA dies without one."""
    yield
    if _MAPS.exists() and len(_MAPS.read_bytes().splitlines()) > _MOST_MAPS:
        jax.clear_caches()
