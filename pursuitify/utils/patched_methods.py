"""Changes to modules from outside: replaced methods and hooks are kept, or they are refused."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any

from torch import nn

_STOCK = {"torch", "torchvision"}


def reached(kind: type[nn.Module]) -> dict[str, FunctionType]:
    """Return the methods of a module type that its forward may call, by name, forward included.

    They are found by the names in the code: more of them than are called, it may be.
    """
    found: dict[str, FunctionType] = {}
    names = ["forward"]
    while names:
        name = names.pop()
        method = None if name in found else _method(kind, name)
        if method is not None:
            found[name] = method
            # What every module has calls no layer's own methods.
            if name == "forward" or name not in vars(nn.Module):
                names += names_in(method.__code__)
    return found


def _method(kind: type, name: str) -> FunctionType | None:
    """Return the function behind a method of a type, or None if there is no such."""
    for base in kind.__mro__:
        if name in vars(base):
            held = vars(base)[name]
            return None if issubclass(type(held), property) else function_behind(held)
    return None


def function_behind(attribute: Any) -> FunctionType | None:
    """Return the function of a method or a property, or a function itself; None of all else.

    Only types are asked: an object may raise any error where it is asked for an attribute.
    """
    kind = type(attribute)
    if issubclass(kind, (staticmethod, classmethod, MethodType)):
        attribute = attribute.__func__
    elif issubclass(kind, property):
        attribute = attribute.fget
    return attribute if type(attribute) is FunctionType else None


def names_in(code: CodeType) -> Iterator[str]:
    """Yield the names of globals and attributes in a code object and in those inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from names_in(constant)


def is_stock(kind: type) -> bool:
    """Whether a type is torch's or torchvision's own."""
    return kind.__module__.partition(".")[0] in _STOCK


def same_methods(kind: type[nn.Module], base: type[nn.Module]) -> bool:
    """Whether a subclass computes what its base does: no method that forward calls is its own."""
    return all(_method(kind, name) is own for name, own in reached(base).items())


def replaced(module: nn.Module, methods: Mapping[str, FunctionType] | None = None) -> list[str]:
    """Return the methods that are replaced on this instance, of those that its forward calls.

    Args:
        module: The module.
        methods: What ``reached`` returns of its type, if that is known.
    """
    own = vars(module)
    methods = reached(type(module)) if methods is None else methods
    return [name for name in ("_call_impl", *methods) if name in own]


def is_patched(module: nn.Module, methods: Mapping[str, FunctionType] | None = None) -> bool:
    """Whether a module of torch runs other code than torch's, so that its type says nothing.

    The code was replaced on the instance, or in the class.

    Args:
        module: The module.
        methods: What ``reached`` returns of its type, if that is known.
    """
    methods = reached(type(module)) if methods is None else methods
    return bool(replaced(module, methods)) or any(
        str(m.__module__).partition(".")[0] not in _STOCK for m in methods.values()
    )


def reason(module: nn.Module) -> str:
    """Return why what the type of a module promises need not hold for it; empty if it does."""
    if module._forward_hooks or module._forward_pre_hooks:
        return "it has forward hooks, which may change what it computes: remove them first"
    if has_backward_hooks(module):
        return (
            "it has backward hooks, which the sweeps would leave out: remove them first (a hook on "
            "a tensor, or on a module of the network after the conversion, sees one pass alone)"
        )
    names = replaced(module)
    if names:
        return (
            f"its {names[0]} is replaced on the instance, so that its type does not say what it "
            "computes: make it a subclass of its own and give that a rule, or do not name it in "
            "leaf_modules, so that it is traced"
        )
    return ""


def has_backward_hooks(module: nn.Module) -> bool:
    """Whether a module has hooks on its gradients, before or after."""
    return bool(module._backward_hooks or module._backward_pre_hooks)


