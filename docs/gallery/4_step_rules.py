"""
The objective against sweeps, for two step rules
================================================

``certified`` steps are 1 / L with a proven bound of L, and the objective never rises.
``adaptive`` steps are found by a line search: a sweep costs more, and fewer of them are needed.
"""

import torch
from matplotlib.figure import Figure

from pursuitify import pursuitify
from pursuitify.models import ResidualNet

torch.manual_seed(0)
net = pursuitify(ResidualNet(3, 10, width=8).eval(), iterations=30)
x = torch.rand(8, 3, 16, 16)

figure = Figure(figsize=(6.4, 3.8), layout="constrained")
axes = figure.subplots()
for steps, style in (("certified", "o-"), ("adaptive", "s-")):
    net.steps = steps
    objective = [sweep.objective for sweep in net.diagnose(x).sweeps]
    print(f"{steps}: {objective[0]:.1f} at T = 0, {objective[-1]:.1f} at T = 30")
    axes.plot(objective, style, label=steps, markersize=3)
axes.set(xlabel="sweeps T", ylabel="objective, mean per sample")
axes.legend()
figure.savefig("objective.png", dpi=120)
