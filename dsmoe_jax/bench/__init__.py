"""Measurements of speed and size: `python -m dsmoe_jax.bench --help`."""
