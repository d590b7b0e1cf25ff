"""Compile time: from a module to a program; no tensors, no batch."""
