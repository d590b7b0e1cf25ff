"""State that a trace would lose or fix silently: a module's mode, randomness, Python state."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from pursuitify import errors
from pursuitify.compiler.tracing.nodes import is_inplace
from pursuitify.utils import call_events, patched_methods, torch_internals

#: The code by which a module looks for what is no plain attribute of it.
_LOOKS_UP = nn.Module.__getattr__.__code__


class _Watched(dict[str, Any]):
    """The buffers of a copied module, which also answer for ``training`` and note the question.

    ``training`` is taken out of the copy's plain attributes, so that a read of it ends in
    ``nn.Module.__getattr__``, which asks here. Nothing else sees an entry: neither iteration nor
    ``nn.Module.__setattr__``, so that a write makes a plain attribute of it again.
    """

    def __init__(self, buffers: dict[str, Any], training: bool, path: str, asked: set[str]) -> None:
        super().__init__(buffers)
        self.training, self._path, self._asked = training, path, asked

    def __contains__(self, name: object) -> bool:
        if name == "training" and sys._getframe(1).f_code is _LOOKS_UP:
            return True
        return super().__contains__(name)

    def __missing__(self, name: str) -> Any:
        if name != "training":
            raise KeyError(name)
        self._asked.add(self._path)
        return self.training


@contextlib.contextmanager
def watch_modes(root: nn.Module, asked: set[str]) -> Iterator[None]:
    """Note the paths of the modules in a copied model whose ``training`` the code inside reads."""
    held = []
    for path, module in root.named_modules():
        own = vars(module)
        buffers, training = own.get("_buffers"), own.get("training")
        if isinstance(training, bool) and type(buffers) is dict:
            own["_buffers"] = watched = _Watched(buffers, training, path, asked)
            del own["training"]
            held.append((own, buffers, watched, training))
    try:
        yield
    finally:
        for own, buffers, watched, training in held:
            buffers.clear()
            buffers.update(watched)
            own["_buffers"] = buffers
            own.setdefault("training", training)


#: Places of the generators of torch, of the module ``random`` and of NumPy in ``random_state``.
_TORCH, _PYTHON, _NUMPY = range(3)


@dataclass
class OwnDraws:
    """What one thread did with the global random number generators.

    Attributes:
        before: Their state when the watch began.
        alone: Whether no other thread of Python's was alive then: all draws are this thread's.
        profiled: Whether a profiler is at work beside which calls are not seen.
        drawn: Places in ``random_state`` of the generators that it drew from, or set: not complete
            if ``alone`` or ``profiled``.
        numpy: Whether code ran that names NumPy's global generator, which no hook sees drawing.
    """

    before: tuple[Any, Any, Any]
    alone: bool
    profiled: bool = False
    drawn: set[int] = field(default_factory=set)
    numpy: bool = False

    @property
    def undecided(self) -> bool:
        """Whether a thread was started meanwhile, so that nobody knows who moved the states."""
        return self.alone and not _is_alone() and any(_moved(self.before, random_state()))

    def any(self) -> bool:
        """Whether this thread drew, or set a state.

        Beside other threads a state that has changed says nothing: their draws change it, too.
        """
        return bool(self._moved())

    def _moved(self) -> set[int]:
        """Return which generators this thread moved, by their places in ``random_state``."""
        moved = {place for place, moves in enumerate(_moved(self.before, random_state())) if moves}
        if self.alone:
            return moved
        known = self.drawn | ({_NUMPY} if self.numpy else set())
        return moved & (known | ({_PYTHON, _NUMPY} if self.profiled else set()))

    def put_back(self) -> None:
        """Put back the generators that this thread moved; those of other threads go on."""
        restore_random_state(self.before, self._moved())

    def note(self, frame: FrameType, event: str, arg: Any) -> None:
        """Look at one event of ``sys.setprofile``."""
        if event == "c_call":
            owner, name = getattr(arg, "__self__", None), getattr(arg, "__name__", "")
            if name in {"getstate", "get_state", "initial_seed"}:
                return
            if owner is _PYTHON_GENERATOR:
                self.drawn.add(_PYTHON)
            elif owner is torch.default_generator:
                self.drawn.add(_TORCH)
        elif event == "call" and not self.numpy:
            self.numpy = _names_numpy(frame)


#: The generators behind the functions of the module ``random`` and of ``numpy.random``.
_PYTHON_GENERATOR = random.random.__self__  # type: ignore[attr-defined]
_NUMPY_GENERATOR = np.random.random_sample.__self__  # type: ignore[attr-defined]


def _names_numpy(frame: FrameType) -> bool:
    code = frame.f_code
    if frame.f_globals.get("__name__") == __name__:
        return False
    for name in (*code.co_names, *code.co_freevars):
        value = frame.f_globals.get(name)
        if value is None and name in code.co_freevars:
            value = frame.f_locals.get(name)
        if value is np.random or getattr(value, "__self__", None) is _NUMPY_GENERATOR:
            return True
        if value is np and "random" in code.co_names:
            return True
    return False


@contextlib.contextmanager
def own_draws() -> Iterator[OwnDraws]:
    """Watch what this thread does with the global random number generators.

    What it drew is put back, so that it has drawn nothing. The generators that it left alone are
    left alone: another thread's numbers would be drawn twice.
    """
    alone = _is_alone()
    found = OwnDraws(random_state(), alone)
    try:
        with contextlib.ExitStack() as stack:
            if not alone:
                noting = torch_internals.noting_draws(lambda _name: found.drawn.add(_TORCH))
                stack.enter_context(noting)
                found.profiled = not stack.enter_context(call_events.noted(found.note))
            yield found
    finally:
        if not found.undecided:
            found.put_back()


def _is_alone() -> bool:
    """Whether no other thread runs Python code."""
    return len(sys._current_frames()) == 1


def _moved(before: tuple[Any, Any, Any], now: tuple[Any, Any, Any]) -> tuple[bool, bool, bool]:
    same = bool(np.array_equal(now[2][1], before[2][1])) and now[2][2] == before[2][2]
    return not torch.equal(now[0], before[0]), now[1] != before[1], not same


def random_state() -> tuple[Any, Any, Any]:
    """Return the state of every global random number generator on the CPU."""
    return torch.get_rng_state(), random.getstate(), np.random.get_state()


def restore_random_state(state: tuple[Any, Any, Any], which: Container[int] = range(3)) -> None:
    """Put the generators back; ``which`` has the places of those that are."""
    puts: tuple[Callable[[Any], object], ...]
    puts = torch.set_rng_state, random.setstate, np.random.set_state
    for place, put in enumerate(puts):
        if place in which:
            put(state[place])


def python_state(root: nn.Module) -> dict[tuple[str, str], Any]:
    """Return every plain Python value that hangs on a module."""
    plain = (bool, int, float, str, type(None))
    return {
        (path, name): value
        for path, module in root.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, plain)
    }


def settings(module: nn.Module) -> dict[str, Any]:
    """Return the mode of a module and every plain Python value that it holds itself.

    A module that is one node of the graph runs with these as they are when the network runs.
    """
    plain = (bool, int, float, str, tuple, list, type(None))
    held = {k: v for k, v in vars(module).items() if isinstance(v, plain)}
    # A watched module's mode stands among its buffers; asked for there, it is noted, see _Watched.
    buffers = vars(module).get("_buffers")
    if isinstance(buffers, _Watched):
        held.setdefault("training", buffers.training)
    return {k: list(v) if isinstance(v, list) else v for k, v in held.items()}


def changed_settings(module: nn.Module, before: dict[str, Any]) -> list[str]:
    """Return the names of the settings of a module that are others than before.

    The mode is among them only where the module's forward asks for it.
    """
    now = settings(module)
    missing = object()
    changed = sorted(k for k in {*now, *before} if now.get(k, missing) != before.get(k, missing))
    return [k for k in changed if k != "training" or _asks_mode(type(module))]


def _asks_mode(kind: type[nn.Module]) -> bool:
    """Whether what a module does depends on its mode: that of a convolution does not."""
    methods = patched_methods.reached(kind).values()
    return any("training" in patched_methods.names_in(method.__code__) for method in methods)


def check_trainable(root: nn.Module, before: dict[nn.Parameter, bool]) -> None:
    """Put back which parameters require a derivative; refuse where the forward had changed it.

    The Parameters of a skeleton are those of the model.

    Raises:
        TraceError: If any was changed.
    """
    changed = []
    for name, parameter in root.named_parameters():
        if parameter.requires_grad is not before.get(parameter, parameter.requires_grad):
            parameter.requires_grad_(before[parameter])
            changed.append(name)
    if changed:
        raise errors.TraceError(
            f"{type(root).__name__}.forward freezes parameters or thaws them ({changed[0]}), which "
            "the conversion would lose: do it once, outside the forward, or in train()"
        )


def check_buffers(root: nn.Module, model: nn.Module) -> None:
    """Refuse buffers that the forward replaces; writing into them in place is recorded."""
    for path, module in root.named_modules():
        for name, value in module._buffers.items():
            if not isinstance(value, fx.Proxy):
                continue
            node: fx.Node = value.node
            target = f"{path}.{name}".lstrip(".")
            first = node.args[0] if node.args else None
            if not (
                isinstance(first, fx.Node) and is_inplace(node, root) and first.target == target
            ):
                raise errors.TraceError(
                    f"{type(model).__name__} assigns a new tensor to its buffer '{target}', which "
                    "the conversion would lose: write into it in place (buffer.copy_(...))"
                )
