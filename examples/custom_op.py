"""Teach pursuitify an operation of your own: a linear map with its adjoint, and an activation.

    python examples/custom_op.py

The low-pass filter by FFT below is unknown to the library. Soft thresholding has a rule there, but
rules of one's own come first. Each takes one small class and one entry of ``rules=``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pursuitify import explain, pursuitify
from pursuitify.operators import LinearMap, dottest
from pursuitify.operators.activations import Activation
from pursuitify.rules import activation, linear


def lowpass(x: Tensor, keep: int = 3) -> Tensor:
    """What the model computes: drop the high frequencies of each row of pixels."""
    spectrum = torch.fft.rfft(x)
    return torch.fft.irfft(spectrum * (torch.arange(spectrum.shape[-1]) < keep), x.shape[-1])


# -- the linear operation: apply, adjoint, norm bound ---------------------------------------------
@dataclass(frozen=True, eq=False)
class LowPass(LinearMap):
    keep: int

    def apply(self, x: Tensor) -> Tensor:
        return lowpass(x, self.keep)

    def adjoint(self, y: Tensor) -> Tensor:
        return lowpass(y, self.keep)  # a projection is its own adjoint

    def norm_bound(self) -> float:
        return 1.0


# -- the activation: the proximal operator of lam * |w| -------------------------------------------
@dataclass(frozen=True)
class SoftThreshold(Activation):
    lam: float

    def __call__(self, z: Tensor) -> Tensor:
        return F.softshrink(z, self.lam)

    def prox(self, v: Tensor, step: Tensor | float) -> Tensor:
        return torch.sign(v) * F.relu(v.abs() - self.lam * step)

    def penalty(self, w: Tensor) -> Tensor:
        return self.lam * w.abs()


RULES = {
    lowpass: linear(lambda op, x, keep=3: LowPass(keep), channelwise=True),
    nn.Softshrink: activation(lambda module, z: SoftThreshold(module.lambd)),
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.shrink, self.fc = nn.Softshrink(0.1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = lowpass(self.shrink(self.conv1(x)), keep=4)
        return self.fc(torch.relu(self.conv2(x)).mean((2, 3)))


def main() -> None:
    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(4, 3, 16, 16)
    print("without rules:", *(f"\n  {p}" for p in explain(model).problems))
    print(f"dot test of the map: {dottest(LowPass(4), x.double()):.1e}")
    net = pursuitify(model, rules=RULES)
    net.iterations = 0
    with torch.no_grad():
        print(f"T = 0 differs from the source by {(net(x) - model(x)).abs().max():.1e}")
    net.iterations = 10
    print(net.diagnose(x))


if __name__ == "__main__":
    main()
