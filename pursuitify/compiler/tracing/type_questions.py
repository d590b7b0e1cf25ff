"""The code that a traced forward may reach: ``type(x)`` and ``len(x)`` in it, its generators.

A proxy can say that it is a tensor where ``isinstance`` asks, but nothing makes ``type(x)`` say so,
and Python lets ``len(x)`` be a number alone, which the size of a batch is not yet. So while a model
is traced, the names ``type`` and ``len`` mean ``_Type`` and ``_length`` below in the modules whose
functions the forward may reach; these answer for proxies and are the built-in ones for all else.
In the same way ``int(x)`` and ``float(x)`` of a size are recorded, in modules that do nothing else
with these names: ``isinstance(x, int)`` needs the type itself.
torch.fx gives functions that are wrapped by ``fx.wrap`` another meaning in the same way.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import itertools
import random
import re
import sys
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import resolve_name
from types import (
    CodeType,
    FunctionType,
    GenericAlias,
    MappingProxyType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
    SimpleNamespace,
)
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from pursuitify.utils.fingerprint import is_installed
from pursuitify.utils.patched_methods import function_behind, names_in

_LOCK = threading.RLock()
#: Kinds of generators of random numbers that a model may hold.
GENERATORS = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)


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


def _length(value: Any, /) -> Any:
    """Return ``len(value)``, of a traced tensor its first size."""
    if {fx.Proxy, Tensor} <= set(type(value).__mro__):
        if value.node.target == "tolist":  # a list when the model runs
            return value.tracer.create_proxy("call_function", len, (value,), {})
        return value.size(0)
    return len(value)


def _is_traced_number(value: Any) -> bool:
    """Whether a value is a traced size, or arithmetic on sizes."""
    traced = issubclass(type(value), fx.Proxy) and Tensor not in type(value).__mro__
    return traced and value.__class__ in (int, float)


def _number(kind: type) -> Any:
    """Return what stands in for ``int`` or ``float`` where they are only called."""

    def made(*args: Any, **kwargs: Any) -> Any:
        """Return ``kind(...)``, of a traced size the recorded call."""
        if len(args) == 1 and not kwargs and _is_traced_number(args[0]):
            return args[0].tracer.create_proxy("call_function", kind, args, {})
        return kind(*args, **kwargs)

    return made


#: What built-in names mean in the code of a model while it is traced.
_MEANINGS: dict[str, Any] = {"type": _Type, "len": _length}
#: The same, in modules whose code calls them and does nothing else with them.
_IF_CALLED: dict[str, Any] = {"int": _number(int), "float": _number(float)}


#: Taking bytecode apart is most of the work, and both modes and every later conversion ask for the
#: same code again: what was read off it is kept. None of these functions may change its answer.
_remembered = functools.lru_cache(maxsize=1 << 13)


@dataclass
class Reached:
    """This record lists what the forward of a model may reach.

    Attributes:
        generators: Generators of random numbers, those of ``GENERATORS``, each once.
        names: The names of globals and attributes in its code, but for what only makes objects:
            ``__init__`` and what that alone leads to.
        compares: Whether that code compares identities with ``is``, of other than None.
        asking: The globals of its functions that use a name of ``_MEANINGS`` or ``_IF_CALLED``,
            each with the code that may use them.
        numbers: What sizes may be compared with where no operation shows it: numbers and tuples of
            them that are keys of dicts, entries of sets, or in strings, those in dicts first.
        computed: Whether the code makes dicts or sets of what it computes.
        unloaded: Modules that its code imports itself, and that are not loaded yet.
        identical: Numbers that a size may be compared with by ``is``: those in the code that
            compares so, and those that objects hold. Empty where it compares nothing but constants
            that are no numbers, and types. Of the code of installed libraries, which compares many
            objects so, the numbers that it compares with itself are taken and no others.
    """

    generators: list[Any] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    compares: bool = False
    asking: list[tuple[dict[str, Any], list[CodeType]]] = field(default_factory=list)
    numbers: list[tuple[int, ...]] = field(default_factory=list)
    computed: bool = False
    unloaded: set[str] = field(default_factory=set)
    identical: list[int] = field(default_factory=list)

    def is_outdated(self) -> bool:
        """Whether the code has loaded a module since, in which nothing answers for proxies."""
        return any(name in sys.modules for name in self.unloaded)


#: Code that a forward evaluates, with the globals that it evaluates it in.
Evaluated = list[tuple[CodeType, dict[str, Any]]]


def _evaluator(builtin: Any, evaluated: Evaluated) -> Any:
    """Return what stands in for ``eval`` or ``exec``: it notes the code, and runs it.

    Code that stands in an attribute, or that the forward puts together, is seen nowhere else.
    """

    def run(source: Any, scope: Any = None, held: Any = None, /, **more: Any) -> Any:
        frame = sys._getframe(1)
        if scope is None:
            scope, held = frame.f_globals, frame.f_locals if held is None else held
        if isinstance(source, str):
            source = source.strip(" \t") if builtin is eval else source
            source = compile(source, "<string>", "eval" if builtin is eval else "exec")
        if isinstance(source, CodeType) and not any(source == known for known, _ in evaluated):
            evaluated.append((source, scope))
        return builtin(source, scope, scope if held is None else held, **more)

    return run


@contextlib.contextmanager
def answered(root: nn.Module, evaluated: Evaluated | None = None) -> Iterator[Reached]:
    """Let ``type(x)`` and ``len(x)`` in the code of a model answer for proxies.

    ``type(x)`` is what ``x.__class__`` says, ``len(x)`` of a tensor is ``x.size(0)``.

    Args:
        root: The model.
        evaluated: What its forward is known to evaluate. What it evaluates beside that while the
            context is open is appended.

    Yields:
        What the forward of the model may reach.
    """
    evaluated = [] if evaluated is None else evaluated
    with _LOCK:
        found = _reached(root, evaluated)
        meanings = {**_MEANINGS, **_IF_CALLED}
        meanings |= {f.__name__: _evaluator(f, evaluated) for f in (eval, exec)}
        given = [
            (scope, name, meaning)
            for scope, codes in found.asking
            for name, meaning in meanings.items()
            if name not in scope and (name not in _IF_CALLED or _only_called(name, codes))
        ]
        for scope, name, meaning in given:
            scope[name] = meaning
        try:
            yield found
        finally:
            for scope, name, _ in given:
                scope.pop(name, None)


def _only_called(name: str, codes: list[CodeType]) -> bool:
    """Whether code calls a global name, and uses it in no other way, as ``isinstance`` does.

    Bytecode says so from Python 3.11 on; before that the answer is no.
    """
    uses = [called for code in codes for read, called in _global_reads(code) if read == name]
    return sys.version_info >= (3, 11) and bool(uses) and all(uses)


@_remembered
def _global_reads(code: CodeType) -> tuple[tuple[str, bool], ...]:
    """Return the globals that code reads, and whether a call follows, with code inside it."""
    own = [
        (str(step.argval), bool((step.arg or 0) & 1))
        for step in dis.get_instructions(code)
        if step.opname == "LOAD_GLOBAL"
    ]
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return (*own, *(read for part in inner for read in _global_reads(part)))


def _codes_of(scope: dict[str, Any]) -> Iterator[CodeType]:
    """Yield the code of the functions and of the classes that a module defines."""
    for value in list(scope.values()):
        own = vars(value).values() if type(value) is type else (value,)
        for held in own:
            function = function_behind(held)
            if function is not None and function.__globals__ is scope:
                yield function.__code__


def _reached(root: nn.Module, evaluated: Evaluated) -> Reached:
    """Return what a forward may reach.

    Functions are followed through the names in their code: of functions and classes, and of modules
    that hold them; through modules that their code imports itself, strings that it evaluates, and
    ``evaluated``; through what they close over and their defaults; and through whatever objects
    of the user's own classes hold, to any depth. Of an object whose class an installed library
    defines, unless it is a module, only what the code names is followed: methods and attributes
    of that name, and methods that an operator calls, and that where its code has to do with torch.
    One object could lead from there to all that the process holds. torch's own and the standard
    library's are left out.
    """
    found = Reached()
    asking: dict[int, tuple[dict[str, Any], list[CodeType]]] = {}
    seen: dict[int, Any] = {}  # the values themselves, so that no identity is given twice
    stack: list[Any] = [FunctionType(code, scope) for code, scope in evaluated]
    stack += root.modules()
    known: set[str] = set()
    later: list[Any] = []
    making = False
    constants: list[Any] = []
    held_numbers: list[int] = []
    waiting: dict[str, list[Any]] = {}  # what library objects hold by names that no code has so far
    while stack or later:
        if not stack:  # what is reached from here on is what __init__ leads to
            stack, later, making = list(later), [], True
        value = stack.pop()
        if type(value) is int:
            held_numbers.append(value)
        if type(value) in _PLAIN or id(value) in seen:
            continue
        if not making and type(value) is FunctionType and value.__name__ == "__init__":
            later.append(value)
            continue
        seen[id(value)] = value
        if issubclass(type(value), (dict, set, frozenset)):
            found.numbers += _numbers(
                [*next(k for k in KEYED if issubclass(type(value), k)).__iter__(value)]
            )
        for name, held in _named_parts(value):
            if name in known or name.startswith("__"):
                stack.append(held)
            else:
                waiting.setdefault(name, []).append(held)
        if issubclass(type(value), GENERATORS):
            found.generators.append(value)
            continue
        if type(value) is not FunctionType:
            stack += _parts(value)
            continue
        if _is_foreign(value.__module__):
            continue
        names, scope = set(names_in(value.__code__)), value.__globals__
        if names & (_MEANINGS.keys() | _IF_CALLED.keys() | _EVALUATORS):
            if id(scope) not in asking:
                asking[id(scope)] = scope, list(_codes_of(scope))
            asking[id(scope)][1].append(value.__code__)
        if not making:
            found.names |= names
            constants += _constants(value.__code__)
            found.compares = found.compares or _compares(value.__code__)
            found.computed = found.computed or _computes_keys(value.__code__)
            found.identical += _identical(value.__code__, _is_library(value.__module__))
        for name in names - known:
            stack += waiting.pop(name, ())
        known |= names
        closed = [cell.cell_contents for cell in value.__closure__ or () if _filled(cell)]
        for held in closed:  # of a module, as of one among the globals, what the code names
            inside = isinstance(held, ModuleType) and not _is_foreign(held.__name__)
            stack += _named(names, vars(held)) if inside else [held]
        stack += [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
        stack += [*vars(value).values(), *_named(names, scope)]
        stack += [FunctionType(code, scope) for code in _evaluated(value.__code__)]
        for module in _imported(value.__code__, scope):
            if module in sys.modules:
                stack += _named(names, vars(sys.modules[module]))
            else:
                found.unloaded.add(module)
    found.asking = list(asking.values())
    found.numbers += _numbers(constants)
    if found.identical:
        sizes = [n for n in [*found.identical, *sorted(held_numbers)] if 0 < n < _LARGEST]
        found.identical = [*dict.fromkeys(sizes)][:_KEYS]
    return found


def _imported(code: CodeType, scope: dict[str, Any]) -> set[str]:
    """Return the modules that code, or code inside it, imports where it runs, by absolute names.

    Of ``from a import b``, b may be a module as well. Modules whose code asks about no model are
    left out.
    """
    found: set[str] = set()
    steps = [*dis.get_instructions(code)]
    for level, names, step in zip(steps, steps[1:], steps[2:], strict=False):
        if step.opname != "IMPORT_NAME":
            continue
        name = str(step.argval)
        if level.argval:
            with contextlib.suppress(ImportError):
                name = resolve_name("." * level.argval + name, str(scope.get("__package__") or ""))
        found.add(name)
        held = vars(sys.modules[name]) if name in sys.modules else {}  # asked, it may import more
        found |= {f"{name}.{n}" for n in names.argval or () if n not in held}
    if _IMPORTERS & set(code.co_names):
        found.update(c for c in code.co_consts if isinstance(c, str) and _MODULE.fullmatch(c))
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    found = found.union(*(_imported(part, scope) for part in inner))
    return {name for name in found if not _is_foreign(name)}


#: Names of what returns a module by its name, and what such a name looks like.
_IMPORTERS = {"import_module", "__import__", "modules"}
_MODULE = re.compile(r"[A-Za-z_]\w*(\.\w+)*")


def _evaluated(code: CodeType) -> list[CodeType]:
    """Return the code of strings that stand in code which evaluates or executes some."""
    found = []
    for constant in code.co_consts if _EVALUATORS & set(names_in(code)) else ():
        if isinstance(constant, CodeType):
            found += _evaluated(constant)
        elif isinstance(constant, str):
            with contextlib.suppress(SyntaxError, ValueError):
                found.append(compile(constant, "<string>", "exec"))
    return found


_EVALUATORS = {"eval", "exec", "compile"}


#: The most keys of one dict or set that are looked at for numbers.
_KEYS = 64


@_remembered
def _constants(code: CodeType) -> tuple[Any, ...]:
    """Return what a size may be looked up among: constants of code, and of code inside it."""
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    found = [c for part in inner for c in _constants(part)]
    sets = [c for c in code.co_consts if isinstance(c, (frozenset, tuple))]
    found += [entry for held in sets for entry in held]
    found += [c for c in code.co_consts[1:] if isinstance(c, str)]  # the first may be what it says
    makes = any(step.opname in _MAKES for step in dis.get_instructions(code))
    return (*found, *(c for c in code.co_consts if makes and isinstance(c, (int, tuple))))


#: Steps that make a dict or a set.
_MAKES = {"BUILD_MAP", "BUILD_SET", "MAP_ADD", "SET_ADD", "BUILD_CONST_KEY_MAP", "STORE_SUBSCR"}


#: Steps that make a dict or a set of what is computed, and names of what does.
_COMPUTES = {"MAP_ADD", "SET_ADD", "STORE_SUBSCR", "DICT_UPDATE", "SET_UPDATE"}
_MAKERS = {"dict", "set", "frozenset", "fromkeys"}


@_remembered
def _computes_keys(code: CodeType) -> bool:
    """Whether code, or code inside it, makes a dict or a set of other than constants."""
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    if _MAKERS & set(code.co_names) or any(map(_computes_keys, inner)):
        return True
    return any(
        step.opname in _COMPUTES or (step.opname in {"BUILD_MAP", "BUILD_SET"} and step.arg)
        for step in dis.get_instructions(code)
    )


#: Larger numbers are no sizes.
_LARGEST = 1 << 13


@_remembered
def _identical(code: CodeType, of_library: bool) -> tuple[int, ...]:
    """Return numbers in code that compares something by ``is`` that may be a size.

    That is what is no constant other than a number, and no type or dtype by its name. One where
    there is no number, so that what is held elsewhere is looked at. Of an installed library only
    numbers that stand beside an ``is``.
    """
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    found = [n for part in inner for n in _identical(part, of_library)]
    for last, step in itertools.pairwise(dis.get_instructions(code)):
        if step.opname != "IS_OP":
            continue
        value = last.argval
        number = last.opname.startswith("LOAD_") and type(value) is int
        if of_library:
            found += [value] if number else []
            continue
        constant = last.opname == "LOAD_CONST" and not number
        named = isinstance(value, str) and (value[:1].isupper() or hasattr(torch, value))
        kind = named and not value.isupper()
        if not constant and not (last.opname in {"LOAD_ATTR", "LOAD_GLOBAL"} and kind):
            found += [n for n in code.co_consts if type(n) is int] or [1]
    return tuple(found)


def _numbers(values: list[Any]) -> list[tuple[int, ...]]:
    """Return the numbers, tuples of numbers and numbers in strings among values."""
    found: list[tuple[int, ...]] = []
    for value in values[:_KEYS]:
        parts = value if isinstance(value, tuple) else (value,)
        if isinstance(value, str):
            parts = tuple(map(int, re.findall(r"\d+", value)[:6]))
        if parts and all(type(part) is int and 0 <= part < 1 << 20 for part in parts):
            found.append(parts)
    return found


@_remembered
def _compares(code: CodeType) -> bool:
    """Whether code, or code inside it, compares identities, of other than None."""
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    if any(map(_compares, inner)):
        return True
    steps = list(dis.get_instructions(code))
    return any(
        step.opname == "IS_OP" and not (last.opname.startswith("LOAD_") and last.argval is None)
        for last, step in itertools.pairwise(steps)
    )


def held_functions(values: list[Any]) -> Iterator[FunctionType]:
    """Yield the functions that values are, or hold in containers, partials and methods."""
    seen: dict[int, Any] = {}
    stack = list(values)
    while stack:
        value = stack.pop()
        if type(value) in _PLAIN or id(value) in seen:
            continue
        seen[id(value)] = value
        if type(value) is FunctionType:
            if not _is_foreign(value.__module__):
                yield value
        elif issubclass(type(value), (*_CONTAINERS, dict, *_HOLDERS)):
            stack += _parts(value)


def _named(names: set[str], scope: dict[str, Any]) -> list[Any]:
    """Return what names in code may mean: globals, and what modules among them hold, any depth."""
    found: list[Any] = []
    seen: set[int] = set()
    scopes = [scope]
    while scopes:
        held = scopes.pop()
        if id(held) in seen:
            continue
        seen.add(id(held))
        for name in names & held.keys():
            if isinstance(held[name], ModuleType):
                if not _is_foreign(held[name].__name__):
                    scopes.append(vars(held[name]))
            else:
                found.append(held[name])
    return found


def _parts(value: Any) -> list[Any]:
    """Return what an object holds, its methods among it; nothing of torch's objects."""
    kind = type(value)
    found: list[Any] = []
    if issubclass(kind, dict):
        found += dict.values(value)
    elif issubclass(kind, MappingProxyType):
        found += value.values()
    elif issubclass(kind, (list, tuple, set, frozenset, deque)):
        found += next(c for c in _CONTAINERS if issubclass(kind, c)).__iter__(value)
    elif issubclass(kind, (staticmethod, classmethod, MethodType)):
        found.append(value.__func__)
    elif issubclass(kind, property):
        found.append(value.fget)
    for name in ("__wrapped__", "__self__", "func", "args", "keywords"):
        if issubclass(kind, _HOLDERS):
            found.append(getattr(value, name, None))
    if issubclass(kind, type) and _is_library(value.__module__):
        pass
    elif issubclass(kind, type):
        found += [held for base in _own(value) for held in vars(base).values()]
    elif _is_library(kind.__module__) and not issubclass(kind, nn.Module):
        pass
    elif issubclass(kind, SimpleNamespace) or not _is_foreign(kind.__module__):
        found += [held for base in _own(kind) for held in vars(base).values()]
        found += _attributes(value).values()
    elif issubclass(kind, nn.Module):  # a layer of torch's may hold what its owner gave it
        found += vars(value).values()
    return found


