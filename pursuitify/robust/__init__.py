"""Attacks on networks that return logits, pursued or not, and the audit that judges them."""

from __future__ import annotations

from pursuitify.analysis.certificates.certified_radius import RadiusCertificate, certified_radius
from pursuitify.robust.attacks.apgd import apgd
from pursuitify.robust.attacks.autoattack import autoattack
from pursuitify.robust.attacks.fgsm_pgd import fgsm, pgd
from pursuitify.robust.attacks.foolbox import foolbox
from pursuitify.robust.attacks.gradient_free import random_noise, square
from pursuitify.robust.attacks.hard_label import hard_label
from pursuitify.robust.auditing.audit import audit
from pursuitify.robust.auditing.audit_report import AuditReport
from pursuitify.robust.auditing.protocols import PROTOCOLS, Protocol, Step
from pursuitify.robust.surrogates.certified_steps import CertifiedSteps
from pursuitify.robust.surrogates.pursuit_losses import Averaged, LatentChange, Sweeps
from pursuitify.robust.surrogates.smoothed_backward import SmoothedBackward
from pursuitify.robust.surrogates.sweep_counts import AtIterations, iterations

#: The name that the result of ``certified_radius`` had before.
Certificate = RadiusCertificate

__all__ = [
    "PROTOCOLS",
    "AtIterations",
    "AuditReport",
    "Averaged",
    "Certificate",
    "CertifiedSteps",
    "LatentChange",
    "Protocol",
    "RadiusCertificate",
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
