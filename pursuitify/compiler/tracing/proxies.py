"""Stand-ins for values while a forward is traced: real tensors without content.

``isinstance(x, Tensor)`` must say True of a traced tensor, or code that asks goes the wrong way.
Python and C++ ask the same question, and C++ unpacks what says yes; so a traced tensor *is* a
tensor, one of no sizes and no memory, on which every operation that torch.fx does not see raises.
This is the one file that uses ``Tensor._make_wrapper_subclass`` (documented in "Extending
PyTorch", though its name is private).
"""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, NoReturn

import torch
from torch import Tensor, fx
from torch.autograd import Variable
from torch.fx.proxy import Attribute
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint

from pursuitify.compiler.bytecode import step_at
from pursuitify.compiler.call_arguments import called_by, given_to
from pursuitify.compiler.tracing import nodes
from pursuitify.errors import TraceError
from pursuitify.utils import torch_internals

#: Attributes of a tensor that are tensors.
_TENSORS = {"T", "mT", "H", "mH", "real", "imag", "data"}


def _attribute(value: fx.Proxy, name: str) -> fx.Proxy:
    """Return an attribute of a traced value.

    Raises:
        AttributeError: If Python or ctypes looks for a protocol: one that we have stands on the
            class. ctypes would go from attribute to attribute until its stack is full.
    """
    if name.startswith("__") or name == "_as_parameter_":
        raise AttributeError(f"a traced value has no attribute {name}")
    return _Attribute(value, name)


#: Functions of a number that NumPy calls as its methods; torch.fx replaces them in ``math``
#: itself while it traces.
_OF_NUMBERS = {
    function.__name__: function
    for function in (math.sqrt, math.exp, math.log, math.log2, math.log10, math.floor, math.ceil)
}


def _attribute_of_size(value: fx.Proxy, name: str) -> Any:
    """Return an attribute of a traced value that is no tensor.

    Raises:
        AttributeError: If the value has none of that name when the model runs, where its type is
            known. NumPy then takes another way, or raises an error of its own.
    """
    kind: type = value.__class__
    if kind in (int, float) and name in _OF_NUMBERS:
        function = _OF_NUMBERS[name]
        return lambda: value.tracer.create_proxy("call_function", function, (value,), {})
    if kind in (int, float, tuple, torch.Size) and not hasattr(kind, name):
        raise AttributeError(f"a traced {kind.__name__} has no attribute {name}")
    return _attribute(value, name)


class _NoSize:
    """This attribute ``__torch_function__`` is not there for what takes sizes alone.

    torch's argument parser then takes the value for a number, and ``Factories`` sees the call.
    """

    def __get__(self, value: Any, owner: type) -> Any:
        if value is not None and value.tracer.factories.takes(called_by(sys._getframe(1))):
            raise AttributeError("__torch_function__")
        return vars(fx.Proxy)["__torch_function__"].__get__(value, owner)


class _Number:
    """This mixin records what Python calls by a method of a number, such as round().

    Where Python takes the number itself, as range() does, the tracer says it, see ``number_of``.
    """

    tracer: Any
    __torch_function__ = _NoSize()

    def __index__(self) -> int:
        if self.tracer.factories.expects(sys._getframe(1)):
            return 1  # see ``Factories``
        return operator.index(self.tracer.number_of(self))

    def __int__(self) -> int:
        return int(self.tracer.number_of(self))

    def __float__(self) -> float:
        return float(self.tracer.number_of(self))

    def __round__(self, ndigits: int | None = None) -> fx.Proxy:
        return self._call(round, *(() if ndigits is None else (ndigits,)))

    def __floor__(self) -> fx.Proxy:
        return self._call(_OF_NUMBERS["floor"])

    def __ceil__(self) -> fx.Proxy:
        return self._call(_OF_NUMBERS["ceil"])

    def __divmod__(self, other: Any) -> tuple[fx.Proxy, fx.Proxy]:
        return self._call(operator.floordiv, other), self._call(operator.mod, other)

    def _call(self, function: Any, *more: Any) -> fx.Proxy:
        made: fx.Proxy = self.tracer.create_proxy("call_function", function, (self, *more), {})
        return made


