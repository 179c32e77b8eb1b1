"""Multi-scenario matching in JAX: train, distil, evaluate and serve two-tower retrieval models."""
