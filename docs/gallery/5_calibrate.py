"""
Accuracy against T, before and after calibration
================================================

A trained network is its source at T = 0, and sweeps then move its latents away from those that the
classifier was trained on. ``calibrate=`` takes some unlabelled batches and chooses another
dictionary of the same network, which keeps the outputs. Images are scikit-learn's digits.
"""

import torch
from matplotlib.figure import Figure
from torch.utils.data import DataLoader

from pursuitify import pursuitify
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
figure = Figure(figsize=(6.4, 3.8), layout="constrained")
axes = figure.subplots()
for (name, net), style in zip(networks.items(), ("o-", "s-"), strict=True):
    accuracy = []
    for net.iterations in counts:
        accuracy.append(100 * evaluate(net, data.test).accuracy)
    print(f"{name}: " + ", ".join(f"{value:.1f}" for value in accuracy))
    axes.plot(range(len(counts)), accuracy, style, label=name)
axes.set_xticks(range(len(counts)), [str(count) for count in counts])
axes.set(xlabel="sweeps T", ylabel="test accuracy, %", ylim=(0, 102))
axes.legend(loc="lower left")
figure.savefig("accuracy.png", dpi=120)
