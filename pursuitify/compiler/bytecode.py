"""This module reads off the instructions of a running frame what its code does with a value.

A traced value is asked for its hash or its text by Python itself, which says to whom it hands them
nowhere but in the code that asked.
"""

from __future__ import annotations

import builtins
import dis
import functools
import inspect
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import BuiltinFunctionType, CodeType, FrameType, FunctionType, ModuleType
from typing import Any

from pursuitify.utils import torch_internals


def step_at(frame: FrameType) -> str:
    """Return the name of the instruction at which a frame of Python code is."""
    steps = dis.get_instructions(frame.f_code)
    return next((step.opname for step in steps if step.offset == frame.f_lasti), "")


#: Instructions between the making of a text and the call that is given it, each with how many
#: values it takes from the stack: the text must not be among them.
_TAKES = {
    "LOAD_CONST": 0, "LOAD_FAST": 0, "LOAD_FAST_BORROW": 0, "LOAD_DEREF": 0, "LOAD_GLOBAL": 0,
    "LOAD_NAME": 0, "PUSH_NULL": 0, "KW_NAMES": 0, "LOAD_ATTR": 1, "LOAD_METHOD": 1,
    "BINARY_SUBSCR": 2, "BINARY_OP": 2, "COMPARE_OP": 2,
}  # fmt: skip
_NO_STEPS = {"CACHE", "PRECALL", "EXTENDED_ARG", "RESUME", "NOP"}
_CALLS = {"CALL", "CALL_FUNCTION", "CALL_METHOD"}
_FORMATS = {"FORMAT_VALUE", "FORMAT_SIMPLE", "FORMAT_WITH_SPEC", "CONVERT_VALUE"}
#: Operators that make a text of another one, by what ``dis`` writes and by name before Python 3.11.
_JOINS = {"+", "+=", "%", "%=", "BINARY_ADD", "INPLACE_ADD", "BINARY_MODULO", "INPLACE_MODULO"}
#: Functions that make a text of what they are given.
_MAKERS: tuple[Any, ...] = (str, repr, format, ascii)
#: Modules whose functions show a text, or name with it what a profile shows.
_SHOWING = {
    "logging", "warnings", "_warnings", "traceback", "torch.autograd.profiler", "torch.cuda.nvtx",
}  # fmt: skip
#: Names by which code may read its variables otherwise than by name.
_READERS = {"locals", "vars", "eval", "exec", "dir"}
#: Libraries whose code stands between the calls of a model's modules: they hand exceptions on.
_AROUND = {"torch", "pursuitify", "contextlib"}
#: The module that runs a forward: what calls it is no part of the model.
_TRACING = "pursuitify.compiler.tracing.trace"
#: How far a text is followed from function to function.
_DEPTH = 8


@dataclass
class _Scope:
    """This record holds code and what its names mean.

    Attributes:
        code: The code.
        held: What its variables hold, as far as that is known.
        scope: The globals.
        stack: The frame that takes the text of a value, whose callers are the code's.
        frame: The frame that runs the code; None for code that is called later.
        followed: The variables that a text was followed into, each with its code.
        depth: How many functions deep the text was followed.
    """

    code: CodeType
    held: Mapping[str, Any]
    scope: Mapping[str, Any]
    stack: FrameType
    frame: FrameType | None
    followed: set[tuple[CodeType, str]] = field(default_factory=set)
    depth: int = 0

    @functools.cached_property
    def steps(self) -> list[dis.Instruction]:
        """The instructions, without those that do nothing."""
        return [s for s in dis.get_instructions(self.code) if s.opname not in _NO_STEPS]

    def codes(self) -> Iterator[CodeType]:
        """Yield the code and that of its callers, as far as it is the model's own."""
        yield self.code
        frame: FrameType | None = self.stack
        while frame is not None and (name := str(frame.f_globals.get("__name__"))) != _TRACING:
            if name.partition(".")[0] not in _AROUND:
                yield frame.f_code
            frame = frame.f_back

    @property
    def running(self) -> int:
        """The number of the instruction at which the frame is."""
        assert self.frame is not None
        place = self.frame.f_lasti  # of a frame that waits for a call, behind the instruction
        passed = [s for s in dis.get_instructions(self.code) if s.offset <= place]
        last = next((s for s in reversed(passed) if s.opname != "CACHE"), None)
        start = -1 if last is None else last.offset  # or before it: PRECALL is the first half
        return next((i for i, s in enumerate(self.steps) if s.offset >= start), len(self.steps))


