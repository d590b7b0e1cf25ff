"""Pursuit: feed-forward, layered, global and synchronous solvers."""
