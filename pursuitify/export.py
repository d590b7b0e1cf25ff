"""Export of a converted network: torch.export, and ONNX for other runtimes.

An exported network is frozen: T, the solver and the scales are those it has, and everything that
is computed from weights alone (norm bounds, step sizes, folded scales) is computed once, here, and
stored. The norm search itself is never part of an exported program.
"""

from __future__ import annotations

import copy
import math
import operator
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from pursuitify.errors import ExportError, InputError, InternalError, OptionError
from pursuitify.network.pursuit_network import PursuitNetwork
from pursuitify.utils import option_checks
from pursuitify.utils.atomic_files import whole

#: Weights beyond this many bytes go to a second file: ONNX's own limit is 2 GiB.
_LARGEST_FILE = 1.9 * 2**30
Example = Tensor | tuple[Tensor, ...]


@torch.no_grad()
def export_program(
    net: PursuitNetwork, example: Example, *, dynamic_batch: bool = True
) -> ExportedProgram:
    """Export a network with torch.export, weights copied and frozen.

    The result can be saved (``torch.export.save``), compiled ahead of time
    (``torch._inductor.aoti_compile_and_package``) or run (``.module()``).

    Args:
        net: The network, in evaluation mode; not changed.
        example: An input, or a tuple of them; with a dynamic batch, of at least two samples.
        dynamic_batch: Let dimension 0 of every input vary; otherwise it is the example's.

    Raises:
        OptionError: If the network is in training mode.
        InputError: If the example does not fit, or has one sample where the batch is dynamic.
    """
    inputs = _checked(net, example, dynamic_batch)
    shapes = tuple({0: Dim.DYNAMIC} for _ in inputs) if dynamic_batch else None
    traced = torch.export.export(net, inputs, dynamic_shapes=shapes and {"args": shapes})
    # A copy: what is folded here must not meet weights that the caller trains further.
    module = copy.deepcopy(traced.module(check_guards=False))
    assert isinstance(module, fx.GraphModule)
    fold_constants(module)
    return torch.export.export(module, inputs, dynamic_shapes=shapes)