def is_only_shown(frame: FrameType) -> bool:
    """Whether a text that is being made goes where people read it, and nowhere else.

    That is the message of an assertion or of an exception that is raised, ``print``, a log, a
    warning, the name of a stretch of a profile. The text may be a part of others, be held by a
    variable, or be handed to a function of the user's that only shows it.

    Args:
        frame: The frame that takes the text of a value just now.

    Returns:
        False as well where that is not seen.
    """
    if frame.f_globals.get("__name__") in _SHOWING:
        return True
    return _is_result_shown(_Scope(frame.f_code, frame.f_locals, frame.f_globals, frame, frame))


def _is_result_shown(at: _Scope) -> bool:
    """Whether what the instruction at which a frame is makes of a text is only shown."""
    i = at.running
    if i == len(at.steps):
        return False
    step = at.steps[i]
    if step.opname in _CALLS:
        called = _called(at, i)
        if _shows(at, i, called):
            return True
        text = any(called is maker for maker in _MAKERS) or _method_of_text(at, i)
        return text and _is_shown(at, i + 1)
    made = step.opname in _FORMATS or _operator(step) in _JOINS
    return made and _is_shown(at, i + 1)


def _is_shown(at: _Scope, start: int) -> bool:
    """Whether the text on top of the stack, before an instruction, is only shown from there on."""
    above = 0  # how many values stand on the stack above the text
    for i in range(start, len(at.steps)):
        step, name = at.steps[i], at.steps[i].opname
        count = step.arg or 0
        if name == "BUILD_STRING":
            above = max(0, above + 1 - count)
        elif name in _FORMATS:
            takes = 1 + (name == "FORMAT_WITH_SPEC" or (name == "FORMAT_VALUE" and count & 4 > 0))
            if takes > above + 1:
                return False
            above = max(0, above + 1 - takes)
        elif _operator(step) in _JOINS:
            above = max(0, above - 1)
        elif name in _CALLS:
            if above < count or (above == count and name == "CALL"):
                called = _called(at, i)
                if above == count or not any(called is maker for maker in _MAKERS):
                    ends = _raises(at, i, called) or _shows(at, i, called)
                    return ends or _is_parameter_shown(at, i, called, above)
                above = 0
            else:
                above += _effect(step)
                if above < 1:
                    return False
        elif name == "POP_TOP" and above == 0:
            return True
        elif name == "STORE_FAST" and above == 0:
            return _is_variable_shown(at, str(step.argval))
        elif name == "RETURN_VALUE" and above == 0:
            return _is_returned_shown(at)
        elif name in {"POP_TOP", "STORE_FAST"}:
            above -= 1
        elif (count if name == "BUILD_TUPLE" else _TAKES.get(name, above + 1)) <= above:
            above += dis.stack_effect(step.opcode, step.arg)
        else:
            return False
    return False


def _is_returned_shown(at: _Scope) -> bool:
    """Whether a text that the code of a frame returns is only shown where it is called."""
    outer = None if at.frame is None else at.frame.f_back
    if outer is None or at.depth == _DEPTH:
        return False
    held, scope = outer.f_locals, outer.f_globals
    back = _Scope(outer.f_code, held, scope, at.stack, outer, at.followed, at.depth + 1)
    i = back.running
    return i < len(back.steps) and back.steps[i].opname in _CALLS and _is_shown(back, i + 1)


def _is_variable_shown(at: _Scope, name: str) -> bool:
    """Whether a text that a variable holds is only shown, wherever the code reads the variable."""
    if (at.code, name) in at.followed:
        return True
    at.followed.add((at.code, name))
    if name in at.code.co_cellvars or _READERS & set(at.code.co_names):
        return False
    for i, step in enumerate(at.steps):
        several = isinstance(step.argval, tuple) and name in step.argval  # from Python 3.13 on
        if several and "FAST" in step.opname:
            return False
        reads = step.opname.startswith("LOAD_FAST") and step.argval == name
        if reads and not _is_shown(at, i + 1):
            return False
    return True


def _is_parameter_shown(at: _Scope, i: int, called: Any, above: int) -> bool:
    """Whether a function only shows a text, the argument below ``above`` others."""
    held: dict[str, Any] = {}
    function, first = called, 0
    if isinstance(function, _BoundMethod):
        function, first = function.function, 1
    if type(function) is not FunctionType or at.depth == _DEPTH or at.steps[i].opname != "CALL":
        return False
    code, count = function.__code__, at.steps[i].arg or 0
    index = count - 1 - above
    keywords = _keywords(at, i)
    if index < 0:
        return False
    parameters = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    if first and parameters:
        held[parameters[0]] = called.owner
    positional = index < count - len(keywords)
    if positional and index + first >= code.co_argcount:
        return False
    name = parameters[index + first] if positional else keywords[index - count + len(keywords)]
    if name not in parameters:
        return False
    inside = _Scope(code, held, function.__globals__, at.stack, None, at.followed, at.depth + 1)
    return _is_variable_shown(inside, str(name))


