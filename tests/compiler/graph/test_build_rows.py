"""Rows, cuts and the completeness check."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from pursuitify import PursuitNetwork, pursuitify
from pursuitify.compiler.graph.build_rows import build
from pursuitify.compiler.graph.classify import classify
from pursuitify.compiler.graph.completeness import account, check_complete
from pursuitify.compiler.lowering.program import Bound
from pursuitify.compiler.tracing.trace import trace
from pursuitify.dictionary import structured
from pursuitify.errors import InternalError
from pursuitify.network import arguments
from pursuitify.operators import Chain, LinearMap, Scale
from pursuitify.rules import default
from tests.support.agreement import error, flat
from tests.support.architectures import ARCHITECTURES

SMALL = ("se_resnet", "dense", "inverted", "pyramid", "perceptron", "shuffle", "unet")


def parts(model: nn.Module) -> Any:
    graph = trace(model, training=False).graph
    sites = classify(graph, model, default())
    return graph, sites, build(graph, model, sites, "auto")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_node_has_its_place(name: str) -> None:
    graph, sites, rows = parts(ARCHITECTURES[name][0]())
    check_complete(graph, sites, rows)
    places = account(graph, sites, rows)
    assert set(places) == set(graph.nodes)


@pytest.mark.parametrize("name", SMALL)
def test_a_lost_row_or_path_is_noticed(name: str) -> None:
    graph, sites, rows = parts(ARCHITECTURES[name][0]())
    read = {path.leaf for row in rows for _, _, path in row.paths}
    for j, row in enumerate(rows):
        if row.identity and row.index not in read:
            continue  # what only the head reads may as well be in the head
        with pytest.raises(InternalError):
            check_complete(graph, sites, (*rows[:j], *rows[j + 1 :]))
    for j, row in enumerate(rows):
        changed = []
        for s, slot in enumerate(row.slots):
            for p, path in enumerate(slot.paths):
                left = (*slot.paths[:p], *slot.paths[p + 1 :])
                shorter = dataclasses.replace(path, uses=path.uses[:-1])
                bent = (*slot.paths[:p], shorter, *slot.paths[p + 1 :])
                for paths in (left, bent) if path.uses else (left,):
                    new = dataclasses.replace(slot, paths=paths)
                    slots = (*row.slots[:s], new, *row.slots[s + 1 :])
                    changed.append(dataclasses.replace(row, slots=slots))
        changed += [dataclasses.replace(row, diagonal=row.diagonal[1:])] if row.diagonal else []
        for broken in changed:
            if needed(broken) == needed(row) and paths_of(broken) == paths_of(row):
                continue  # the same operations stand in another path too
            with pytest.raises(InternalError):
                check_complete(graph, sites, (*rows[:j], broken, *rows[j + 1 :]))


def needed(row: Any) -> set[str]:
    return set(row.operations)


def paths_of(row: Any) -> int:
    return sum(1 for _ in row.paths)


def zero(linear: LinearMap) -> LinearMap:
    return Chain((linear, Scale(0.0)))


@torch.no_grad()
def objective(net: PursuitNetwork, x: list[Tensor], drop: str | None) -> Tensor:
    """F at fixed latents, with one operation's maps and offset replaced by zero."""
    program = net._program
    values = arguments.arguments(program, x, {}, net)
    first = program.forward(net, *values)
    w = {
        row.name: torch.randn(v.shape, generator=torch.Generator().manual_seed(j)).to(v).abs()
        for j, (row, v) in enumerate(zip(program.rows, first.latents, strict=True))
    }
    bound = dict(first.bound)
    if drop is not None:
        old = bound[drop]
        places = any(n == drop for r in program.rows for s in r.slots for n, _ in s.places)
        if places:
            return torch.full((), torch.nan)
        offset = None if old.offset is None else torch.zeros_like(old.offset)
        bound[drop] = Bound(tuple(map(zero, old.maps)), offset, old.shape)
    changed = dataclasses.replace(first, bound=bound)
    return structured.bind(program, changed, values).objective(w)


@pytest.mark.parametrize("name", SMALL)
def test_zero_for_any_operation_of_a_row_changes_the_objective(name: str) -> None:
    torch.manual_seed(0)
    build_net, shapes = ARCHITECTURES[name]
    net = pursuitify(build_net().eval())
    x = [torch.randn(2, *shape) for shape in shapes]
    whole = objective(net, x, None)
    rows = {n for row in net._program.rows for n in needed(row)}
    assert rows
    for operation in rows:
        assert not torch.allclose(objective(net, x, operation), whole, rtol=1e-7), operation


@torch.no_grad()
def alive(model: nn.Module) -> nn.Module:
    """Raise every bias, so that no ReLU is dead."""
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.uniform_(0.3, 0.9)
    return model


class _Zero(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, name: str) -> None:
        super().__init__(module)
        self.name = name

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        return torch.zeros_like(value) if n.name == self.name else value


@pytest.mark.parametrize("name", SMALL)
def test_zero_for_any_node_changes_the_output(name: str) -> None:
    """No node of the graph, the head and the gates included, is without effect."""
    torch.manual_seed(0)
    build_net, shapes = ARCHITECTURES[name]
    net = pursuitify(alive(build_net()).eval(), iterations=0)
    x = [torch.randn(2, *shape) for shape in shapes]
    with torch.no_grad():
        whole = net(*x)
        defaults = [n.args[0] for n in net._program.inputs if n.args]
        for node in net.source.graph.nodes:
            if node.op not in {"call_module", "call_function", "call_method"}:
                continue
            probe = _Tensors(net.source)
            probe.run(*x, *defaults)
            if node.name in probe.tensors:
                changed = _Zero(net.source, node.name).run(*x, *defaults)
                assert error(flat(changed), flat(whole)) > 0, node.name


class _Tensors(fx.Interpreter):
    """Names of the nodes that hold tensors."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.tensors: set[str] = set()

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.tensors.add(n.name)
        return value