def export_onnx(
    net: PursuitNetwork,
    example: Example,
    path: str | os.PathLike[str],
    *,
    dynamic_batch: bool = True,
    tolerance: float | None = 1e-3,
) -> float | None:
    """Write a network to an ONNX file, and compare what onnxruntime makes of it.

    Args:
        net: The network, in evaluation mode; not changed.
        example: An input, or a tuple of them; with a dynamic batch, of at least two samples.
        path: Where to; weights are in the same file, up to 1.9 GiB.
        dynamic_batch: Let dimension 0 of every input vary, which is named ``batch`` in the file;
            otherwise it is the example's.
        tolerance: Largest difference to the network's own output on the example, relative to its
            largest entry; None to write the file without comparing.

    The file is put in place only once it is whole and, with a tolerance, compared: until then, and
    where anything fails, what stood at ``path`` is still there.

    Returns:
        The difference found, or None.

    Raises:
        OptionError: If the network is in training mode, or ``tolerance`` is no positive number.
        InputError: If the example does not fit, or has one sample where the batch is dynamic, or
            the network's own output on it is not finite; a file that was there stays as it was.
        MissingExtraError: If onnx, onnxscript or onnxruntime is not installed.
        CheckpointError: If the file cannot be written at ``path``.
        ExportError: If ONNX has no form for something in the network, or onnxruntime cannot run
            the file, for instance in the network's precision.
        InternalError: If the file computes something else.
    """
    if tolerance is not None:
        option_checks.factor("tolerance", tolerance)
    compared = () if tolerance is None else ("onnxruntime",)
    option_checks.extra("export", "onnx", "onnxscript", *compared)
    program = export_program(net, example, dynamic_batch=dynamic_batch)
    inputs = (example,) if isinstance(example, Tensor) else tuple(example)
    names = ["input"] if len(inputs) == 1 else [f"input_{i}" for i in range(len(inputs))]
    outputs = program.graph_signature.user_outputs
    held = sum(t.numel() * t.element_size() for t in program.state_dict.values())
    with whole(path) as written:
        try:
            torch.onnx.export(
                program,
                f=os.fspath(written),
                input_names=names,
                output_names=["output"] if len(outputs) == 1 else None,
                # The names that dimensions have in the file; torch numbers them else: s27.
                dynamic_shapes=tuple({0: "batch"} for _ in inputs) if dynamic_batch else None,
                external_data=held > _LARGEST_FILE,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise ExportError(
                f"torch.onnx cannot write this network: {_first_line(error)}. {path} is as it was"
            ) from error
        if tolerance is None:
            return None
        difference = _difference(net, inputs, names, written)
        if not difference <= tolerance:
            raise InternalError(
                f"onnxruntime's output differs from the network's by {difference:.3g} (relative to "
                f"its largest entry), more than {tolerance:g}; {path} is as it was. Please report "
                "it"
            )
    return difference


def fold_constants(module: fx.GraphModule) -> None:
    """Replace everything that is computed from the module's own tensors alone by its value.

    Args:
        module: A module with a flat graph, as ``ExportedProgram.module()`` gives it; changed.
    """
    values: dict[fx.Node, Any] = {}
    graph = module.graph
    for node in graph.nodes:
        if node.op == "get_attr":
            values[node] = _attribute(module, str(node.target))
        elif _pure(node) and all(n in values for n in node.all_input_nodes):
            args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = node.target(*args, **kwargs)
    count = 0
    for node in list(values):
        frontier = any(user not in values for user in node.users)
        if node.op == "get_attr" or not frontier or not isinstance(values[node], Tensor):
            continue
        name = f"folded_{count}"
        module.register_buffer(name, values[node].detach().clone())
        with graph.inserting_before(node):
            node.replace_all_uses_with(graph.get_attr(name))
        count += 1
    graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()


def _pure(node: fx.Node) -> bool:
    """Whether a second run would give the same: no random numbers, no effects."""
    tags = getattr(node.target, "tags", ())
    drawn = torch.Tag.nondeterministic_seeded in tags
    return node.op == "call_function" and not drawn and not node.is_impure()


def _attribute(module: nn.Module, path: str) -> Any:
    return operator.attrgetter(path)(module)


def _checked(net: PursuitNetwork, example: Example, dynamic: bool) -> tuple[Tensor, ...]:
    if not isinstance(net, PursuitNetwork):
        raise OptionError(f"export takes a PursuitNetwork, not a {type(net).__name__}")
    if net.training:
        raise OptionError(
            "an exported network is frozen, and this one is in training mode: call net.eval() first"
        )
    inputs = (example,) if isinstance(example, Tensor) else tuple(example)
    if dynamic and any(isinstance(x, Tensor) and x.dim() and x.shape[0] < 2 for x in inputs):
        raise InputError(
            "the example has one sample, and torch.export takes a dimension of 1 for constant: "
            "give two, or dynamic_batch=False"
        )
    net(*inputs)  # what does not fit is refused here, in the network's own words
    return inputs


@torch.no_grad()
def _difference(
    net: PursuitNetwork,
    inputs: tuple[Tensor, ...],
    names: list[str],
    path: str | os.PathLike[str],
) -> float:
    import onnxruntime

    kinds = sorted({str(p.dtype) for p in net.parameters()} | {str(x.dtype) for x in inputs})
    try:
        session = onnxruntime.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])
        feed = {name: x.cpu().numpy() for name, x in zip(names, inputs, strict=True)}
        found = [torch.from_numpy(value) for value in session.run(None, feed)]
    except _runtime_errors() as error:
        raise ExportError(
            f"onnxruntime's CPU cannot run this network in {', '.join(kinds)}: "
            f"{_first_line(error)}. Export it in float32 (net.float()), or with tolerance=None "
            "write the file without running it"
        ) from error
    wanted = _tensors(net(*inputs))
    return largest_difference(wanted, found)


def largest_difference(wanted: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Return the largest difference relative to the largest entry of each tensor wanted.

    It is infinite where a value is missing, has another shape or is not finite in ``found``.

    Raises:
        InputError: If ``wanted`` is not finite: no difference to it says anything.
    """
    if [t.shape for t in wanted] != [t.shape for t in found]:
        return math.inf
    worst = 0.0
    for ours, theirs in zip(wanted, found, strict=True):
        if not ours.numel():
            continue
        ours, theirs = ours.detach().cpu().double(), theirs.detach().cpu().double()
        if not bool(torch.isfinite(ours).all()):
            raise InputError(
                "the network's own output on the example is NaN or infinite, so there is nothing "
                "to compare with. Half precision may overflow in the sweeps: export the network in "
                "float32, take another example, or write the file with tolerance=None"
            )
        if not bool(torch.isfinite(theirs).all()):
            return math.inf
        scale = float(ours.abs().max().clamp_min(torch.finfo(torch.float64).tiny))
        worst = max(worst, float((ours - theirs).abs().max()) / scale)
    return worst


def _runtime_errors() -> tuple[type[Exception], ...]:
    """Return what onnxruntime raises, and what an array that numpy has no type for does.

    Its errors have no common class of their own.
    """
    from onnxruntime.capi import (
        onnxruntime_pybind11_state as state,
    )

    kinds = [kind for kind in vars(state).values() if isinstance(kind, type)]
    own = tuple(kind for kind in kinds if issubclass(kind, Exception))
    return (*own, RuntimeError, TypeError, ValueError)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}".rstrip(".")


def _tensors(output: Any) -> list[Tensor]:
    """Return the tensors of a nested output in the order torch.export gives them."""
    if isinstance(output, Tensor):
        return [output]
    items = output.values() if isinstance(output, dict) else output
    return [t for item in items for t in _tensors(item)] if hasattr(items, "__iter__") else []
