"""Networks that several files attack, trained once."""

from __future__ import annotations

import pytest
import torch

from pursuitify.models import ChainNet
from tests.support import controls


@pytest.fixture(scope="session")
def digits():
    """Test images and labels; the first 256."""
    _, _, x, y = controls.digits()
    return x[:256], y[:256]


@pytest.fixture(scope="session")
def undefended():
    return _trained(epochs=10)


@pytest.fixture(scope="session")
def hardened():
    """A network trained on PGD points."""
    return _trained(epochs=8, eps=controls.EPS)


def _trained(**options):
    x, y, _, _ = controls.digits()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = ChainNet(1, 10, width=6)
        return controls.fit(net, x, y, **options)
