"""Lipschitz constants and step sizes, gamma_j = 1 / (beta_j L_j) (mathematics.md, section 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pursuitify.dictionary.norm_bounds import Norms, fit, operator_bound
from pursuitify.dictionary.structured import StructuredDictionary
from pursuitify.errors import RangeError
from pursuitify.utils import func_transforms

#: The range of beta_j in which descent of the objective is proven, and the paper's.
SAFE_BETA = (0.501, 1.0)
PAPER_BETA = (1e-3, 1.0)


def synchronous_step_sizes(dictionary: StructuredDictionary, norms: Norms) -> list[Tensor]:
    """Return g = 1 / L once per latent, L >= ||B||^2; the trained beta_j are not used.

    Args:
        dictionary: The bound dictionary.
        norms: Norm bounds.

    Raises:
        RangeError: If the step is out of range.
    """
    like = dictionary.inputs[0]
    total = operator_bound(dictionary, norms).square()
    (step,) = step_sizes([total], [total.new_ones(())], ["all latents"], like.dtype)
    return [fit(step, shape) for shape in dictionary.shapes]


def step_sizes(
    constants: Sequence[Tensor],
    betas: Sequence[Tensor],
    names: Sequence[str],
    dtype: torch.dtype,
) -> list[Tensor]:
    """Return gamma_j = 1 / (beta_j L_j); any step is right where L_j is zero.

    A step that the precision cannot hold, for weights far too small or too large, is NaN, and is
    refused where values can be read without waiting for a device.

    Args:
        constants: L_j per latent.
        betas: beta_j per latent.
        names: The latents' names, for the error.
        dtype: Precision of the sweeps.

    Raises:
        RangeError: If a step is out of range; lists all latents.
    """
    if all(value.dim() == 0 for value in constants):
        # One number per latent: they are worked on as one vector, in a few operations for all.
        exact, gamma, fine = _steps(torch.stack(list(betas)), torch.stack(list(constants)), dtype)
        exacts, gammas, inside = (list(part.unbind()) for part in (exact, gamma, fine))
        whole = fine.all() if readable(fine) else None
    else:
        found = [_steps(b, c, dtype) for b, c in zip(betas, constants, strict=True)]
        exacts, gammas, inside = (list(part) for part in zip(*found, strict=True))
        whole = torch.stack([f.all() for f in inside]).all() if readable(inside[0]) else None
    if whole is not None and not bool(whole):
        lost = [
            f"{name!r} needs {_said(float(exact.detach().flatten()[~fine.flatten()][0]))}"
            for name, exact, fine in zip(names, exacts, inside, strict=True)
            if not bool(fine.all())
        ]
        raise RangeError(
            f"the steps of {len(lost)} latent(s) leave the range of {dtype}: {', '.join(lost)}. "
            "The weights that read or make them are too large or too small: use a wider precision "
            "(net.double(), or float32 instead of half precision), rescale the weights, or set "
            "iterations=0"
        )
    return gammas


def _said(step: float) -> str:
    """Return a step in words; one whose constant is infinite is smaller than any number."""
    return f"{step:.3g}" if step > 0 else "a smaller one than there is"


def _steps(beta: Tensor, value: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return 1 / (beta L), the same in a precision, NaN out of its range, and what is in it.

    A constant that is NaN counts as in range: its step is NaN, and not what is at fault.
    """
    range_ = torch.finfo(dtype)
    low = 8 * range_.tiny * range_.eps  # below, fewer than three bits of a number are left
    exact = 1.0 / (beta * torch.where(value > 0, value, torch.ones_like(value)))
    held = (exact >= low) & (exact <= range_.max)
    unknown = value.isnan()
    return exact, torch.where(held & ~unknown, exact, torch.nan).to(dtype), held | unknown


#: What to do about sweeps that leave the range of a precision.
_WIDER = {
    torch.float16: "use torch.bfloat16 or float32 (net.bfloat16(), net.float(), autocast with "
    "bfloat16)",
    torch.float32: "use float64 (net.double()), or make the weights smaller",
    torch.bfloat16: "use float64 (net.double()), or make the weights smaller",
    torch.float64: "make the weights smaller",
}