@dataclass(frozen=True)
class _BoundMethod:
    """This record stands for a method of a value: the function, and the value."""

    function: Any
    owner: Any


def _called(at: _Scope, i: int) -> Any:
    """Return what the i-th instruction calls; ``UNSEEN`` if that is not seen."""
    step, before = at.steps[i], at.steps[:i]
    if before and before[-1].opname == "KW_NAMES":
        before = before[:-1]
    before = _without(before, step.arg or 0)
    if not before:
        return UNSEEN
    stored = {s.argval for s in at.steps if s.opname.startswith("STORE_")}
    last, owned = before[-1], before[-1].opname == "LOAD_METHOD" or is_method(before[-1])
    chain = before[:-1] if owned else before
    value = _read(chain, at.held, at.scope, stored)
    if not owned or value is UNSEEN:
        return value
    function = inspect.getattr_static(value, str(last.argval), UNSEEN)
    if type(function) is FunctionType and not isinstance(value, (ModuleType, type)):
        held = getattr(value, "__dict__", {})
        return function if str(last.argval) in held else _BoundMethod(function, value)
    return function.__func__ if isinstance(function, staticmethod) else function


def _keywords(at: _Scope, i: int) -> tuple[str, ...]:
    """Return the names of the keyword arguments, the last ones, of the i-th instruction, a call."""
    last = at.steps[i - 1]
    return at.code.co_consts[last.arg or 0] if last.opname == "KW_NAMES" else ()


def _shows(at: _Scope, i: int, called: Any) -> bool:
    """Whether the i-th instruction, a call, shows a text and does nothing else with it.

    What ``print`` writes into a file, and what is made by a call whose value is read, is not seen.
    """
    if isinstance(called, _BoundMethod):
        called = called.function
    if called is print:
        return "file" not in _keywords(at, i)
    if called is UNSEEN or torch_internals.is_assertion(called):
        return called is not UNSEEN
    following = [step.opname for step in at.steps[i + 1 : i + 3]]
    dropped = following[:1] == ["POP_TOP"] or following == ["BEFORE_WITH", "POP_TOP"]
    functions = (FunctionType, BuiltinFunctionType, type)
    return dropped and isinstance(called, functions) and called.__module__ in _SHOWING


def _raises(at: _Scope, i: int, called: Any) -> bool:
    """Whether the i-th instruction, a call, makes an exception that ends the forward."""
    if at.steps[i + 1].opname != "RAISE_VARARGS":
        return False
    before = _without(at.steps[:i], (at.steps[i].arg or 0) + 1)
    asserted = bool(before) and before[-1].opname == "LOAD_ASSERTION_ERROR"
    kind = asserted or (isinstance(called, type) and issubclass(called, BaseException))
    return kind and not any(map(_catches, at.codes()))


def _catches(code: CodeType) -> bool:
    """Whether code may catch an exception, by the table that Python has of it from 3.11 on."""
    return bool(getattr(code, "co_exceptiontable", True))


def _method_of_text(at: _Scope, i: int) -> bool:
    """Whether the i-th instruction calls ``format`` or ``join`` of a text that the code holds."""
    before = _without(at.steps[:i], at.steps[i].arg or 0)
    if len(before) < 2 or not (before[-1].opname == "LOAD_METHOD" or is_method(before[-1])):
        return False
    owner, method = before[-2], before[-1].argval
    return isinstance(owner.argval, str) and owner.opname == "LOAD_CONST" and method in _OF_TEXT


#: Methods of a text that make another one of it and of what they are given.
_OF_TEXT = {"format", "join"}


def _operator(step: dis.Instruction) -> str:
    """Return what an instruction computes of two values, as it is written; its name otherwise."""
    return step.argrepr if step.opname == "BINARY_OP" else step.opname


def _effect(step: dis.Instruction) -> int:
    """Return by how many values an instruction makes the stack larger."""
    if step.opname == "CALL":  # Python 3.11 counts what PRECALL takes apart
        return -1 - (step.arg or 0)
    return dis.stack_effect(step.opcode, step.arg, jump=False)


def _without(steps: list[dis.Instruction], count: int) -> list[dis.Instruction]:
    """Return instructions without the last ones, which put so many values on the stack.

    A value of ``a and b`` begins before the jump that leaves b out.
    """
    steps = list(steps)
    while steps and (count > 0 or _is_second(steps)):
        count -= _effect(steps.pop())
    return steps


