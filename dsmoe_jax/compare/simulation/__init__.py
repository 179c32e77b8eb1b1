"""Simulations with known truth: what the parts of the method earn where the truth is known."""
