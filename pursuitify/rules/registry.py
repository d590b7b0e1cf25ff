"""The registry: what each torch op and module is.

A rule says what kind of operation a node is and, at run time, binds it to the values of one
forward pass. The parameters of ``bind`` after ``op`` carry the names that both the function and
the module use (``stride``, ``padding`` ...), so one rule serves ``nn.Conv2d``, ``F.conv2d`` and
``torch.conv2d`` alike: a module's are read from its attributes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, fx, nn

from pursuitify.operators import LinearMap
from pursuitify.rules.functions import applied
from pursuitify.utils import patched_methods

Kind = Literal[
    "weighted", "linear", "diagonal", "join", "product", "activation", "frozen", "signal"
]
Key = Callable[..., Any] | str
#: Returns, from an operation's static parameters, how its result depends on the input beyond what
#: is affine in it, or None where it does not.
Dependence = Callable[..., str | None]
#: Kinds whose built-in rules compute every entry anew; a ``linear`` one may hand its operand on.
_FRESH = {"weighted", "diagonal", "join", "product", "activation"}


@dataclass(frozen=True, eq=False)
class Affine:
    """One affine operation, bound: value = sum_i maps[i](operand_i) + offset.

    Attributes:
        value: The result on this batch, as the source network computes it.
        maps: One linear map per tensor operand.
        offset: The part that depends on no operand; broadcasts against ``value``.
    """

    value: Tensor
    maps: tuple[LinearMap, ...]
    offset: Tensor | None = None


@dataclass(frozen=True)
class Rule:
    """The rule of an operation: its kind, and the function that binds it at run time.

    Attributes:
        name: Shown in reports.
        kind: ``weighted`` (conv, linear: an operator with weights that mixes entries), ``linear``
            (free of parameters), ``diagonal`` (an elementwise affine map with parameters),
            ``join`` (several operands), ``product`` (by a constant or a frozen gate),
            ``activation``, ``frozen`` (any function; its value is fixed at the feed-forward
            pass), or ``signal`` (any function of inputs alone; rows read its value as they read an
            input's).
        bind: ``bind(op, *operands, **parameters)`` returns an ``Affine``, or the ``Activation``
            for activations. ``op(*operands)`` runs the source's operation.
        operands: Names of the tensor operands; a single name ending in ``*`` holds a sequence.
        channelwise: Whether it treats the slots of dimension 1 independently.
        elementwise: Whether it is diagonal: each entry is scaled on its own.
        stateful: Whether a second run would differ (random masks, running statistics).
        draws: Whether it draws random numbers in training mode; None where nobody says.
        fresh: Whether its value always has memory of its own, none of an operand's.
        casts: Whether it makes numbers of floating point of integers.
        check: Returns why these static parameters cannot be converted, or None.
        input_dependent: Whether the map, offset or activation that ``bind`` returns may differ
            between inputs of one shape (switches of a max pooling, a drawn mask, statistics of the
            batch). True unless the author of the rule knows better: a certificate covers no such
            rule. Or a function of the static parameters, see ``Dependence``. Gates are not meant:
            that an operand depends on the input is seen in the graph.
        concat: Whether it places its operands side by side along its parameter ``dim``, each in a
            slot of its own, so that a row that ends in it is cut into slots.
        linear_in: Positions of the operands in which it is linear; None for all of them.
        otherwise: Why it cannot be converted where another operand is a value of the network.
        bilinear: Whether it is linear in each operand alone: one of them may be a value of the
            network, and ``bind`` gets its position as ``_affine``; the others are constants, which
            are computed from the input where ``_per_sample`` says so.
        factors: Positions of the operands that a ``product`` or a bilinear rule multiplies with
            each other, where it adds further operands to their product; None for all of them.
        weighting: Position of an operand that the call itself names as the weight of the others:
            where it depends on the input as they do, it is the frozen gate. None where none is.
        all_moving: Why it cannot be converted where an operand is a constant or frozen; empty
            where it can.
        chosen_by_size: Why it cannot be converted where a mask compares one of the operands that
            it is applied to; empty where it can.
        compares: Whether its value is such a mask.
        homogeneous: Whether scaling all its operands by s > 0 scales its value by s, constants and
            offsets aside. Or a function of the call's parameters that says so.
        absorbs_scale: Whether a module's own ``weight`` and ``bias`` can take up a factor on its
            value, and ``weight`` the inverse of one on its operand.
        channel_gains: Returns by output channel how much a module enlarges what it reads: the norms
            of its filters, or the size of its factors. None where it has no channels of its own.
        runs_source: Whether the ``value`` that ``bind`` returns is what ``op`` returned for its one
            operand, so that it need not be computed again to be compared with the source's.
        smooth: Whether it is an activation that networks also use as a gate or at their output.
            One that no weighted operator reads belongs to the head, and of two factors that are
            not computed from each other the only one that it leads to is the gate.
    """

    name: str
    kind: Kind
    bind: Callable[..., Any] | None = None
    operands: tuple[str, ...] = ("input",)
    channelwise: bool = False
    elementwise: bool = False
    stateful: bool = False
    fresh: bool = False
    draws: bool | None = None
    casts: bool = False
    check: Callable[..., str | None] | None = None
    input_dependent: bool | Dependence = True
    concat: bool = False
    linear_in: tuple[int, ...] | None = None
    otherwise: str = "it is not linear in every operand that depends on the input"
    bilinear: bool = False
    factors: tuple[int, ...] | None = None
    weighting: int | None = None
    all_moving: str = ""
    chosen_by_size: str = ""
    compares: bool = False
    homogeneous: bool | Callable[..., bool] = False
    absorbs_scale: bool = False
    channel_gains: Callable[[nn.Module], Tensor] | None = None
    runs_source: bool = False
    smooth: bool = False

    def dependence(self, parameters: Mapping[str, Any]) -> str | None:
        """Return how the result depends on the input beyond what is affine in it, or None.

        Args:
            parameters: The operation's static parameters, as ``static_parameters`` gives them.
        """
        if callable(self.input_dependent):
            return self.input_dependent(**parameters)
        if self.input_dependent:
            return f"its rule ({self.name}) does not say that its map is the same at every input"
        return None

    def is_homogeneous(self, parameters: Mapping[str, Any]) -> bool:
        """Return whether the operation is positively homogeneous with a call's parameters."""
        if callable(self.homogeneous):
            return self.homogeneous(**parameters)
        return self.homogeneous

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of what ``bind`` takes after the operands."""
        if self.bind is None:
            return ()
        names = list(inspect.signature(self.bind).parameters)[1 + len(self.operands) :]
        return tuple(n for n in names if not n.startswith("_"))


class Registry(Mapping[Key, Rule]):
    """Rules by module type, function, or method name.

    Args:
        rules: Rules to start from.
        common: Attributes of the rules that ``register`` makes, where it is not told otherwise.
    """

    def __init__(self, rules: Mapping[Key, Rule] | None = None, **common: Any) -> None:
        self._rules: dict[Key, Rule] = dict(rules or {})
        self._common = common

    def __getitem__(self, key: Key) -> Rule:
        return self._rules[key]

    def __iter__(self) -> Iterator[Key]:
        return iter(self._rules)

    def __len__(self) -> int:
        return len(self._rules)

    def register(
        self, *keys: Key, kind: Kind, **options: Any
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Return a decorator that registers ``bind`` for module types, functions, methods."""

        def decorate(bind: Callable[..., Any]) -> Callable[..., Any]:
            usual = {"fresh": kind in _FRESH, "draws": False}
            rule = Rule(bind.__name__, kind, bind, **{**usual, **self._common, **options})
            for key in keys:
                if self._rules.get(key, rule) is not rule:
                    raise ValueError(f"{key} already has the rule {self._rules[key].name}")
                self._rules[key] = rule
            return bind

        return decorate

    def extended(self, extra: Mapping[Key, Rule]) -> Registry:
        """Return a registry in which ``extra`` comes before these rules."""
        return Registry({**self._rules, **{applied(key): rule for key, rule in extra.items()}})

    def find(self, node: fx.Node, root: nn.Module) -> Rule | None:
        """Return the rule of a node, or None."""
        if node.op == "call_module":
            return self.of_module(root.get_submodule(str(node.target)))
        if node.op == "call_function" and callable(node.target):
            return self._rules.get(node.target)
        return self._rules.get(str(node.target)) if node.op == "call_method" else None

    def of_module(self, module: nn.Module) -> Rule | None:
        """Return the rule of a module: of the nearest base that computes the same, or None."""
        kind = type(module)
        bases = (b for b in kind.__mro__ if b in self._rules)
        return next((self._rules[b] for b in bases if _computes_like(kind, b)), None)


def _computes_like(kind: type[nn.Module], base: type[nn.Module]) -> bool:
    """Whether the rule of a base class holds for a subclass: forward must be the same.

    Of torch's own modules, whose rules are ours, so must be what forward calls.
    """
    if kind is base:
        return True
    same = kind.forward is base.forward
    return same and (not patched_methods.is_stock(base) or patched_methods.same_methods(kind, base))


@dataclass(frozen=True)
class Call:
    """A node's arguments sorted by its rule.

    Attributes:
        operands: The values (nodes or constants) of the tensor operands, sequences spelled out.
        sequence: Whether the operands were one sequence.
        parameters: Everything else, by name; for modules only what the call itself passes.
    """

    operands: tuple[Any, ...]
    sequence: bool
    parameters: dict[str, Any]


def match(rule: Rule, node: fx.Node) -> Call:
    """Sort a node's arguments by the signature of its rule.

    Raises:
        TypeError: If the node passes an argument the rule does not know.
    """
    if rule.bind is None:
        return Call(tuple(node.all_input_nodes), False, {})
    signature = inspect.signature(rule.bind)
    kwargs = {**node.kwargs}
    for alias, name in (("x", "input"), ("self", "input"), ("axis", "dim"), ("a", "input")):
        if alias in kwargs and alias not in signature.parameters:
            kwargs[name] = kwargs.pop(alias)
    bound = signature.bind_partial(None, *node.args, **kwargs)
    arguments = dict(bound.arguments)
    arguments.pop(next(iter(signature.parameters)))
    names = [name.rstrip("*") for name in rule.operands]
    missing = [name for name in names if name not in arguments]
    if missing:
        raise TypeError(f"it has no argument {missing[0]!r}")
    operands = [arguments.pop(name) for name in names]
    sequence = rule.operands[0].endswith("*")
    if sequence:
        operands = list(operands[0])
    parameters = {n: v for n, v in arguments.items() if not n.startswith("_")}
    return Call(tuple(operands), sequence, parameters)


def static_parameters(rule: Rule, call: Call, module: nn.Module | None) -> dict[str, Any]:
    """Return the parameters known before any input is: what ``check`` may look at."""
    known = {n: v for n, v in call.parameters.items() if not isinstance(v, fx.Node)}
    if module is not None:
        known = {n: getattr(module, n) for n in rule.parameters if hasattr(module, n)} | known
    return known
