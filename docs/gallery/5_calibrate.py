"""
Accuracy against T, before and after calibration
================================================

A trained network is its source at T = 0, and sweeps then move its latents away from those that the
classifier was trained on. ``calibrate=`` takes some unlabelled batches and chooses another
dictionary of the same network, which keeps the outputs. Images are scikit-learn's digits.
"""

import torch
from torch.utils.data import DataLoader

from pursuitify import plots, pursuitify
from pursuitify.data import load_data
from pursuitify.models import ResidualNet
from pursuitify.training import evaluate, finetune

data = load_data("digits")
torch.manual_seed(0)
model = ResidualNet(1, 10, width=8)
finetune(model, data.train, data.val, epochs=10, lr=1e-2, progress=False)
model.eval()

networks = {
    "plain conversion": pursuitify(model),
    "calibrated": pursuitify(model, calibrate=DataLoader(data.val, 72)),
}

# %%
# The same network at several T: the number of sweeps can be set at any time.
counts = [0, 1, 2, 5, 10, 20, 50]
curves = {}
for name, net in networks.items():
    curves[name] = []
    for net.iterations in counts:
        curves[name].append(100 * evaluate(net, data.test).accuracy)
    print(f"{name}: " + ", ".join(f"{value:.1f}" for value in curves[name]))

with plots.style():
    figure = plots.new_figure()
    axes = figure.subplots()
    for name, accuracy in curves.items():
        axes.plot(accuracy, label=name)
    plots.ordinal(axes, counts)
    axes.set(xlabel="sweeps T", ylabel="test accuracy, %", ylim=(0, 102))
    axes.legend(loc="lower left")
    plots.finished(figure, "accuracy.png")