def refuse_overflow(
    latents: Sequence[Tensor],
    before: Sequence[Tensor],
    steps: Sequence[Tensor],
    names: Sequence[str],
) -> None:
    """Refuse latents that are not finite where the feed-forward pass is: sweeps left the range.

    Sweeps multiply by ||B_j||^2, which is what steps are the inverse of. In precisions wider than
    float16 it is looked at only where that is so large that it may matter, and where that can be
    read without waiting for a device; nothing is where values cannot be read.

    Args:
        latents: The latents after the last sweep.
        before: Those of the feed-forward pass.
        steps: The step sizes.
        names: The latents' names.

    Raises:
        RangeError: If there are any; names them.
    """
    if torch.compiler.is_compiling() or func_transforms.active() or latents[0].is_meta:
        return
    dtype = min((w.dtype for w in latents), key=lambda narrow: torch.finfo(narrow).max)
    most = torch.finfo(dtype).max
    if dtype is not torch.float16:
        least = 2 * most ** (-1 / 3)
        if not all(map(readable, steps)):
            return
        with torch.no_grad():
            smallest = torch.stack([s if s.dim() == 0 else s.min() for s in steps]).min()
        if float(smallest) > least:
            return
    fine = torch.stack([w.detach().isfinite().all() for w in latents]).tolist()
    lost = [name for name, finite in zip(names, fine, strict=True) if not finite]
    if lost and not all(bool(w.detach().isfinite().all()) for w in before):
        return  # the source is not finite either
    if lost:
        raise RangeError(
            f"the sweeps overflow {str(dtype).removeprefix('torch.')}, whose largest number is "
            f"{most:g}, in {lost}: {_WIDER[dtype]}, or set iterations=0"
        )


def readable(value: Tensor) -> bool:
    """Whether a number may be read: nothing is traced, and no device has to be waited for."""
    if torch.compiler.is_compiling() or func_transforms.active() or value.device.type != "cpu":
        return False
    return not torch.jit.is_tracing()  # type: ignore[no-untyped-call, attr-defined]


class PursuitParameters(nn.Module):
    """What pursuit adds to a network's parameters; all are named ``pursuit.*``.

    The values used are the parameters held to their range; the derivative passes through, so that
    a parameter outside can come back.

    Attributes:
        beta: Relative inverse step sizes, start at 1.
        alpha: Extrapolation weights, start at 0. They are trained with the paper's range of beta
            (``paper=True``), else only if a user sets ``requires_grad``: while they are trained,
            every sweep keeps the changes of the one before, which took 4 to 31 % more memory on
            resnet18, vgg11_bn and densenet121 (batch 2, 64 px, T = 4).
        log_gains: Logarithms of the atom gains c_j by the latent's place in ``beta``, as text; None
            where no row has gains. A derivative is asked for only if a user sets
            ``requires_grad``.
    """

    log_gains: nn.ParameterDict | None

    def __init__(self, count: int, beta_range: tuple[float, float], dtype: torch.dtype) -> None:
        super().__init__()
        self.beta_range = beta_range
        self.beta = nn.Parameter(torch.ones(count, dtype=dtype))
        trained = beta_range == PAPER_BETA
        self.alpha = nn.Parameter(torch.zeros(count, dtype=dtype), requires_grad=trained)
        self.log_gains = None

    def defaults(self) -> dict[str, Tensor]:
        """Return what the parameters start at, by name."""
        with torch.no_grad():
            return {"beta": torch.ones_like(self.beta), "alpha": torch.zeros_like(self.alpha)}

    def betas(self) -> Tensor:
        """Return beta_j within its range."""
        return _held(self.beta, *self.beta_range)

    def gains(self, place: int) -> Tensor | None:
        """Return the atom gains c_j of the latent at a place, or None where it has none."""
        if self.log_gains is None or str(place) not in self.log_gains:
            return None
        gains: Tensor = self.log_gains[str(place)].exp()
        return gains

    def set_gains(self, gains: Mapping[int, Tensor]) -> None:
        """Give exactly these latents gains; parameters whose shape stays are written in place.

        Args:
            gains: The positive gains by place.
        """
        held = {} if self.log_gains is None else dict(self.log_gains.items())
        found = {}
        with torch.no_grad():
            for place, value in gains.items():
                log = value.to(self.beta.device, torch.float64).log().to(self.beta.dtype)
                parameter = held.get(str(place))
                if parameter is None or parameter.shape != log.shape:
                    parameter = nn.Parameter(log.clone(), requires_grad=False)
                else:
                    parameter.copy_(log)
                found[str(place)] = parameter
        if found.keys() != held.keys() or any(found[n] is not held[n] for n in found):
            self.log_gains = nn.ParameterDict(found) if found else None

    def alphas(self) -> Tensor:
        """Return alpha_j within [0, 1)."""
        return _held(self.alpha, 0.0, 0.999)


def _held(raw: Tensor, low: float, high: float) -> Tensor:
    return raw + (raw.clamp(low, high) - raw).detach()
