"""
The dictionary of a small residual network
==========================================

The dictionary B is block lower triangular: one row of blocks per latent, one column of blocks for
the atoms of each latent. It is never built as a matrix in use; here it is, since it is small.
"""

import torch

from pursuitify import plots, pursuitify
from pursuitify.models import ResidualNet

torch.manual_seed(0)
net = pursuitify(ResidualNet(1, 10, width=2).eval())
x = torch.rand(1, 1, 4, 4)
d = net.dictionary(x)
B, _signal, _thresholds = d.materialize()
print("rows, columns:", tuple(B.shape))

# %%
# ``apply`` and ``adjoint`` are the same matrix, applied by convolutions.
latents = net.latents(x)
w = torch.cat([latent.flatten() for latent in latents.values()])
rows = torch.cat([row.flatten() for row in d.apply(latents).values()])
print("apply and matrix agree:", torch.allclose(rows, B @ w, atol=1e-5))

# %%
# A line is drawn where the columns of a latent begin.
begin = torch.tensor([latent.numel() for latent in latents.values()]).cumsum(0)[:-1]
with plots.style():
    figure = plots.new_figure(plots.NARROW, 5.2)
    axes = figure.subplots()
    shown = axes.imshow(B.detach(), cmap="RdBu", vmin=-1, vmax=1, interpolation="none")
    axes.grid(False)
    for column in begin.tolist():
        axes.axvline(column - 0.5, color="grey", linewidth=0.5)
    axes.set(xlabel="column: an entry of a latent", ylabel="row: an entry of a residual")
    figure.colorbar(shown, label="entry of B", shrink=0.8)
    plots.finished(figure, "dictionary.png")
