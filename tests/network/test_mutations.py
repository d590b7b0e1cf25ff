"""A network changed in any ways after its conversion is a fresh conversion, or refuses."""

from __future__ import annotations

import contextlib
import copy
import pickle
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pursuitify import PursuitNetwork, pursuitify
from pursuitify.errors import InputError, PursuitifyError
from tests.support.mutations import FREE, MUTATIONS, SETTINGS, made


def inputs(like: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(2, 3, 16, 20, generator=generator).to(next(like.parameters()).dtype)


def answers(net: nn.Module, x: Tensor, iterations: int) -> list[Tensor]:
    """Return outputs with derivatives and without, and the derivatives that there are."""
    if isinstance(net, PursuitNetwork):
        net.iterations = iterations
    found = []
    for recorded in (True, False):
        torch.manual_seed(5)
        with torch.set_grad_enabled(recorded):
            output = net(x)
        found.append(output.detach())
        own = [(n, p) for n, p in net.named_parameters() if not n.startswith("pursuit.")]
        used = [p for _, p in sorted(own, key=lambda pair: pair[0]) if p.requires_grad]
        if recorded and output.requires_grad and used:
            bars = torch.autograd.grad(output.square().sum(), used, allow_unused=True)
            found += [b.detach() for b in bars if b is not None]
    return found


def differ(found: list[Tensor], wanted: list[Tensor], tolerance: float) -> str:
    if len(found) != len(wanted):
        return f"{len(found)} values for {len(wanted)}"
    for i, (a, b) in enumerate(zip(found, wanted, strict=True)):
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"value {i} is {tuple(a.shape)} {a.dtype} for {tuple(b.shape)} {b.dtype}"
        scale = max(1.0, float(b.abs().max()))
        if not torch.allclose(a, b, rtol=tolerance, atol=tolerance * scale, equal_nan=True):
            return f"value {i} differs by {float((a - b).abs().max()):.1e}"
    return ""


def outcome(
    names: list[str], free: list[str], called: bool, settings: dict[str, Any], training: bool
) -> str:
    """Return ``same``, ``refused`` or ``no model``; anything else is a fault.

    Args:
        names: The mutations, in order.
        free: What is done to the network before each.
        called: Whether the network is called in between.
        settings: Settings of the network, set on it later and given to the fresh conversion.
        training: The mode at the start.
    """
    model, net = made().train(training), pursuitify(made().train(training), iterations=3)
    for name, change in zip(names, free, strict=True):
        if called:
            with contextlib.suppress(PursuitifyError):
                answers(net, inputs(net), 3)
            model.load_state_dict({k: net.state_dict()[k] for k in model.state_dict()})
        try:
            MUTATIONS[name](model)
        except (AttributeError, ValueError, RuntimeError, TypeError, KeyError, IndexError):
            return "no model"  # the changes before have taken away what this one changes
        # A hook that is a lambda cannot be pickled, nor a weight that is computed be copied.
        with contextlib.suppress(pickle.PicklingError, AttributeError, RuntimeError):
            net = FREE[change](net)
        MUTATIONS[name](net)
        for key in settings:
            setattr(net, key, settings[key])
    x = inputs(model)
    clean, before = copy.deepcopy(net.state_dict()), copy.deepcopy(model.state_dict())
    try:
        wanted = answers(model, x, 0)
    except Exception:
        wanted = None
    state = copy.deepcopy(model.state_dict())
    model.load_state_dict(before)
    try:
        found = answers(net, x, 0)
    except PursuitifyError:
        found = None
    if found is not None:
        if wanted is None:
            return "the source cannot run, the network does"
        said = differ(found, wanted, 1e-4 if x.dtype == torch.float32 else 1e-10)
        if said:
            return f"T = 0: {said}"
        own = {k: v for k, v in net.state_dict().items() if not k.startswith("pursuit.")}
        if own.keys() != state.keys():
            return f"state: {own.keys() ^ state.keys()}"
        for key, value in own.items():
            if not torch.allclose(value, state[key], rtol=1e-5, atol=1e-6, equal_nan=True):
                return f"buffer {key}"
        net.load_state_dict(clean)
    try:
        later = answers(net, x, 3)
    except PursuitifyError:
        return "refused"
    if found is None:
        return "refused at T = 0, and not at T = 3"
    try:
        fresh = pursuitify(model, iterations=3, **settings)
        expected = answers(fresh, x, 3)
    except PursuitifyError as error:
        return f"a fresh conversion is refused: {error}"
    said = differ(later, expected, 2e-3 if x.dtype == torch.float32 else 1e-5)
    return f"T = 3: {said}" if said else "same"


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    names = draw(st.lists(st.sampled_from(sorted(MUTATIONS)), min_size=1, max_size=4))
    return {
        "names": names,
        "free": [draw(st.sampled_from(sorted(FREE))) for _ in names],
        "called": draw(st.booleans()),
        "settings": {k: draw(st.sampled_from(v)) for k, v in SETTINGS.items()},
        "training": draw(st.booleans()),
    }


@pytest.mark.filterwarnings("ignore")
@given(case=cases())
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_changed_network_is_a_fresh_conversion_or_refuses(case: dict[str, Any]) -> None:
    assert outcome(**case) in {"same", "refused", "no model"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@given(case=cases())
@settings(max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_many_changed_networks_are_fresh_conversions_or_refuse(case: dict[str, Any]) -> None:
    assert outcome(**case) in {"same", "refused", "no model"}


@pytest.mark.parametrize("iterations", [0, 3])
def test_a_head_that_no_longer_fits_is_an_input_error(iterations: int) -> None:
    """The first proof runs the head too, and must not say so in torch's words alone."""
    net = pursuitify(made(), iterations=iterations)
    MUTATIONS["10.output_size = 1"](net)
    with pytest.raises(InputError, match="cannot run on this input: mat1 and mat2"):
        net(inputs(net))
