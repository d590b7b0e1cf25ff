"""A grammar of forwards as people write them: steps, what they are wrapped in, how they end.

Every step takes the model and a value of shape (B, 4, H, W) and returns one of that shape, so that
any sequence of them is a forward. Wrappers take a step and return a step.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import dataclasses
import enum
import functools
import math
import operator
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

C = 4
Step = Callable[[Any, Tensor], Tensor]
#: Names of steps, each with the names of its wrappers, outermost last.
Recipe = Sequence[tuple[str, tuple[str, ...]]]


class Block(nn.Module):
    """A layer with its own mode, attributes and defaults."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(C, C, 3, padding=1, bias=False), nn.BatchNorm2d(C)
        self.act, self.scale = nn.ReLU(inplace=True), 0.5

    def forward(self, x: Tensor, skip: Tensor | None = None, *, twice: bool = False) -> Tensor:
        """Run the layer, once or twice, with or without a skip."""
        y = self.norm(self.conv(x))
        if twice:
            y = self.norm(self.conv(self.act(y)))
        if skip is not None:
            y += self.scale * skip
        return self.act(y)


class Noisy(nn.Module):
    """A layer whose forward asks for its own mode."""

    def forward(self, x: Tensor) -> Tensor:
        """Halve in training mode."""
        return x * 0.5 if self.training else x


class Constant(torch.autograd.Function):
    """A Function that makes no operation on its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.shape = tuple(x.shape)
        return torch.ones((), dtype=torch.float64)

    @staticmethod
    def backward(ctx: Any, *bars: Any) -> Any:
        return bars[0].expand(ctx.shape)


class Dirty(torch.autograd.Function):
    """A Function that returns its input, with another derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        return x

    @staticmethod
    def backward(ctx: Any, *bars: Any) -> Any:
        return 2 * bars[0]


class Doubled(torch.autograd.Function):
    """Twice a tensor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, *bars: Any) -> Any:
        return -bars[0]


@dataclass
class Held:
    """A plain class that carries tensors."""

    first: Tensor
    second: Tensor


Pair = collections.namedtuple("Pair", "low high")
#: A switch of the whole program.
FAST = True


class Maps(NamedTuple):
    """What a forward returns, by name."""

    coarse: Tensor
    fine: Tensor


@dataclass(frozen=True)
class Config:
    """Options of a network."""

    act: str = "relu"
    width: int = C
    scale: float = 0.5
    stages: tuple[int, ...] = (1, 2)


class Kind(enum.Enum):
    """Kinds of activations."""

    RELU = "relu"
    NONE = "none"


class Wrapping(nn.Module):
    """A module that finds what it has not in the one it wraps."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(C, C, 1)
        self.inner.gain = 0.5  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, x: Tensor) -> Tensor:
        """Run the inner module's convolution, with its weights and its gain."""
        return self.gain * F.conv2d(x, self.weight, self.bias)


def scaled(factor: float) -> Callable[[Tensor], Tensor]:
    """Return a function that closes over a number."""
    return lambda x: factor * x


@functools.singledispatch
def dispatched(x: Any) -> Any:
    """Leave what is no tensor alone."""
    return x


@dispatched.register
def _(x: Tensor) -> Any:
    return 2 * x


class Caller:
    """A callable object that is no module."""

    def __call__(self, x: Tensor, factor: float = 2.0) -> Tensor:
        return x * factor


def helper(x: Tensor, scale: float = 0.5, *, shift: Tensor | None = None, **more: Any) -> Tensor:
    """Scale, and shift where asked."""
    x = x * scale
    return x if shift is None else x + more.get("times", 1) * shift


