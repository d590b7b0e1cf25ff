"""Advice about operations that cannot be converted."""

from __future__ import annotations

from torch import nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

_NOT_PROXIMAL = (
    "It is not the proximal operator of a convex penalty. Replace it by ReLU, LeakyReLU, PReLU, "
    "ReLU6, Softplus or ELU and fine-tune. pursuitify.relu_twin(model).model is a copy of the "
    "model, with all weights, in which it is ReLU, where it is a GELU, SiLU, Mish, Hardswish or "
    "SELU module"
)
_SLOPES = (
    "It is the proximal operator of a convex penalty only where its slopes lie in [0, 1]. Set its "
    "parameters so and fine-tune, or replace it by another activation that converts"
)
_NORMALISES = (
    "It normalises by statistics of its own input, and no rule freezes them. Replace it by "
    "nn.GroupNorm, nn.InstanceNorm2d, nn.LayerNorm or BatchNorm and fine-tune, or, in a side "
    "branch, give it the rule frozen(), which fixes its value at the feed-forward pass (on the "
    "only way from input to output that cuts it)"
)
_ATTENTION = (
    "Attention multiplies values that all depend on the input; products with a parameter or a "
    "buffer convert. Convert only the convolutional "
    "part of the model, or, in a side branch, give its module the rule frozen()"
)
_RECURRENT = (
    "Recurrent layers have no feed-forward dictionary. Convert the part before it, or, in a side "
    "branch, give it the rule frozen()"
)
_LOOKS_UP = (
    "What looks up inputs of the network converts: its value is a signal, as an input is. "
    "rules={torch.nn.Embedding: pursuitify.rules.frozen()} (or the function that is called) fixes "
    "its value at the feed-forward pass"
)
_NO_FORWARD = (
    "It holds others and has no forward of its own: use torch.nn.Sequential(...), or call what it "
    "holds one by one"
)
_HINTS = {
    **dict.fromkeys(("GELU", "gelu", "SiLU", "silu", "Hardswish", "hardswish", "Mish", "mish"),
                    _NOT_PROXIMAL),
    **dict.fromkeys(("SELU", "selu", "Hardshrink", "hardshrink", "Threshold", "threshold", "GLU",
                     "glu", "RReLU", "rrelu", "Tanhshrink"), _NOT_PROXIMAL),
    **dict.fromkeys(("ELU", "elu", "CELU", "celu", "Softplus", "softplus"), _SLOPES),
    **dict.fromkeys(("normalize", "LayerNorm2d"), _NORMALISES),
    **dict.fromkeys(("MultiheadAttention", "scaled_dot_product_attention", "softmax", "Softmax",
                     "bmm", "einsum", "baddbmm", "SwinTransformerBlock", "shifted_window_attention",
                     "TransformerEncoderLayer", "TransformerEncoder"), _ATTENTION),
    **dict.fromkeys(("Embedding", "EmbeddingBag", "embedding", "embedding_bag",
                     "one_hot"), _LOOKS_UP),
    **dict.fromkeys(("ModuleList", "ModuleDict", "ParameterList", "ParameterDict"), _NO_FORWARD),
    **dict.fromkeys(("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"), _RECURRENT),
}  # fmt: skip
_DEFAULT = (
    "Rewrite it with supported operations, or give it a rule: "
    "rules={type_or_function: pursuitify.rules.linear(...), .activation(...) or .frozen()}"
)


#: Reasons that have a hint of their own, whatever the operation is called.
TWO_VALUES = (
    "it multiplies two values that both depend on the input, and neither is computed from the "
    "other, so neither is a gate"
)
TWO_FACTORS = "it multiplies two tensors that both depend on the input, which is not linear"
WRITTEN_OUT = "it chooses by the size of a value that it returns, which is an activation"
WITH_A_CONSTANT = "it compares a value of the network with a constant, which is an activation"
LOOKS_UP = "it looks up values that the network computes from its activations"
DIVIDES = "it divides by a value of the network"
_WRITTEN = (
    "Use F.relu(x), F.leaky_relu(x, slope), x.clamp(low, high), F.softshrink(x, threshold) or "
    "torch.maximum(x, y) of two values. x * (x > 0), torch.where(x > 0, x, 0) and "
    "torch.maximum(x, torch.zeros_like(x)) are known to be ReLU; what jumps is not the proximal "
    "operator of a convex penalty"
)
_HOOKED = "it has forward hooks"
_BY_REASON = {
    TWO_VALUES: "If one of them is a side branch, give the module or function that computes it the "
    "rule frozen(), which fixes its value at the feed-forward pass: "
    "rules={module_type_or_function: pursuitify.rules.frozen()}",
    TWO_FACTORS: _ATTENTION,
    **dict.fromkeys((WRITTEN_OUT, WITH_A_CONSTANT), _WRITTEN),
    DIVIDES: "Give the function that computes the divisor the rule frozen(), which fixes its value "
    "at the feed-forward pass: rules={function: pursuitify.rules.frozen()}",
}
#: What torch's own utilities hang on a module, and how to take it off and keep the weights.
_UTILITIES: dict[type, tuple[str, str]] = {
    BasePruningMethod: (
        "torch.nn.utils.prune",
        "make the pruning permanent first: torch.nn.utils.prune.remove(module, '{name}')",
    ),
    SpectralNorm: (
        "the old torch.nn.utils.spectral_norm",
        "take it off with torch.nn.utils.remove_spectral_norm(module, '{name}'), or use "
        "torch.nn.utils.parametrizations.spectral_norm, which converts",
    ),
    WeightNorm: (
        "the old torch.nn.utils.weight_norm",
        "take it off with torch.nn.utils.remove_weight_norm(module, '{name}'), or use "
        "torch.nn.utils.parametrizations.weight_norm, which converts",
    ),
}


def hint_for(op: str, reason: str = "") -> str:
    """Return what to do about an operation, by its author's name for it and what is wrong."""
    if reason.startswith(_HOOKED):
        return ""
    return _BY_REASON.get(reason) or _HINTS.get(op, _DEFAULT)


def utility(module: nn.Module) -> tuple[str, str] | None:
    """Return which of torch's hook utilities computes a module's weight, and how to remove it."""
    for hook in module._forward_pre_hooks.values():
        for kind, (name, remedy) in _UTILITIES.items():
            if isinstance(hook, kind):
                tensor = getattr(hook, "_tensor_name", None) or getattr(hook, "name", "weight")
                return name, remedy.format(name=tensor)
    return None


def hooked(module: nn.Module) -> str:
    """Return why a module with forward hooks is not converted, and what to do."""
    known = utility(module)
    if known is not None:
        return f"{_HOOKED} of {known[0]}, which compute its weight anew at every call: {known[1]}"
    return f"{_HOOKED}, which may change what it computes: remove them first"
