"""``type(x)`` in a forward: the answer is what it is when the model runs."""

from __future__ import annotations

import builtins
import dataclasses
import functools
import importlib
import math
import numbers
import sys
import types
from collections import OrderedDict, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pursuitify import pursuitify
from pursuitify.compiler.tracing import type_questions
from pursuitify.errors import TraceError
from tests.support.agreement import error


def _helper(x: Any) -> Any:
    return x * 2 if type(x) is Tensor else x


class _Plain:
    """A plain object that a module holds."""

    def __call__(self, x: Any) -> Any:
        return x + 1 if type(x) in (list, Tensor) else x


class _Net(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.plain = kind, _Plain()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))

    def forward(self, x: Any) -> Tensor:
        match self.kind:
            case "is":
                x = x * 2 if type(x) is torch.Tensor else x
            case "equals":
                x = x * 2 if type(x) == Tensor else x  # noqa: E721
            case "subclass":
                x = x * 2 if issubclass(type(x), Tensor) else x
            case "list":
                x = x[0] if type(x) is list else x
            case "name":
                x = x * 2 if type(x).__name__ == "Tensor" else x
            case "table":
                x = {Tensor: torch.relu, int: abs}[type(x)](x)
            case "helper":
                x = _helper(x)
            case "object":
                x = self.plain(x)
            case "hasattr":
                x = x * 2 if hasattr(x, "shape") and not hasattr(x, "tensors") else x
            case "getattr":
                x = x * 2 if getattr(x, "tensors", None) is None else x
            case "default":
                x = getattr(x, "tensors", x * 2)
            case "nested":
                x = torch.cat([y * 2 if type(y) is Tensor else y for y in (x, x)], 1)[:, :4]
            case "makes":
                x = x * 2 if isinstance(type("New", (), {}), type) and isinstance(int, type) else x
            case "self":
                x = x * 2 if type(self) is _Net and type(self.kind) is str else x
        return self.body(x)


