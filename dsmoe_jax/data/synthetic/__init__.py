"""Synthetic data sets: generated files in the official formats, and worlds of known truth."""
