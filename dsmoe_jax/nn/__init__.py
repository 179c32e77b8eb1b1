"""Layers; they know nothing of data sets, optimisers or configs."""
