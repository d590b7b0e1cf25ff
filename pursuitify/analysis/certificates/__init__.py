"""Proofs about a minimiser from coherence and the objective."""