class TracedValue(fx.Proxy):
    """A traced value that is no tensor: a size, a dtype, a tuple of pieces.

    A plain Proxy turns ``y += b`` into ``y = y + b``; where another name still refers to the old
    ``y``, that is another function than the one the model computes. Here it stays in place.
    """

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """Say what the value is when the model runs, as ``int``, where that is known."""
        return self.tracer.type_of(self) or type(self)  # type: ignore[attr-defined]

    def __getattr__(self, k: str) -> Any:
        return _attribute(self, k)

    def __len__(self) -> int:
        length = self.tracer.length(self)  # type: ignore[attr-defined]
        return super().__len__() if length is None else int(length)

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __isub__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.isub, (self, other), {})

    def __imul__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})

    def __itruediv__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.itruediv, (self, other), {})


def _is_asked(frame: FrameType) -> bool:
    """Whether code asks for an attribute by ``hasattr`` or ``getattr``, not by ``x.name``.

    What a tensor has not, it then has not here. Read by name it is recorded, so that the refusal
    can say what the model expects of its input.
    """
    return step_at(frame).startswith(("CALL", "PRECALL"))


class TracedTensor(TracedValue, Tensor):  # type: ignore[misc]  # Proxy and Tensor differ in signatures
    """A traced tensor."""

    @staticmethod
    def __new__(cls: type[TracedTensor], node: fx.Node, tracer: fx.Tracer) -> TracedTensor:
        """Return a tensor of this class without sizes or memory."""
        made: TracedTensor = Tensor._make_wrapper_subclass(
            cls, (0,), dtype=torch.float32, dispatch_sizes_strides_policy="sizes"
        )
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Refuse what reached C++ without torch.fx seeing it: it would work on no values.

        How many dimensions a value has is what torch's own argument parser asks, to see whether it
        may stand for a number, as the second of ``torch.where(mask, x, 0.0)``: it may not. torch.fx
        sees the call itself then.
        """
        if torch_internals.asks_dimensions(func):
            return 1
        traced = [a for a in args if isinstance(a, fx.Proxy)]
        if torch_internals.detaches(func) and called_by(sys._getframe(1)) is Variable:
            return traced[0].detach()  # code of old wraps every tensor: Variable(x) is x.detach()
        what = f"the traced value '{traced[0].node.name}'" if traced else "a traced value"
        reason = (
            f"the forward hands {what} to code that torch.fx does not see and that asks for its "
            f"numbers or sizes ({func}): torch.tensor(x), a scripted function, "
            "torch.func or a C++ extension. Leave it out, or put it into a module of its own"
        )
        for value in traced:
            value.tracer.unseen = reason  # type: ignore[attr-defined]
        raise TraceError(reason)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """Say ``Tensor``, which is what the model meets when it runs."""
        return Tensor

    def __getattribute__(self, name: str) -> Any:
        """Read our own attributes; every other one is recorded, whatever Tensor has there."""
        if name in _OWN or name.startswith("__"):
            return object.__getattribute__(self, name)
        if name in {"_is_param", "_is_buffer"}:  # isinstance asks it for nn.Parameter, nn.Buffer
            return False
        if name == "device" and sys._getframe(1).f_globals is vars(checkpoint):
            # Checkpointing asks where random states are kept. Its value does not depend on that.
            return torch.device("cpu")
        if name in _NONE_OR_NOT:
            raise TypeError(f"the forward asks for {name!r} of a traced tensor, which may be None")
        if not hasattr(Tensor, name):
            raise AttributeError  # Python goes on to __getattr__
        if name == "data":  # what shares its memory and has no derivative
            return self.tracer.create_proxy("call_method", "detach", (self,), {})
        if name in _TENSORS:
            return self.tracer.create_proxy("call_function", getattr, (self, name), {})
        read = _attribute(self, name)
        tracer: Any = self.tracer
        return tracer.factories.stand_in(read, name, sys._getframe(1))

    def __getattr__(self, k: str) -> Any:
        """Record an attribute that no tensor has, unless it is asked whether there is one."""
        if not hasattr(Tensor, k) and _is_asked(sys._getframe(1)):
            raise AttributeError(f"a tensor has no attribute {k}")
        return _attribute(self, k)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in {"node", "tracer"}:
            raise TypeError(f"the forward sets the attribute {name!r} of a traced tensor")
        object.__setattr__(self, name, value)

    def __setitem__(self, key: Any, value: Any) -> NoReturn:
        raise TypeError(
            "the forward assigns to entries of a tensor (x[...] = y), which cannot be traced: "
            "use torch.where, torch.cat or F.pad"
        )

    def __repr__(self) -> str:  # type: ignore[override]  # a tensor's takes its contents
        """Return what stands for the text of a tensor: its numbers, dtype, derivative."""
        tracer: Any = self.tracer
        return str(tracer.text_of_tensor(self))

    __str__ = __repr__
    __hash__ = object.__hash__
    __format__ = object.__format__
    __dir__ = object.__dir__


def _refusing(name: str) -> Any:
    def refuse(self: Any, *_args: Any, **_kwargs: Any) -> NoReturn:
        raise TypeError(f"{name} of the traced tensor '{self.node.name}' would need its values")

    return refuse


def _unsupported(_self: Any, _other: Any) -> Any:
    """Let Python fall back to the operator that makes a new value, as plain torch.fx does."""
    return NotImplemented


# What Tensor defines and torch.fx does not record must not be inherited: it would run in C++.
for _name in (
    "array", "array_wrap", "complex", "contains", "delitem", "dlpack", "dlpack_device", "float",
    "index", "int", "long", "nonzero", "reversed", "reduce_ex", "deepcopy",
):  # fmt: skip
    setattr(TracedTensor, f"__{_name}__", _refusing(f"__{_name}__"))
for _name in ("and", "div", "floordiv", "lshift", "mod", "or", "pow", "rshift", "xor"):
    setattr(TracedTensor, f"__i{_name}__", _unsupported)
TracedTensor.__cuda_array_interface__ = property(  # type: ignore[assignment, method-assign]
    _refusing("__cuda_array_interface__")
)
#: What a tensor may have or not have: none of it is known while the forward is traced.
_NONE_OR_NOT = {"grad", "grad_fn", "_base", "name", "names"}
#: What is read off the proxy itself.
_OWN = {"node", "tracer", "keys"}


class Unnamed(str):
    """The text of a value that is not known, which its ``repr`` is as well."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


