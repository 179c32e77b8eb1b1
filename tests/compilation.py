"""How tests, and the processes that they start, compile quickly."""

import os
import subprocess
import sys
import tempfile

# XLA's newer way to write fused loops takes two fifths of a small run's compilation. Tests compare
# what is compiled alike, or to float error.
_OLDER_LOOPS = "--xla_cpu_use_fusion_emitters=false"


def _is_known(flag: str) -> bool:
    """Whether this jaxlib has the flag: XLA ends a process that names another."""
    probe = subprocess.run(
        [sys.executable, "-c", "import jax; jax.devices()"],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flag},
        capture_output=True,
    )
    return probe.returncode == 0


# Workers of one test run inherit what its first process has found.
_is_found = _OLDER_LOOPS in os.environ.get("XLA_FLAGS", "")
XLA_FLAGS = _OLDER_LOOPS if _is_found or _is_known(_OLDER_LOOPS) else ""

# Processes that tests start share what they compile, those of all workers of one test run too.
_SHARED = "DSMOE_TESTS_COMPILATION_CACHE"
if _SHARED not in os.environ:
    _folder = tempfile.TemporaryDirectory(prefix="dsmoe_jax_e2e_")
    os.environ[_SHARED] = _folder.name
CACHE = os.environ[_SHARED]
