"""Norms of operators: certified bounds, estimates, and what they are remembered by."""
