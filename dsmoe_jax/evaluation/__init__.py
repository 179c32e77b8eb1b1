"""Evaluation: the protocol, the evaluators that follow it, and the metrics."""