class _Answering(fx.Proxy):
    """A value that is no tensor: its hash and its text leave no operation, so the tracer answers.

    Python takes the hash of a size where it looks it up in a dict or a set, and its text in
    ``str(n)`` or ``f"{n}"``. What came of an earlier trace, or of one that is over, is equal to
    itself alone: a cache of the model's may still hold it.
    """

    tracer: Any

    def __hash__(self) -> int:
        self.tracer.note_lookup(self, sys._getframe(1))
        kept = vars(self).get("_hash")
        if kept is None:
            kept = self.tracer.hash_of(self)
            object.__setattr__(self, "_hash", kept)
        return int(kept)

    def __eq__(self, other: Any) -> Any:
        tracer: Any = self.tracer
        frame = sys._getframe(1)
        place = frame.f_code, frame.f_lasti
        if tracer.answers.trial is None:
            tracer.answers.compared.add(place)
        if "_hash" in vars(self):
            # Two sets are compared by hashes as well, which are those of numbers in trials alone.
            looked_up = step_at(frame) != "COMPARE_OP" or place not in tracer.answers.compared
            if tracer.is_over or (_is_hashed(other) and other.tracer is not tracer):
                return NotImplemented
            if looked_up and tracer.answers.trial is not None:
                equal = tracer.equal_in_trial(self, other)
                if equal is not None:
                    return equal
        return super().__eq__(other)

    def __repr__(self) -> str:
        return repr(self.tracer.text_of(self, sys._getframe(1)))

    def __str__(self) -> str:
        return str(self.tracer.text_of(self, sys._getframe(1)))

    def __format__(self, specification: str) -> str:
        value = self.tracer.text_of(self, sys._getframe(1))
        return format(value, "" if isinstance(value, Unnamed) else specification)


def _is_hashed(value: Any) -> bool:
    return issubclass(type(value), _Answering) and "_hash" in vars(value)


class TracedSizes(_Number, _Answering, TracedValue):
    """A traced value that is no tensor, and that a pattern of ``match`` may take apart."""

    def __getitem__(self, key: Any) -> Any:
        """Return one of several pieces, or those of a slice as a tuple, as torch does."""
        if isinstance(key, slice) and self.tracer.type_of(self) is tuple:
            count = self.tracer.length(self)
            if count is not None:
                return tuple(self[i] for i in range(count)[key])
        return self.tracer.create_proxy("call_function", operator.getitem, (self, key), {})

    def __getattr__(self, k: str) -> Any:
        """Return a tensor for the values and indices of ``torch.max(x, dim)`` and its kin."""
        if k in {"values", "indices"}:
            return self.tracer.create_proxy("call_function", getattr, (self, k), {})
        return _attribute_of_size(self, k)


