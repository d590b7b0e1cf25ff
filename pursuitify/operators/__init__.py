"""Linear maps: explicit apply and adjoint, and a certified norm bound; one file per family."""

from pursuitify.maps.adjoint import Adjoint
from pursuitify.maps.base import (
    Chain,
    Factor,
    Identity,
    LinearMap,
    accumulate,
    compose,
    dottest,
)
from pursuitify.maps.contents import kernel_contents
from pursuitify.maps.conv import Conv, conv_transpose_map
from pursuitify.maps.dense import Dense
from pursuitify.maps.estimate import ESTIMATE_MARGIN, conv_norm_estimate, dense_norm_estimate
from pursuitify.maps.index import Index
from pursuitify.maps.pool import BlockMean
from pursuitify.maps.scale import Scale
from pursuitify.maps.select import Select, Windows, adaptive_cover, cover
from pursuitify.maps.separable import Separable, adaptive_avg_pool, avg_pool, interpolate, pad
from pursuitify.maps.shape import (
    Expand,
    Narrow,
    Permute,
    Place,
    Reduce,
    Reshape,
    Slice,
    ZeroPad,
)
from pursuitify.maps.spectral import conv_norm_bound, dense_norm_bound


def is_weighted(linear: LinearMap) -> bool:
    """Whether a map holds weights, so that its norm is worth keeping."""
    return isinstance(linear.inner if isinstance(linear, Adjoint) else linear, (Conv, Dense))


__all__ = [
    "ESTIMATE_MARGIN",
    "Adjoint",
    "BlockMean",
    "Chain",
    "Conv",
    "Dense",
    "Expand",
    "Factor",
    "Identity",
    "Index",
    "LinearMap",
    "Narrow",
    "Permute",
    "Place",
    "Reduce",
    "Reshape",
    "Scale",
    "Select",
    "Separable",
    "Slice",
    "Windows",
    "ZeroPad",
    "accumulate",
    "adaptive_avg_pool",
    "adaptive_cover",
    "avg_pool",
    "compose",
    "conv_norm_bound",
    "conv_norm_estimate",
    "conv_transpose_map",
    "cover",
    "dense_norm_bound",
    "dense_norm_estimate",
    "dottest",
    "interpolate",
    "is_weighted",
    "kernel_contents",
    "pad",
]
