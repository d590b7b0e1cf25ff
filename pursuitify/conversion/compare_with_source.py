"""A fresh conversion against the model itself, run on example inputs in both modes.

The network alone can prove that its dictionary is that of its own plain program. Whether that
program is the model, only the model can say: fx does not see what a forward decides by the type of
its input, nor a ``train`` that the model overrides. Both are run here as a user runs them.
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pursuitify.errors import (
    OptionError,
    Problem,
    PursuitifyError,
    RangeError,
    VerificationError,
)
from pursuitify.network import tensor_differences, verification
from pursuitify.network.pursuit_network import PursuitNetwork

_HINT = (
    "Something in the model is decided by Python where torch.fx does not see it (the type of the "
    "input, an overridden train(), a cache): name the module in leaf_modules and give it a rule, "
    "or write it as plain tensor operations"
)


def compare_with_source(net: PursuitNetwork, model: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Compare a network with the model it was converted from, and prove its dictionary.

    Both are put into training and evaluation mode as users do, by ``train()`` and ``eval()``, and
    before that compared in the mode they are in. A mode in which the model itself fails on these
    inputs, as a BatchNorm does on one value per channel, is left out, unless it is the mode the
    model is in. Neither changes: not the model, of which a copy is run, not the network's buffers
    or modes, and no random number is drawn.

    Args:
        net: The network, with the model's weights.
        model: The model.
        inputs: The arguments of its forward.

    Raises:
        OptionError: If the model itself cannot run on the inputs.
        VerificationError: If they differ; lists what, in which mode.
        RangeError: If the sweeps leave the range of their precision.
    """
    source = copy.deepcopy(model)
    modes = {module: module.training for module in net.modules()}
    problems: list[Problem] = []
    try:
        # What the forward prints was shown when it was traced.
        with contextlib.redirect_stdout(io.StringIO()):
            problems += _compare(net, source, inputs, as_it_is=True)
            for mode in (not model.training, model.training):
                source.train(mode)
                net.train(mode)
                problems += _compare(net, source, inputs, as_it_is=False)
    finally:
        for module, mode in modes.items():
            module.training = mode
    if problems:
        raise VerificationError(
            f"the conversion of {type(model).__name__} is not the model on example_inputs: "
            f"{len(problems)} problem(s)",
            list({str(problem): problem for problem in problems}.values()),
        )


@torch.no_grad()
def _compare(
    net: PursuitNetwork, source: nn.Module, inputs: Sequence[Tensor], as_it_is: bool
) -> list[Problem]:
    """Return what differs in the modes both are in."""
    mode = "training" if net.training else "evaluation"
    name = net.source_name
    draws = net.compiled_program.may_draw(net)
    began = verification.start(net, inputs, draws)
    try:
        expected, left = _run(source, source, inputs, draws)
    except Exception as error:  # whatever a model raises on inputs it does not take
        if not as_it_is:
            return []
        raise OptionError(
            f"the model itself cannot run on example_inputs in {mode} mode: {error}"
        ) from error
    with began.again(net):
        try:
            found, mine = _run(net, net.source_output, inputs, draws)
        except PursuitifyError as error:
            return [Problem("-", name, "", f"in {mode} mode the model runs: {error}", "")]
    tolerance = verification.tolerance_of(inputs[0].dtype, inputs[0].device)
    errors = dict(tensor_differences.differences(found, expected))
    if any(error > tolerance for error in errors.values()):
        errors = _beyond_rounding(net, source, inputs, began, found, expected, tolerance)
    problems = [
        Problem(
            f"output{path}",
            name,
            "",
            f"in {mode} mode, T = 0 differs from the model by {error:.3g} of its size",
            _HINT,
        )
        for path, error in errors.items()
        if error > tolerance
    ]
    if net.balanced is None:  # which gives running statistics another scale
        problems += [
            Problem(
                path.rpartition(".")[2],
                "buffer",
                path.rpartition(".")[0],
                f"in {mode} mode, a pass leaves another value in it than the model does",
                _HINT,
            )
            for path, value in left.items()
            if path in mine and tensor_differences.difference(mine[path], value) > tolerance
        ]
    if not problems:
        problems += _proven(net, inputs, mode)
    return problems


def _proven(net: PursuitNetwork, inputs: Sequence[Tensor], mode: str) -> Sequence[Problem]:
    try:
        net.verify(*inputs)
    except VerificationError as error:
        return error.problems
    except RangeError as error:  # the network is the model, and only its sweeps cannot be computed
        raise RangeError(f"on example_inputs, in {mode} mode: {error}") from error
    except PursuitifyError as error:
        text = f"in {mode} mode the model runs, and its pursuit does not: {error}"
        return [Problem("-", net.source_name, "", text, "")]
    return []


def _beyond_rounding(
    net: PursuitNetwork,
    source: nn.Module,
    inputs: Sequence[Tensor],
    began: verification.Start,
    found: Any,
    expected: Any,
    tolerance: float,
) -> dict[str, float]:
    """Return the differences again, beside what rounding makes of the model itself.

    Devices may add in another order in every run. A balanced network rounds otherwise, so there
    the inputs are moved by as much as rounding could.
    """
    numbers = torch.Generator().manual_seed(0)
    moved = list(inputs)
    if net.balanced is not None:
        moved = [
            x * (1 + tolerance * torch.randn(x.shape, generator=numbers).to(x))
            if x.is_floating_point()
            else x
            for x in inputs
        ]
    with began.again(net):
        again, _ = _run(source, source, moved, began.numbers is not None)
    moves = tensor_differences.spread(again, expected)
    return dict(tensor_differences.differences(found, expected, moves, tolerance))


def _run(
    module: nn.Module, forward: Any, inputs: Sequence[Tensor], draws: bool
) -> tuple[Any, dict[str, Tensor]]:
    """Return a pass's output and the buffers it leaves; the module keeps its own."""
    with _scratch(module) as buffers, _numbers_kept(inputs, draws):
        return forward(*(x.clone() for x in inputs)), buffers


@contextlib.contextmanager
def _numbers_kept(inputs: Sequence[Tensor], draws: bool) -> Iterator[None]:
    began = verification.start(nn.Module(), inputs, draws)
    try:
        yield
    finally:
        began.restore_numbers()


@contextlib.contextmanager
def _scratch(module: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Let passes inside write to copies of the buffers, which it yields by name."""
    held = [
        (path, part, name, buffer)
        for path, part in module.named_modules()
        for name, buffer in part._buffers.items()
        if buffer is not None
    ]
    copies = {id(buffer): buffer.detach().clone() for *_, buffer in held}
    try:
        for _, part, name, buffer in held:
            part._buffers[name] = copies[id(buffer)]
        yield {f"{path}.{name}".lstrip("."): copies[id(b)] for path, _, name, b in held}
    finally:
        for _, part, name, buffer in held:
            part._buffers[name] = buffer
