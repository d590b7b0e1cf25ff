"""Linear maps: explicit apply and adjoint, and a certified norm bound; one file per family."""

from __future__ import annotations

from pursuitify.operators.base import (
    Adjoint,
    Chain,
    Detached,
    Factor,
    FilterBank,
    Identity,
    LinearMap,
    accumulate,
    compose,
    dottest,
)
from pursuitify.operators.block_mean import BlockMean
from pursuitify.operators.conv import Conv, conv_transpose_map
from pursuitify.operators.dense import Dense, SampleMatrices
from pursuitify.operators.indexing import Gather, Index, Pick, SparseMatrix, Unfold
from pursuitify.operators.max_pool import Select, Unpool, Windows, adaptive_cover, cover
from pursuitify.operators.norms.certified import conv_norm_bound, dense_norm_bound
from pursuitify.operators.norms.fingerprint import kernel_contents
from pursuitify.operators.norms.power_iteration import (
    ESTIMATE_MARGIN,
    conv_norm_estimate,
    dense_norm_estimate,
)
from pursuitify.operators.norms.typical_norm import typical_norm
from pursuitify.operators.reshape import (
    CumulativeSum,
    Expand,
    Narrow,
    Permute,
    Place,
    Reduce,
    Reshape,
    Slice,
    ZeroPad,
)
from pursuitify.operators.scale import Scale
from pursuitify.operators.separable import Separable, adaptive_avg_pool, avg_pool, interpolate, pad
from pursuitify.operators.symbols import Symbols

__all__ = [
    "ESTIMATE_MARGIN",
    "Adjoint",
    "BlockMean",
    "Chain",
    "Conv",
    "CumulativeSum",
    "Dense",
    "Detached",
    "Expand",
    "Factor",
    "FilterBank",
    "Gather",
    "Identity",
    "Index",
    "LinearMap",
    "Narrow",
    "Permute",
    "Pick",
    "Place",
    "Reduce",
    "Reshape",
    "SampleMatrices",
    "Scale",
    "Select",
    "Separable",
    "Slice",
    "SparseMatrix",
    "Symbols",
    "Unfold",
    "Unpool",
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
    "kernel_contents",
    "pad",
    "typical_norm",
]
