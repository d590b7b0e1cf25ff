"""Attacks: what changes an input within a threat model."""