def pairs(x: Tensor) -> Iterator[Tensor]:
    """Yield halves of the channels."""
    yield x[:, : C // 2]
    yield x[:, C // 2 :]


def folded(x: Tensor, depth: int) -> Tensor:
    """Add halves of itself, by recursion."""
    return x if depth == 0 else folded(x + 0.5 * x, depth - 1)


@torch.no_grad()  # type: ignore[untyped-decorator]
def without_derivatives(x: Tensor) -> Tensor:
    """Scale, as a constant."""
    return 0.1 * x


def same_pad(x: Tensor, kernel: int = 3, stride: int = 2) -> Tensor:
    """Pad as TensorFlow does."""
    h, w = x.size()[-2:]
    ph, pw = (max((math.ceil(n / stride) - 1) * stride + kernel - n, 0) for n in (h, w))
    if ph > 0 or pw > 0:
        x = F.pad(x, [pw // 2, pw - pw // 2, ph // 2, ph - ph // 2])
    return x


def _reuse(s: Any, x: Tensor) -> Tensor:
    return s.act(s.conv(s.act(s.conv(x))))


def _shapes(s: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.reshape(b, c * h, w).reshape(b, c, h, w)


def _shuffle(s: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.size()
    return x.view(b, 2, c // 2, h, w).transpose(1, 2).contiguous().view(b, -1, h, w)


def _iadd(s: Any, x: Tensor) -> Tensor:
    y = s.conv(x)
    y += x
    y.mul_(0.5)
    return F.relu(y, inplace=True)


def _isub(s: Any, x: Tensor) -> Tensor:
    y = s.conv(x)
    y -= 0.1
    y /= 2
    y = y.add_(x, alpha=0.5)
    return torch.relu_(y)


def _view_write(s: Any, x: Tensor) -> Tensor:
    y = s.conv(x)
    y.view(y.size(0), -1).mul_(2)
    return y


def _clone_write(s: Any, x: Tensor) -> Tensor:
    y = x.clone()
    y.clamp_(min=0)
    return x + y


def _entry(s: Any, x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 0] = 0
    return y


def _loop(s: Any, x: Tensor) -> Tensor:
    for i in range(len(s.layers)):
        x = F.relu(s.layers[i](x)) + x
    return x


def _named(s: Any, x: Tensor) -> Tensor:
    for name, layer in s.branches.items():
        x = x + layer(x) if name == "a" else F.relu(layer(x))
    return x


def _stacked(s: Any, x: Tensor) -> Tensor:
    outs = []
    for layer in s.layers:
        outs.append(F.relu(layer(x)))
    return torch.stack(outs, dim=0).sum(0)


def _reduced(s: Any, x: Tensor) -> Tensor:
    return functools.reduce(operator.add, [layer(x) for layer in s.layers], x)


def _while(s: Any, x: Tensor) -> Tensor:
    i = 0
    while i < 2:
        x, i = s.layers[i](x), i + 1
    return F.relu(x)


def _early(s: Any, x: Tensor) -> Tensor:
    if not s.flag:
        return x
    return F.relu(s.conv(x))


def _raise(s: Any, x: Tensor) -> Tensor:
    if x.shape[1] != s.width:
        raise ValueError(f"expected {s.width} channels, not {x.shape[1]}")
    assert x.ndim == 4
    if x.numel() == 0:
        return x
    return F.relu(s.conv(x))


def _odd(s: Any, x: Tensor) -> Tensor:
    if x.size(-1) % 2:
        x = F.pad(x, (0, 1))
        return x[..., :-1]
    return x * 2


def _tried(s: Any, x: Tensor) -> Tensor:
    try:
        return s.missing(x)  # type: ignore[no-any-return]
    except AttributeError:
        return s.conv(x)


def _try_shape(s: Any, x: Tensor) -> Tensor:
    try:
        return x.view(x.size(0), C, -1).view(x.shape)
    except RuntimeError:
        return x.reshape(x.shape) * 2


def _suppressed(s: Any, x: Tensor) -> Tensor:
    with contextlib.suppress(KeyError):
        x = F.relu({"x": x}["x"])
        x = x * {}["y"]
    return x


def _matched(s: Any, x: Tensor) -> Tensor:
    match x.ndim:
        case 4:
            return x * 2
        case _:
            return x


def _warned(s: Any, x: Tensor) -> Tensor:
    warnings.warn(f"a value {type(x).__name__}", stacklevel=1)
    return s.conv(x)


def _module_made(s: Any, x: Tensor) -> Tensor:
    return nn.ReLU()(nn.Sequential(s.conv, s.norm)(x))


def _counted(s: Any, x: Tensor) -> Tensor:
    s.counter.add_(1)
    s.calls += 1
    return s.conv(x)


def _running(s: Any, x: Tensor) -> Tensor:
    if s.training:
        with torch.no_grad():
            s.mean.mul_(0.9).add_(x.mean((0, 2, 3)), alpha=0.1)
    return x - s.mean[None, :, None, None]


def _replaced_buffer(s: Any, x: Tensor) -> Tensor:
    s.mean = s.mean * 0.5
    return x + s.mean[:, None, None]


def _toggled(s: Any, x: Tensor) -> Tensor:
    s.flag = not s.flag
    return x if s.flag else 2 * x


def _cached(s: Any, x: Tensor) -> Tensor:
    s.features = F.relu(s.conv(x))
    return s.features + x


def _listed(s: Any, x: Tensor) -> Tensor:
    s.kept.clear()
    s.kept.append(F.relu(x))
    return s.kept[-1] + x


def _eval_inside(s: Any, x: Tensor) -> Tensor:
    s.norm.eval()
    return s.norm(x)


def _eval_and_back(s: Any, x: Tensor) -> Tensor:
    was = s.norm.training
    s.norm.eval()
    y = s.norm(x)
    s.norm.train(was)
    return y


def _block_eval(s: Any, x: Tensor) -> Tensor:
    s.block.eval()
    return s.block(x)


def _set_leaf(name: str, attribute: str, value: Any) -> Step:
    def step(s: Any, x: Tensor) -> Tensor:
        setattr(getattr(s, name), attribute, value)
        return getattr(s, name)(x)

    return step


def _set_after(s: Any, x: Tensor) -> Tensor:
    y = s.norm(x)
    s.norm.momentum = 0.9
    return y


def _frozen_inside(s: Any, x: Tensor) -> Tensor:
    s.conv.weight.requires_grad = False
    return s.conv(x)


def _frozen_call(s: Any, x: Tensor) -> Tensor:
    s.conv.requires_grad_(False)
    return s.conv(x)


def _clipped_weight(s: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        s.conv.weight.clamp_(-0.1, 0.1)
    return s.conv(x)


def _clipped_data(s: Any, x: Tensor) -> Tensor:
    s.conv.weight.data.clamp_(-0.1, 0.1)
    return s.conv(x)


def _assigned_data(s: Any, x: Tensor) -> Tensor:
    s.conv.weight.data = s.conv.weight.data * 0.5
    return s.conv(x)


def _backward_inside(s: Any, x: Tensor) -> Tensor:
    y = s.conv(x)
    y.sum().backward()
    return y


def _inner_derivative(s: Any, x: Tensor) -> Tensor:
    y = s.conv(x)
    (bar,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    return y + bar


def _hooked(s: Any, x: Tensor) -> Tensor:
    y = s.conv(x)
    if y.requires_grad:
        y.register_hook(lambda bar: 2 * bar)
    return y


def _hooked_plain(s: Any, x: Tensor) -> Tensor:
    y = s.conv(x)
    y.register_hook(lambda bar: 2 * bar)
    return y


def _retained(s: Any, x: Tensor) -> Tensor:
    y = s.conv(x)
    y.retain_grad()
    return y


def _seeded(s: Any, x: Tensor) -> Tensor:
    torch.manual_seed(5)
    return x + 0.1 * torch.rand_like(x)


def _leaked(s: Any, x: Tensor) -> Tensor:
    before = torch.is_grad_enabled()
    torch.set_grad_enabled(False)
    y = s.conv(x)
    torch.set_grad_enabled(before)
    return x + y


def _no_grad_write(s: Any, x: Tensor) -> Tensor:
    y = s.conv(x)
    with torch.no_grad():
        y.mul_(2)
    return y


def _recorded(s: Any, x: Tensor) -> Tensor:
    with torch.profiler.record_function("conv"):
        return s.conv(x)


def _where(s: Any, x: Tensor) -> Tensor:
    return torch.where(x > 0, x, torch.zeros_like(x))


def _own_conv(s: Any, x: Tensor) -> Tensor:
    c = s.conv
    return F.conv2d(x, c.weight, c.bias, c.stride, c.padding, c.dilation, c.groups)


def _walrus(s: Any, x: Tensor) -> Tensor:
    return y + 1 if (y := s.conv(x)) is not None else x


def _dictionary(s: Any, x: Tensor) -> Tensor:
    features = {"x": x, **{f"c{i}": layer(x) for i, layer in enumerate(s.layers)}}
    return features.pop("x") + sum(features.values())


def _heads(s: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    y = x.flatten(2).transpose(1, 2)
    y = s.fc(y).permute(0, 2, 1)
    return y.reshape(b, c, h, w)


def _interpolated(s: Any, x: Tensor) -> Tensor:
    return F.interpolate(F.avg_pool2d(x, 2), size=x.shape[2:], mode="nearest")


def _nonlocal(s: Any, x: Tensor) -> Tensor:
    total = x

    def add(y: Tensor) -> None:
        nonlocal total
        total = total + F.relu(y)

    for layer in s.layers:
        add(layer(x))
    return total


def _as_float(s: Any, x: Tensor) -> Tensor:
    return x * float(x.size(1)) ** -0.5 + 1 / math.sqrt(x.shape[1])


def _random_python(s: Any, x: Tensor) -> Tensor:
    return 2 * x if s.training and random.random() < 0.5 else x


def _copied_module(s: Any, x: Tensor) -> Tensor:
    return copy.deepcopy(s.conv)(x)


def _matched_config(s: Any, x: Tensor) -> Tensor:
    match s.config:
        case Config(act="relu", width=int(width)) if width == C:
            return F.relu(s.conv(x))
        case Config(act=str()):
            return x
        case _:
            raise ValueError(s.config)


def _matched_shape(s: Any, x: Tensor) -> Tensor:
    match x.shape:
        case (_, c, h, w):
            return x.reshape(-1, c, h * w).reshape(-1, c, h, w)
        case _:
            return 2 * x


def _matched_type(s: Any, x: Tensor) -> Tensor:
    match x:
        case Tensor():
            return 2 * x
        case _:
            return 3 * x


def _matched_dict(s: Any, x: Tensor) -> Tensor:
    features: dict[str, Any] = {"x": x, "mode": "relu" if s.flag else "none"}
    match features:
        case {"x": y, "mode": "relu"}:
            return F.relu(s.conv(y))
        case {"x": y}:
            return 2 * x
    return 3 * x


def _staged(s: Any, x: Tensor) -> Tensor:
    for i, repeats in enumerate(s.config.stages):
        for _ in range(repeats):
            x = s.config.scale * s.layers[i](x)
    return x


def _walrus_size(s: Any, x: Tensor) -> Tensor:
    if (n := x.size(1)) == C and (h := x.shape[2]) > 0:
        return x.view(-1, n, h, x.size(-1)) / n
    return x


def _walrus_loop(s: Any, x: Tensor) -> Tensor:
    i = -1
    while (i := i + 1) < len(s.layers):
        x = s.layers[i](x)
    return x


def _asserted(s: Any, x: Tensor) -> Tensor:
    assert torch.is_tensor(x)
    assert isinstance(x, Tensor), type(x)
    assert x.dim() == 4, f"got {x.dim()} dimensions"
    return s.conv(x)


def _annotated(s: Any, x: Tensor) -> Tensor:
    outs = torch.jit.annotate(list[Tensor], [])
    for layer in s.layers:
        outs.append(layer(x))
    return torch.stack(torch.jit.annotate(list[Tensor], outs), 0).sum(0)


def _registered_late(s: Any, x: Tensor) -> Tensor:
    if not hasattr(s, "late"):
        s.register_module("late", nn.Conv2d(C, C, 1).to(x))
    return s.late(x)


def _registered_plain(s: Any, x: Tensor) -> Tensor:
    s.register_module("late_act", nn.ReLU())
    return s.late_act(s.conv(x))


def _popped(s: Any, x: Tensor) -> Tensor:
    rest = dict(s.branches.items())
    x = rest.pop("a")(x)
    return functools.reduce(lambda y, layer: layer(y), rest.values(), x)


def _generator_send(s: Any, x: Tensor) -> Tensor:
    def runs() -> Iterator[Tensor]:
        y = x
        for layer in s.layers:
            y = layer(y)
            yield y

    return functools.reduce(operator.add, runs())


def _finally(s: Any, x: Tensor) -> Tensor:
    try:
        return s.conv(x)
    finally:
        s.kept.clear()


def _sorted_layers(s: Any, x: Tensor) -> Tensor:
    for _, layer in sorted(s.branches.items(), key=operator.itemgetter(0), reverse=True):
        x = layer(x)
    return x


STEPS: dict[str, Step] = {
    # what is configured elsewhere
    "config": lambda s, x: F.relu(x) if s.config.act == "relu" else x,
    "config as a dict": lambda s, x: x * dataclasses.asdict(s.config)["scale"],
    "stages": _staged,
    "enum": lambda s, x: F.relu(x) if Kind(s.config.act) is Kind.RELU else x,
    "enum matched": lambda s, x: {Kind.RELU: F.relu, Kind.NONE: abs}[Kind.RELU](s.conv(x)),
    "match config": _matched_config,
    "match shape": _matched_shape,
    "match type": _matched_type,
    "match dict": _matched_dict,
    "global flag": lambda s, x: 2 * x if FAST else x,
    "partial held": lambda s, x: s.partial(s.conv(x)),
    "partial of a method": lambda s, x: functools.partial(s.block.forward, twice=True)(x),
    "partial by keyword": lambda s, x: functools.partial(F.avg_pool2d, kernel_size=1)(x),
    "closure": lambda s, x: scaled(0.5)(x),
    "closure held": lambda s, x: s.closure(x),
    "composed": lambda s, x: functools.reduce(lambda y, f: f(y), [s.conv, F.relu, s.norm], x),
    "dict of functions": lambda s, x: {"relu": F.relu, "none": torch.clone}[s.config.act](
        s.conv(x)
    ),
    "dict of modules": lambda s, x: {"conv": s.conv, "pointwise": s.pointwise}["conv"](x),
    "tuple of modules": lambda s, x: (s.conv, s.pointwise)[s.flag](x),
    "popped module": _popped,
    "sorted layers": _sorted_layers,
    "named layer": lambda s, x: s.get_submodule("seq.0")(x),
    "attribute chain": lambda s, x: operator.attrgetter("block.conv")(s)(x),
    "method caller": lambda s, x: operator.methodcaller("relu")(s.conv(x)),
    "single dispatch": lambda s, x: dispatched(s.conv(x)),
    "wrapping": lambda s, x: s.wrapping(x),
    "wrapped attribute": lambda s, x: x * s.wrapping.gain,
    "property of modules": lambda s, x: s.built(x),
    "cached property": lambda s, x: s.once(x),
    "NamedTuple": lambda s, x: Maps(fine=F.relu(x), coarse=x)._replace(fine=s.conv(x)).fine,
    "NamedTuple unpacked": lambda s, x: torch.add(*Maps(x, s.conv(x))),
    "strict zip": lambda s, x: sum(m(x) for m, _ in zip(s.layers, x.shape[2:], strict=True)),
    "walrus of a size": _walrus_size,
    "walrus in a loop": _walrus_loop,
    "assert is_tensor": _asserted,
    "jit.annotate": _annotated,
    "registered late": _registered_late,
    "registered plain": _registered_plain,
    "lazy": lambda s, x: s.lazy(x),
    "functional_call": lambda s, x: torch.func.functional_call(
        s.conv, {"weight": 2 * s.conv.weight}, (x,)
    ),
    "functional_call of its own": lambda s, x: torch.func.functional_call(
        s.conv, dict(s.conv.named_parameters()), (x,)
    ),
    "generator": _generator_send,
    "finally": _finally,
    # sizes, read in several ways
    "view by size": lambda s, x: x.view(x.size(0), -1).view(x.shape),
    "unpacked shape": _shapes,
    "flatten and unflatten": lambda s, x: x.flatten(1).unflatten(1, (C, *x.shape[2:])),
    "len": lambda s, x: x + torch.reshape(x, (len(x), -1)).mean(1)[:, None, None, None],
    "numel": lambda s, x: x.reshape(x.shape[0], x.numel() // x.shape[0]).reshape(x.size()),
    "starred shape": lambda s, x: x.view(*x.shape[:2], -1).view(*x.size()),
    "shape list": lambda s, x: x.reshape(list(x.shape)),
    "adaptive to a shape": lambda s, x: F.adaptive_avg_pool2d(x, x.shape[-2:]),
    "interpolated": _interpolated,
    "size arithmetic": _as_float,
    "raise": _raise,
    "odd sizes": _odd,
    "same padding": lambda s, x: F.conv2d(same_pad(x, 3, 1), s.conv.weight),
    "max of sizes": lambda s, x: x / max(x.shape[2], x.size(3)),
    # moved entries
    "shuffle": _shuffle,
    "movedim": lambda s, x: torch.movedim(x, 1, -1).movedim(-1, 1),
    "mT": lambda s, x: x.mT.mT,
    "swapaxes": lambda s, x: x.swapaxes(2, 3).transpose(-1, -2).contiguous(),
    "chunk": lambda s, x: torch.cat([part * 2 for part in x.chunk(2, dim=1)], dim=1),
    "split": lambda s, x: torch.cat(torch.split(x, [1, C - 1], 1)[::-1], 1),
    "unbind": lambda s, x: torch.stack([*x.unbind(1)], 1),
    "slices": lambda s, x: torch.cat([x[:, :1], x[:, 1:]], dim=1),
    "starred": lambda s, x: torch.cat([*pairs(x)], 1),
    "fc in the middle": _heads,
    "fc last": lambda s, x: s.fc(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
    "matmul": lambda s, x: (x.permute(0, 2, 3, 1) @ s.fc.weight.t()).permute(0, 3, 1, 2),
    "einsum": lambda s, x: torch.einsum("bchw,dc->bdhw", x, s.fc.weight),
    "None index": lambda s, x: x[:, None].squeeze(1),
    "expand": lambda s, x: x + x.mean(dim=(2, 3), keepdim=True).expand_as(x),
    # in place
    "iadd": _iadd,
    "isub": _isub,
    "view written": _view_write,
    "clone written": _clone_write,
    "entry written": _entry,
    "relu_": lambda s, x: s.conv(x).relu_(),
    "act in place": lambda s, x: s.act_in_place(s.conv(x)),
    "act in place on a skip": lambda s, x: s.act_in_place(x) + x,
    "clamp_": lambda s, x: s.conv(x).clamp_(0, 6),
    "out": lambda s, x: torch.add(x, x, out=torch.empty_like(x)),
    # structure
    "reuse": _reuse,
    "loop": _loop,
    "named": _named,
    "stacked": _stacked,
    "reduced": _reduced,
    "while": _while,
    "sum of a list": lambda s, x: sum(layer(x) for layer in s.layers),
    "zip": lambda s, x: sum(k * m(x) for k, m in zip((1, 2), s.layers, strict=True)),
    "map": lambda s, x: torch.cat([*map(F.relu, pairs(x))], 1),
    "dictionary": _dictionary,
    "nonlocal": _nonlocal,
    "recursion": lambda s, x: folded(x, 2),
    "block": lambda s, x: s.block(x),
    "block with a skip": lambda s, x: s.block(x, skip=x),
    "block twice": lambda s, x: s.block(x, twice=True),
    "Sequential sliced": lambda s, x: s.seq[1:](s.seq[0](x)),
    "children": lambda s, x: [x := layer(x) for layer in s.seq.children()][-1],
    "modules made": _module_made,
    "module copied": _copied_module,
    "dataclass": lambda s, x: (held := Held(x, s.conv(x))).first + held.second,
    "namedtuple": lambda s, x: Pair(x, F.relu(x)).low + Pair(x, x).high,
    "replaced field": lambda s, x: dataclasses.replace(Held(x, x), first=F.relu(x)).first,
    "callable object": lambda s, x: s.caller(x, factor=0.5),
    "static method": lambda s, x: s.static(x),
    "property": lambda s, x: s.factor * x,
    "helper": lambda s, x: helper(x),
    "helper with keywords": lambda s, x: helper(x, scale=2.0, shift=x, times=3),
    "super": lambda s, x: s.plain(x),
    "walrus": _walrus,
    "match": _matched,
    "kwargs": lambda s, x: torch.add(input=s.conv(input=x), other=x, alpha=2),
    "relu kwargs": lambda s, x: F.relu(input=s.conv(x), inplace=False),
    "sum kwargs": lambda s, x: x - 0.1 * torch.sum(input=x, dim=1, keepdim=True),
    # asked of Python
    "early return": _early,
    "isinstance": lambda s, x: x if isinstance(x, Tensor) else 2 * x,
    "type": lambda s, x: 3 * x if type(x) is Tensor else 2 * x,
    "list or tensor": lambda s, x: torch.cat(x, 1) if isinstance(x, (list, tuple)) else 2 * x,
    "isinstance of a module": lambda s, x: s.conv(x) if isinstance(s.conv, nn.Conv2d) else x,
    "getattr": lambda s, x: getattr(F, "relu")(getattr(s, "conv")(x)),  # noqa: B009
    "hasattr": lambda s, x: 2 * x if hasattr(s, "missing") else s.conv(x),
    "hasattr of a tensor": lambda s, x: x * 3 if hasattr(x, "shape") else x,
    "missing": _tried,
    "try": _try_shape,
    "suppress": _suppressed,
    "warning": _warned,
    "is_scripting": lambda s, x: x if torch.jit.is_scripting() else 2 * x,  # type: ignore[attr-defined]
    "is_tracing": lambda s, x: x if torch.jit.is_tracing() else 2 * x,  # type: ignore[attr-defined]
    "is_compiling": lambda s, x: x if torch.compiler.is_compiling() else 2 * x,
    "is_grad_enabled": lambda s, x: 3 * x if torch.is_grad_enabled() else x,
    "is_inference": lambda s, x: 3 * x if torch.is_inference_mode_enabled() else x,
    "autocast asked": lambda s, x: 3 * x if torch.is_autocast_enabled() else x,
    "requires_grad": lambda s, x: 3 * x if x.requires_grad else x,
    "is_leaf": lambda s, x: 3 * x if x.is_leaf else x,
    "is_cuda": lambda s, x: 3 * x if x.is_cuda else x,
    "device": lambda s, x: 3 * x if x.device.type == "cpu" else x,
    "dtype": lambda s, x: 3 * x if x.dtype == torch.float64 else x,
    "floating": lambda s, x: 3 * x if x.is_floating_point() else x,
    "contiguous asked": lambda s, x: 3 * x if x.is_contiguous() else x,
    "weight asked": lambda s, x: 3 * x if s.conv.weight.requires_grad else x,
    "bias asked": lambda s, x: x if s.conv.bias is None else x + s.conv.bias.view(1, -1, 1, 1),
    # modes
    "training": lambda s, x: 2 * x if s.training else x,
    "training of a part": lambda s, x: 2 * x if s.norm.training else x,
    "F.dropout": lambda s, x: F.dropout(x, 0.3, training=s.training),
    "F.dropout by position": lambda s, x: F.dropout2d(s.conv(x), 0.3, s.training),
    "Dropout": lambda s, x: s.drop(F.relu(x)),
    "part": lambda s, x: s.noisy(x),
    "norm": lambda s, x: F.relu(s.norm(x)),
    "F.batch_norm": lambda s, x: F.batch_norm(
        x, s.norm.running_mean, s.norm.running_var, training=s.training
    ),
    "running mean": _running,
    "counter": _counted,
    "random in training": _random_python,
    # F, nn, methods
    "F.relu": lambda s, x: F.relu(s.conv(x)),
    "torch.relu": lambda s, x: torch.relu(s.conv(x)),
    "method relu": lambda s, x: s.conv(x).relu(),
    "clamp": lambda s, x: torch.clamp(s.conv(x), min=0),
    "clamp_min": lambda s, x: s.conv(x).clamp_min(0.0),
    "maximum": lambda s, x: torch.maximum(x, torch.zeros_like(x)),
    "max of two": lambda s, x: torch.max(x, x.new_zeros(1)),
    "where": _where,
    "mask": lambda s, x: x * (x > 0),
    "leaky": lambda s, x: F.leaky_relu(s.conv(x), 0.1),
    "relu6": lambda s, x: F.relu6(x),
    "gate": lambda s, x: x * torch.sigmoid(s.conv(x)),
    "softmax gate": lambda s, x: x * F.softmax(x.mean((2, 3), keepdim=True), dim=1),
    "F.conv2d": _own_conv,
    "forward": lambda s, x: s.act.forward(s.conv.forward(x)),
    "unbound": lambda s, x: nn.Conv2d.forward(s.conv, x),
    "_conv_forward": lambda s, x: s.conv._conv_forward(x, s.conv.weight, s.conv.bias),
    "normalised weight": lambda s, x: F.conv2d(
        x, s.conv.weight / s.conv.weight.norm(), s.conv.bias, padding=1
    ),
    "F.max_pool2d": lambda s, x: F.max_pool2d(x, 3, 1, 1),
    "max values": lambda s, x: x + x.max(dim=1, keepdim=True)[0],
    "F.avg_pool2d": lambda s, x: F.avg_pool2d(input=x, kernel_size=3, stride=1, padding=1),
    "F.pad": lambda s, x: F.pad(x, (1, 1, 1, 1), mode="reflect")[:, :, 1:-1, 1:-1],
    "abs": lambda s, x: x.abs(),
    # constants
    "buffer": lambda s, x: x + s.mask,
    "parameter": lambda s, x: x * s.gamma.view(1, -1, 1, 1),
    "tensor": lambda s, x: x * torch.tensor([1.0, 2, 3, 4]).view(1, -1, 1, 1).to(x),
    "arange": lambda s, x: x + torch.arange(x.size(3), device=x.device).to(x.dtype),
    "arange of a constant": lambda s, x: x + torch.arange(C).view(-1, 1, 1).type_as(x),
    "new_zeros": lambda s, x: x + x.new_zeros(x.size(0), 1, 1, 1),
    "ones_like": lambda s, x: x + 2 * torch.ones_like(x),
    "finfo": lambda s, x: x + torch.finfo(x.dtype).eps,
    "finfo of the weight": lambda s, x: x + torch.finfo(s.conv.weight.dtype).eps,
    "to a dtype": lambda s, x: s.conv(x.to(s.conv.weight.dtype)),
    "to a device": lambda s, x: s.conv(x.to(s.conv.weight.device)),
    "type of another": lambda s, x: s.conv(x.type_as(F.relu(x))),
    "to another": lambda s, x: s.conv(F.relu(x).to(x, non_blocking=True)),
    "cpu": lambda s, x: s.conv(x.cpu()),
    "type of a dtype": lambda s, x: s.conv(x.type(torch.float64)),
    "type by name": lambda s, x: s.conv(x.type("torch.DoubleTensor")),
    "type of old": lambda s, x: s.conv(x.type(torch.DoubleTensor)),
    "expanded as another": lambda s, x: x + x.mean((2, 3), keepdim=True).expand_as(F.relu(x)),
    "shaped as another": lambda s, x: x.flatten(1).view_as(s.conv(x)) + x.reshape_as(x),
    "detach by function": lambda s, x: x + s.conv(torch.detach(x)),
    "layer made": lambda s, x: nn.LeakyReLU(0.1)(nn.MaxPool2d(3, 1, 1)(s.conv(x))),
    "chain made": lambda s, x: nn.Sequential(nn.ReLU(), nn.AvgPool2d(1))(s.conv(x)),
    "float and back": lambda s, x: x.float().to(x.dtype),
    "double": lambda s, x: x.double(),
    "channels_last": lambda s, x: x.contiguous(memory_format=torch.channels_last),
    # derivatives
    "detach": lambda s, x: x + s.conv(x.detach()),
    "data": lambda s, x: x + x.data,
    "straight through": lambda s, x: x + (x.round() - x).detach(),
    "decorated": lambda s, x: x + without_derivatives(x),
    "no_grad leaks": _leaked,
    "no_grad writes": _no_grad_write,
    "record_function": _recorded,
    "Function": lambda s, x: Doubled.apply(x),
    "constant Function": lambda s, x: x + Constant.apply(x),
    "dirty Function": lambda s, x: Dirty.apply(x),
    "dirty Function of a layer": lambda s, x: Dirty.apply(s.conv(x)) + 1,
    "register_hook": _hooked,
    "register_hook always": _hooked_plain,
    "retain_grad": _retained,
    "requires_grad_": lambda s, x: s.conv(x.requires_grad_()),
    "backward": _backward_inside,
    "derivative": _inner_derivative,
    "vmap": lambda s, x: torch.vmap(lambda row: row * 2)(x),
    "func": lambda s, x: torch.func.vjp(lambda y: y * 2, x)[0],
    # state
    "replaced buffer": _replaced_buffer,
    "toggled": _toggled,
    "cached": _cached,
    "listed": _listed,
    "eval inside": _eval_inside,
    "eval and back": _eval_and_back,
    "block eval": _block_eval,
    "conv eval": lambda s, x: s.conv.eval()(x),
    "padding set": _set_leaf("pointwise", "padding", (0, 0)),
    "eps set": _set_leaf("norm", "eps", 0.5),
    "momentum set": _set_leaf("norm", "momentum", 0.9),
    "momentum set after": _set_after,
    "p set": _set_leaf("drop", "p", 0.9),
    "slope set": _set_leaf("leaky", "negative_slope", 0.4),
    "inplace set": _set_leaf("act", "inplace", False),
    "frozen": _frozen_inside,
    "frozen module": _frozen_call,
    "clipped weight": _clipped_weight,
    "clipped data": _clipped_data,
    "assigned data": _assigned_data,
    "seeded": _seeded,
}


def _context(enter: Callable[[Any], Any]) -> Callable[[Step], Step]:
    def wrap(step: Step) -> Step:
        def inside(s: Any, x: Tensor) -> Tensor:
            with enter(s):
                return step(s, x)

        return inside

    return wrap


def _plus(context: Callable[[Step], Step]) -> Callable[[Step], Step]:
    return lambda step: lambda s, x: x + context(step)(s, x)


def _twice(step: Step) -> Step:
    def run(s: Any, x: Tensor) -> Tensor:
        for _ in range(2):
            x = step(s, x)
        return x

    return run


def _decorated(step: Step) -> Step:
    @functools.wraps(step)
    def inner(*args: Any, **kwargs: Any) -> Tensor:
        return step(*args, **kwargs)

    return inner


def _in_training(step: Step) -> Step:
    return lambda s, x: step(s, x) if s.training else x


def _checkpointed(step: Step) -> Step:
    return lambda s, x: checkpoint(functools.partial(step, s), x, use_reentrant=False)


#: What surrounds a step.
WRAPPERS: dict[str, Callable[[Step], Step]] = {
    "plain": lambda step: step,
    "no_grad": _plus(_context(lambda s: torch.no_grad())),
    "set_grad_enabled": _plus(_context(lambda s: torch.set_grad_enabled(s.training))),
    "enable_grad": _context(lambda s: torch.enable_grad()),
    "inference_mode": _plus(_context(lambda s: torch.inference_mode())),
    "autocast": _context(lambda s: torch.autocast("cpu", dtype=torch.bfloat16)),
    "no autocast": _context(lambda s: torch.autocast("cpu", enabled=False)),
    "nullcontext": _context(lambda s: contextlib.nullcontext()),
    "stack of contexts": _context(lambda s: contextlib.ExitStack()),
    "lambda": lambda step: lambda s, x: (lambda y: step(s, y))(x),
    "partial": lambda step: lambda s, x: functools.partial(step, s)(x),
    "decorated": _decorated,
    "list": lambda step: lambda s, x: [step(s, x), x][0],
    "dict": lambda step: lambda s, x: {"out": step(s, x)}["out"],
    "tuple": lambda step: lambda s, x: (lambda *args, **_: args[0])(step(s, x), x, more=x),
    "residual": lambda step: lambda s, x: x + step(s, x),
    "residual before": lambda step: lambda s, x: step(s, x) + x,
    "relu after": lambda step: lambda s, x: F.relu(step(s, x)),
    "conv and relu before": lambda step: lambda s, x: step(s, F.relu(s.conv(x))),
    "twice": _twice,
    "in training": _in_training,
    "checkpoint": _checkpointed,
}

#: What the forward returns, of its last value and its features.
ENDS: dict[str, Callable[[Any, Tensor, list[Tensor]], Any]] = {
    "logits": lambda s, x, f: s.fc(x.mean((2, 3))),
    "flattened": lambda s, x, f: s.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)),
    "value": lambda s, x, f: x,
    "tuple": lambda s, x, f: (x, s.fc(x.mean((-2, -1)))),
    "list": lambda s, x, f: [x, *f],
    "dict": lambda s, x, f: {"out": s.fc(x.amax((2, 3))), "aux": f[0].mean((2, 3))},
    "nested": lambda s, x, f: {"maps": [x, f[0]], "flag": (x.sum(1),)},
    "named": lambda s, x, f: collections.OrderedDict(p0=x, p1=F.max_pool2d(x, 2)),
    "aux in training": lambda s, x, f: (x, f[0]) if s.training else x,
    "softmax": lambda s, x, f: s.fc(x.mean((2, 3))).softmax(-1),
    "log_softmax": lambda s, x, f: F.log_softmax(s.fc(F.relu(x).flatten(2).mean(2)), dim=1),
    "NamedTuple": lambda s, x, f: Maps(F.max_pool2d(x, 2), f[0]),
    "namedtuple": lambda s, x, f: Pair(low=s.fc(x.mean((2, 3))), high=f[0]),
    "dict of lists": lambda s, x, f: {0: [x], "f": f, "n": ()},
    "with None": lambda s, x, f: (x, None),
}


class Base(nn.Module):
    """What a forward may reach."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, C, 3, padding=1)
        self.conv, self.pointwise = nn.Conv2d(C, C, 3, padding=1), nn.Conv2d(C, C, 1)
        self.norm, self.act, self.act_in_place = nn.BatchNorm2d(C), nn.ReLU(), nn.ReLU(inplace=True)
        self.leaky, self.drop, self.fc = nn.LeakyReLU(0.1), nn.Dropout(0.2), nn.Linear(C, C)
        self.layers = nn.ModuleList(nn.Conv2d(C, C, 3, padding=1) for _ in range(2))
        self.branches = nn.ModuleDict({"a": nn.Conv2d(C, C, 1), "b": nn.Conv2d(C, C, 1)})
        self.seq = nn.Sequential(nn.Conv2d(C, C, 1), nn.BatchNorm2d(C), nn.ReLU())
        self.block, self.noisy = Block(), Noisy()
        self.gamma = nn.Parameter(torch.linspace(0.5, 1.5, C))
        self.register_buffer("mask", torch.linspace(-1, 1, C).view(1, C, 1, 1))
        self.register_buffer("mean", torch.linspace(0, 0.2, C))
        self.register_buffer("counter", torch.zeros((), dtype=torch.long))
        self.width, self.flag, self.calls, self.caller = C, True, 0, Caller()
        self.config, self.closure = Config(), scaled(0.25)
        self.partial = functools.partial(F.leaky_relu, negative_slope=0.3)
        self.wrapping, self.lazy = Wrapping(), nn.LazyConv2d(C, 1)
        self.lazy(torch.zeros(1, C, 1, 1))  # after which it is a Conv2d
        self.kept: list[Tensor] = []
        self.features: Tensor | None = None

    @property
    def factor(self) -> float:
        """A number that is computed."""
        return 1 / self.width

    @property
    def built(self) -> nn.Module:
        """A module that is built of others at every call."""
        return nn.Sequential(self.pointwise, nn.ReLU(), self.conv)

    @functools.cached_property
    def once(self) -> Callable[[Tensor], Tensor]:
        """A function that is made at the first call."""
        return scaled(1 / self.width)

    @staticmethod
    def static(x: Tensor) -> Tensor:
        """Scale."""
        return 1.5 * x

    def plain(self, x: Tensor) -> Tensor:
        """Run a layer; overridden below."""
        return self.conv(x)


class Idiomatic(Base):
    """A stem, steps, an end.

    Attributes:
        recipe: Names of the steps, each with the names of its wrappers, outermost last.
        end: Name of the end.
    """

    def __init__(self, recipe: Recipe, end: str, first: bool) -> None:
        super().__init__()
        self.recipe, self.end, self.first = tuple(recipe), end, first
        steps = []
        for name, wrappers in recipe:
            step = STEPS[name]
            for wrapper in wrappers:
                step = WRAPPERS[wrapper](step)
            steps.append(step)
        self._steps = tuple(steps)

    def plain(self, x: Tensor) -> Tensor:
        """Run what the base class runs, and an activation."""
        return F.relu(super().plain(x))

    def forward(self, x: Tensor) -> Any:
        """Run the steps, before or after the first activation."""
        if self.first:
            x = F.relu(self.stem(x))
            features = [x]
            for step in self._steps:
                x = step(self, x)
        else:
            x = self.stem(x)
            for step in self._steps:
                x = step(self, x)
            x = F.relu(x)
            features = [x]
        return ENDS[self.end](self, x, features)

    def __repr__(self) -> str:
        """Return the recipe."""
        return f"Idiomatic({self.recipe}, {self.end!r}, {self.first})"


def made(recipe: Recipe, end: str, first: bool) -> Idiomatic:
    """Return the network of a recipe, of double precision, with weights that depend on nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Idiomatic(recipe, end, first)
        for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.3)
            nn.init.normal_(norm.running_mean, std=0.3)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
    return model.double()
