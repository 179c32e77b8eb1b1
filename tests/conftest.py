"""Test-wide settings: eight simulated devices and strict broadcasting.

Annotated shapes are checked too: pyproject.toml turns the hook on.
"""

import os
import tempfile

# Before the first import of jax: the device count is fixed when its backend starts.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")

import jax
from absl import flags

jax.config.update("jax_numpy_rank_promotion", "raise")
# Tests that build the same model share its compilation.
_CACHE = tempfile.TemporaryDirectory(prefix="dsmoe_jax_test_")
jax.config.update("jax_compilation_cache_dir", _CACHE.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
# Grain reads absl flags, which nobody parses under pytest.
flags.FLAGS.mark_as_parsed()
