"""This module lists what forwards do beyond calling torch; run as a script, which may die.

Prints one line per idiom and position in the network: its name, and ``same`` (it converts, and is
the source at T = 0), ``refused``, or what went wrong.
"""

from __future__ import annotations

import copy
import ctypes
import pickle
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import dlpack
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from pursuitify import PursuitifyError, explain, pursuitify


class Straight(torch.autograd.Function):
    """Signs, with the derivative of the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sign()

    @staticmethod
    def backward(ctx: Any, *bars: Any) -> Any:
        return bars[0]


class Clamping(Straight):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        return x.clamp_(0)


@torch.jit.script  # type: ignore[untyped-decorator]
def scripted(x: Tensor) -> Tensor:
    """Return twice the tensor, out of Python's sight."""
    return x * 2


@torch.library.custom_op("pursuitify_tests::thrice", mutates_args=())
def thrice(x: Tensor) -> Tensor:
    """Return three times the tensor."""
    return x * 3


def unseen(x: Tensor) -> Tensor:
    """Return relu(x) past every override."""
    with torch._C.DisableTorchFunction():
        return torch.relu(x)


def saved(self: Any, x: Tensor) -> Tensor:
    """Run a layer with its saved tensors moved away."""
    with torch.autograd.graph.save_on_cpu():
        return F.relu(self.side(x))


Idiom = Callable[[Any, Tensor], Any]
IDIOMS: dict[str, Idiom] = {
    "plain": lambda s, x: x,
    "isinstance": lambda s, x: x if isinstance(x, Tensor) else 2 * x,
    "is_tensor": lambda s, x: x if torch.is_tensor(x) else 2 * x,
    "isinstance of an attribute": lambda s, x: 3 * x if isinstance(x.mT, Tensor) else 2 * x,
    "not a parameter": lambda s, x: 2 * x if isinstance(x, nn.Parameter) else x,
    "__class__": lambda s, x: x if x.__class__ is Tensor else 2 * x,
    "no number": lambda s, x: 2 * x if isinstance(x, (int, float, list, np.ndarray)) else x,
    "autograd.Function": lambda s, x: Straight.apply(x),
    "autograd.Function in place": lambda s, x: Clamping.apply(x),
    "as_tensor": lambda s, x: torch.as_tensor(x),
    "as_tensor of a dtype": lambda s, x: torch.as_tensor(x, dtype=torch.float32),
    "asarray": lambda s, x: torch.asarray(x),
    "tensor": lambda s, x: torch.tensor(x),
    "tensor of a list": lambda s, x: torch.tensor([x.sum(), x.sum()]),
    "FloatTensor": lambda s, x: torch.FloatTensor(x),
    "Tensor": lambda s, x: torch.Tensor(x),
    "Variable": lambda s, x: torch.autograd.Variable(x),
    "Parameter": lambda s, x: nn.Parameter(x),
    "checkpoint": lambda s, x: checkpoint(s.side, x, use_reentrant=False),
    "checkpoint of a function": lambda s, x: checkpoint(
        lambda t: F.relu(s.side(t)), x, use_reentrant=False
    ),
    "checkpoint in a checkpoint": lambda s, x: checkpoint(
        lambda t: checkpoint(s.side, t, use_reentrant=False), x, use_reentrant=False
    ),
    "checkpoint without random states": lambda s, x: checkpoint(
        s.side, x, use_reentrant=False, preserve_rng_state=False
    ),
    "checkpoint_sequential": lambda s, x: checkpoint_sequential(
        [s.side, s.side], 2, x, use_reentrant=False
    ),
    "reentrant checkpoint": lambda s, x: checkpoint(s.side, x, use_reentrant=True),
    "saved tensors elsewhere": saved,
    "scripted function": lambda s, x: scripted(x),
    "scripted module": lambda s, x: s.scripted(x),
    "traced function": lambda s, x: torch.jit.trace(s.side, x)(x),
    "fork": lambda s, x: torch.jit.wait(torch.jit.fork(s.side, x)),
    "custom op": lambda s, x: thrice(x),
    "aten op": lambda s, x: torch.ops.aten.relu(x),
    "past overrides": lambda s, x: unseen(x),
    "numpy": lambda s, x: torch.from_numpy(x.detach().numpy()),
    "np.asarray": lambda s, x: torch.from_numpy(np.asarray(x)),
    "np.multiply": lambda s, x: np.multiply(x, 2),
    "an array times it": lambda s, x: np.float32(2) * x,
    "dlpack": lambda s, x: torch.from_dlpack(x),  # type: ignore[attr-defined]
    "to_dlpack": lambda s, x: dlpack.to_dlpack(x),  # type: ignore[attr-defined]
    "buffer": lambda s, x: torch.frombuffer(x, dtype=torch.float32),
    "bytes": lambda s, x: bytes(x),
    "pointer": lambda s, x: ctypes.string_at(x.data_ptr(), 1) and x,
    "storage": lambda s, x: x.untyped_storage() and x,
    "set_": lambda s, x: torch.empty(0).set_(x),
    "data assigned": lambda s, x: setattr(x, "data", x) or x,
    "attribute assigned": lambda s, x: setattr(x, "mark", 1) or x,
    "float": lambda s, x: x * float(x.mean()),
    "int": lambda s, x: x * int(x.mean()),
    "index": lambda s, x: [x, 2 * x][x.argmax()],
    "range": lambda s, x: next(x for _ in range(x.sum())),
    "bool": lambda s, x: x if x.sum() > 0 else -x,
    "contains": lambda s, x: x if 1 in x else -x,
    "iteration": lambda s, x: torch.stack(list(x)),
    "reversed": lambda s, x: torch.stack(list(reversed(x))),
    "assignment": lambda s, x: (x.__setitem__(0, 0), x)[1],
    "deletion": lambda s, x: x.__delitem__(0) or x,  # type: ignore[attr-defined]
    "|=": lambda s, x: x * ((x > 0) | (x < 1)),
    "copy": lambda s, x: copy.copy(x),
    "deepcopy": lambda s, x: copy.deepcopy(x),
    "pickle": lambda s, x: pickle.loads(pickle.dumps(x)),
    "format": lambda s, x: (f"{x} {x!r}", x)[1],
    "hash": lambda s, x: {x: x}[x],
    "unbound method": lambda s, x: torch.Tensor.add(x, x),
    "as_subclass": lambda s, x: x.as_subclass(Tensor),
    "functional_call": lambda s, x: torch.func.functional_call(
        s.side, {"weight": s.side.weight, "bias": s.side.bias}, x
    ),
    "functional_call of others": lambda s, x: torch.func.functional_call(
        s.side, {"weight": s.other.weight}, x
    ),
    "vmap": lambda s, x: torch.vmap(s.side)(x),
    "func.grad": lambda s, x: torch.func.grad(lambda t: s.side(t).sum())(x),
    "jvp": lambda s, x: torch.func.jvp(s.side, (x,), (x,))[0],
    "make_dual": lambda s, x: torch.autograd.forward_ad.make_dual(x, x),
    "nested": lambda s, x: torch.nested.nested_tensor([x, x]),
    "to_sparse": lambda s, x: x.to_sparse().to_dense(),
    "register_hook": lambda s, x: (x.register_hook(lambda bar: bar), x)[1],
    "swap_tensors": lambda s, x: torch.utils.swap_tensors(x, torch.zeros(2)) or x,
}


