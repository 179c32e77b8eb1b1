"""Serving: what a trained model becomes outside of training."""