def _named_parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what an object of an installed library holds, or what its class does, by name."""
    kind = type(value)
    is_class = issubclass(kind, type)
    module = value.__module__ if is_class else kind.__module__
    if not (_is_library(module) and _knows_tensors(module)):
        return
    if is_class or not issubclass(kind, nn.Module):
        for base in _own(value if is_class else kind):
            yield from ((k, v) for k, v in vars(base).items() if issubclass(type(v), _CODE))
        if not is_class:
            yield from _attributes(value).items()


def _attributes(value: Any) -> dict[str, Any]:
    """Return an object's own attributes, slots among them."""
    try:
        found = dict(object.__getattribute__(value, "__dict__"))
    except (AttributeError, TypeError):
        found = {}
    for base in _own(type(value)):
        for name, held in vars(base).items():
            if type(held) is MemberDescriptorType:
                with contextlib.suppress(AttributeError):
                    found[name] = held.__get__(value)
    return found


#: Containers whose subclasses are read past what these make of reading.
_CONTAINERS: tuple[Any, ...] = (list, tuple, set, frozenset, deque)
#: Those in which values are looked up by their hash.
KEYED: tuple[Any, ...] = (dict, set, frozenset)
#: Callables of the standard library that hold others.
_HOLDERS = (
    MethodType, functools.partial, functools.partialmethod, functools.cached_property,
    type(functools.lru_cache(lambda: None)),
)  # fmt: skip
#: What the methods of a class are.
_CODE = (
    FunctionType, staticmethod, classmethod, property, *_HOLDERS, functools.singledispatchmethod,
)  # fmt: skip
#: Types of values that hold nothing.
_PLAIN = {int, float, complex, bool, str, bytes, type(None), Tensor, nn.Parameter}


def _own(kind: type) -> list[type]:
    return [k for k in kind.__mro__ if not _is_foreign(k.__module__)]


def _is_foreign(module: str | None) -> bool:
    """Whether a module is torch's, ours or the standard library's: its code asks about no model.

    Ours must not get another ``type``: what answers stands there.
    """
    name = str(module).partition(".")[0]
    return name in {"torch", "numpy", __name__.partition(".")[0]} or (
        name in sys.stdlib_module_names and name != "__main__"
    )


@functools.cache
def _is_library(module: str | None) -> bool:
    """Whether a module belongs to an installed library other than torch and the standard one."""
    return not _is_foreign(module) and is_installed(str(module))


@functools.cache
def _knows_tensors(module: str) -> bool:
    """Whether a module has imported torch by any name: what else asks is not about tensors."""
    held = vars(sys.modules[module]).values() if module in sys.modules else ()
    return any(value is torch or value is nn or value is Tensor for value in held)


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
