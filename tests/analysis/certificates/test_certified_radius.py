"""Certified radii: no attack inside flips a decision, what they rest on is exact, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pursuitify import OptionError, pursuitify
from pursuitify.analysis.certificates.certified_radius import _zero_radius, lipschitz_in_x
from pursuitify.analysis.certificates.head_slopes import slopes
from pursuitify.dictionary.norm_bounds import Norms, block_norms
from pursuitify.models import ChainNet, DenselyConnectedNet, ResidualNet
from pursuitify.robust import certified_radius, pgd
from pursuitify.solvers.step_sizes import synchronous_step_sizes
from pursuitify.solvers.synchronous import moves
from tests.support.nets import randomise

NETS = [ChainNet, ResidualNet, DenselyConnectedNet]


def made(kind: Any, sweeps: int, seed: int = 0, layout: Any = "auto") -> tuple[Any, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = randomise(kind(1, 3, depth=1, width=2), seed).double().eval()
    net = pursuitify(model, iterations=sweeps, layout=layout, solver="synchronous")
    net.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    return net, torch.rand(4, 1, 6, 6, generator=generator, dtype=torch.float64)


def worst_lead(net: Any, x: Tensor, own: int, eps: float) -> float:
    """Return the least lead of a class that strong l2 PGD leaves."""
    y = torch.tensor([own])
    options: dict[str, Any] = {"steps": 20, "step_size": eps / 4, "early_stop": False}
    points = pgd(net, x, y, eps=eps, norm="l2", loss="margin", restarts=2, seed=0, **options)
    with torch.no_grad():
        logits = net(points)[0]
    others = logits[torch.arange(len(logits)) != own]
    return float(logits[own] - others.max())


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize(("sweeps", "layout"), [(8, "auto"), (8, "encoder"), (25, "auto")])
def test_no_attack_inside_the_radius_flips(kind: Any, sweeps: int, layout: str) -> None:
    net, x = made(kind, sweeps, seed=sweeps, layout=layout)
    certificate = certified_radius(net, x)
    assert bool((certificate.radius > 0).all())
    for n in range(2):
        radius, own = float(certificate.radius[n]), int(certificate.predictions[n])
        assert worst_lead(net, x[n : n + 1], own, radius) > 0
    net.iterations = 0
    radius = float(certificate.feedforward_radius[0])
    assert worst_lead(net, x[:1], int(certificate.feedforward_predictions[0]), radius) > 0


def test_a_radius_is_that_of_the_network_with_its_hooks() -> None:
    """A forward hook of a block that the head reads is part of the head."""
    net, x = made(ResidualNet, 8)
    without = certified_radius(net, x)
    net.blocks.register_forward_hook(lambda module, args, output: 100 * output)
    found = certified_radius(net, x)
    # Leads and slopes both grow a hundredfold, but for the classifier's bias.
    assert bool((found.radius < 2 * without.radius).all())
    assert bool((found.feedforward_radius < 2 * without.feedforward_radius).all())
    for n in range(2):
        own = int(found.predictions[n])
        assert worst_lead(net, x[n : n + 1], own, float(found.radius[n])) > 0
    net.iterations = 0
    own = int(found.feedforward_predictions[0])
    assert worst_lead(net, x[:1], own, float(found.feedforward_radius[0])) > 0


def test_the_radius_is_exact_where_everything_is_linear() -> None:
    """Orthonormal atoms, active everywhere, one sweep: the boundary lies at the radius itself."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).double().eval()
    with torch.no_grad():
        model[0].weight.copy_(2 * torch.eye(4))
        model[0].bias.fill_(5.0)
        model[2].weight.copy_(torch.eye(4)[:2])
        model[2].bias.zero_()
    net = pursuitify(model, iterations=1, solver="synchronous")
    x = torch.tensor([[0.8, 0.2, 0.4, 0.4]], dtype=torch.float64)
    certificate = certified_radius(net, x)
    with torch.no_grad():
        lead = float(net(x)[0, 0] - net(x)[0, 1])
        assert float(certificate.radius) == pytest.approx(lead / (0.5 * 2**0.5), rel=1e-2)
        plain = (0.8 - 0.2) / 2**0.5  # fed forward lead and slope are both doubled
        assert float(certificate.feedforward_radius) == pytest.approx(plain, rel=1e-2)
        away = torch.tensor([[-1.0, 1.0, 0.0, 0.0]], dtype=torch.float64) / 2**0.5
        assert int(net(x + 1.02 * float(certificate.radius) * away).argmax()) == 1
        assert int(net(x + 0.99 * float(certificate.radius) * away).argmax()) == 0


