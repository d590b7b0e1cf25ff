"""The switch between the fast path and the plain one."""

from __future__ import annotations

import pytest
import torch

from pursuitify import backends, pursuitify
from pursuitify.solvers.inplace import descend
from pursuitify.solvers.proximal_step import may_overwrite
from tests.support.nets import CASES, Case


def test_the_switch_acts_at_once_and_comes_back() -> None:
    assert backends.inplace_enabled()
    with torch.no_grad():
        assert may_overwrite()
        with backends.inplace(False):
            assert not may_overwrite()
            with backends.inplace(True):
                assert may_overwrite()
            assert not may_overwrite()
        assert may_overwrite()
        switch = backends.inplace(False)
        assert not may_overwrite()
        switch.__exit__(None, None, None)
    assert backends.inplace_enabled()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_both_paths_agree(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both paths give the same latents, and each is the path that ran."""
    ran = []
    plain = descend.descend
    monkeypatch.setattr(descend, "descend", lambda *a: ran.append(1) or plain(*a))
    net, x = pursuitify(case.build().eval(), iterations=3), case.input(batch=2)
    with torch.no_grad():
        fast = net.latents(x)
        assert ran
        ran.clear()
        with backends.inplace(False):
            slow = net.latents(x)
        assert not ran
    for name, value in fast.items():
        torch.testing.assert_close(value, slow[name], rtol=1e-10, atol=1e-10)
