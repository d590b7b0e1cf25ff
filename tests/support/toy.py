"""Small problems for the training tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pursuitify import PursuitNetwork, pursuitify
from pursuitify.models import ResidualNet


def rows(count: int = 48, seed: int = 0, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Return images (count, 1, 6, 6) in [0, 1] whose class shows in a quadrant."""
    generator = torch.Generator().manual_seed(seed)
    x = 0.5 * torch.rand(count, 1, 6, 6, generator=generator)
    y = torch.randint(classes, (count,), generator=generator)
    for i, label in enumerate(y.tolist()):
        x[i, :, 3 * (label // 2) : 3 * (label // 2) + 3, 3 * (label % 2) : 3 * (label % 2) + 3] += (
            0.5
        )
    return x, y


def model(batch_norm: bool = True, seed: int = 0, dropout: float = 0.0) -> nn.Module:
    """Return a small residual network, with dropout before the classifier if asked for."""
    torch.manual_seed(seed)
    net: nn.Module = ResidualNet(1, 3, width=2, batch_norm=batch_norm)
    if dropout:
        net.classifier = nn.Sequential(nn.Dropout(dropout), net.classifier)  # type: ignore[assignment]
    return net


def network(iterations: int = 2, **options: object) -> PursuitNetwork:
    """Return its pursuit network."""
    return pursuitify(model(**options), iterations=iterations)  # type: ignore[arg-type]
