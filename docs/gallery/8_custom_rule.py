"""
A rule for an operation of your own
===================================

A low-pass filter by FFT is unknown to the library, and a model that uses it is refused by name.
A linear map with its adjoint and a bound of its norm, and one rule, make it an operation like all
others: its sweeps lower the objective.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pursuitify import explain, pursuitify
from pursuitify.plots import plot_objective
from pursuitify.rules import LinearMap, dottest, linear


def lowpass(x: Tensor) -> Tensor:
    """Drop all but three frequencies of each row of pixels."""
    spectrum = torch.fft.rfft(x)
    return torch.fft.irfft(spectrum * (torch.arange(spectrum.shape[-1]) < 3), x.shape[-1])


@dataclass(frozen=True, eq=False)
class LowPass(LinearMap):
    """The filter as a linear map; a projection is its own adjoint, and its norm is one."""

    def apply(self, x: Tensor) -> Tensor:
        return lowpass(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return lowpass(y)

    def norm_bound(self) -> float:
        return 1.0


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.second = nn.Conv2d(8, 8, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(lowpass(torch.relu(self.first(x))))).mean((2, 3))


torch.manual_seed(0)
model, x = Net().eval(), torch.rand(4, 1, 16, 16)
rules = {lowpass: linear(lambda op, x: LowPass(), channelwise=True)}
print("without the rule:", explain(model).ok, "with it:", explain(model, rules=rules).ok)
print("dot test:", dottest(LowPass(), x.double()) < 1e-12)
net = pursuitify(model, iterations=10, rules=rules)
plot_objective(net.diagnose(x), "objective.png")
