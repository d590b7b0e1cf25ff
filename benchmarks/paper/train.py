"""Builds and trains the network of one cell; the same loop for every method.

The last epoch's weights are taken: nothing is selected.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.paper.configuration import Training
from benchmarks.paper.data import CHANNELS, images
from pursuitify import PursuitNetwork, pursuitify
from pursuitify.analysis import FramePotentialPenalty
from pursuitify.dictionary.structured import StructuredDictionary
from pursuitify.models import ChainNet, DenselyConnectedNet, ResidualNet
from pursuitify.robust import pgd

NETWORKS = {"chain": ChainNet, "residual": ResidualNet, "dense": DenselyConnectedNet}
Watch = Callable[[PursuitNetwork, int], dict[str, Any]]


def source_network(c: Training) -> nn.Module:
    """Return the untrained source network."""
    torch.manual_seed(c.seed)
    return NETWORKS[c.network](
        CHANNELS[c.data], 10, depth=c.depth, width=c.width, batch_norm=c.batch_norm
    )


def build(c: Training) -> PursuitNetwork:
    """Return the untrained network."""
    net = pursuitify(
        source_network(c),
        iterations=c.iterations,
        solver=c.solver,
        layout=c.layout,
        offsets=c.offsets,
        nonnegative_thresholds=c.nonnegative,
        paper=c.beta == "paper",
        memory=c.memory,
        copy=False,
    )
    for parameter in net.pursuit.parameters():
        parameter.requires_grad_(c.learn_steps)
    return net


def train(c: Training, watch: Watch | None = None, device: str = "cpu") -> tuple[Any, dict]:
    """Return the trained network, in evaluation mode, and a record of its training."""
    net = build(c).to(device)
    x, y = images(c.data, True)
    x, y = x[: c.images].to(device), y[: c.images].to(device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=c.rate)
    steps = c.epochs * -(-len(x) // c.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, c.rate, total_steps=steps)
    generator = torch.Generator().manual_seed(c.seed)
    shape = tuple(x.shape[1:])
    penalty = FramePotentialPenalty(net, shape, seed=c.seed) if c.frame_potential else None
    history: list[dict[str, Any]] = []
    start, watching = time.process_time(), 0.0
    for epoch in range(c.epochs):
        net.train()
        total, right = 0.0, 0
        for part in torch.randperm(len(x), generator=generator).split(c.batch):
            points = perturbed(net, x[part], y[part], c, generator)
            optimizer.zero_grad()
            logits, extra = _pass(net, points, c)
            loss = F.cross_entropy(logits, y[part])
            if penalty is not None:
                extra = extra + c.frame_potential * penalty()
            (loss + extra).backward()
            optimizer.step()
            schedule.step()
            if c.unit_atoms:
                normalise(net)
            total += float(loss.detach()) * len(part)
            right += int((logits.argmax(1) == y[part]).sum())
        history.append({"epoch": epoch + 1, "loss": total / len(x), "train": right / len(x)})
        if watch is not None and c.history and (epoch + 1) % c.history == 0:
            begin = time.process_time()
            history[-1] |= watch(net.eval(), epoch + 1)
            watching += time.process_time() - begin
    net.eval()
    record = {
        "cpu_seconds": time.process_time() - start - watching,
        "steps": steps,
        "parameters": sum(p.numel() for p in net.parameters()),
        "beta": net.pursuit.betas().tolist(),
        "alpha": net.pursuit.alphas().tolist(),
        "history": history,
    }
    return net, record


def perturbed(
    net: PursuitNetwork, x: Tensor, y: Tensor, c: Training, generator: torch.Generator
) -> Tensor:
    """Return the points to train on: the images, noisy ones, or PGD's."""
    if c.noise:
        draw = torch.randn(x.shape, generator=generator).to(x)
        x = (x + c.noise * draw).clamp(0, 1)
    if not c.adversarial:
        return x
    seed = int(torch.randint(2**31, (), generator=generator))
    options: dict[str, Any] = {"steps": c.adversarial_steps, "early_stop": False, "seed": seed}
    return pgd(net, x, y, eps=c.adversarial, **options)


def _pass(net: PursuitNetwork, x: Tensor, c: Training) -> tuple[Tensor, Tensor | float]:
    if not c.reconstruction:
        return net(x), 0.0
    logits, latents, dictionary = net.infer(x)
    return logits, c.reconstruction * reconstruction(dictionary, latents, c.rows).mean()


def reconstruction(dictionary: StructuredDictionary, latents: Any, rows: str = "all") -> Tensor:
    """Return the mean over rows of ||r_j||^2 / ||u_j||^2 per sample; u_j = B_j w_j - r_j."""
    batch = dictionary.inputs[0].shape[0]
    found = []
    for row, r in zip(dictionary.rows, dictionary.residual(latents).values(), strict=True):
        if rows == "input" and all(p.leaf >= 0 for slot in row.slots for p in slot):
            continue
        signal = row.join(row.decode(latents[row.name])) - r
        size = signal.reshape(batch, -1).square().sum(1)
        found.append(r.reshape(batch, -1).square().sum(1) / size.clamp_min(1e-6))
    return torch.stack(found).mean(0)


@torch.no_grad()
def normalise(net: nn.Module) -> None:
    """Scale every filter of the dictionary to unit length."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            norm = module.weight.flatten(1).norm(dim=1).clamp_min(1e-8)
            module.weight.div_(norm.view(-1, 1, 1, 1))
