"""
Coherence bounds of three architectures
=======================================

The least deep frame potential that an architecture allows says how incoherent its dictionary can
be, whatever the weights. ``compare`` bounds it from below and from above by one method, without
any training. The least value lies between the two bounds; where the lower one is zero, it says
nothing about that architecture.
"""

from pursuitify.analysis import compare
from pursuitify.models import ChainNet, DenselyConnectedNet, ResidualNet

models = {
    "chain": ChainNet(3, 10, width=32),
    "residual": ResidualNet(3, 10, width=32),
    "densely connected": DenselyConnectedNet(3, 10),
}
comparison = compare(models, (3, 16, 16), steps=15)
print(comparison)

# %%
# The bounds as a picture. ``pursuitify compare`` does the same on the command line.
comparison.plot("bounds.png")
