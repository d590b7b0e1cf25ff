"""Attacks on networks that return logits; any nn.Module, pursued or not."""

from __future__ import annotations

from pursuitify.robust.attacks import fgsm, pgd

__all__ = ["fgsm", "pgd"]