def root_reason(model: nn.Module) -> str:
    """Return what the root does beyond its forward, which a conversion would lose, if anything."""
    kind = type(model).__name__
    if model._forward_hooks or model._forward_pre_hooks:
        return f"{kind} has forward hooks, which the conversion would leave out: remove them first"
    if has_backward_hooks(model):
        return f"{kind} has backward hooks, which the conversion would leave out: remove them first"
    call = _method(type(model), "__call__")
    overridden = call is None or str(call.__module__).partition(".")[0] not in _STOCK
    if overridden or "_call_impl" in vars(model):
        return (
            f"{kind} overrides __call__, and what that does beyond forward would be lost: convert "
            "a module whose forward does it"
        )
    forward = vars(model).get("forward")
    if forward is not None and not (isinstance(forward, MethodType) and forward.__self__ is model):
        return (
            f"the forward of {kind} is replaced on the instance by something that is no method of "
            "it. Convert a wrapper module whose forward calls it, or bind a function whose first "
            "argument is the model: model.forward = types.MethodType(function, model)"
        )
    return ""


def settle_forward(root: nn.Module) -> None:
    """Make a forward that was bound to the instance the class's own: torch.fx reads that alone.

    Args:
        root: The copy that is traced, changed in place; its class becomes a new subclass.
    """
    forward = vars(root).pop("forward", None)
    if isinstance(forward, MethodType):
        kind = type(root)
        root.__class__ = type(kind.__name__, (kind,), {"forward": forward.__func__})


def rebind(root: nn.Module, copies: Mapping[int, Any]) -> None:
    """Let functions that hang on the modules of a copy mean the copy, not the original.

    ``copy.deepcopy`` keeps a function as it is, and with it the modules in its closure: a forward
    wrapped as ``old = layer.forward; layer.forward = lambda x: old(x) * 2`` would run the original.

    Args:
        root: The copy; functions in the attributes of its modules are replaced.
        copies: The memo of the deep copy: the copies by the id of what they are copies of.
    """
    for module in root.modules():
        for name, value in list(vars(module).items()):
            new = _rebound(value, copies, ())
            if new is not value:
                vars(module)[name] = new


def _rebound(value: Any, copies: Mapping[int, Any], outer: tuple[int, ...]) -> Any:
    """Return a callable with modules in it replaced by their copies; the value itself if none."""
    if id(value) in outer:
        return value
    outer = (*outer, id(value))

    def again(part: Any) -> Any:
        return _rebound(part, copies, outer)

    if isinstance(value, nn.Module):
        return copies.get(id(value), value)
    if isinstance(value, MethodType):
        owner, function = again(value.__self__), again(value.__func__)
        same = owner is value.__self__ and function is value.__func__
        return value if same else MethodType(function, owner)
    if isinstance(value, functools.partial):
        parts = [value.func, *value.args, *value.keywords.values()]
        new = [again(part) for part in parts]
        if all(a is b for a, b in zip(parts, new, strict=True)):
            return value
        count = 1 + len(value.args)
        keywords = dict(zip(value.keywords, new[count:], strict=True))
        return functools.partial(new[0], *new[1:count], **keywords)
    if isinstance(value, FunctionType) and (value.__closure__ or value.__defaults__):
        cells = tuple(_rebound_cell(cell, again) for cell in value.__closure__ or ())
        defaults = tuple(again(part) for part in value.__defaults__ or ())
        pairs = [
            *zip(cells, value.__closure__ or (), strict=True),
            *zip(defaults, value.__defaults__ or (), strict=True),
        ]
        if all(a is b for a, b in pairs):
            return value
        function = FunctionType(
            value.__code__, value.__globals__, value.__name__, defaults or None, cells or None
        )
        function.__kwdefaults__ = value.__kwdefaults__
        functools.update_wrapper(function, value)
        return function
    return value


def _rebound_cell(cell: CellType, again: Any) -> CellType:
    try:
        content = cell.cell_contents
    except ValueError:  # an empty cell
        return cell
    new = again(content)
    return cell if new is content else CellType(new)
