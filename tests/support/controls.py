"""Small networks on handwritten digits, honest ones and deliberately masked ones."""

from __future__ import annotations

import copy
import dataclasses
import gzip
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from pursuitify import pursuitify
from pursuitify.robust import Protocol, Step, pgd

EPS = 0.1
#: A protocol that takes seconds.
TINY = Protocol(
    name="tiny",
    steps=(
        Step("FGSM", "fgsm", "one-step"),
        Step("PGD", "pgd", "white-box", {"steps": 4}),
        Step("Square", "square", "black-box", {"queries": 10}, survivors=True),
        Step("gradients at T = 0", "pgd", "other-sweeps", {"steps": 3}, "t=0", True, "pursuit"),
    ),
    twin=(Step("PGD", "pgd", "white-box", {"steps": 3}),),
    curve=(Step("PGD", "pgd", "white-box", {"steps": 4}),),
    factors=(1.0, 2.0),
)


def shortened(protocol):
    """A protocol with all of its steps, each with few iterations or queries."""

    def brief(steps):
        most = {"steps": 3, "queries": 10}
        return tuple(
            dataclasses.replace(
                step, options={k: min(v, most.get(k, v)) for k, v in step.options.items()}
            )
            for step in steps
        )

    parts = {part: brief(getattr(protocol, part)) for part in ("steps", "twin", "curve")}
    return dataclasses.replace(protocol, name="brief", factors=protocol.factors[:2], **parts)


def digits():
    bunch = load_digits()
    x = torch.from_numpy(bunch.images).float().div(16).unsqueeze(1)
    y = torch.from_numpy(bunch.target).long()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    return x[:1400], y[:1400], x[1400:], y[1400:]


def garments(train, test):
    """Fashion-MNIST as Debian installs it; half of its pixels are exactly black."""
    folder = Path("/usr/share/datasets/fashion-mnist")
    if not folder.is_dir():
        pytest.skip("needs Debian's package dataset-fashion-mnist")

    def read(name, header, count):
        with gzip.open(folder / f"{name}-ubyte.gz") as file:
            return torch.frombuffer(bytearray(file.read()[header:]), dtype=torch.uint8)[:count]

    parts = []
    for name, count in (("train", train), ("t10k", test)):
        x = read(f"{name}-images-idx3", 16, count * 784).view(count, 1, 28, 28)
        parts += [x.float() / 255, read(f"{name}-labels-idx1", 8, count).long()]
    return parts


def fit(net, x, y, *, epochs, lr=1e-2, eps=0.0):
    """Train in place; with ``eps`` on PGD points (Madry et al. 2018)."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr)
    steps = epochs * -(-len(x) // 128)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    for _ in range(epochs):
        for part in torch.randperm(len(x), generator=generator).split(128):
            points = x[part]
            if eps:
                options = {"steps": 4, "step_size": eps / 2, "early_stop": False, "seed": 0}
                points = pgd(net.eval(), points, y[part], eps=eps, **options)
            net.train()
            optimizer.zero_grad()
            F.cross_entropy(net(points), y[part]).backward()
            optimizer.step()
            schedule.step()
    net.zero_grad(set_to_none=True)
    return net.eval()


class Before(nn.Module):
    """A network behind a layer that hides its gradients."""

    def __init__(self, function, net):
        super().__init__()
        self.function = function
        self.net = net
        self.train(net.training)

    def forward(self, x):
        return self.net(self.function(x))


class Scaled(nn.Module):
    def __init__(self, net, scale):
        super().__init__()
        self.net = net
        self.scale = scale
        self.train(net.training)

    def forward(self, x):
        return self.net(x) * self.scale


def quantise(x):
    return torch.round(x * 6) / 6


def saturate(x):
    """Two steep ReLUs per pixel: black below 0.5, white above 0.51, dead on both sides."""
    return F.relu(100 * (x - 0.5)) - F.relu(100 * (x - 0.51))


def jitter(x):
    return x + 0.15 * torch.randn_like(x)


def clamped_pgd(model, x, y, *, eps, steps=20):
    """PGD as it should not be: [0, 1] is kept inside the differentiated expression."""
    generator = torch.Generator().manual_seed(0)
    change = (torch.rand(x.shape, generator=generator) * 2 - 1) * eps
    for _ in range(steps):
        change.requires_grad_()
        loss = F.cross_entropy(model((x + change).clamp(0, 1)), y)
        (slope,) = torch.autograd.grad(loss, change)
        change = (change.detach() + 2.5 * eps / steps * slope.sign()).clamp(-eps, eps)
    return (x + change).clamp(0, 1)


def pursue_saturated(net, *, iterations):
    """A pursuit network behind the same dead units, its classifier fitted to the pursued latents.

    The units are convolutions and ReLUs, so the pursuit runs through them too.
    """
    gate = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 1, 1, bias=False))
    with torch.no_grad():
        gate[0].weight.fill_(100)
        gate[0].bias.copy_(torch.tensor([-50.0, -51.0]))
        gate[2].weight.copy_(torch.tensor([1.0, -1.0]).view(1, 2, 1, 1))
    pursued = pursuitify(nn.Sequential(gate, copy.deepcopy(net)).eval(), iterations=iterations)
    x, y, _, _ = digits()
    with torch.no_grad():
        *_, last = pursued.latents(x[:300]).values()
        features = last.mean((2, 3))
    head = pursued.get_submodule("1.classifier")
    scale = features.std(0) + 1e-6
    probe = nn.Linear(features.shape[1], 10)
    optimizer = torch.optim.Adam(probe.parameters(), 0.1)
    for _ in range(300):
        optimizer.zero_grad()
        F.cross_entropy(probe((features - features.mean(0)) / scale), y[:300]).backward()
        optimizer.step()
    with torch.no_grad():
        head.weight.copy_(probe.weight / scale)
        head.bias.copy_(probe.bias - probe.weight @ (features.mean(0) / scale))
    return pursued