KINDS = [
    "hasattr", "getattr", "default", "is", "equals", "subclass", "list", "name", "table", "helper",
    "object", "nested", "makes", "self",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_branch_on_the_type_goes_the_source_s_way(kind: str) -> None:
    torch.manual_seed(0)
    model, x = _Net(kind).eval(), torch.randn(3, 4)
    net = pursuitify(model, iterations=0)
    assert error(net(x), model(x)) == 0
    assert "type" not in vars(sys.modules[__name__])  # nothing is left behind
    assert builtins.type is type


#: Code of another module of Python's, which no name in this file leads to.
ELSEWHERE = """
from torch import Tensor

class Asks:
    def __init__(self, held=None):
        self.held = held
    def asks(self, x):
        return x * 2 if type(x) is Tensor else x
    @staticmethod
    def static(x):
        return x * 2 if type(x) is Tensor else x
    @property
    def given(self):
        return self.held

class Slotted:
    __slots__ = ("held",)
    def __init__(self, held):
        self.held = held

def asks(x):
    return x * 2 if type(x) is Tensor else x

def inside(x):
    return asks(x)

def with_class(x):
    return Asks().asks(x)
"""


def _elsewhere() -> Any:
    module = types.ModuleType("elsewhere")
    exec(compile(ELSEWHERE, "elsewhere.py", "exec"), vars(module))
    return module


class _Table(dict[str, Any]):
    """A dict with a name of its own."""


@dataclasses.dataclass
class _Step:
    function: Any


#: Ways to hold a function, each with a way to call it.
HELD: dict[str, tuple[Any, Any]] = {
    "list of dicts": (lambda e: [{"a": (e.asks,)}], lambda h, x: h[0]["a"][0](x)),
    "namespace": (lambda e: {"a": types.SimpleNamespace(f=[e.asks])}, lambda h, x: h["a"].f[0](x)),
    "own dict": (lambda e: _Table(a=OrderedDict(b=e.asks)), lambda h, x: h["a"]["b"](x)),
    "deque": (lambda e: deque([_Step(e.inside)]), lambda h, x: h[0].function(x)),
    "slots": (lambda e: (e.Slotted([e.asks]),), lambda h, x: h[0].held[0](x)),
    "bound": (lambda e: [{"a": e.Asks().asks}], lambda h, x: h[0]["a"](x)),
    "partial": (lambda e: [_Step(functools.partial(e.asks))], lambda h, x: h[0].function(x)),
    "cached": (lambda e: [_Step(functools.lru_cache(e.asks))], lambda h, x: h[0].function(x)),
    "wrapped": (
        lambda e: [_Step(functools.wraps(e.asks)(lambda *a: e.asks(*a)))],
        lambda h, x: h[0].function(x),
    ),
    "class": (lambda e: {"a": [e.Asks]}, lambda h, x: h["a"][0].static(x)),
    "by class": (lambda e: [_Step(e.with_class)], lambda h, x: h[0].function(x)),
    "object": (lambda e: [e.Asks(e.Asks({"a": e.asks}))], lambda h, x: h[0].held.given["a"](x)),
    "proxy": (lambda e: types.MappingProxyType({"a": [e.asks]}), lambda h, x: h["a"][0](x)),
    "circle": (lambda e: _circle(e.asks), lambda h, x: h[0][1](x)),
}


def _circle(function: Any) -> list[Any]:
    held: list[Any] = []
    held.append((held, function))
    return held


def test_a_question_in_code_that_hangs_on_a_layer_of_torch_is_answered() -> None:
    elsewhere = _elsewhere()

    class Net(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = super().forward(self[1].helper(x))  # type: ignore[operator]
            return y

    torch.manual_seed(0)
    model, x = Net(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval(), torch.randn(3, 4)
    model[1].helper = elsewhere.asks
    assert error(pursuitify(model, iterations=0)(x), model(x)) == 0


@pytest.mark.parametrize("depth", [0, 6])
@pytest.mark.parametrize("kind", HELD)
def test_a_question_in_code_that_objects_hold_is_answered(kind: str, depth: int) -> None:
    """However deep an object holds it, and whatever kinds of objects are on the way."""
    hold, call = HELD[kind]
    elsewhere = _elsewhere()
    held = hold(elsewhere)
    for _ in range(depth):
        held = [_Step({"a": held})]

    class Net(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
            self.kept = (held,)

        def __deepcopy__(self, memo: Any) -> Net:
            copied = Net()
            copied.load_state_dict(self.state_dict())
            return copied.train(self.training)

        def forward(self, x: Tensor) -> Tensor:
            at = self.kept[0]
            for _ in range(depth):
                at = at[0].function["a"]
            y: Tensor = super().forward(call(at, x))
            return y

    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(3, 4)
    assert error(pursuitify(model, iterations=0)(x), model(x)) == 0
    assert "type" not in vars(elsewhere)


def test_code_that_names_this_package_leads_to_no_other_type_in_it() -> None:
    """What answers stands there: it would ask itself without end."""

    class Names(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = super().forward(x if callable(pursuitify) else 2 * x)
            return y

    torch.manual_seed(0)
    model, x = Names(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval(), torch.randn(3, 4)
    scopes = type_questions._reached(model, []).asking
    assert all(not str(scope["__name__"]).startswith("pursuitify") for scope in scopes)
    assert error(pursuitify(model, iterations=0)(x), model(x)) == 0


def _sequence(x: Tensor) -> bool:
    match x.shape:
        case (_, _, _, _):
            return True
    return False


def _rest(x: Tensor) -> bool:
    match x.size():
        case [_, _, *rest]:
            return len(rest) == 2
    return False


def _part(x: Tensor) -> bool:
    match x.shape[2:]:
        case (_, _):
            return True
    return False


def _whole(x: Tensor) -> bool:
    match x.size(2):
        case int():
            return True
    return False


def _no_list(x: Any) -> bool:
    match x:
        case [_, _]:
            return False
        case {"out": _}:
            return False
        case Tensor(ndim=4):
            return True
    return False


@functools.singledispatch
def _dispatched(_value: Any) -> str:
    return "object"


@_dispatched.register
def _(_value: Tensor) -> str:
    return "tensor"


@_dispatched.register
def _(_value: int) -> str:
    return "int"


class _Special(Tensor):
    pass


@_dispatched.register
def _(_value: _Special) -> str:
    return "special"


#: Questions about a traced value or what is read of it, each with the answer of a model that runs.
ASKED: dict[str, tuple[Any, bool]] = {
    "shape is a tuple": (lambda x: isinstance(x.shape, tuple), True),
    "shape is a Size": (lambda x: isinstance(x.shape, torch.Size), True),
    "shape is a sequence": (lambda x: isinstance(x.shape, Sequence), True),
    "part of a shape": (lambda x: isinstance(x.shape[2:], (list, tuple)), True),
    "entry of a shape": (lambda x: isinstance(x.shape[2], int), True),
    "entry is a tensor": (lambda x: isinstance(x.shape[2], Tensor), False),
    "size": (lambda x: isinstance(x.size(), torch.Size), True),
    "size of one": (lambda x: isinstance(x.size(2), int), True),
    "size of one, named": (lambda x: isinstance(x.size(dim=2), int), True),
    "type of a size": (lambda x: type(x.size(2)) is int, True),
    "number": (lambda x: isinstance(x.size(2), numbers.Number), True),
    "half": (lambda x: isinstance(x.size(2) / 2, float), True),
    "floor half": (lambda x: isinstance(x.size(2) // 2 + 1, int), True),
    "scaled": (lambda x: isinstance(0.5 * x.size(2), float), True),
    "compared": (lambda x: isinstance(x.size(2) > 2, bool), True),
    "ceil": (lambda x: isinstance(math.ceil(x.size(2) / 2), int), True),
    "dim": (lambda x: isinstance(x.dim(), int) and isinstance(x.ndim, int), True),
    "numel": (lambda x: isinstance(x.numel(), int), True),
    "dtype": (lambda x: isinstance(x.dtype, torch.dtype), True),
    "device": (lambda x: isinstance(x.device, torch.device), True),
    "kind of device": (lambda x: isinstance(x.device.type, str), True),
    "pieces": (lambda x: isinstance(x.chunk(2, 1), tuple), True),
    "pieces of a split": (lambda x: isinstance(x.split(2, 1), (list, tuple)), True),
    "pieces are no tensor": (lambda x: isinstance(x.unbind(1), Tensor), False),
    "match": (_sequence, True),
    "match the rest": (_rest, True),
    "match a part": (_part, True),
    "match a whole number": (_whole, True),
    "match no list": (_no_list, True),
    "dispatched": (lambda x: _dispatched(x) == "tensor", True),
    "dispatched size": (lambda x: _dispatched(x.size(2)) == "int", True),
    "subclass": (lambda x: isinstance(x, _Special), False),
    "parameter": (lambda x: isinstance(x, nn.Parameter), False),
}


@pytest.mark.parametrize("name", ASKED)
def test_what_a_traced_value_is_is_what_the_model_meets(name: str) -> None:
    ask, answer = ASKED[name]

    class Net(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self[0](x))
            y: Tensor = self[1](2 * x if ask(x) else x)
            return y.relu()

    torch.manual_seed(0)
    model, x = Net(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)).eval(), torch.rand(2, 3, 6, 6)
    assert bool(ask(torch.rand(2, 4, 4, 4))) is answer
    assert error(pursuitify(model, iterations=0)(x), model(x)) == 0


#: Code of an installed library: it asks in methods of objects, to which a model's code leads.
LIBRARY = """
from torch import Tensor

class Asks:
    def __init__(self):
        self.function = asks
    def asks(self, x):
        return x * 2 if type(x) is Tensor else x
    def leads(self, x):
        return self.asks(x)
    def calls(self, x):
        return self.function(x)
    @property
    def bound(self):
        return self.asks
    @classmethod
    def made(cls):
        return cls()
    @staticmethod
    def static(x):
        return x * 2 if type(x) is Tensor else x
    __call__ = __add__ = __getitem__ = asks

class Derived(Asks):
    pass

class Outer:
    def __init__(self):
        self.inner = {"a": [Asks()]}
    def run(self, x):
        return self.inner["a"][0].asks(x)

def asks(x):
    return x * 2 if type(x) is Tensor else x
"""
#: What a model holds of the library, and what it does with it.
LED: dict[str, tuple[Any, Any]] = {
    "function": (lambda e: e.asks, lambda h, x: h(x)),
    "call": (lambda e: e.Asks(), lambda h, x: h(x)),
    "method": (lambda e: e.Asks(), lambda h, x: h.asks(x)),
    "method of a method": (lambda e: e.Asks(), lambda h, x: h.leads(x)),
    "bound method": (lambda e: e.Asks().leads, lambda h, x: h(x)),
    "property": (lambda e: e.Asks(), lambda h, x: h.bound(x)),
    "held function": (lambda e: e.Asks(), lambda h, x: h.calls(x)),
    "class method": (lambda e: e.Asks, lambda h, x: h.made().asks(x)),
    "static method": (lambda e: e.Asks, lambda h, x: h.static(x)),
    "base": (lambda e: e.Derived(), lambda h, x: h.asks(x)),
    "operator": (lambda e: e.Asks(), lambda h, x: h + x),
    "index": (lambda e: e.Asks(), lambda h, x: h[x]),
    "held object": (lambda e: [e.Outer()], lambda h, x: h[0].run(x)),
}


@pytest.mark.parametrize("kind", LED)
def test_a_question_in_an_object_of_a_library_is_answered(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = types.ModuleType("installed_library")
    exec(compile(LIBRARY, "installed_library.py", "exec"), vars(library))
    monkeypatch.setitem(sys.modules, "installed_library", library)
    monkeypatch.setattr(
        type_questions, "is_installed", lambda module: module == "installed_library"
    )
    hold, call = LED[kind]

    class Net(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = super().forward(call(self.held, x))
            return y

    torch.manual_seed(0)
    model, x = Net(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval(), torch.randn(3, 4)
    model.held = hold(library)
    type_questions._is_library.cache_clear()
    type_questions._knows_tensors.cache_clear()
    try:
        assert error(pursuitify(model, iterations=0)(x), model(x)) == 0
    finally:
        type_questions._is_library.cache_clear()
        type_questions._knows_tensors.cache_clear()
    assert "type" not in vars(library)


@pytest.mark.filterwarnings("ignore:.*is. with .*literal:SyntaxWarning")
def test_a_size_that_a_library_compares_with_a_number_by_is_is_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of libraries' code the numbers beside an ``is`` are tried alone: it has many others."""
    library = types.ModuleType("installed_library")
    code = (
        "def literal(x):\n    return 2 * x if x.size(2) is 8 else x\n"
        "def objects(x, y, n=3):\n    return (x is y, x is n, type(x) is int, 5)\n"
    )
    exec(compile(code, "installed_library.py", "exec"), vars(library))
    monkeypatch.setitem(sys.modules, "installed_library", library)
    monkeypatch.setattr(
        type_questions, "is_installed", lambda module: module == "installed_library"
    )
    assert type_questions._identical(library.literal.__code__, True) == (8,)
    assert type_questions._identical(library.objects.__code__, True) == ()
    assert 5 in type_questions._identical(library.objects.__code__, False)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.conv(library.literal(x)))

    type_questions._is_library.cache_clear()
    try:
        with pytest.raises(TraceError, match="does something else than what can be traced"):
            pursuitify(Net())
    finally:
        type_questions._is_library.cache_clear()


class _Lazy:
    """What stands for a module that is not installed: asked for anything, it raises."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"not installed, and asked for {name}")


_missing = _Lazy()


class _Beside(nn.Module):
    missing = _missing

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(_helper(x)) if isinstance(x, Tensor) else _missing.run(x))


def test_objects_that_raise_where_they_are_asked_are_not_asked() -> None:
    model, x = _Beside().eval(), torch.randn(1, 2, 3, 3)
    net = pursuitify(model, iterations=0)
    assert error(net(x), model(x)) == 0
    net.iterations = 1
    net.eval()(x)


@pytest.mark.parametrize("name", ["grad", "grad_fn"])
def test_what_may_be_none_is_not_guessed(name: str) -> None:
    class Net(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            x = self[0](x)
            y: Tensor = self[1](torch.relu(x if getattr(x, name) is None else 2 * x))
            return y

    with pytest.raises(TraceError, match=f"asks for '{name}'"):
        pursuitify(Net(nn.Linear(4, 4), nn.Linear(4, 2)))


def _called(x: Any) -> Any:
    return [int(n) for n in x] + [(lambda n: int(n))(x[0])]


def _asked(x: Any) -> Any:
    return int(x) if isinstance(x, int) else [isinstance(n, int) for n in x]


def test_int_keeps_its_meaning_where_it_is_more_than_called() -> None:
    assert type_questions._only_called("int", [_called.__code__]) is (sys.version_info >= (3, 11))
    assert not type_questions._only_called("int", [_called.__code__, _asked.__code__])
    assert not type_questions._only_called("float", [_called.__code__])


_IMPORTED = """
from torch import Tensor

def times(x):
    return x * 2 if type(x) is Tensor else x
"""
#: Bodies that reach code which only the forward imports, by the name that it has here.
_IMPORTING = {
    "from": "from {} import times\n    return times(x)",
    "other name": "from {} import times as twice\n    return twice(x)",
    "import": "import {} as code\n    return code.times(x)",
    "inside": (
        "def inner():\n        from {} import times\n        return times(x)\n    return inner()"
    ),
    "import_module": "return importlib.import_module('{}').times(x)",
    "__import__": "return __import__('{}').times(x)",
    "modules": "__import__('{0}')\n    return sys.modules['{0}'].times(x)",
    "eval": "from torch import Tensor\n    return eval('x * 2 if type(x) is Tensor else x')",
    "exec": (
        "held = {{}}\n"
        "    exec('f = lambda x: x * (1 + (type(x).__name__ == \"Tensor\"))', globals(), held)\n"
        "    return held['f'](x)"
    ),
}


class _Bodied(nn.Module):
    """What a function makes of an input, and two layers."""

    def __init__(self, run: Any) -> None:
        super().__init__()
        self.run = run
        self.body = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))

    def forward(self, x: Any) -> Tensor:
        return self.body(self.run(x))


def _importing(name: str, body: str, folder: Path, loaded: bool) -> _Bodied:
    (folder / f"{name}.py").write_text(_IMPORTED)
    scope: dict[str, Any] = {"importlib": importlib, "sys": sys, "__name__": "a_script"}
    exec("def run(x):\n    " + body.format(name), scope)
    if loaded:
        importlib.import_module(name)
    return _Bodied(scope["run"])


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("way", _IMPORTING)
def test_a_question_in_code_that_the_forward_imports_is_answered(
    way: str, loaded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"imported_by_{way.replace(' ', '_')}_{loaded}"
    monkeypatch.syspath_prepend(tmp_path)
    model = _importing(name, _IMPORTING[way], tmp_path, loaded)
    net, x = pursuitify(model.double(), iterations=0), torch.randn(3, 4, dtype=torch.float64)
    assert error(net(x), model(x)) == 0


@pytest.mark.parametrize("way", ["from .code import times", "from . import code"])
def test_a_question_in_code_of_the_same_package_is_answered(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"package_{len(way)}"
    (tmp_path / name).mkdir()
    call = "times(x)" if "times" in way else "code.times(x)"
    (tmp_path / name / "code.py").write_text(_IMPORTED)
    (tmp_path / name / "net.py").write_text(f"def run(x):\n    {way}\n    return {call}\n")
    monkeypatch.syspath_prepend(tmp_path)
    model = _Bodied(importlib.import_module(f"{name}.net").run).double()
    net, x = pursuitify(model, iterations=0), torch.randn(3, 4, dtype=torch.float64)
    assert error(net(x), model(x)) == 0


def _layered(self: Any, x: Tensor) -> Tensor:
    for i in range(2):
        x = eval("self.body[" + str(2 * i) + "](x)")
    return x


#: Code that a forward puts together, or that an object holds, and whether it can be traced.
_EVALUATED: dict[str, tuple[Any, bool]] = {
    "type": (lambda s, x: 2 * x if eval(s.join(["ty", "pe(x) is torch.Tensor"])) else x, True),
    "size is": (lambda s, x: 2 * x if eval(s.join(["x.size(2) i", "s 80"])) else x, False),
    "dtype is": (lambda s, x: 2 * x if eval(s.join(["x.dtype i", "s torch.half"])) else x, False),
    "mode": (lambda s, x: 2 * x if eval(s.join(["torch.is_grad_", "enabled()"])) else x, False),
    "held": (lambda s, x: 2 * x if eval(s.source) else x, False),
    "compiled": (lambda s, x: 2 * x if eval(s.code) else x, False),
    "executed": (lambda s, x: (exec(s.program, scope := {"x": x}), scope["y"])[1], False),
    "layers": (_layered, True),
    "spaces": (lambda s, x: x * eval(s.join(["  2.", "0"])), True),
}


class _Evaluating(_Bodied):
    """A forward that evaluates code which no constant holds."""

    def __init__(self, run: Any) -> None:
        super().__init__(functools.partial(run, self))
        object.__setattr__(self, "run", run)
        self.join, self.source = "".join, "x.size(2) is 80"
        self.code = compile(self.source, "<held>", "eval")
        self.program = "y = 2 * x if x.size(2) is 80 else x"

    def forward(self, x: Any) -> Tensor:
        return torch.relu(self.run(self, self.body(x)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", _EVALUATED)
def test_code_that_no_constant_holds_is_known_when_it_is_evaluated(name: str) -> None:
    run, traced = _EVALUATED[name]
    model = _Evaluating(run)
    model.body = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 3, 1))
    model.double().eval()
    if not traced:
        with pytest.raises(TraceError, match="does something else than what can be traced"):
            pursuitify(model)
        return
    net = pursuitify(model, iterations=0)
    x = torch.rand(2, 3, 80, 80, dtype=torch.float64)
    assert error(net(x), model(x)) == 0


def test_a_forward_that_evaluates_other_code_each_time_is_refused() -> None:
    counter = iter(range(10**6))
    model = _Bodied(lambda x: x * eval("[1.0, " + str(next(counter)) + "][0]"))
    with pytest.raises(TraceError, match="evaluates other code"):
        pursuitify(model)
