"""Coherence of the global dictionary: measures, bounds, certificates, a penalty, pictures."""

from pursuitify.analysis.bounds import chain_frame_potential, convolutional_welch, welch
from pursuitify.analysis.certificates import (
    Certificate,
    Verdict,
    layered_gain,
    margin_radius,
    slack_form,
    theorem_a,
    theorem_b,
)
from pursuitify.analysis.certified import certify
from pursuitify.analysis.measure import coherence
from pursuitify.analysis.minimum import MinimumFramePotential, minimum_frame_potential
from pursuitify.analysis.penalty import FramePotentialPenalty, frame_potential_penalty
from pursuitify.analysis.report import CoherenceReport
from pursuitify.analysis.spectrum import babel, babel_function, extreme_eigenvalues

__all__ = [
    "Certificate",
    "CoherenceReport",
    "FramePotentialPenalty",
    "MinimumFramePotential",
    "Verdict",
    "babel",
    "babel_function",
    "certify",
    "chain_frame_potential",
    "coherence",
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
