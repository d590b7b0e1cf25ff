"""Frames of running code: the calls of a thread, and what becomes of a value that code just read.

A traced value is asked for what leaves no operation: its hash, its text, a number. What that is
for stands in the bytecode of the code that asks, of which ``frame.f_lasti`` is the place.
"""

from __future__ import annotations

import builtins
import contextlib
import dis
import functools
import inspect
import itertools
import sys
from collections.abc import Callable, Iterator
from cProfile import Profile
from types import FrameType
from typing import Any, NamedTuple

#: Called with a frame, what happens there (``call``, ``return``, ``c_call``, ...), and what
#: ``sys.setprofile`` hands over with it.
Note = Callable[[FrameType, str, Any], object]


@contextlib.contextmanager
def noted(note: Note) -> Iterator[bool]:
    """Call ``note`` at every event of ``sys.setprofile`` in this thread.

    A profile function that is set already goes on seeing them, too. A profiler written in C cannot
    be called from here: cProfile's, which has ``disable`` and ``enable``, is switched off
    meanwhile; any other is left in its place, and nothing is noted.

    Yields:
        Whether events are noted.
    """
    outer: Any = sys.getprofile()
    if isinstance(outer, Profile):
        outer.disable()
        try:
            with noted(note) as works:
                yield works
        finally:
            outer.enable()
        return
    if outer is not None and not callable(outer):
        yield False
        return

    def both(frame: FrameType, event: str, arg: Any) -> None:
        note(frame, event, arg)
        if outer is not None:
            outer(frame, event, arg)

    sys.setprofile(both)
    try:
        yield True
    finally:
        sys.setprofile(outer)


def step_of(frame: FrameType) -> str:
    """Return the name of the instruction at which a frame of Python code is."""
    steps = dis.get_instructions(frame.f_code)
    return next((step.opname for step in steps if step.offset == frame.f_lasti), "")


#: Instructions between the formatting of a text and the call that is given it: each with how many
#: values it takes from the stack, which must not be the text; a string may be built of it.
_TAKES = {
    "LOAD_CONST": 0, "LOAD_FAST": 0, "LOAD_FAST_BORROW": 0, "LOAD_DEREF": 0, "LOAD_GLOBAL": 0,
    "LOAD_ATTR": 1, "LOAD_METHOD": 1, "BINARY_SUBSCR": 2, "BINARY_OP": 2, "FORMAT_VALUE": 1,
    "FORMAT_SIMPLE": 1,
}  # fmt: skip
_NO_STEPS = {"CACHE", "PRECALL", "EXTENDED_ARG"}


def receiving_call(frame: FrameType) -> range | None:
    """Return which call gets the text that an f-string is made of, and nothing else gets it.

    Args:
        frame: The frame that formats a value just now.

    Returns:
        The offsets of the call in the frame's code, of which ``frame.f_lasti`` is one while it
        runs. None where something else may read the text, where the value of the call is read, or
        where that is not seen.
    """
    steps = [s for s in dis.get_instructions(frame.f_code) if s.opname not in _NO_STEPS]
    start = next((i for i, s in enumerate(steps) if s.offset == frame.f_lasti), len(steps))
    above = 0  # how many values stand on the stack above the text
    for step, following in itertools.pairwise(steps[start + 1 :]):
        if step.opname == "BUILD_STRING":
            above = max(0, above + 1 - (step.arg or 0))
        elif step.opname in {"CALL", "CALL_FUNCTION"}:
            given = (step.arg or 0) > above and following.opname == "POP_TOP"
            return range(step.offset, following.offset) if given else None
        elif step.opname in _TAKES and _TAKES[step.opname] <= above:
            above += dis.stack_effect(step.opcode, step.arg)
        else:
            return None
    return None


#: What is looked up in a container that code makes on the spot, or that is not seen.
UNSEEN = object()
#: Instructions that hash what they put into a container, or take out: nothing is looked up.
_STORES = {"STORE_SUBSCR", "DELETE_SUBSCR", "SET_ADD", "MAP_ADD", "SET_UPDATE", "DICT_UPDATE"}
_LOADS = {
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
    function = _called(steps[: at + 1], frame)
    if issubclass(type(function), _Method):
        if issubclass(type(function.owner), (dict, set, frozenset)):
            return function.owner
        function = function.function
    if issubclass(type(function), (staticmethod, classmethod)):
        function = function.__func__
    cached = issubclass(type(function), type(functools.lru_cache(lambda: None)))
    stores = any(function is known for known in (set, frozenset, hash))
    return None if cached or stores else UNSEEN


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
    if called and (called[-1].opname == "LOAD_METHOD" or _is_method(called[-1])):
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
        if not uses or not all(s.opname in _LOADS and s.argval == name for s in uses):
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


def _is_method(step: dis.Instruction) -> bool:
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
    if not steps or steps[-1].opname not in _LOADS:
        return UNSEEN
    name = steps[-1].argval
    value = frame.f_locals.get(name, frame.f_globals.get(name, getattr(builtins, name, UNSEEN)))
    for name in reversed(names):
        value = inspect.getattr_static(value, name, UNSEEN)
    return value
