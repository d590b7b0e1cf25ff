"""What to tell a user about operations that cannot be converted."""

from __future__ import annotations

_NOT_PROXIMAL = (
    "It is not the proximal operator of a convex penalty. Replace it by ReLU, LeakyReLU, PReLU, "
    "ReLU6 or Hardtanh and fine-tune, or convert a model that uses them"
)
_NORMALISES = (
    "It normalises by statistics of its own input, so it is not linear. Replace it by BatchNorm "
    "and fine-tune, or give it a rule with kind 'frozen' where its value may be fixed at the "
    "feed-forward pass"
)
_ATTENTION = (
    "Attention multiplies values that all depend on the input. Convert only the convolutional "
    "part of the model, or mark the module as a leaf and give it a rule with kind 'frozen'"
)
_RECURRENT = (
    "Recurrent layers have no feed-forward dictionary. Convert the part before it, or mark it as "
    "frozen with a rule"
)
_HINTS = {
    **dict.fromkeys(("GELU", "gelu", "SiLU", "silu", "Hardswish", "hardswish", "Mish", "mish"),
                    _NOT_PROXIMAL),
    **dict.fromkeys(("ELU", "elu", "SELU", "selu", "CELU", "celu", "Softplus", "softplus",
                     "Tanh", "tanh", "Sigmoid", "sigmoid", "Hardsigmoid", "hardsigmoid",
                     "Softshrink", "Hardshrink", "Threshold", "LogSigmoid", "GLU"), _NOT_PROXIMAL),
    **dict.fromkeys(("LayerNorm", "layer_norm", "GroupNorm", "group_norm", "InstanceNorm1d",
                     "InstanceNorm2d", "InstanceNorm3d", "RMSNorm", "LocalResponseNorm",
                     "instance_norm", "LayerNorm2d", "normalize"), _NORMALISES),
    **dict.fromkeys(("MultiheadAttention", "scaled_dot_product_attention", "softmax", "Softmax",
                     "bmm", "einsum"), _ATTENTION),
    **dict.fromkeys(("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"), _RECURRENT),
}  # fmt: skip
_DEFAULT = (
    "Rewrite it with supported operations, or give it a rule: rules={type_or_function: Rule(...)}"
)


def hint_for(op: str) -> str:
    """Return what to do about an operation, by the name its author gave it."""
    return _HINTS.get(op, _DEFAULT)
