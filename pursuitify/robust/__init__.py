"""Attacks on networks that return logits, pursued or not, and the audit that judges them."""

from __future__ import annotations

from pursuitify.robust.adapter_autoattack import autoattack
from pursuitify.robust.adapter_foolbox import foolbox
from pursuitify.robust.adaptive import Averaged, LatentChange, Sweeps
from pursuitify.robust.apgd import apgd
from pursuitify.robust.attacks import fgsm, pgd
from pursuitify.robust.audit import audit
from pursuitify.robust.certified import Certificate, certified_radius
from pursuitify.robust.evaluation import AuditReport
from pursuitify.robust.protocols import PROTOCOLS, Protocol, Step
from pursuitify.robust.rays import hard_label
from pursuitify.robust.search import random_noise, square
from pursuitify.robust.smoothed import SmoothedBackward
from pursuitify.robust.sweeps import AtIterations, iterations

__all__ = [
    "PROTOCOLS",
    "AtIterations",
    "AuditReport",
    "Averaged",
    "Certificate",
    "LatentChange",
    "Protocol",
    "SmoothedBackward",
    "Step",
    "Sweeps",
    "apgd",
    "audit",
    "autoattack",
    "certified_radius",
    "fgsm",
    "foolbox",
    "hard_label",
    "iterations",
    "pgd",
    "random_noise",
    "square",
]