def _is_second(steps: list[dis.Instruction]) -> bool:
    """Whether the value after some instructions is the second of ``a and b`` or ``a or b``."""
    last, before = steps[-1].opname, steps[-2].opname if len(steps) > 1 else ""
    return last.endswith("_OR_POP") or (last == "POP_TOP" and before.startswith("POP_JUMP"))


def _read(
    steps: list[dis.Instruction],
    held: Mapping[str, Any],
    scope: Mapping[str, Any],
    stored: set[Any],
) -> Any:
    """Return what the last instructions read from names that the code does not set itself."""
    names: list[str] = []
    while steps and steps[-1].opname == "LOAD_ATTR":
        names.append(str(steps[-1].argval))
        steps = steps[:-1]
    if not steps or steps[-1].opname not in LOADS or steps[-1].argval in stored:
        return UNSEEN
    step, name = steps[-1], str(steps[-1].argval)
    if step.opname in {"LOAD_GLOBAL", "LOAD_NAME"}:
        value = scope.get(name, getattr(builtins, name, UNSEEN))
    else:
        value = held.get(name, UNSEEN)
    for name in reversed(names):
        value = inspect.getattr_static(value, name, UNSEEN)
    return value


#: What is looked up in a container that code makes on the spot, or that is not seen.
UNSEEN = object()
#: Instructions that hash what they put into a container, or take out: nothing is looked up.
_STORES = {"STORE_SUBSCR", "DELETE_SUBSCR", "SET_ADD", "MAP_ADD", "SET_UPDATE", "DICT_UPDATE"}
LOADS = {
    "LOAD_FAST", "LOAD_FAST_BORROW", "LOAD_FAST_CHECK", "LOAD_DEREF", "LOAD_GLOBAL", "LOAD_NAME",
}  # fmt: skip


def looked_up_in(frame: FrameType) -> Any:
    """Return the container in which code looks up a value that is being hashed.

    Args:
        frame: The frame whose code does so.

    Returns:
        The container, if a name of the code, or attributes of one, hold it. ``UNSEEN`` if it is
        another one. None if the value is put into a container, or handed to a cached function.
    """
    steps = list(dis.get_instructions(frame.f_code))
    at = next((i for i, s in enumerate(steps) if s.offset == frame.f_lasti), 0)
    step = steps[at]
    if steps[at - 1].opname == "PRECALL":  # the first half of a call in Python 3.11
        at -= 1
    if step.opname in _STORES or step.opname.startswith("BUILD_"):
        return None
    if step.opname == "CONTAINS_OP":
        return held(steps[:at], frame)
    if step.opname in {"BINARY_SUBSCR", "BINARY_OP"}:
        return held(below(steps[:at], 1), frame)
    if not step.opname.startswith(("CALL", "PRECALL")):
        return UNSEEN
    spread = step.opname == "CALL_FUNCTION_EX"  # f(*args): a tuple, and a dict if the flag says so
    called = below(steps[:at], 1 + ((step.arg or 0) & 1) if spread else step.arg or 0)
    if called and (called[-1].opname == "LOAD_METHOD" or is_method(called[-1])):
        owner = held(called[:-1], frame)
        if issubclass(type(owner), (dict, set, frozenset)):
            return owner
        function = inspect.getattr_static(owner, str(called[-1].argval), UNSEEN)
    else:
        function = held(called, frame)
    if issubclass(type(function), (staticmethod, classmethod)):
        function = function.__func__
    cached = issubclass(type(function), type(functools.lru_cache(lambda: None)))
    stores = any(function is known for known in (set, frozenset, hash))
    return None if cached or stores else UNSEEN


def is_method(step: dis.Instruction) -> bool:
    """Whether an instruction takes a method off an object to call it: so from Python 3.12 on."""
    return step.opname == "LOAD_ATTR" and sys.version_info >= (3, 12) and bool((step.arg or 0) & 1)


def below(steps: list[dis.Instruction], count: int) -> list[dis.Instruction]:
    """Return instructions without the last ones, which put so many values on the stack."""
    while count > 0 and steps:
        count -= dis.stack_effect(steps[-1].opcode, steps[-1].arg)
        steps = steps[:-1]
    return steps


def held(steps: list[dis.Instruction], frame: FrameType) -> Any:
    """Return the value that the last instructions read from names; ``UNSEEN`` for another one."""
    names: list[str] = []
    while steps and steps[-1].opname == "LOAD_ATTR":
        names.append(str(steps[-1].argval))
        steps = steps[:-1]
    if not steps or steps[-1].opname not in LOADS:
        return UNSEEN
    name = steps[-1].argval
    value = frame.f_locals.get(name, frame.f_globals.get(name, getattr(builtins, name, UNSEEN)))
    for name in reversed(names):
        value = inspect.getattr_static(value, name, UNSEEN)
    return value
