"""Groups of values of a network that can be rescaled and must have the same scale.

Every value of the graph has a scale. A pool, an addition, a concat and a ReLU have the same scale
on both sides; convolutions, dense layers and the affine part of BatchNorm take up a difference of
scales in their own parameters. BatchNorm reads a value of scale 1, since its eps is not
homogeneous, and so do outputs, gates, clipping activations and all that is no known linear map.
"""

from __future__ import annotations

from collections.abc import Mapping

import networkx as nx
from torch import Tensor, fx, nn

from pursuitify.compiler.graph.classify import AFFINE_LIKE, Site, Value
from pursuitify.compiler.lowering.program import Program

#: A value: the mode's program (True in training) and the node.
Point = tuple[bool, fx.Node]
ONE = "one"


def ties_of(model: nn.Module, programs: Mapping[bool, Program]) -> nx.Graph[Point | str]:
    """Return the graph whose components are values of one scale; ``one`` is the scale 1."""
    ties: nx.Graph[Point | str] = nx.Graph()
    ties.add_node(ONE)
    able = absorbers(model, programs)
    seen: dict[str, Point] = {}
    for mode in dict.fromkeys((False, True) if differ(programs) else (False,)):
        program = programs[mode]
        for node, site in program.sites.items():
            if site.value not in AFFINE_LIKE:
                continue
            ties.add_node((mode, node))
            for reader in node.users:
                if why := _pinned_by(node, reader, program):
                    ties.add_edge((mode, node), ONE, why=why)
            if site.value is Value.INPUT:
                ties.add_edge((mode, node), ONE, why="it is the input")
                continue
            _tie_operands(ties, mode, site, able)
            if site.node.op == "call_module" and str(node.target) in able:
                _tie_modes(ties, (mode, node), site, seen, program)
    return ties


def differ(programs: Mapping[bool, Program]) -> bool:
    """Whether the two modes run different graphs."""
    return programs[True] is not programs[False]


def _pinned_by(node: fx.Node, reader: fx.Node, program: Program) -> str:
    """Return why a reader needs the value as it is, or nothing."""
    if reader.op == "output":
        return "it is an output"
    site = program.sites[reader]
    if site.value in {Value.SHAPE, Value.CONSTANT}:
        return ""
    if site.value not in AFFINE_LIKE or node not in site.operands:
        return f"{reader.name} reads it, which is no known linear map of it"
    return ""


def _tie_operands(
    ties: nx.Graph[Point | str], mode: bool, site: Site, able: Mapping[str, nn.Module]
) -> None:
    rule, node = site.rule, site.node
    assert rule is not None
    operands = [o for o in site.operands if o is not None]

    def pin(why: str, *points: fx.Node) -> None:
        for point in points:
            if not ties.has_edge((mode, point), ONE):  # the first reason is the nearest
                ties.add_edge((mode, point), ONE, why=why)

    absorbs = node.op == "call_module" and str(node.target) in able
    if rule.kind == "diagonal":
        pin(f"{node.name} reads it, whose eps is not scaled", *operands)
        if not absorbs:
            pin(f"{node.name} has no parameters that are its alone", node)
    elif rule.kind == "weighted" and not absorbs:
        pin(f"{node.name} has no parameters that are its alone", node, *operands)
    elif rule.kind == "join" and None in site.operands:
        pin(f"{node.name} adds a constant", node, *operands)
    elif rule.kind != "weighted" and not _homogeneous(site):
        why = "is not positively homogeneous, or by a rule of the user's own that does not say so"
        pin(f"{node.name} {why}", node, *operands)
    elif rule.kind != "weighted":
        ties.add_edges_from(((mode, node), (mode, operand)) for operand in operands)


def _homogeneous(site: Site) -> bool:
    assert site.rule is not None
    assert site.call is not None
    return site.rule.is_homogeneous(site.call.parameters)


def _tie_modes(
    ties: nx.Graph[Point | str], point: Point, site: Site, seen: dict[str, Point], program: Program
) -> None:
    """Let a module's operand and its result have one scale in both modes."""
    mode, node = point
    assert site.unary is not None
    for name, value in ((f"{node.target}<", site.unary), (f"{node.target}>", node)):
        if name in seen:
            ties.add_edge((mode, value), seen[name])
        seen[name] = (mode, value)


def absorbers(model: nn.Module, programs: Mapping[bool, Program]) -> dict[str, nn.Module]:
    """Return the modules whose own parameters can take up a difference of scales, by path."""
    calls: dict[str, list[Site]] = {}
    uses: dict[int, int] = {}
    for program in {id(p): p for p in programs.values()}.values():
        own: dict[int, int] = {}
        for node, site in program.sites.items():
            if node.op == "call_module":
                calls.setdefault(str(node.target), []).append(site)
            for parameter in _parameters(node, model):
                own[id(parameter)] = own.get(id(parameter), 0) + 1
        uses = {key: max(uses.get(key, 0), own.get(key, 0)) for key in {*uses, *own}}
    found = {}
    for path, sites in calls.items():
        module = model.get_submodule(path)
        held = [module._parameters.get("weight"), module._parameters.get("bias")]
        diagonal = sites[0].rule is not None and sites[0].rule.kind == "diagonal"
        wanted = held if diagonal or getattr(module, "bias", None) is not None else held[:1]
        if all(_takes_up(site) for site in sites) and all(
            p is not None and uses[id(p)] == 1 for p in wanted
        ):
            found[path] = module
    return found


def _takes_up(site: Site) -> bool:
    return site.rule is not None and site.rule.absorbs_scale and site.value is Value.AFFINE


def _parameters(node: fx.Node, model: nn.Module) -> list[Tensor]:
    """Return the tensors a node reads from the model."""
    if node.op == "call_module":
        return list(model.get_submodule(str(node.target)).parameters())
    if node.op == "get_attr":
        owner, _, name = str(node.target).rpartition(".")
        value = getattr(model.get_submodule(owner), name, None)
        return [value] if isinstance(value, Tensor) else []
    return []


def reason(ties: nx.Graph[Point | str], point: Point) -> str:
    """Return why a value's scale is 1: what holds the nearest value of its group."""
    path = nx.shortest_path(ties, point, ONE)
    return str(ties.edges[path[-2], ONE]["why"])