@pytest.mark.parametrize("kind", NETS)
def test_local_certificates_only_gain(kind: Any) -> None:
    net, x = made(kind, 8)
    near, far = certified_radius(net, x), certified_radius(net, x, local=False)
    assert bool((near.radius >= far.radius).all())


def test_entries_that_are_certainly_zero_stay_zero() -> None:
    net, x = made(ResidualNet, 8)
    x = x[:1]
    with torch.no_grad():
        dictionary, norms = net.dictionary(x), Norms()
        blocks, direct = block_norms(dictionary, norms)
        steps = synchronous_step_sizes(dictionary, norms)
        g, p = float(steps[0]), float(direct.norm())
        bounds = [lipschitz_in_x(g, float((blocks.mT @ direct).norm()), p, t) for t in range(9)]
        given = list(moves(dictionary, steps, 8))
        columns = torch.linalg.vector_norm(blocks, dim=0).tolist()
        generator, kept = torch.Generator().manual_seed(0), 0
        for j, name in enumerate(dictionary.names):
            free = _zero_radius([v[j] for v in given], columns[j], g, p, bounds)[0]
            limit = float(free.max())
            if limit == 0:
                continue
            for share in (0.1, 0.5, 0.999):
                zero = free > share * limit
                kept += int(zero.sum())
                for _ in range(20):
                    e = torch.randn(x.shape, generator=generator, dtype=x.dtype)
                    moved = net.latents(x + share * limit * e / e.norm())[name]
                    assert not moved.flatten()[zero].any()
    assert kept > 0


def test_head_slopes_are_exact() -> None:
    net, x = made(DenselyConnectedNet, 8)
    found = slopes(net, x)
    with torch.no_grad():
        latents = net.latents(x[:1])
        base = sum(found[k] @ latents[k].flatten() for k in found)
        offset = net(x[:1])[0] - base
        other = net.latents(x[1:2])
        expected = sum(found[k] @ other[k].flatten() for k in found) + offset
        assert torch.allclose(net(x[1:2])[0], expected, rtol=1e-12, atol=1e-12)


class Refused(nn.Module):
    """Everything a certificate cannot cover."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
        self.gate, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        a = F.max_pool2d(F.relu(self.norm(self.a(x))), 2)
        a = a * torch.sigmoid(self.gate(a.mean((2, 3), keepdim=True)))
        a = F.relu(self.b(a)).mean((2, 3)) + x.mean((1, 2, 3))[:, None]
        return torch.softmax(self.head(self.drop(a)), 1)


def test_every_reason_is_named_at_once() -> None:
    net = pursuitify(Refused().train(), iterations=0)
    with pytest.raises(OptionError) as caught:
        certified_radius(net, torch.rand(2, 1, 6, 6))
    text = str(caught.value)
    for part in (
        "solver is 'global'", "no sweep", "training mode", "max_pool", "frozen from the input",
        "depends on the input", "those of the batch", "draws a mask", "softmax", "unpursued",
    ):  # fmt: skip
        assert part in text, part


def test_arguments() -> None:
    with pytest.raises(OptionError, match="PursuitNetwork"):
        certified_radius(nn.Linear(2, 2), torch.rand(1, 2))  # type: ignore[arg-type]


def test_accuracy_counts_what_is_right_and_stays() -> None:
    net, x = made(ResidualNet, 8)
    certificate = certified_radius(net, x)
    y = certificate.predictions.clone()
    y[0] = (y[0] + 1) % 3
    assert certificate.accuracy(y, 0.0) == 0.75
    middle = float(certificate.radius[1:].median())
    assert len(set(certificate.radius[1:].tolist())) == 3
    assert certificate.accuracy(y, middle) == 0.25
    assert certificate.accuracy(y, 1e9) == 0.0
