"""A network whose flat places let gradient through: ReLUs that are dead, clips, rounding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from pursuitify.utils import option_checks


class SmoothedBackward(nn.Module):
    """The same network with another derivative where its own is zero.

    Where a ReLU or a clip is flat the derivative becomes ``slope``; rounding passes gradients as
    they are. What is computed stays the same. It is done from outside, operation by operation, so
    it works on any eager module and through all sweeps of a pursuit.
    """

    def __init__(self, model: nn.Module, slope: float = 0.1) -> None:
        """Wrap ``model``; shares every parameter."""
        super().__init__()
        self.model = model
        self.slope = option_checks.number("slope", slope, above=0)
        self.training = model.training

    def forward(self, x: Tensor) -> Any:
        """Return the model's output, with the smoothed derivative."""
        with _Smoothing(self.slope):
            return self.model(x)


class _Smoothing(TorchFunctionMode):
    """Replaces operations that are flat somewhere."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if torch.is_grad_enabled():
            if func in _RELU:
                return self._relu(*args, **kwargs)
            if func in _CLIP:
                return self._clip(*args, **kwargs)
            if func in _CLAMP:
                exact = func(*args, **kwargs)
                return _leak(exact, args[0], exact != args[0], self.slope)
            if func in _ROUNDING and args[0].requires_grad:
                return args[0] + (func(*args, **kwargs) - args[0]).detach()
        return func(*args, **kwargs)

    def _relu(self, source: Tensor, inplace: bool = False) -> Tensor:
        del inplace
        return _leak(F.relu(source), source, source <= 0, self.slope)

    def _clip(
        self, source: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
    ) -> Tensor:
        del inplace
        flat = (source <= min_val) | (source >= max_val)
        return _leak(F.hardtanh(source, min_val, max_val), source, flat, self.slope)


def _leak(exact: Tensor, source: Tensor, flat: Tensor, slope: float) -> Tensor:
    """Return ``exact`` with this slope where it is flat."""
    return exact + slope * torch.where(flat, source - source.detach(), 0.0)


# torch.relu_ and its like change their argument, which a caller may read afterwards; they stay.
_RELU = {F.relu, torch.relu, Tensor.relu}
_CLIP = {F.hardtanh}
_CLAMP = {
    getattr(where, name)
    for where in (torch, Tensor)
    for name in ("clamp", "clip", "clamp_min", "clamp_max")
}
_ROUNDING = {
    getattr(where, name)
    for where in (torch, Tensor)
    for name in ("round", "floor", "ceil", "trunc", "fix", "sign", "sgn")
}
