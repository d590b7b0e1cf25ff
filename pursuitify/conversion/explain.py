"""explain(): the dry run of a conversion. Raises nothing; says what every node becomes."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from pursuitify.compiler.graph.build_rows import build
from pursuitify.compiler.graph.classify import Site, Sites, Value, classify, gate_operands
from pursuitify.compiler.graph.completeness import account
from pursuitify.compiler.graph.dependency_graph import to_networkx
from pursuitify.compiler.graph.refusals import unknown_values
from pursuitify.compiler.graph.rows import Layout, Row, needed_operations
from pursuitify.compiler.lowering.program import Program
from pursuitify.compiler.tracing.nodes import describe, module_of, module_path, upstream
from pursuitify.compiler.tracing.trace import Printed, trace
from pursuitify.compiler.tracing.tracer import LeafModule
from pursuitify.conversion import model_checks
from pursuitify.conversion.convert import compile_model, pursuitify
from pursuitify.conversion.report import Entry, Report
from pursuitify.conversion.text_picture import block_picture
from pursuitify.errors import Problem, PursuitifyError
from pursuitify.rules import Key, Rule, leaves_of, static_parameters
from pursuitify.utils import option_checks


def explain(
    model: nn.Module,
    layout: Layout = "auto",
    *,
    input_shape: Sequence[int] | None = None,
    rules: Mapping[Key, Rule] | None = None,
    leaf_modules: Sequence[LeafModule] = (),
    example_inputs: Tensor | tuple[Any, ...] | None = None,
) -> Report:
    """Say what a conversion would do, node by node, without converting.

    Args:
        model: The model; never changed.
        layout: As for ``pursuitify``.
        input_shape: Shape of one sample, for the memory estimate; nothing is allocated.
        rules: As for ``pursuitify``.
        leaf_modules: As for ``pursuitify``.
        example_inputs: As for ``pursuitify``: the model and its conversion are run on them.

    Returns:
        A report; ``report.ok`` can be asserted on, ``str(report)`` read. A refused model or option
        raises nothing: ``ok`` is False then, and ``problems`` holds what ``pursuitify`` would say.
        An ``input_shape`` that does not fit is among the ``warnings``.

    Examples:
        >>> report = explain(nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2)))
        >>> report.ok, len(report.problems)
        (False, 1)
    """
    name = type(model).__name__
    try:
        model_checks.model(model)
        option_checks.one_of("layout", layout, option_checks.LAYOUTS)
        example = option_checks.example(example_inputs, model)
        model_checks.gradient_hooks(model)
        programs, constants = compile_model(model, layout, rules, leaf_modules, example=example)
        if example:
            pursuitify(
                model,
                layout=layout,
                rules=rules,
                leaf_modules=leaf_modules,
                example_inputs=example_inputs,
            )
    except PursuitifyError as error:
        found = _problems_of(error, name)
        entries = _refused(model, found, layout, rules, leaf_modules, example_inputs)
        return Report(name, False, found, entries)
    program = programs[model.training]
    sites, rows = program.sites, program.rows
    identity = sum(row.identity for row in rows)
    decoder = sum(row.layout == "decoder" for row in rows)
    warnings = _runaways(model, program)
    size = None
    if input_shape is not None:
        try:
            size = _latent_bytes(model, programs[False], constants, input_shape)
        except (PursuitifyError, RuntimeError, ValueError, IndexError, TypeError) as error:
            warnings.append(f"the network cannot run on input_shape={input_shape!r}: {error}")
    return Report(
        model=name,
        ok=True,
        problems=(),
        entries=_entries(program.graph, model, sites, rows, {}),
        latents=len(rows) - identity,
        identity_latents=identity,
        edges=sum(len(list(row.paths)) for row in rows),
        decoder_rows=decoder,
        encoder_rows=len(rows) - decoder,
        gates=len(_gated(sites, rows)),
        weighted_per_sweep=2 * _weighted(sites, rows),
        latent_bytes=size,
        warnings=tuple(warnings),
        picture=block_picture(to_networkx(rows, sites, model)),
    )


def _refused(
    model: object,
    found: Sequence[Problem],
    layout: Layout,
    rules: Mapping[Key, Rule] | None,
    leaf_modules: Sequence[LeafModule],
    example_inputs: Any,
) -> tuple[Entry, ...]:
    """Return the entries of a model that does not convert, as far as it can be traced.

    Roles are those that the nodes would have if what is refused were activations, or inputs where
    it reads several values.
    """
    try:
        root = model_checks.model(model)
        registry = model_checks.registry(rules)
        model_checks.leaves(leaf_modules, root)
        traced = trace(
            root,
            training=root.training,
            leaf_modules=(*leaf_modules, *leaves_of(rules)),
            example=option_checks.example(example_inputs, root),
            printed=Printed(shown=True),
        )
    except PursuitifyError:
        return ()
    refused = {p.node: p for p in found}
    given = {node for node in traced.graph.nodes if node.name in refused and node.op != "output"}
    while True:
        sites = classify(traced.graph, root, registry, given)
        more = {p.node: p for p in unknown_values(traced.graph, root, sites)}
        if more.keys() <= refused.keys():
            break
        refused = {**more, **refused}
        given = {node for node in traced.graph.nodes if node.name in refused}
    try:
        rows = build(traced.graph, root, sites, layout)
    except PursuitifyError:
        rows = ()
    return _entries(traced.graph, root, sites, rows, refused)


def _problems_of(error: PursuitifyError, name: str) -> tuple[Problem, ...]:
    listed: tuple[Problem, ...] = getattr(error, "problems", ())
    return listed or (Problem("-", name, "", str(error), ""),)


def _gated(sites: Sites, rows: Sequence[Row]) -> list[fx.Node]:
    """Products with a gate that stand in the rows."""
    nodes, found = {node.name: node for node in sites}, []
    for name in needed_operations(rows):
        node = nodes[name]
        site = sites[node]
        if site.rule is None or site.rule.kind != "product" or site.call is None:
            continue
        others = [o for o in site.call.operands if isinstance(o, fx.Node) and o is not site.unary]
        if any(sites[o].value is Value.FROZEN for o in others):
            found.append(node)
    return found


def _weighted(sites: Sites, rows: Sequence[Row]) -> int:
    nodes = {node.name: node for node in sites}
    rules = (sites[nodes[name]].rule for name in needed_operations(rows))
    return sum(rule.kind == "weighted" for rule in rules if rule is not None)


def _entries(
    graph: fx.Graph,
    root: nn.Module,
    sites: Sites,
    rows: Sequence[Row],
    refused: Mapping[str, Problem],
) -> tuple[Entry, ...]:
    places = account(graph, sites, rows)
    latents = {row.name: row for row in rows}
    diagonal = {name: row for row in rows for name, _ in row.diagonal}
    gated = set(_gated(sites, rows))
    useful = set(upstream(n for n in graph.nodes if n.op == "output"))
    beyond = set(upstream(n for n in graph.nodes if n.name in refused))

    def entry(node: fx.Node) -> Entry:
        role, note = places.get(node, "head"), ""  # of a refused model, rows are not known
        if role == "output":
            return Entry(node.name, "output", "", "output")
        if node.name in refused:
            role, note = "refused", refused[node.name].reason
        elif node.name in latents:
            row = latents[node.name]
            role = "identity latent" if row.identity else "latent"
            note = f"{row.layout} row {row.index}"
        elif node.name in diagonal:
            role, note = "diagonal operator", f"B of row {diagonal[node.name].index}"
            note += _frozen_note(sites[node], root, ", ")
        elif node in gated:
            role, note = "frozen gate", _gate_note(sites[node])
        elif role == "row":
            role, note = "edge", _frozen_note(sites[node], root)
        elif role == "input" and node.op != "placeholder":
            role, note = "signal", "looked up; rows read it as they read an input"
        elif role == "head" and node in beyond:
            role, note = "unknown", "what is refused reads it"
        elif role == "head" and node not in useful:
            role = "unused"
        return Entry(node.name, describe(node, root), module_path(node), role, note)

    return tuple(entry(node) for node in graph.nodes)


def _gate_note(site: Site) -> str:
    """Return which factor of a product is its frozen gate."""
    frozen = ", ".join(sorted(n.name for n in gate_operands(site)))
    return f"a diagonal scale by {frozen}, fixed at the feed-forward pass"


def _frozen_note(site: Site, root: nn.Module, before: str = "") -> str:
    """Return that an operation's map is frozen from the values of a pass, and why; else nothing.

    A rule whose author does not say what its map depends on is not named.
    """
    rule, node = site.rule, site.node
    if rule is None or site.call is None or not callable(rule.input_dependent):
        return ""
    module = module_of(node, root)
    reason = rule.dependence(static_parameters(rule, site.call, module))
    return "" if reason is None else f"{before}frozen at the feed-forward pass: {reason}"


def _runaways(root: nn.Module, program: Program) -> list[str]:
    """Name the latents along which F may be unbounded below (mathematics.md, section 2)."""
    found = []
    for row, readers in zip(program.rows, program.readers, strict=True):
        node = program.nodes[row.diagonal[0][0]] if row.diagonal else None
        module = None if node is None else module_of(node, root)
        if readers or module is None:
            continue
        if isinstance(module, nn.Linear):
            wide = module.out_features > module.in_features
        elif isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            wide = module.out_channels > module.in_channels * math.prod(module.stride)
        else:
            continue
        if wide:
            found.append(
                f"latent {row.name!r} is terminal and overcomplete: where its thresholds are "
                "negative it can grow slowly with the number of sweeps (diagnose says so)"
            )
    return found


def _latent_bytes(
    model: nn.Module, program: Program, constants: Mapping[str, Tensor], shape: Sequence[int]
) -> int:
    """Run the feed-forward pass on the meta device and add up the latents."""
    twin = meta_twin(model).eval()
    for name, value in constants.items():
        twin.__dict__.pop(name, None)
        twin.register_buffer(name, torch.empty_like(value, device="meta"), persistent=False)
    tensors = [*model.parameters(), *model.buffers()]
    like = next((t for t in tensors if t.is_floating_point()), torch.empty(0))
    x = torch.empty(1, *shape, device="meta", dtype=like.dtype)
    with torch.no_grad():
        first = program.forward(twin, x)
    return sum(w.numel() * w.element_size() for w in first.latents)


def meta_twin(model: nn.Module) -> nn.Module:
    """Return a copy of a module whose parameters and buffers are on the meta device.

    No value is copied, so that the copy takes no memory to speak of. Parameters that are shared
    in the module are shared in the copy.
    """
    memo: dict[int, Any] = {id(b): torch.empty_like(b, device="meta") for b in model.buffers()}
    for parameter in model.parameters():
        empty = torch.empty_like(parameter, device="meta")
        memo[id(parameter)] = nn.Parameter(empty, parameter.requires_grad)
    return copy.deepcopy(model, memo)


def summary(report: Report) -> Counter[str]:
    """Count the nodes by role."""
    return Counter(entry.role for entry in report.entries)


__all__ = ["Entry", "Report", "explain", "summary"]
