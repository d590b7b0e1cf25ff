"""
The objective against sweeps, for two step rules
================================================

``certified`` steps are 1 / L with a proven bound of L, and the objective never rises.
``adaptive`` steps are found by a line search: a sweep costs more, and fewer of them are needed.
"""

import torch

from pursuitify import plots, pursuitify
from pursuitify.models import ResidualNet

torch.manual_seed(0)
net = pursuitify(ResidualNet(3, 10, width=8).eval(), iterations=30)
x = torch.rand(8, 3, 16, 16)

curves = {}
for net.steps in ("certified", "adaptive"):
    objective = [sweep.objective for sweep in net.diagnose(x).sweeps]
    print(f"{net.steps}: {objective[0]:.1f} at T = 0, {objective[-1]:.1f} at T = 30")
    curves[net.steps] = objective

with plots.style():
    figure = plots.new_figure()
    axes = figure.subplots()
    for steps, objective in curves.items():
        axes.plot(objective, label=steps)
    axes.set(xlabel="sweeps T", ylabel="objective, mean per sample")
    axes.legend()
    plots.finished(figure, "objective.png")
