"""What to tell a user about operations that cannot be converted."""

from __future__ import annotations

_NOT_PROXIMAL = (
    "It is not the proximal operator of a convex penalty. Replace it by ReLU, LeakyReLU, PReLU, "
    "ReLU6 or Hardtanh and fine-tune, or convert a model that uses them"
)
_NO_CLOSED_FORM = (
    "Pursuit needs its proximal operator for every step size, which has no closed form here. "
    "Replace it by ReLU, LeakyReLU, PReLU, ReLU6 or Hardtanh and fine-tune, or give it a rule: "
    "rules={...: pursuitify.rules.activation(your_activation)}"
)
_NORMALISES = (
    "It normalises by statistics of its own input, so it is not linear. Replace it by BatchNorm "
    "and fine-tune, or, in a side branch, give it the rule frozen(), which fixes its value at the "
    "feed-forward pass (on the only way from input to output that cuts it)"
)
_ATTENTION = (
    "Attention multiplies values that all depend on the input. Convert only the convolutional "
    "part of the model, or, in a side branch, give its module the rule frozen()"
)
_RECURRENT = (
    "Recurrent layers have no feed-forward dictionary. Convert the part before it, or, in a side "
    "branch, give it the rule frozen()"
)
_LOOKS_UP = (
    "It looks numbers up in a table and takes no part in pursuit: "
    "rules={torch.nn.Embedding: pursuitify.rules.frozen()} (or the function that is called) fixes "
    "its value at the feed-forward pass"
)
_HINTS = {
    **dict.fromkeys(("GELU", "gelu", "SiLU", "silu", "Hardswish", "hardswish", "Mish", "mish"),
                    _NOT_PROXIMAL),
    **dict.fromkeys(("SELU", "selu", "Hardshrink", "hardshrink", "Threshold", "threshold", "GLU",
                     "glu", "RReLU", "rrelu", "Tanhshrink"), _NOT_PROXIMAL),
    **dict.fromkeys(("ELU", "elu", "CELU", "celu", "Softplus", "softplus", "Tanh", "tanh",
                     "Sigmoid", "sigmoid", "Hardsigmoid", "hardsigmoid", "LogSigmoid", "logsigmoid",
                     "Softsign", "softsign"), _NO_CLOSED_FORM),
    **dict.fromkeys(("LayerNorm", "layer_norm", "GroupNorm", "group_norm", "InstanceNorm1d",
                     "InstanceNorm2d", "InstanceNorm3d", "RMSNorm", "LocalResponseNorm",
                     "instance_norm", "local_response_norm", "LayerNorm2d",
                     "normalize"), _NORMALISES),
    **dict.fromkeys(("MultiheadAttention", "scaled_dot_product_attention", "softmax", "Softmax",
                     "bmm", "einsum", "baddbmm", "SwinTransformerBlock", "shifted_window_attention",
                     "TransformerEncoderLayer", "TransformerEncoder"), _ATTENTION),
    **dict.fromkeys(("Embedding", "EmbeddingBag", "embedding", "embedding_bag"), _LOOKS_UP),
    **dict.fromkeys(("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"), _RECURRENT),
}  # fmt: skip
_DEFAULT = (
    "Rewrite it with supported operations, or give it a rule: "
    "rules={type_or_function: pursuitify.rules.linear(...), .activation(...) or .frozen()}"
)


def hint_for(op: str) -> str:
    """Return what to do about an operation, by the name its author gave it."""
    return _HINTS.get(op, _DEFAULT)
