"""
Latents as pictures
===================

The first latent of a network trained on digits, at T = 0 and after ten sweeps, channel by channel,
and how far it has moved. The network is calibrated, so that its predictions are kept meanwhile.
"""

import torch
from torch.utils.data import DataLoader

from pursuitify import plots, pursuitify
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

shown = {"T = 0": before, "T = 10": after, "difference": after - before}
largest = float(before.max())
with plots.style():
    figure = plots.new_figure(plots.WIDE, 4.2)
    axes = figure.subplots(3, 7)
    for row, (name, latent) in zip(axes, shown.items(), strict=True):
        row[0].imshow(x[0, 0], cmap="gray")
        row[0].set_ylabel(name)
        for cell, channel in zip(row[1:], latent, strict=True):
            drawn = cell.imshow(channel, cmap="RdBu", vmin=-largest, vmax=largest)
    for cell, title in zip(axes[0], ["image", *(f"channel {n}" for n in range(6))], strict=True):
        cell.set_title(title)
    for cell in axes.flat:
        cell.set(xticks=[], yticks=[])
        cell.spines[:].set_visible(False)
    figure.colorbar(drawn, ax=axes, label="latent", shrink=0.8)
    plots.finished(figure, "latents.png")