class _Attribute(_Number, _Answering, Attribute):
    """An attribute of a traced value; knows the length of a shape."""

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """Say what the attribute is when the model runs, where that is known."""
        if self.attr == "type" and isinstance(self.root, torch.device):
            return str
        return nodes.attribute_type(self.attr) or type(self)

    def __getattr__(self, k: str) -> Any:
        return _attribute_of_size(self, k)

    def __len__(self) -> int:
        length = self.tracer.length(self)
        return super().__len__() if length is None else int(length)


# ``case (b, c, h, w)`` asks for this, and then for a length, which raises where it is unknown.
for _kind in (TracedSizes, _Attribute):
    Sequence.register(_kind)


#: Functions that make a tensor of these sizes; the first argument, or all of them, are sizes.
SIZED = (torch.zeros, torch.ones, torch.full, torch.empty, torch.rand, torch.randn)
#: Functions that make a tensor with the dtype and on the device that they are told.
FACTORIES = (*SIZED, torch.tensor, torch.arange, torch.eye, torch.linspace)
#: What is handed over in the place of a traced value that torch's argument parser would not take.
_STAND_INS: dict[str, Callable[[], Any]] = {
    "dtype": lambda: torch.complex32,
    "device": lambda: torch.device("meta"),
}


class Factories(TorchFunctionMode):
    """Records ``torch.zeros(x.size(0), 4, device=x.device)`` and its kin while a forward is traced.

    No argument is a tensor there, so torch.fx does not see the call; this mode does. But first
    torch's argument parser has to take what the function is called with. It asks the first size
    for a number: any will do, the mode gets the traced size itself. It wants a true dtype and a
    true device: one of ours is given, where the code shows that they go to such a function and
    nowhere else (``call_arguments.given_to``), and the mode puts the traced one into its place.
    """

    def __init__(self, tracer: Any) -> None:
        super().__init__()
        self._tracer = tracer
        self._given: list[tuple[FrameType, str, Any, fx.Proxy]] = []
        # Calls that were told a number of no meaning and have not come to the mode, by their place.
        self._awaited: dict[tuple[FrameType, int], str] = {}
        self._is_on = False

    def expects(self, frame: FrameType) -> bool:
        """Whether the function that code calls may be told a number of no meaning for a size."""
        function = called_by(frame)
        known = self.takes(function)
        if known:
            self._awaited[frame, frame.f_lasti] = function.__name__
        return known

    def takes(self, function: Any) -> bool:
        """Whether a function takes sizes, and its calls are recorded."""
        return self._is_on and any(function is sized for sized in SIZED)

    def stand_in(self, read: fx.Proxy, name: str, frame: FrameType) -> Any:
        """Return a traced attribute of a tensor, or what stands in for it.

        Args:
            read: The attribute.
            name: Its name.
            frame: The frame whose code reads it.
        """
        if name not in _STAND_INS or not self._is_on:
            return read
        gets = given_to(frame)
        if not gets or not all(
            keyword == name and any(function is factory for factory in FACTORIES)
            for function, keyword in gets
        ):
            return read
        given = _STAND_INS[name]()
        self._given.append((frame, name, given, read))
        return given

    def check(self) -> None:
        """Refuse a forward that has torch's own function run on a number of no meaning."""
        for name in self._awaited.values():
            raise TraceError(
                f"the forward calls torch.{name} with traced sizes where torch hides it "
                "from the trace: make the new tensor from one that is there, x.new_zeros(...)"
            )

    def __enter__(self) -> Factories:
        super().__enter__()  # type: ignore[no-untyped-call]
        self._is_on = True
        return self

    def __exit__(self, *raised: Any) -> None:
        self._is_on = False
        super().__exit__(*raised)  # type: ignore[no-untyped-call]

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Record a call that has traced sizes, a traced dtype or device; run any other."""
        kwargs = kwargs or {}
        if not any(func is factory for factory in FACTORIES) or self._tracer.is_aside:
            return func(*args, **kwargs)
        caller = sys._getframe(1)
        self._awaited.pop((caller, caller.f_lasti), None)
        put = {
            name: read
            for frame, name, given, read in self._given
            if frame is caller and kwargs.get(name) is given
        }
        sizes = [*args, *kwargs.values()] if any(func is sized for sized in SIZED) else []
        traced: list[Any] = []
        fx.node.map_aggregate(sizes, lambda a: traced.append(a) if _is_proxy(a) else None)
        if not put and not traced:
            return func(*args, **kwargs)
        return self._tracer.create_proxy("call_function", func, args, {**kwargs, **put})


def _is_proxy(value: Any) -> bool:
    return issubclass(type(value), fx.Proxy)
