"""From rows to code: writes the graphs of a program's three functions.

torch.fx generates the functions from the graphs, so they are as fast as the source, readable and
open to torch.compile and torch.export.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, fx, nn

from pursuitify.activations import Activation, Linear
from pursuitify.classify import Site, Sites, Value
from pursuitify.graph import Row, needed_operations, readers_of
from pursuitify.program import Bound, Program
from pursuitify.rules import Affine, Rule
from pursuitify.trace import is_inplace


def lower(graph: fx.Graph, root: nn.Module, sites: Sites, rows: tuple[Row, ...]) -> Program:
    """Generate the code of a network."""
    builder = _Builder(graph, root, sites, rows)
    forward, names = builder.forward()
    return Program(
        rows=rows,
        sites=sites,
        graph=graph,
        inputs=tuple(n for n in graph.nodes if n.op == "placeholder"),
        readers=readers_of(rows),
        plain=_function(graph, root),
        names=names,
        _forward=_function(forward, root),
        _head=_function(builder.head(), root),
    )


def _function(graph: fx.Graph, root: nn.Module) -> Callable[..., Any]:
    graph.lint()
    code: Callable[..., Any] = type(fx.GraphModule(root, graph)).forward
    return code


class _Builder:
    """Writes the forward and head graphs."""

    def __init__(
        self, graph: fx.Graph, root: nn.Module, sites: Sites, rows: tuple[Row, ...]
    ) -> None:
        self.graph, self.root, self.sites, self.rows = graph, root, sites, rows
        self.row_of = {row.node: row for row in rows}
        self.operations = needed_operations(rows)
        rows_need = [*self.row_of, *(r.signal for r in rows), *self.operations]
        self.run = _ancestors([*rows_need, *_effects(graph, root)])
        self.output = next(n for n in graph.nodes if n.op == "output")
        self.captured: dict[fx.Node, None] = {}
        self.tail = self._walk_tail()
        self.stateful = {n: None for n in self.tail if self._is_stateful(n)}
        self.bound = {**self.operations, **self.stateful}
        self.run |= _ancestors([*self.stateful, *self.captured])

    def _is_stateful(self, node: fx.Node) -> bool:
        site = self.sites[node]
        return site.rule is not None and site.rule.stateful and site.call is not None

    def _walk_tail(self) -> set[fx.Node]:
        """Find the head: nodes between the latents and the output, and what it captures."""
        tail: set[fx.Node] = set()
        stack = list(self.output.all_input_nodes)
        while stack:
            node = stack.pop()
            if node in tail or node in self.row_of or node.op == "placeholder":
                continue
            if self._frozen(node):
                self.captured[node] = None
                continue
            tail.add(node)
            if self._is_stateful(node):
                stack.append(self._operand(node))
            else:
                stack.extend(node.all_input_nodes)
        return tail

    def _frozen(self, node: fx.Node) -> bool:
        """Whether the head reads the node's value off the feed-forward pass."""
        if node.op == "get_attr":
            return False
        value = self.sites[node].value
        if value is Value.FROZEN:
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

    def forward(self) -> tuple[fx.Graph, tuple[str, ...]]:
        """Return the feed-forward graph and the names of the operations it binds."""
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
                z = env[self.row_of[node].top]
                env[node] = new.call_function(_activate, (activations[node], z))
            elif node in self.bound:
                pair = self._call(new, node, env)
                env[node] = new.call_function(operator.getitem, (pair, 0))
                bound[node.name] = new.call_function(operator.getitem, (pair, 1))
        linear = new.call_function(Linear, ())
        new.output(
            (
                tuple(env[row.node] for row in self.rows),
                tuple(env[row.signal] for row in self.rows),
                tuple(bound.values()),
                tuple(activations.get(row.node, linear) for row in self.rows),
                tuple(env[node] for node in self.captured),
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
        run = _bind(site.rule, site, self.root)
        if node.op == "call_module":
            module = new.get_attr(str(node.target))
            return new.call_function(run, (module, *arguments))
        return new.call_function(run, arguments)

    def head(self) -> fx.Graph:
        """Return the graph from latents to the output."""
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
            if node in self.row_of and node in direct:
                env[node] = read(latents, self.row_of[node].index)
            elif node in position:
                env[node] = read(values, position[node])
            elif node.op == "placeholder" and node in direct:
                env[node] = read(inputs, placeholders.index(node))
            elif node in self.stateful:
                operand = env[self._operand(node)]
                env[node] = new.call_function(_apply, (read(bound, node.name), operand))
            elif node in self.tail or node is self.output:
                env[node] = new.node_copy(node, env.__getitem__)
        return new


def _operand_names(rule: Rule) -> set[str]:
    return {n.rstrip("*") for n in rule.operands} | {"x", "self", "a"}


def _apply(bound: Bound, x: Tensor) -> Tensor:
    return bound(x)


def _ancestors(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    found: set[fx.Node] = set()
    stack = list(nodes)
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack.extend(node.all_input_nodes)
    return found


def _effects(graph: fx.Graph, root: nn.Module) -> list[fx.Node]:
    """Nodes run for what they do: assertions, counters kept in buffers."""
    return [
        n
        for n in graph.nodes
        if n.op not in {"placeholder", "output"}
        and not n.users
        and (
            (n.op == "call_function" and "_assert" in getattr(n.target, "__name__", ""))
            or (is_inplace(n, root) and n.args and getattr(n.args[0], "op", "") == "get_attr")
        )
    ]


def _bind(rule: Rule, site: Site, root: nn.Module) -> Callable[..., Any]:
    """Return the function that runs and binds one node."""
    assert rule.bind is not None
    bind, names = rule.bind, rule.parameters
    constant = [i for i, o in enumerate(site.operands) if o is None]
    sequence = site.call is not None and site.call.sequence
    extra: dict[str, Any] = {}
    if rule.kind == "product":
        extra["_affine"] = next((i for i, o in enumerate(site.operands) if o is not None), 0)
    single = tuple(site.operands) == () or constant == []

    def finish(result: Any, operands: tuple[Any, ...]) -> Any:
        if not isinstance(result, Affine):
            return result, None
        offset = result.offset
        for i in () if single or rule.kind == "product" else constant:
            if isinstance(operands[i], Tensor):
                term = result.maps[i].apply(operands[i])
                offset = term if offset is None else offset + term
        return result.value, Bound(result.maps, offset, tuple(result.value.shape))

    def arguments(operands: tuple[Any, ...]) -> tuple[Any, ...]:
        return (list(operands),) if sequence else operands

    def run_module(module: nn.Module, operands: Any, parameters: Any, _rest: Any, _kw: Any) -> Any:
        own = {n: getattr(module, n) for n in names if hasattr(module, n)}
        result = bind(module, *arguments(operands), **{**own, **parameters, **extra})
        return finish(result, operands)

    node = site.node
    if node.op == "call_method":
        method = str(node.target)

        def call(*args: Any, **kwargs: Any) -> Any:
            return getattr(args[0], method)(*args[1:], **kwargs)

    else:
        call = node.target  # type: ignore[assignment]

    def run(operands: Any, parameters: Any, rest: Any, kwargs: Any) -> Any:
        def op(*new: Any) -> Any:
            return call(*arguments(new), *rest, **kwargs)

        varargs = rest if variadic else ()
        return finish(bind(op, *arguments(operands), *varargs, **parameters, **extra), operands)

    variadic = _variadic(bind)
    return run_module if node.op == "call_module" else run


def _variadic(bind: Callable[..., Any]) -> bool:
    code = bind.__code__
    return bool(code.co_flags & 0x04)


def _activate(activation: Activation, z: Tensor) -> Tensor:
    return activation(z)
