"""
Convert a resnet and look at its graph
======================================

The source here is torchvision's resnet18 with random weights. ``explain`` says what a conversion
would do, and changes nothing; ``pursuitify`` converts.
"""

import torch
from torchvision.models import resnet18

from pursuitify import explain, pursuitify
from pursuitify.plots import plot_structure

torch.manual_seed(0)
model = resnet18().eval()
report = explain(model)
print("converts:", report.ok)

# %%
# Without a sweep, at T = 0, the converted network is the source.
net = pursuitify(model, iterations=0)
x = torch.rand(1, 3, 64, 64)
print("largest difference at T = 0:", (net(x) - model(x)).abs().max().item())

# %%
# Every ReLU is a latent with a row of the dictionary. The picture shows which blocks of the
# dictionary are not zero. A chain would have two blocks in each row; skip connections add others.
plot_structure(net, "structure.png")
