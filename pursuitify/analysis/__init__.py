"""Coherence of the global dictionary: measures, bounds, certificates, a penalty, pictures."""

from pursuitify.analysis.certificates.certify import certify
from pursuitify.analysis.certificates.support_recovery import (
    Certificate,
    Verdict,
    layered_gain,
    margin_radius,
    slack_form,
    theorem_a,
    theorem_b,
)
from pursuitify.analysis.measures.coherence import coherence
from pursuitify.analysis.measures.coherence_report import CoherenceReport
from pursuitify.analysis.measures.compare import ArchitectureBounds, Comparison, compare
from pursuitify.analysis.measures.frame_potential_penalty import (
    FramePotentialPenalty,
    frame_potential_penalty,
)
from pursuitify.analysis.measures.min_frame_potential import (
    MinimumFramePotential,
    minimum_frame_potential,
)
from pursuitify.analysis.measures.spectrum import babel, babel_function, extreme_eigenvalues
from pursuitify.analysis.measures.welch_bounds import (
    chain_frame_potential,
    convolutional_welch,
    welch,
)

__all__ = [
    "ArchitectureBounds",
    "Certificate",
    "CoherenceReport",
    "Comparison",
    "FramePotentialPenalty",
    "MinimumFramePotential",
    "Verdict",
    "babel",
    "babel_function",
    "certify",
    "chain_frame_potential",
    "coherence",
    "compare",
    "convolutional_welch",
    "extreme_eigenvalues",
    "frame_potential_penalty",
    "layered_gain",
    "margin_radius",
    "minimum_frame_potential",
    "slack_form",
    "theorem_a",
    "theorem_b",
    "welch",
]
