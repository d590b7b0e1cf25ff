"""Spells a class-by-class Gram matrix out, for comparison on small networks."""

from __future__ import annotations

import itertools
import math

import torch

from pursuitify.analysis.gram.dictionary_blocks import blocks_of
from pursuitify.analysis.gram.normalised_gram import Gram


def dense_gram(gram):
    """Return the whole matrix and which entries are structural, from the classes' members."""
    sites = gram.blocks.sites
    sizes = [s.channels * math.prod(s.sizes) for s in sites]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    matrix = torch.zeros(sum(sizes), sum(sizes), dtype=torch.float64)
    structural = torch.zeros(matrix.shape, dtype=torch.bool)
    for j, k in gram.positions.related():
        for entries in gram.entries(j, k):
            shape = (sites[j].channels, sites[k].channels)
            a, b = entries.channels or [
                i.reshape(-1) for i in torch.meshgrid(*map(torch.arange, shape), indexing="ij")
            ]
            values = entries.values.reshape(-1).double()
            seen = 0
            for combination in itertools.product(*(g.members for g in entries.raw.groups)):
                seen += 1
                p = q = 0
                for (one, two), n, m in zip(
                    combination, sites[j].sizes, sites[k].sizes, strict=True
                ):
                    p, q = p * n + one, q * m + two
                left = starts[j] + a * math.prod(sites[j].sizes) + p
                right = starts[k] + b * math.prod(sites[k].sizes) + q
                assert not structural[left, right].any(), "an entry belongs to two classes"
                for x, y in ((left, right), (right, left)):
                    matrix[x, y], structural[x, y] = values, True
            assert seen * (1 if entries.raw.lag_zero else 2) == entries.raw.count
    return matrix, structural


def reference(dictionary):
    """Return the normalised Gram matrix and the norms of the materialised dictionary."""
    matrix = dictionary.materialize()[0]
    norms = matrix.norm(dim=0)
    unit = matrix / norms.clamp_min(1e-300)
    return unit.T @ unit, norms


def agree(dictionary):
    """Assert that every entry is that of the materialised dictionary; return what was compared."""
    gram = Gram(blocks_of(dictionary, border=True))
    values, structural = dense_gram(gram)
    wanted, norms = reference(dictionary)
    alive = norms > 1e-8
    both = alive[:, None] & alive
    assert (values - wanted)[both].abs().max() <= 1e-6
    assert not (wanted.abs() > 1e-12)[~structural & both].any()
    return gram, structural
