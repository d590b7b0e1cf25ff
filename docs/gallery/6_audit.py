"""
The audit of a small network
============================

``audit`` attacks a network by gradients, without gradients and past its sweeps, compares it with
its twin at T = 0, and looks for signs that the attacks were deceived. Here it has a short protocol
of its own; ``protocol="quick"`` is the shortest to report. "No flag raised" is the best verdict
there is, and no proof of robustness.
"""

import torch

from pursuitify import pursuitify
from pursuitify.data import load_data
from pursuitify.models import ResidualNet
from pursuitify.robust import Protocol, Step, audit
from pursuitify.training import finetune

data = load_data("digits")
torch.manual_seed(0)
net = pursuitify(ResidualNet(1, 10, width=4), iterations=3)
finetune(net, data.train, data.val, epochs=5, lr=1e-2, progress=False)

short = Protocol(
    name="short",
    steps=(
        Step("FGSM", "fgsm", "one-step"),
        Step("PGD", "pgd", "white-box", {"steps": 10}),
        Step("Square", "square", "black-box", {"queries": 50}, survivors=True),
    ),
    twin=(Step("PGD", "pgd", "white-box", {"steps": 10}),),
    curve=(Step("PGD", "pgd", "white-box", {"steps": 10}),),
    factors=(0.25, 0.5, 1.0, 2.0),
)
images = [data.test[n] for n in range(100)]
report = audit(net, images, eps=0.1, protocol=short, progress=False)
print(report)

# %%
# Accuracy against the radius of the attack.
report.plot("audit.png")
