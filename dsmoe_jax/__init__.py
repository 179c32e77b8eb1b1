"""Multi-scenario matching in JAX: train, distil, evaluate and serve two-tower retrieval models."""

__version__ = "0.1.0"