class Net(nn.Module):
    """Two layers; the idiom stands before the first, between them, or after the last."""

    def __init__(self, idiom: Idiom, position: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.side, self.other = nn.Linear(4, 4), nn.Linear(4, 4)
        self.scripted = torch.jit.script(nn.Linear(4, 4))
        self.idiom, self.position = idiom, position

    def forward(self, x: Tensor) -> Any:
        """Run the layers."""
        for i, layer in enumerate((self.first, self.second, None)):
            if self.position == i:
                x = self.idiom(self, x)
            x = x if layer is None else F.relu(layer(x))
        return x


def outcome(idiom: Idiom, position: int) -> str:
    """Return what a conversion does with an idiom."""
    torch.manual_seed(0)
    model, x = Net(idiom, position).eval(), torch.randn(3, 4)
    try:
        expected = model(x.clone())
    except Exception:
        expected = None
    report = explain(model)
    try:
        net = pursuitify(model, iterations=0)
    except PursuitifyError as error:
        return "refused" if not report.ok and str(error) else "explain said ok"
    if not report.ok:
        return "explain said no"
    if expected is None:
        return "refused"
    return "same" if torch.equal(net(x), expected) else "WRONG"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for name, idiom in IDIOMS.items():
        for position in range(3):
            print(f"{name}, {position}:", end=" ", flush=True)
            try:
                print(outcome(idiom, position), flush=True)
            except Exception as error:
                print(f"{type(error).__name__} {error}".replace("\n", " "), flush=True)
    sys.exit(0)
