"""Capacity: what a run of any size holds and moves, from compiled programs that never run."""
