"""``type(x)`` in a forward that is traced: the answer is Tensor, as it is when the model runs.

A proxy can say that it is a tensor where ``isinstance`` asks, but nothing makes ``type(x)`` say so.
So while a model is traced, the name ``type`` means ``_Type`` below in the modules whose functions
the forward may reach; it answers for proxies and is the built-in type for all else. torch.fx gives
functions that are wrapped by ``fx.wrap`` another meaning in the same way.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator
from types import FunctionType, GenericAlias, MethodType, ModuleType
from typing import Any

from torch import fx, nn

from pursuitify.utils.patched_methods import names_in

_LOCK = threading.RLock()


class _Asked(type):
    """The metaclass of ``_Type``: it answers the call ``type(x)``."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        """Return the type of a value, a proxy's as it says itself; or make a type."""
        if len(args) == 1 and not kwargs and issubclass(type(args[0]), fx.Proxy):
            return args[0].__class__
        return type(*args, **kwargs)

    def __instancecheck__(cls, instance: Any) -> bool:
        """Whether something is a type."""
        return isinstance(instance, type)

    def __subclasscheck__(cls, subclass: Any) -> bool:
        """Whether something is a metaclass."""
        return issubclass(subclass, type)


class _Type(type, metaclass=_Asked):
    """Stands in for the built-in ``type``."""

    __class_getitem__: Any = classmethod(GenericAlias)


@contextlib.contextmanager
def answered(root: nn.Module) -> Iterator[None]:
    """Let ``type(x)`` in the code of a model say of a proxy what ``x.__class__`` says."""
    with _LOCK:
        scopes = [scope for scope in _asking(root) if "type" not in scope]
        for scope in scopes:
            scope["type"] = _Type
        try:
            yield
        finally:
            for scope in scopes:
                scope.pop("type", None)


def _asking(root: nn.Module) -> list[dict[str, Any]]:
    """Return the globals of the functions a forward may reach that use the name ``type``.

    Functions are followed through the names in their code: of functions, and of modules that hold
    functions; through what they close over and their defaults; and through lists, tuples, dicts and
    partials of functions. torch's own are left out.
    """
    found: dict[int, dict[str, Any]] = {}
    seen: set[int] = set()
    stack: list[Any] = []
    for module in root.modules():
        for owner in (module, *vars(module).values()):
            stack += [v for kind in _own(type(owner)) for v in vars(kind).values()]
            stack += vars(owner).values() if owner is module else []
    while stack:
        value = stack.pop()
        parts = _parts(value)
        if parts and id(value) not in seen:
            seen.add(id(value))
            stack += parts
            continue
        function = _plain(value)
        if function is None or id(function) in seen or _is_torch(function.__module__):
            continue
        seen.add(id(function))
        names, scope = set(names_in(function.__code__)), function.__globals__
        if "type" in names:
            found[id(scope)] = scope
        stack += [cell.cell_contents for cell in function.__closure__ or () if _filled(cell)]
        stack += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        for name in names & scope.keys():
            stack.append(scope[name])
            if isinstance(scope[name], ModuleType):
                held = vars(scope[name])
                stack += [held[n] for n in names & held.keys()]
    return list(found.values())


def _parts(value: Any) -> list[Any]:
    """Return what a container or a partial of functions holds; nothing of other values.

    A callable object holds its ``__call__``.
    """
    if type(value) in {list, tuple, set, frozenset}:
        return list(value)
    if type(value) is dict:
        return list(value.values())
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, (type, nn.Module, FunctionType, MethodType)):
        return []
    return [vars(kind)["__call__"] for kind in type(value).__mro__ if "__call__" in vars(kind)]


def _own(kind: type) -> list[type]:
    return [k for k in kind.__mro__ if k is not object and not _is_torch(k.__module__)]


def _is_torch(module: str | None) -> bool:
    return str(module).partition(".")[0] in {"torch", "builtins"}


def _plain(value: Any) -> FunctionType | None:
    if isinstance(value, (staticmethod, classmethod, MethodType)):
        value = value.__func__
    value = value.fget if isinstance(value, property) else value
    return value if isinstance(value, FunctionType) else None


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
