"""Arguments of the wrong kind: numbers of any integral type pass, all else is named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pursuitify import InputError, OptionError, PursuitNetwork, coherence, pursuitify
from pursuitify.conversion.calibration import calibrate
from pursuitify.errors import RangeError
from pursuitify.robust import audit
from pursuitify.training.batches import Share, batches

X, Y = torch.rand(2, 3, 6, 6), torch.zeros(2, dtype=torch.int64)


def network(**settings: Any) -> PursuitNetwork:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    return pursuitify(model.eval(), **settings)


@pytest.mark.parametrize("number", [3, np.int64(3), np.uint8(3), np.array(3)])
def test_whole_numbers_of_any_type(number: Any) -> None:
    net = network(iterations=number, implicit_iterations=number)
    net.recompute_levels = np.int32(2)
    assert [type(v) for v in (net.iterations, net.implicit_iterations)] == [int, int]
    assert type(net.recompute_levels) is int
    assert net.iterations == 3


@pytest.mark.parametrize(
    "number", [True, np.True_, 3.0, np.float64(3), "3", None, -1, np.int64(-1)]
)
def test_what_is_no_count(number: Any) -> None:
    with pytest.raises(OptionError, match=r"iterations=.*whole number >= 0"):
        network(iterations=number)


@pytest.mark.parametrize("shape", ["3,6,6", 5, (), (3, "6", 6), (3, -1, 6), (3, 6.0, 6)])
def test_shapes_of_inputs(shape: Any) -> None:
    with pytest.raises(OptionError, match=r"input_shape=.*like \(3, 224, 224\)"):
        coherence(network(), input_shape=shape)


def test_shapes_of_any_integral_type() -> None:
    net = network()
    found = [coherence(net, input_shape=s).columns for s in ((3, 6, 6), (np.int64(3), 6, 6))]
    assert found[0] == found[1]


@pytest.mark.parametrize("given", [5, None, "abc", X])
def test_batches_to_calibrate_on(given: Any) -> None:
    with pytest.raises(OptionError, match=r"batches is a .*give \[x\]"):
        calibrate(network(), given)


@pytest.mark.parametrize("protocol", [5, None, ["quick"]])
def test_protocols(protocol: Any) -> None:
    with pytest.raises(OptionError, match=r"protocol=.*'quick', 'standard', 'full'"):
        audit(network(), (X, Y), eps=0.1, protocol=protocol)


def test_latents_of_an_objective() -> None:
    net = network()
    with pytest.raises(InputError, match=r"latents is a int, not a dict of tensors by latent"):
        net.objective(X, 5)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no tensors at"):
        net.objective(X, dict.fromkeys(net.latents(X), 1))  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [0, -1, 2.5])
def test_batch_sizes(size: Any) -> None:
    with pytest.raises(OptionError, match=r"batch_size=.*whole number >= 1"):
        batches((X, Y), size, Share(), train=False)


def large(power: float) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 2)
    model = nn.Sequential(*layers).eval()
    with torch.no_grad():
        layers[2].weight.mul_(10.0**power)
    return model


@pytest.mark.parametrize("steps", ["adaptive", "certified"])
def test_steps_out_of_range_are_not_taken_for_a_wrong_conversion(steps: str) -> None:
    """Weights of 1e19 are in range, whose squares are not; the step of weights of 1e30 is not."""
    x = torch.rand(2, 4)
    net = pursuitify(large(19), iterations=2, layout="encoder", steps=steps, example_inputs=x)
    assert net(x).isfinite().all()
    reason = r"on example_inputs, in evaluation mode: the steps of 1 latent\(s\) leave the range"
    with pytest.raises(RangeError, match=reason):
        pursuitify(large(30), iterations=2, layout="encoder", steps=steps, example_inputs=x)
    net = pursuitify(large(30).double(), iterations=2, steps=steps, example_inputs=x.double())
    assert net(x.double()).isfinite().all()
