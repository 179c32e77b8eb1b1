"""Comparison of all methods, searches of hyper-parameters, simulations."""

import os

# Before anything imports jax, as in `dsmoe_jax.main`: XLA prints an error about pseudo features of
# the host for every cached CPU program that it loads. Jobs inherit it.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
