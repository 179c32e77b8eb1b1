"""Baselines: popularity and linear models built in, and recommenders of other libraries."""
