"""A hypothesis strategy for networks over the whole vocabulary of operations."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn


@dataclass(frozen=True)
class Step:
    """One operation: what, on which values, with which module and constants."""

    op: str
    reads: tuple[int, ...]
    key: str = ""
    more: tuple[Any, ...] = ()


def _shuffle(x: Tensor, groups: int) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, groups, c // groups, h, w).transpose(1, 2).reshape(b, -1, h, w)


def _move(x: Tensor, how: str) -> Tensor:
    if how == "list":
        return x[:, [0, -1, 0]]
    if how == "repeat":
        return x.repeat_interleave(2, 1)
    if how == "windows":
        return F.fold(F.unfold(x, 2, padding=1), x.shape[2:], 2, padding=1)
    if how == "border":
        return F.pad(x, (0, 1, 1, 0), value=0.5)
    if how == "cumulative":
        return x.cumsum(2) / torch.arange(1, x.size(2) + 1).view(-1, 1)
    if how == "sent":
        return torch.zeros_like(x).index_add(1, torch.arange(x.size(1)) // 2, x)
    return x.flip(2) if how == "turn" else x.movedim(2, 3)


def _choose(x: Tensor, how: str, dim: int) -> Tensor:
    if how == "topk":
        return x.topk(2, dim)[0]
    if how == "sort":
        return torch.sort(x, dim, descending=True).values
    if how == "amin":
        return x - x.amin((dim, 3), keepdim=True)
    if how == "maximum":
        return torch.max(x, 2 * x.roll(1, dim))
    if how == "gather":
        return x.gather(dim, x.argsort(dim).narrow(dim, 0, 2))
    if how == "where":
        return torch.where(x.mean(dim, keepdim=True) > 0.1, x, 0.5 * x)
    if how == "fill":
        return x.masked_fill(x.mean(dim, keepdim=True) < 0.1, 0.25)
    if how == "written":
        return torch.where(x > 0, x, 0.5 * x) if dim == 1 else x * (x > 0)
    if how == "lerp":
        return torch.lerp(x, x.flip(dim), torch.sigmoid(x.mean(dim, keepdim=True)))
    if how == "addcmul":
        return torch.addcmul(x.flip(dim), x, torch.sigmoid(x), value=0.5)
    return x + x.max(dim, keepdim=True)[0]


class GeneralNet(nn.Module):
    """Runs its steps; traced by fx as any module is, since steps are plain Python."""

    def __init__(self, steps: tuple[Step, ...], parts: dict[str, nn.Module], tails: int) -> None:
        super().__init__()
        self.steps, self.parts, self.tails = steps, nn.ModuleDict(parts), tails

    def forward(self, x: Tensor) -> Any:
        values = [x]
        for step in self.steps:
            args = [values[i] for i in step.reads]
            values.append(self.run(step, args))
        out = [v.mean((2, 3)) for v in values[-self.tails :]]
        return out[0] if len(out) == 1 else {"out": out[-1], "aux": tuple(out[:-1])}

    def run(self, step: Step, args: list[Tensor]) -> Tensor:
        (a, *rest), more = args, step.more
        if step.op in {"conv", "norm", "module", "leaky", "drop", "up", "transposed", "tied"}:
            return self.parts[step.key](a)
        if step.op == "gate":
            squeezed = a.mean((2, 3), keepdim=True)
            return a * torch.sigmoid(self.parts[step.key](squeezed))
        if step.op == "star":
            return F.relu6(self.parts[step.key](a)) * a.flip(2)
        if step.op == "selfgate":
            return a * F.hardsigmoid(a)
        if step.op == "relu":
            return F.relu(a, inplace=False) if more[0] else a.relu()
        if step.op == "relu6":
            return F.relu6(a)
        if step.op == "add":
            return a + more[0] * rest[0]
        if step.op == "cat":
            return torch.cat([a, *rest], 1)
        if step.op == "split":
            p, q = a.chunk(2, 1)
            return torch.cat([q, more[0] * p], 1)
        if step.op == "shuffle":
            return _shuffle(a, more[0])
        if step.op == "maxpool":
            return F.max_pool2d(a, *more[:3], ceil_mode=more[3])
        if step.op == "avgpool":
            return F.avg_pool2d(a, *more)
        if step.op == "pad":
            return F.pad(a, more[0], mode=more[1])
        if step.op == "slice":
            return a[:, :, more[0] :, :: more[1]]
        if step.op == "affine":
            return (a * more[0] - more[1]) / 2
        if step.op == "choose":
            return _choose(a, *more)
        if step.op == "move":
            return _move(a, *more)
        if step.op == "mix":
            return torch.einsum("nc...,cd->nd...", a, self.parts[step.key].weight)
        if step.op == "unpool":
            pooled, where = F.max_pool2d(a, 2, return_indices=True)
            return F.max_unpool2d(more[0] * pooled, where, 2, output_size=a.size())
        assert step.op == "flip", step.op
        return a.permute(0, 1, 3, 2).contiguous()


#: Activations other than ReLU: piecewise linear ones, and smooth ones.
BENT = (
    nn.LeakyReLU(0.2), nn.PReLU(), nn.Hardtanh(-0.4, 0.5), nn.ReLU6(), nn.Tanh(), nn.Sigmoid(),
    nn.ELU(0.6), nn.Softplus(2.0), nn.Softsign(), nn.Hardsigmoid(),
)  # fmt: skip
MOVES = (
    "conv", "norm", "relu", "relu6", "leaky", "add", "cat", "split", "shuffle", "maxpool",
    "avgpool", "pad", "slice", "affine", "flip", "gate", "selfgate", "up", "transposed", "drop",
    "tied", "choose", "unpool", "move", "mix", "star",
)  # fmt: skip


class _Builder:
    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.parts: dict[str, nn.Module] = {}
        self.steps: list[Step] = []
        self.shapes = [(3, draw(st.integers(5, 8)), draw(st.integers(5, 8)))]

    def pick(self) -> int:
        last = len(self.shapes) - 1
        return self.draw(st.sampled_from([last, last, *range(max(0, last - 4), last + 1)]))

    def push(
        self, op: str, reads: tuple[int, ...], module: nn.Module | None = None, more: Any = ()
    ) -> int:
        key = ""
        if module is not None:
            key = f"part{len(self.parts)}"
            self.parts[key] = module
        step = Step(op, reads, key, tuple(more))
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            probe = (
                GeneralNet((), self.parts, 1)
                .eval()
                .run(step, [torch.zeros(2, *self.shapes[i]) for i in reads])
            )
        assert probe.shape[1] <= 16
        assert min(probe.shape) > 0
        self.steps.append(step)
        self.shapes.append(tuple(probe.shape[1:]))
        return len(self.shapes) - 1

    def norm(self, c: int, small: int) -> nn.Module:
        """Draw a normalisation: over the batch, or over parts of each sample."""
        kinds: list[nn.Module] = [
            nn.BatchNorm2d(c), nn.BatchNorm2d(c), nn.GroupNorm(2 if c % 2 == 0 else 1, c),
            nn.LocalResponseNorm(3, 1.0), nn.GroupNorm(1, c, affine=False),
        ]  # fmt: skip
        if small > 1:
            kinds.append(nn.InstanceNorm2d(c, affine=True, track_running_stats=True))
            kinds.append(nn.InstanceNorm2d(c))
        return self.draw(st.sampled_from(kinds))

    def move(self, op: str) -> None:
        i, draw = self.pick(), self.draw
        c, h, w = self.shapes[i]
        small = min(h, w)
        if op in {"conv", "tied"}:
            kernel, stride = (
                draw(st.sampled_from([1, 3])),
                1 if op == "tied" else draw(st.integers(1, 2)),
            )
            out = c if op == "tied" else draw(st.integers(2, 5))
            groups = c if out == c and draw(st.booleans()) else 1
            mode = draw(st.sampled_from(["zeros", "zeros", "reflect"])) if small > 2 else "zeros"
            module = nn.Conv2d(
                c, out, kernel, stride, kernel // 2, groups=groups, padding_mode=mode
            )
            j = self.push(op, (i,), module)
            if op == "tied":
                j = self.push("relu", (j,), more=(True,))
                self.steps.append(Step("tied", (j,), self.steps[-2].key))
                self.shapes.append(self.shapes[-1])
        elif op == "norm":
            self.push(op, (i,), self.norm(c, small))
        elif op == "leaky":
            self.push(op, (i,), copy.deepcopy(draw(st.sampled_from(BENT))))
        elif op == "relu":
            self.push(op, (i,), more=(draw(st.booleans()),))
        elif op in {"relu6", "selfgate", "flip"}:
            self.push(op, (i,))
        elif op == "add":
            same = [k for k, s in enumerate(self.shapes) if s == self.shapes[i]]
            self.push(
                op, (i, draw(st.sampled_from(same))), more=(draw(st.sampled_from([1, 0.5, -1])),)
            )
        elif op == "cat":
            same = [k for k, s in enumerate(self.shapes) if s[1:] == (h, w) and s[0] + c <= 10]
            if same:
                self.push(op, (i, draw(st.sampled_from(same))))
        elif op in {"split", "shuffle"} and c % 2 == 0:
            self.push(op, (i,), more=(2,))
        elif op in {"maxpool", "avgpool"} and small >= 3:
            kernel = draw(st.integers(2, 3))
            padding, ceil = draw(st.integers(0, 1)), draw(st.booleans())
            self.push(
                op, (i,), more=(kernel, draw(st.integers(1, 2)), padding, ceil, draw(st.booleans()))
            )
        elif op == "pad" and 2 < small < 12:
            mode = draw(st.sampled_from(["constant", "reflect", "replicate", "circular"]))
            self.push(op, (i,), more=((1, 0, 1, 1), mode))
        elif op == "slice" and small >= 4:
            self.push(op, (i,), more=(draw(st.integers(0, 1)), draw(st.integers(1, 2))))
        elif op == "affine":
            self.push(op, (i,), more=(draw(st.sampled_from([-1.0, 0.5, 2.0])), 0.1))
        elif op == "gate":
            self.push(op, (i,), nn.Sequential(nn.Conv2d(c, 2, 1), nn.ReLU(), nn.Conv2d(2, c, 1)))
        elif op == "star":
            self.push(op, (i,), nn.Conv2d(c, c, 1))
        elif op == "up" and small < 9:
            mode = draw(st.sampled_from(["nearest", "bilinear"]))
            self.push(op, (i,), nn.Upsample(scale_factor=2, mode=mode))
        elif op == "transposed" and small < 9:
            self.push(op, (i,), nn.ConvTranspose2d(c, draw(st.integers(2, 4)), 3, 2, 1))
        elif op == "choose" and min(c, small) >= 3:
            how = draw(
                st.sampled_from(
                    [
                        "max",
                        "topk",
                        "sort",
                        "amin",
                        "maximum",
                        "gather",
                        "where",
                        "fill",
                        "written",
                        "lerp",
                        "addcmul",
                    ]
                )
            )
            self.push(op, (i,), more=(how, draw(st.integers(1, 2))))
        elif op == "move" and max(h, w) < 12 and c < 9:
            moves = ["list", "repeat", "windows", "border", "turn", "swap", "cumulative", "sent"]
            self.push(op, (i,), more=(draw(st.sampled_from(moves)),))
        elif op == "mix":
            self.push(op, (i,), nn.Linear(draw(st.integers(2, 4)), c, bias=False))
        elif op == "unpool" and small >= 4:
            self.push(op, (i,), more=(draw(st.sampled_from([1.0, -0.5])),))
        elif op == "drop":
            self.push(op, (i,), draw(st.sampled_from([nn.Dropout(0.2), nn.Dropout2d(0.2)])))


@st.composite
def general_net(draw: st.DrawFn, max_moves: int = 7) -> tuple[GeneralNet, Tensor]:
    """Draw a network of float64 and an input of two samples."""
    seed = draw(st.integers(0, 2**16))
    builder = _Builder(draw)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        builder.push("conv", (0,), nn.Conv2d(3, 4, 3, padding=1))
        builder.push("relu", (1,), more=(True,))
        for op in draw(st.lists(st.sampled_from(MOVES), min_size=1, max_size=max_moves)):
            builder.move(op)
        last = len(builder.shapes) - 1
        last = builder.push("conv", (last,), nn.Conv2d(builder.shapes[last][0], 3, 1))
        builder.push("relu", (last,), more=(False,))
        model = GeneralNet(tuple(builder.steps), builder.parts, draw(st.integers(1, 2))).double()
    generator = torch.Generator().manual_seed(seed)
    return model, torch.randn(2, *builder.shapes[0], generator=generator, dtype=torch.float64)
