"""From rows to code: writes the graphs of a program's three functions.

torch.fx generates the functions from the graphs, so they are as fast as the source, readable and
open to torch.compile and torch.export.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from pursuitify.compiler.graph.classify import Sites, Value, inputs_of
from pursuitify.compiler.graph.rows import Row, needed_operations, readers_of
from pursuitify.compiler.lowering import layout_freedom
from pursuitify.compiler.lowering.node_binder import activate, apply, binder, call_hooks, holder
from pursuitify.compiler.lowering.pickling import Stored
from pursuitify.compiler.lowering.program import Pass, Program
from pursuitify.compiler.tracing import nodes as pieces
from pursuitify.compiler.tracing.nodes import is_effect
from pursuitify.operators.activations import Linear
from pursuitify.rules import Rule, split_ops


def lower(
    graph: fx.Graph,
    root: nn.Module,
    sites: Sites,
    rows: tuple[Row, ...],
    layout: str = "auto",
    nonnegative: bool = False,
) -> Program:
    """Generate the code of a network.

    Args:
        graph: The source graph.
        root: The module its targets are paths in.
        sites: The classified nodes.
        rows: The rows of the dictionary.
        layout: The layout the rows were built in.
        nonnegative: Hold the thresholds of sparse latents to >= 0, in the forward pass too.
    """
    inputs = tuple(n for n in graph.nodes if n.op == "placeholder")
    builder = _Builder(graph, root, sites, rows, nonnegative)
    forward, names = builder.forward()
    head = builder.head()
    any_format = layout_freedom.free(graph, root)
    if any_format:
        layout_freedom.reshape_views(forward)
        layout_freedom.reshape_views(head)
    return Program(
        rows=rows,
        layout=layout,
        nonnegative=nonnegative,
        sites=sites,
        graph=graph,
        inputs=inputs,
        defaults=tuple(n.args[0] if n.args else None for n in inputs),
        readers=readers_of(rows),
        plain=_function(graph, root),
        names=names,
        any_format=any_format,
        any_dtype=_any_dtype(sites, inputs),
        signal_count=len(inputs_of(sites)) - len(inputs),
        blocks=builder.blocks(),
        _forward=_function(forward, root),
        _head=_function(head, root),
    )


def _any_dtype(sites: Sites, inputs: tuple[fx.Node, ...]) -> tuple[bool, ...]:
    """Per input whether it may hold integers: whether casts alone, or no row at all, read it."""

    def takes_any(user: fx.Node, node: fx.Node) -> bool:
        site = sites[user]
        casts = split_ops.is_cast(user) or (site.rule is not None and site.rule.casts)
        return casts or node not in site.operands or site.value is Value.FROZEN

    return tuple(
        all(takes_any(user, node) for user in node.users if user in sites) for node in inputs
    )


@dataclass(frozen=True, eq=False)
class Recorded:
    """Two more functions of a program, for a proof: they say what the others keep to themselves.

    Products are what the source's own operations give in the feed-forward pass
    (``Rule.runs_source``), where nothing but such operations reads them: at the end of each chain
    of them there is one.

    Attributes:
        forward: The feed-forward pass; returns what ``Program._forward`` does, then the operands
            at the start of the chains and the products at their ends.
        plain: The source, its products given: ``plain(network, *args, *products)`` returns the
            output, the latents and the operands at the start of the chains.
    """

    forward: Callable[..., Any]
    plain: Callable[..., Any]


def recorded(program: Program, root: nn.Module, still: bool) -> Recorded:
    """Generate the functions that record a pass.

    Args:
        program: The program.
        root: The module its targets are paths in.
        still: Whether no operation writes to a buffer or draws a number in the coming passes.
    """
    rest = program.graph, root, program.sites, program.rows, program.nonnegative
    builder = _Builder(*rest)
    builder.choose_products(still)
    forward, plain = builder.forward(products=True)[0], builder.replay()
    if program.any_format:
        layout_freedom.reshape_views(forward)
        layout_freedom.reshape_views(plain)
    return Recorded(_function(forward, root), _function(plain, root))


@dataclass(frozen=True, eq=False)
class Hooked:
    """Two functions of a program that call the forward hooks of blocks.

    Attributes:
        plain: As ``Program.plain``; hooks get the values that the source's blocks return.
        head: As ``Program.head``; hooks get latents after the last sweep, and what is computed of
            them.
    """

    plain: Callable[..., Any]
    head: Callable[..., Any]


def hooked(program: Program, root: nn.Module, paths: Sequence[str]) -> Hooked:
    """Generate the functions that call forward hooks.

    Args:
        program: The program.
        root: The module its targets are paths in.
        paths: The blocks whose hooks are called, of ``Program.blocks``.
    """
    rest = program.graph, root, program.sites, program.rows, program.nonnegative
    builder = _Builder(*rest)
    plain, head = builder.plain(paths), builder.head(paths)
    if program.any_format:
        layout_freedom.reshape_views(head)
    run = _function(head, root)

    def run_head(network: nn.Module, latents: Any, first: Pass, args: Any) -> Any:
        return run(network, latents, first.bound, first.captured, args)

    return Hooked(_function(plain, root), run_head)


def revive(programs: Mapping[bool, Program | Stored], root: nn.Module) -> dict[bool, Program]:
    """Return the programs; of those that were pickled the code is generated again."""
    whole: dict[int, Program] = {}
    for program in programs.values():
        if isinstance(program, Program):
            whole[id(program)] = program
        elif id(program) not in whole:
            graph, rest = program.load()
            sites, rows, layout, nonnegative = rest
            whole[id(program)] = lower(graph, root, sites, rows, layout, nonnegative)
    return {mode: whole[id(program)] for mode, program in programs.items()}


def _function(graph: fx.Graph, root: nn.Module) -> Callable[..., Any]:
    graph.lint()
    code: Callable[..., Any] = type(fx.GraphModule(root, graph)).forward
    return code


def _without_derivatives(graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes all of whose readers end where ``no_grad`` does: no derivative gets there.

    Their parameters are bound without derivatives, so that the sweeps, which read them as well,
    give them none either.
    """
    found: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        users = [user for user in node.users if not pieces.is_shape(user)]
        if users and all(user.target is split_ops.detached or user in found for user in users):
            found.add(node)
    return found


