"""Training: the pure step, the loop around it, optimisers, checkpoints and layout."""
