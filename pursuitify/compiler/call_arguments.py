"""This module finds the functions, and their keywords, that get a value which code just read.

``f(y, device=x.device)`` leaves no operation of ``x``: what becomes of the attribute stands in the
instructions of the frame that reads it, of which ``frame.f_lasti`` is the place.
"""

from __future__ import annotations

import dis
import inspect
from types import FrameType
from typing import Any, NamedTuple

from pursuitify.compiler.bytecode import LOADS, UNSEEN, below, held, is_method

#: Instructions between the reading of a value and the call that is given it: each with how many
#: values it takes from the stack, which must not be the value; a text may be built of others.
_TAKES = {
    "LOAD_CONST": 0, "LOAD_FAST": 0, "LOAD_FAST_BORROW": 0, "LOAD_DEREF": 0, "LOAD_GLOBAL": 0,
    "LOAD_ATTR": 1, "LOAD_METHOD": 1, "BINARY_SUBSCR": 2, "BINARY_OP": 2, "FORMAT_VALUE": 1,
    "FORMAT_SIMPLE": 1,
}  # fmt: skip
_NO_STEPS = {"CACHE", "PRECALL", "EXTENDED_ARG"}


class _Method(NamedTuple):
    """A function that code takes off an object to call it, as ``torch.zeros`` or ``d.get``."""

    owner: Any
    function: Any


def _called(steps: list[dis.Instruction], frame: FrameType) -> Any:
    """Return what the last instruction calls, or a ``_Method``; ``UNSEEN`` where no name holds it.

    A dict of keywords, or their names, may stand above the arguments.
    """
    step, steps = steps[-1], steps[:-1]
    count = step.arg or 0
    if step.opname == "CALL_FUNCTION_EX":  # f(*args): a tuple, and a dict if the flag says so
        count = 1 + (count & 1)
    elif step.opname in _NAMES_ABOVE:
        count += 1
    called = below(steps, count)
    if called and (called[-1].opname == "LOAD_METHOD" or is_method(called[-1])):
        owner = held(called[:-1], frame)
        return _Method(owner, inspect.getattr_static(owner, str(called[-1].argval), UNSEEN))
    return held(called, frame)


#: Calls that have a tuple of their keywords' names above the arguments.
_NAMES_ABOVE = {"CALL_KW", "CALL_FUNCTION_KW"}


def called_by(frame: FrameType) -> Any:
    """Return the function that code calls just now; ``UNSEEN`` where no name holds it."""
    steps = list(dis.get_instructions(frame.f_code))
    at = next((i for i, s in enumerate(steps) if s.offset == frame.f_lasti), 0)
    if not steps[at].opname.startswith(("CALL", "PRECALL")):
        return UNSEEN
    if steps[at - 1].opname == "PRECALL":
        at -= 1
    function = _called(steps[: at + 1], frame)
    return function.function if issubclass(type(function), _Method) else function


def given_to(frame: FrameType) -> list[tuple[Any, str]]:
    """Return which functions get an attribute that code reads just now, by which keywords.

    Args:
        frame: The frame whose code reads it, as in ``f(y, device=x.device)``, or in
            ``device = x.device`` and ``f(y, device=device)`` later.

    Returns:
        Functions and keywords, one of each use. Empty where anything else may read the value, or
        where that is not seen.
    """
    steps = list(dis.get_instructions(frame.f_code))
    at = next((i for i, s in enumerate(steps) if s.offset == frame.f_lasti), len(steps) - 1)
    following = next((s for s in steps[at + 1 :] if s.opname not in _NO_STEPS), steps[at])
    places = [at]
    if following.opname == "STORE_FAST":
        name = following.argval
        named = [s for s in steps if "_FAST" in s.opname and _names(s, name)]
        uses = [s for s in named if s is not following]
        if not uses or not all(s.opname in LOADS and s.argval == name for s in uses):
            return []
        places = [steps.index(s) for s in uses]
    found = [_given(steps, place, frame) for place in places]
    known = [gets for gets in found if gets is not None]
    return known if len(known) == len(found) else []


def _names(step: dis.Instruction, name: str) -> bool:
    """Whether an instruction reads or writes a variable, alone or beside another one."""
    return name in (step.argval if isinstance(step.argval, tuple) else (step.argval,))


def _given(steps: list[dis.Instruction], at: int, frame: FrameType) -> tuple[Any, str] | None:
    """Return the function and the keyword that get the value an instruction puts on the stack."""
    above = 0  # how many values stand on the stack above it
    names: tuple[str, ...] = ()
    for i, step in enumerate(steps[at + 1 :], at + 1):
        count = step.arg or 0
        if step.opname == "KW_NAMES":
            names = frame.f_code.co_consts[count]
        elif step.opname in _CALLS:
            named = step.opname in _NAMES_ABOVE
            if named:
                names = steps[i - 1].argval
            place = above - named
            if place < count:
                if place >= len(names):
                    return None
                if steps[i - 1].opname == "PRECALL":
                    i -= 1
                return _function(steps[: i + 1], frame), names[len(names) - 1 - place]
            above, names = above - count - named - _CALLS[step.opname] + 1, ()
            if above < 0:
                return None
        elif step.opname in {"BUILD_CONST_KEY_MAP", "BUILD_MAP"}:
            mapped = step.opname == "BUILD_MAP"  # key, value, key, value
            taken = 2 * count if mapped else count + 1
            if above >= taken:
                above += 1 - taken
                continue
            spread = steps[i + 1]
            if spread.opname != "CALL_FUNCTION_EX" or (mapped and above != 0):
                return None
            keyword = _key(steps[:at], frame) if mapped else steps[i - 1].argval[count - above]
            return _function(steps[: i + 2], frame), keyword
        elif step.opname in _TAKES and _TAKES[step.opname] <= above:
            above += dis.stack_effect(step.opcode, step.arg)
        elif step.opname not in _NO_STEPS:
            return None
    return None


#: Calls, and how many values each takes beside its arguments and the names of its keywords.
_CALLS = {"CALL": 2, "CALL_KW": 2, "CALL_FUNCTION": 1, "CALL_FUNCTION_KW": 1, "CALL_METHOD": 2}


def _function(steps: list[dis.Instruction], frame: FrameType) -> Any:
    found = _called(steps, frame)
    return found.function if issubclass(type(found), _Method) else found


def _key(steps: list[dis.Instruction], frame: FrameType) -> str:
    """Return the one key of a dict that is built of it and of the attribute that is read next."""
    key = below(steps, 1)[-1]
    return str(key.argval) if key.opname == "LOAD_CONST" else ""
