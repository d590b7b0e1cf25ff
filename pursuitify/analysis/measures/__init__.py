"""Coherence, frame potential, bounds and their pictures."""
