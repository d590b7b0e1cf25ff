"""State that a trace would lose or fix silently: a module's mode, randomness, Python state."""

from __future__ import annotations

import contextlib
import functools
import pickle
import random
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from pursuitify import errors
from pursuitify.compiler.tracing import nodes
from pursuitify.compiler.tracing.nodes import is_inplace
from pursuitify.utils import patched_methods

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


def random_state() -> tuple[Any, Any, Any]:
    """Return the state of every global random number generator on the CPU."""
    return torch.get_rng_state(), random.getstate(), np.random.get_state()


def same_random_state(before: tuple[Any, Any, Any]) -> bool:
    """Whether no random number was drawn since."""
    now = random_state()
    same = bool(torch.equal(now[0], before[0])) and now[1] == before[1]
    return same and bool(np.array_equal(now[2][1], before[2][1])) and now[2][2] == before[2][2]


@functools.cache
def seeded(seed: int) -> tuple[Any, Any, Any]:
    """Return the state that the global generators on the CPU have once they are seeded."""
    return (
        torch.Generator().manual_seed(seed).get_state(),
        random.Random(seed).getstate(),
        np.random.RandomState(seed).get_state(),
    )


def state_of(generator: Any) -> Any:
    """Return the state of a generator of random numbers: ``type_questions.GENERATORS``."""
    if isinstance(generator, random.SystemRandom):
        return None
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.get_state()


def put_state(generator: Any, state: Any) -> bool:
    """Put a generator back into a state; return whether it was in another one."""
    # States are tuples and dicts with arrays in them, which ``==`` does not compare; bytes it does.
    if pickle.dumps(_plain(state_of(generator))) == pickle.dumps(_plain(state)):
        return False
    if isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    else:
        generator.set_state(state)
    return True


def _plain(state: Any) -> Any:
    return state.tolist() if isinstance(state, Tensor) else state


def restore_random_state(state: tuple[Any, Any, Any]) -> None:
    """Put the generators back."""
    torch.set_rng_state(state[0])
    random.setstate(state[1])
    np.random.set_state(state[2])


@dataclass(frozen=True)
class HeldState:
    """The buffers and attributes that a copied model's modules hold before its forward is traced.

    Attributes:
        buffers: The buffers of every module.
        attributes: Its plain attributes; lists and dicts among them as copies.
    """

    buffers: dict[nn.Module, dict[str, Any]]
    attributes: dict[nn.Module, dict[str, Any]]


def held(root: nn.Module) -> HeldState:
    """Return what the modules of a copied model hold now."""
    buffers = {module: vars(module).get("_buffers") for module in root.modules()}
    return HeldState(
        # A scripted module holds its own in C++, where no forward that is traced replaces them.
        {module: dict(own) for module, own in buffers.items() if type(own) is dict},
        {module: {k: _copied(v) for k, v in vars(module).items()} for module in root.modules()},
    )


def _copied(value: Any) -> Any:
    return value.copy() if type(value) in (list, dict) else value


def rewind(root: nn.Module, before: HeldState, constants: Iterable[str]) -> None:
    """Prepare a copied model for its next call, as the call that was traced leaves it.

    Buffers are put back, whose writes are in the graph, and so is an attribute that now holds a
    traced value which depends on no input's values, as a table made for the sizes of an input: it
    would be made again. A traced value that does depend on them stays, so that a forward which
    reads what it kept from its last call is found out. Tensors that torch.fx has put on the root
    are taken off.

    Args:
        root: The copy.
        before: What it held.
        constants: Where the graph reads the tensors that are neither parameters nor buffers.

    Raises:
        TraceError: If a tensor is replaced by what is computed from it.
    """
    for path, module in root.named_modules():
        if module in before.buffers:
            module._buffers.clear()
            module._buffers.update(before.buffers[module])
        own, old = vars(module), before.attributes.get(module, {})
        for name, value in list(own.items()):
            parts = value.values() if type(value) is dict else value
            traced = [v for v in (parts if type(value) in (list, dict) else [value]) if _traced(v)]
            if not traced or any(nodes.reads_values(v.node) for v in traced):
                continue
            target = f"{path}.{name}".lstrip(".")
            for proxy in traced:
                _check_replaced(proxy.node, target, root)
            if name in old:
                own[name] = old[name]
            else:
                del own[name]
    for name in constants:
        if "." not in name and name not in before.attributes[root]:
            vars(root).pop(name, None)


def _traced(value: Any) -> bool:
    return isinstance(value, fx.Proxy)


def _check_replaced(node: fx.Node, target: str, root: nn.Module) -> None:
    """Refuse a tensor attribute that becomes what is computed of it; moving it is no change."""
    while node.op == "call_method" and node.target in {"to", "type_as", "contiguous"}:
        node = node.all_input_nodes[0]
    if node.op == "get_attr":
        return
    if any(n.op == "get_attr" and n.target == target for n in nodes.upstream([node])):
        raise errors.TraceError(
            f"{type(root).__name__}.forward replaces the tensor that it holds as '{target}' by one "
            "computed of it, which the conversion would lose: make it a buffer and write into it "
            "in place (buffer.copy_(...))"
        )


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
