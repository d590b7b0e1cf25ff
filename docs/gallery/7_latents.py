"""
Latents as pictures
===================

The first latent of a network trained on digits, at T = 0 and after ten sweeps, channel by channel,
and how far it has moved. The network is calibrated, so that its predictions are kept meanwhile.
"""

import torch
from matplotlib.figure import Figure
from torch.utils.data import DataLoader

from pursuitify import pursuitify
from pursuitify.data import load_data
from pursuitify.models import ResidualNet
from pursuitify.training import finetune

data = load_data("digits")
torch.manual_seed(0)
model = ResidualNet(1, 10, width=6)
finetune(model, data.train, data.val, epochs=10, lr=1e-2, progress=False)
net = pursuitify(model.eval(), iterations=10, calibrate=DataLoader(data.val, 72))
x = data.test[0][0].unsqueeze(0)
after = next(iter(net.latents(x).values()))[0].detach()
net.iterations = 0
before = next(iter(net.latents(x).values()))[0].detach()
print(f"moved by {(after - before).norm() / before.norm():.2f} of its norm")

figure = Figure(figsize=(7.2, 3.8), layout="constrained")
axes = figure.subplots(3, 7)
shown = {"T = 0": before, "T = 10": after, "difference": after - before}
for row, (name, latent) in zip(axes, shown.items(), strict=True):
    row[0].imshow(x[0, 0], cmap="gray")
    row[0].set_ylabel(name)
    largest = float(before.max())
    for cell, channel in zip(row[1:], latent, strict=True):
        cell.imshow(channel, cmap="RdBu", vmin=-largest, vmax=largest)
for cell in axes.flat:
    cell.set(xticks=[], yticks=[])
axes[0, 0].set_title("image", fontsize=9)
for number, cell in enumerate(axes[0, 1:]):
    cell.set_title(f"channel {number}", fontsize=9)
figure.savefig("latents.png", dpi=120)