class _Builder:
    """Writes the forward and head graphs."""

    def __init__(
        self,
        graph: fx.Graph,
        root: nn.Module,
        sites: Sites,
        rows: tuple[Row, ...],
        nonnegative: bool,
    ) -> None:
        self.nonnegative = nonnegative
        self.graph, self.root, self.sites, self.rows = graph, root, sites, rows
        self.nodes = {node.name: node for node in graph.nodes}
        self.row_of = {self.nodes[row.name]: row for row in rows}
        self.operations = dict.fromkeys(self.nodes[name] for name in needed_operations(rows))
        rows_need = [*self.row_of, *(self.nodes[row.u] for row in rows), *self.operations]
        self.run = set(
            pieces.upstream([*rows_need, *(n for n in graph.nodes if is_effect(n, root))])
        )
        self.output = next(n for n in graph.nodes if n.op == "output")
        inputs = [n for n in inputs_of(sites) if n.op != "placeholder"]
        self.captured: dict[fx.Node, None] = dict.fromkeys(inputs)
        self.tail = self._walk_tail()
        self.stateful = {n: None for n in self.tail if self._is_stateful(n)}
        self.bound = {**self.operations, **self.stateful}
        self.still = _without_derivatives(graph)
        self.run.update(pieces.upstream([*self.stateful, *self.captured]))
        self.run.update(pieces.upstream([n for n in graph.nodes if self._is_idle(n)]))
        self.inside: set[fx.Node] = set()
        self.starts: list[fx.Node] = []
        self.products: list[fx.Node] = []

    def _is_stateful(self, node: fx.Node) -> bool:
        site = self.sites[node]
        return site.rule is not None and site.rule.stateful and site.call is not None

    def _is_idle(self, node: fx.Node) -> bool:
        """Whether nothing reads the node's value, yet a run of it leaves a trace.

        A BatchNorm whose result is thrown away still counts its batch, a dropout draws its mask.
        """
        if node in self.run or node in self.tail or node.op in {"placeholder", "output"}:
            return False
        unknown = node.op == "call_module" and self.sites[node].rule is None
        return self._is_stateful(node) or pieces.is_random(node) or unknown

    def _walk_tail(self) -> set[fx.Node]:
        """Find the head: nodes between the latents and the output, and what it captures."""
        tail: set[fx.Node] = set()

        def operands(node: fx.Node) -> list[fx.Node]:
            # Asked after the loop's body has seen the node: the walk goes on from the tail alone.
            if node not in tail:
                return []
            return [self._operand(node)] if self._is_stateful(node) else node.all_input_nodes

        for node in pieces.upstream(self.output.all_input_nodes, operands):
            if node in self.row_of or node.op == "placeholder":
                continue
            if self._frozen(node):
                self.captured[node] = None
            else:
                tail.add(node)
        return tail

    def _frozen(self, node: fx.Node) -> bool:
        """Whether the head reads the node's value off the feed-forward pass."""
        if node.op == "get_attr":
            return False
        value = self.sites[node].value
        if value in {Value.FROZEN, Value.INPUT} or (
            value is Value.CONSTANT and pieces.is_random(node)
        ):
            return True
        return value in {Value.SHAPE, Value.CONSTANT} and self._early(node)

    def _early(self, node: fx.Node) -> bool:
        if node in self.run or node.op in {"placeholder", "get_attr"}:
            return True
        sizes = self.sites[node].value in {Value.SHAPE, Value.CONSTANT}
        return sizes and all(self._early(n) for n in node.all_input_nodes)

    def _operand(self, node: fx.Node) -> fx.Node:
        call = self.sites[node].call
        assert call is not None
        operand = call.operands[0]
        assert isinstance(operand, fx.Node)
        return operand

    def choose_products(self, still: bool) -> None:
        """Find the chains of operations that the feed-forward pass runs as the source does.

        Args:
            still: Whether those that may keep a state keep none now.
        """
        inside = {node for node in self.bound if self._runs_source(node, still)}
        self.starts = [
            n for n in self.graph.nodes if n in inside and self._operand(n) not in inside
        ]
        self.inside = inside
        self.products = [
            n
            for n in self.graph.nodes
            if n in inside and (n in self.row_of or not inside.issuperset(n.users))
        ]

    def _runs_source(self, node: fx.Node, still: bool) -> bool:
        rule = self.sites[node].rule
        if rule is None or not rule.runs_source or (rule.stateful and not still):
            return False
        row = self.row_of.get(node)
        return (row is None or row.identity) and len(self.sites[node].operands) == 1

    def replay(self) -> fx.Graph:
        """Return the source graph with its products as further arguments: see ``Recorded``."""
        new = fx.Graph()
        inputs = [node for node in self.graph.nodes if node.op == "placeholder"]
        # No defaults: every value is given, and the products come after them.
        env = {node: new.placeholder(str(node.target)) for node in inputs}
        given = {node: new.placeholder(f"product_of_{node.name}") for node in self.products}
        for node in self.graph.nodes:
            if node in given:
                own = self._may_be_written(node)
                env[node] = new.call_function(torch.clone, (given[node],)) if own else given[node]
            elif node is not self.output and node not in env and node not in self.inside:
                env[node] = new.node_copy(node, env.__getitem__)
        result = fx.map_arg(self.output.args[0], env.__getitem__)
        latents = tuple(env[node] for node in self.row_of)
        new.output((result, latents, tuple(env[self._operand(node)] for node in self.starts)))
        return new

    def _may_be_written(self, product: fx.Node) -> bool:
        """Whether an operation may work in place on the memory of a product."""
        walk = list(product.users)
        seen = set(walk)
        while walk:
            node = walk.pop()
            rule = self.sites[node].rule if node in self.sites else None
            if node is self.output or pieces.is_shape(node):
                continue
            if rule is None or pieces.is_inplace(node, self.root):
                return True
            if not rule.fresh:
                walk += [user for user in node.users if user not in seen]
                seen.update(walk)
        return False

    def forward(self, products: bool = False) -> tuple[fx.Graph, tuple[str, ...]]:
        """Return the feed-forward graph and the names of the operations it binds.

        Args:
            products: Return the operands and the values of the products as well.
        """
        own = {**self.bound, **self.row_of}
        new = fx.Graph()
        env: dict[fx.Node, fx.Node] = {}
        bound: dict[str, fx.Node] = {}
        activations: dict[fx.Node, fx.Node] = {}
        for node in self.graph.nodes:
            if node.op == "placeholder" or (node in self.run and node not in own):
                env[node] = new.node_copy(node, env.__getitem__)
            elif node in self.row_of and not self.row_of[node].identity:
                pair = self._call(new, node, env)
                activations[node] = new.call_function(operator.getitem, (pair, 0))
                z = env[self.nodes[self.row_of[node].preactivation]]
                if self.nonnegative:
                    hold = holder(self.row_of[node])
                    z = new.call_function(hold, (activations[node], z, dict(bound)))
                env[node] = new.call_function(activate, (activations[node], z))
            elif node in self.bound:
                pair = self._call(new, node, env)
                env[node] = new.call_function(operator.getitem, (pair, 0))
                bound[node.name] = new.call_function(operator.getitem, (pair, 1))
        linear = new.call_function(Linear, ())
        extra: tuple[Any, ...] = ()
        if products:
            operands = tuple(env[self._operand(node)] for node in self.starts)
            extra = operands, tuple(env[node] for node in self.products)
        new.output(
            (
                tuple(env[node] for node in self.row_of),
                tuple(env[self.nodes[row.u]] for row in self.rows),
                tuple(bound.values()),
                tuple(activations.get(node, linear) for node in self.row_of),
                tuple(env[node] for node in self.captured),
                *extra,
            )
        )
        return new, tuple(bound)

    def _call(self, new: fx.Graph, node: fx.Node, env: Mapping[fx.Node, fx.Node]) -> fx.Node:
        """Write the call that runs and binds one node."""
        site = self.sites[node]
        assert site.rule is not None
        assert site.call is not None
        call = site.call

        def mapped(value: Any) -> Any:
            return fx.map_arg(value, env.__getitem__)

        count = 1 if call.sequence else len(call.operands)
        kwargs = {k: v for k, v in node.kwargs.items() if k not in _operand_names(site.rule)}
        arguments = (
            mapped(tuple(call.operands)),
            mapped(dict(call.parameters)),
            mapped(tuple(node.args[count:])),
            mapped(dict(kwargs)),
        )
        run = binder(site.rule, site, node in self.still)
        if node.op == "call_module":
            module = new.get_attr(str(node.target))
            return new.call_function(run, (module, *arguments))
        return new.call_function(run, arguments)

    def blocks(self) -> frozenset[str]:
        """Return the paths of the blocks whose values are latents, or computed of them in the head.

        A block is a module whose forward was traced.
        """
        found: dict[str, bool] = {}
        for node in self.graph.nodes:
            known = node in self.row_of or (node in self.tail and node not in self.captured)
            for path in pieces.returned_by(node):
                found[path] = found.get(path, True) and known
        return frozenset(path for path, known in found.items() if known)

    def plain(self, paths: Collection[str]) -> fx.Graph:
        """Return the source graph, which calls the hooks of the blocks at ``paths``."""
        new = fx.Graph()
        env: dict[fx.Node, fx.Node] = {}
        for node in self.graph.nodes:
            env[node] = new.node_copy(node, env.__getitem__)
            env[node] = self._with_hooks(new, node, env[node], paths)
        return new

    def _with_hooks(
        self, new: fx.Graph, node: fx.Node, value: fx.Node, paths: Collection[str]
    ) -> fx.Node:
        """Return a node's value after the hooks of the blocks that return it, innermost first."""
        row = self.row_of.get(node)
        read = row is not None and bool(readers_of(self.rows)[row.index])
        for path in pieces.returned_by(node):
            if path in paths:
                value = new.call_function(call_hooks, (new.get_attr(path), value, path, read))
        return value

    def head(self, paths: Collection[str] = ()) -> fx.Graph:
        """Return the graph from latents to the output.

        Args:
            paths: The blocks whose hooks are called.
        """
        new = fx.Graph()
        names = ("latents", "bound", "captured", "inputs")
        latents, bound, values, inputs = (new.placeholder(n) for n in names)
        env: dict[fx.Node, fx.Node] = {}

        def read(source: fx.Node, key: int | str) -> fx.Node:
            return new.call_function(operator.getitem, (source, key))

        position = {n: i for i, n in enumerate(self.captured)}
        placeholders = [n for n in self.graph.nodes if n.op == "placeholder"]
        direct = {n for m in [*self.tail, self.output] for n in m.all_input_nodes}
        for node in self.graph.nodes:
            watched = not set(paths).isdisjoint(pieces.returned_by(node))
            if node in self.row_of and (node in direct or watched):
                env[node] = read(latents, self.row_of[node].index)
                if watched:  # a tensor of its own: the sweeps read the latent, but not what is seen
                    env[node] = new.call_method("view_as", (env[node], env[node]))
            elif node in position:
                env[node] = read(values, position[node])
            elif node.op == "placeholder" and node in direct:
                env[node] = read(inputs, placeholders.index(node))
            elif node in self.stateful:
                operand = env[self._operand(node)]
                env[node] = new.call_function(apply, (read(bound, node.name), operand))
            elif node in self.tail or node is self.output:
                env[node] = new.node_copy(node, env.__getitem__)
            if watched:
                env[node] = self._with_hooks(new, node, env[node], paths)
        return new


def _operand_names(rule: Rule) -> set[str]:
    return {n.rstrip("*") for n in rule.operands} | {"x", "self", "a"}
