"""Blocks of the Gram matrix of the dictionary, from kernels alone."""
