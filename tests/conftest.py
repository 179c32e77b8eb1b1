"""Test-wide settings: eight simulated devices, strict broadcasting, checked shapes."""

import os

# Before the first import of jax: the device count is fixed when its backend starts.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")

import jaxtyping

jaxtyping.install_import_hook("dsmoe_jax", "beartype.beartype")

import jax
from absl import flags

jax.config.update("jax_numpy_rank_promotion", "raise")
# Grain reads absl flags, which nobody parses under pytest.
flags.FLAGS.mark_as_parsed()
