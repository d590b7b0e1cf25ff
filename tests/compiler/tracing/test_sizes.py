"""Sizes that a forward looks up in a table, or whose text it reads, are guarded or refused."""

from __future__ import annotations

import functools
import operator
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from pursuitify import InputError, TraceError, pursuitify
from pursuitify.compiler.tracing.sizes import Positive, TrialAnswers
from tests.support.idiom_outcome import outcome

TABLE = {8: 2.0, 16: 3.0}
PAIRS = {(7, 14): 2.0}
EPS = {torch.float64: 2.0, torch.float16: 3.0}
CACHE: dict[Any, float] = {}


@functools.lru_cache
def padding(size: int, stride: int = 2) -> int:
    return -size % stride


@functools.lru_cache
def by_size(size: int) -> float:
    return 2.0 if size == 8 else 3.0


def cached(net: Any, x: Tensor) -> Tensor:
    key = tuple(x.shape[2:])
    if key not in net.held:
        net.held[key] = x.new_full((1, 1, 1, 1), 2.0)
    return x * net.held[key]


def cached_outside(_net: Any, x: Tensor) -> Tensor:
    return x * CACHE.setdefault(x.shape, 2.0)


def padded(_net: Any, x: Tensor) -> Tensor:
    return F.pad(x, (0, padding(x.size(3)), 0, padding(x.size(2))))


def warned(_net: Any, x: Tensor) -> Tensor:
    warnings.warn(f"8 or 16? {x.shape}, {x.size(2):d}, {x.dtype!r}", stacklevel=2)
    return 2 * x


def asserted(_net: Any, x: Tensor) -> Tensor:
    torch._assert(x.size(2) > 1, f"{x.shape} is too small, {x.dtype} on {x.device}")
    return 2 * x


class Padding(nn.Module):
    """Functions that remember what they were called with, in the ways that classes hold them."""

    @functools.lru_cache  # noqa: B019
    def by_method(self, size: int) -> int:
        return -size % 2

    @staticmethod
    @functools.lru_cache
    def by_static(size: int, stride: int = 2) -> int:
        return -size % stride

    def forward(self, x: Tensor) -> Tensor:
        sizes = (x.size(2),)
        left, right = self.by_method(x.size(3)), self.by_static(x.size(3), stride=2)
        return F.pad(x, (left, right, padding(*sizes), padding(*sizes, stride=2)))


def cached_by_name(net: Any, x: Tensor) -> Tensor:
    held, key = net.held, x.size(2)
    try:
        return x * held[key]
    except KeyError:
        held[key] = x.new_full((1, 1, 1, 1), 2.0)
        return x * held.get(key)


def named(_net: Any, x: Tensor) -> Tensor:
    table = {n * n + 99: 2.0 for n in range(1, 9)}
    return x * table.get(x.size(2), 5.0)


def looked_up_later(net: Any, x: Tensor) -> Tensor:
    size = x.size(2)
    net.held[size] = x
    return x * large().get(size, 5.0)


def large() -> dict[int, float]:
    return {n * n + 99: 2.0 for n in range(1, 9)}


def stored() -> dict[int, float]:
    found = {}
    for n in range(36, 39):
        found[n] = 2.0
    return found


Body = Callable[[Any, Tensor], Tensor]
#: Bodies that depend on sizes by their hashes or their texts. What the sizes are no model says.
SIZES: dict[str, Body] = {
    "table": lambda _net, x: x * TABLE.get(x.size(2), 5.0),
    "set": lambda _net, x: 2 * x if x.size(2) in {8, 16} else x,
    "made set": lambda net, x: 2 * x if x.size(2) in {net.eight, 16} else x,
    "dict": lambda _net, x: x * {8: 2.0}.get(x.shape[2], 5.0),
    "entry": lambda _net, x: x * {8: 2.0, 6: 4.0, 7: 3.0, 14: 2.0}[x.shape[-1]],
    "pair": lambda _net, x: x * PAIRS.get((x.size(2), x.size(3)), 5.0),
    "slice": lambda _net, x: x * PAIRS.get(x.shape[2:], 5.0),
    "tuple": lambda _net, x: x * PAIRS.get(tuple(x.shape[-2:]), 5.0),
    "Counter": lambda _net, x: x * (1 + Counter([8, x.size(2), 8])[8]),
    "arithmetic": lambda _net, x: x * TABLE.get(x.size(2) * 2, 5.0),
    "str": lambda _net, x: 2 * x if str(x.size(2)) == "8" else x,
    "f-string": lambda _net, x: 2 * x if f"{x.size(2)}x{x.size(3)}" == "7x14" else x,
    "format": lambda _net, x: 2 * x if "{:02d}".format(x.size(2)) == "08" else x,  # noqa: UP032
    "percent": lambda _net, x: 2 * x if "%s" % x.size(2) == "8" else x,  # noqa: UP031
    "repr": lambda _net, x: 2 * x if repr(x.shape).endswith("14])") else x,
    "join": lambda _net, x: 2 * x if "x".join(map(str, x.shape[2:])) == "7x14" else x,
    "method": lambda net, x: getattr(net, f"times_{x.size(2)}", net.plain)(x),
    "computed table": lambda _net, x: x * {n * n + 1: 2.0 for n in range(9)}.get(x.size(2), 5.0),
    "computed set": lambda _net, x: 2 * x if x.size(2) in {n * n + 1 for n in range(9)} else x,
    "range": lambda _net, x: 2 * x if x.size(2) in set(range(36, 39)) else x,
    "fromkeys": lambda _net, x: x * dict.fromkeys(range(36, 39), 2.0).get(x.size(2), 5.0),
    "zip": lambda _net, x: x * dict(zip((36, 74 // 2), (2.0, 3.0), strict=True)).get(x.size(2), 5),
    "stored": lambda _net, x: x * stored().get(x.size(2), 5.0),
    "large": lambda _net, x: x * large().get(x.size(2), 5.0),
    "large set": lambda _net, x: 2 * x if x.size(2) in {n * n + 99 for n in range(1, 9)} else x,
    "large range": lambda _net, x: 2 * x if x.size(2) in set(range(97, 103)) else x,
    "ordered": lambda _net, x: x * OrderedDict((n + 97, 2.0) for n in range(5)).get(x.size(2), 5.0),
    "more arithmetic": lambda _net, x: x * {30: 2.0}.get(x.size(2) * 2 - 170, 5.0),
    "named": named,
    "looked up later": looked_up_later,
    "square": lambda _net, x: 2 * x if len({*x.shape[2:]}) == 1 else x,
    "equal sets": lambda _net, x: 2 * x if {*x.shape[2:]} == {8} else x,
    "part of a set": lambda _net, x: 2 * x if {*x.shape[2:]} <= {8, 16} else x,
    "twice": lambda _net, x: 2 * x if Counter(x.shape)[x.size(2)] == 2 else x,
    "hash": lambda _net, x: 2 * x if hash(x.size(2)) == 8 else x,
}
#: Those that do so at 37 x 37, which nothing in the code says; at 7 x 14; the others do at 8 x 8.
FAR = {"computed table", "computed set", "range", "fromkeys", "zip", "stored"}
#: Those that do so at 100 x 100.
FARTHER = {
    "large", "large set", "large range", "ordered", "more arithmetic", "named", "looked up later",
}  # fmt: skip
WIDE = {"entry", "pair", "slice", "tuple", "f-string", "repr", "join"}
#: Bodies that depend on what every model says of its tensors.
KNOWN: dict[str, Body] = {
    "dtype": lambda _net, x: x * EPS[x.dtype],
    "dtype, default": lambda _net, x: x * EPS.get(x.dtype, 4.0),
    "dtype in a set": lambda _net, x: 2 * x if x.dtype in {torch.float16, torch.float64} else x,
    "dtype's text": lambda _net, x: 2 * x if str(x.dtype) == "torch.float64" else x,
    "device": lambda _net, x: 2 * x if x.device in {torch.device("cpu")} else x,
    "kind of device": lambda _net, x: 2 * x if f"{x.device.type}" == "cpu" else x,
    "dimensions": lambda _net, x: x * {3: 2.0, 4: 3.0}.get(x.dim(), 4.0),
}
#: Bodies that take hashes and texts of sizes, and depend on none.
FREE: dict[str, Body] = {
    "cached": cached,
    "cached outside": cached_outside,
    "padded": padded,
    "padded by methods": lambda net, x: net.padding(x),
    "cached by name": cached_by_name,
    "warned": warned,
    "asserted": asserted,
    "guarded": lambda _net, x: x * by_size(x.size(1)),
    "number of entries": lambda _net, x: 2 * x if x.numel() >= x.size(0) * x.size(2) else x,
    "set of sizes": lambda _net, x: 2 * x if len({x.size(0), x.size(2)}) > 0 else x,
}


def by_row(_net: Any, x: Tensor) -> Tensor:
    return torch.stack([x[:, :, i] * (i + 1) for i in range(x.size(2))], 2)


def by_step(_net: Any, x: Tensor) -> Tensor:
    hidden, found = x[:, :, 0], []
    for i in range(1, x.shape[2], 2):
        hidden = 0.5 * hidden + x[:, :, i]
        found.append(hidden)
    return torch.stack(found, dim=2)


#: Bodies that need a size as a number. What it is no model says.
NUMBERS: dict[str, Body] = {
    "range": by_row,
    "steps": by_step,
    "index of a list": lambda _net, x: x * [1.0, 2.0, 3.0, 4.0][x.size(2) % 3],
    "list of a length": lambda _net, x: x * sum([0.5] * len(range(x.shape[-2]))),
    "numpy": lambda _net, x: x / np.float64(x.size(2)),
    "numpy's integer": lambda _net, x: x.view(-1, 4, np.int64(x.size(2)), x.size(3)),
    "C": lambda _net, x: x * operator.index(x.size(2)),
    "unbound": lambda _net, x: torch.stack([i * t for i, t in enumerate(x.unbind(2))], 2),
    "stacked": lambda _net, x: torch.stack(x.unbind(2), 3).transpose(2, 3),
    "pieces": lambda _net, x: torch.cat([2 * p for p in x.split(3, dim=2)][::-1], 2),
    "halves of rows": lambda _net, x: torch.cat([*x.split(x.shape[2] // 2, dim=2)], 2),
}
#: Bodies that need the number of channels, which a convolution before says, or none.
CHANNELS: dict[str, Body] = {
    "channels": lambda _net, x: torch.stack([x[:, i] * i for i in range(x.size(1))], 1),
    "slice of layers": lambda net, x: nn.Sequential(*net.more[: x.shape[1] - 3])(x),
    "split": lambda _net, x: torch.cat(x.split(2, 1)[::-1], 1),
    "halves": lambda _net, x: torch.cat(x.split(split_size=x.shape[1] // 2, dim=1)[::-1], 1),
    "unbound channels": lambda _net, x: torch.stack(x.unbind(1), 1),
    "numpy's number": lambda _net, x: x * np.float32(0.5) * np.int64(3),
    "power": lambda _net, x: x.flatten(2).view(-1, 4, int((x.size(2) ** 2) ** 0.5), x.size(3)),
    "root": lambda _net, x: x / np.sqrt(x.size(1)) * x.size(1) ** -0.5,
}


class Net(nn.Module):
    """Two layers with a body between them."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1)
        nn.init.ones_(self.last.bias)  # or all outputs may be zeros, which nothing tells apart
        self.more = nn.ModuleList([nn.Conv2d(4, 4, 1), nn.ReLU()])
        self.body, self.eight = body, 8
        self.held: dict[Any, Tensor] = {}
        self.padding = Padding()

    def times_8(self, x: Tensor) -> Tensor:
        return 8 * x

    def plain(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.last(self.body(self, F.relu(self.first(x)))))


def image(height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(height)
    return torch.rand(2, 3, height, width, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", SIZES)
def test_what_depends_on_the_hash_or_the_text_of_a_size_needs_an_example(name: str) -> None:
    model = Net(SIZES[name]).double().eval()
    with pytest.raises(TraceError, match="Pass example_inputs="):
        pursuitify(model)
    size = 100 if name in FARTHER else 37 if name in FAR else 8
    x = image(7, 14) if name in WIDE else image(size, size)
    net = pursuitify(model, iterations=0, example_inputs=x)
    assert torch.equal(net(x), model(x))
    with pytest.raises(InputError, match="the model branches on"):
        net(image(6, 7))


@pytest.mark.filterwarnings("ignore")
@given(st.sampled_from(sorted({**SIZES, **KNOWN, **FREE})), st.booleans(), st.integers(6, 9))
@settings(max_examples=40, deadline=None)
@pytest.mark.slow
def test_no_lookup_is_wrong(name: str, example: bool, height: int) -> None:
    model = Net({**SIZES, **KNOWN, **FREE}[name]).double().eval()
    wanted = {"exact"} if example or name not in SIZES else {"refused"}
    assert outcome(model, image(height, 14 if height == 7 else 6), example) in wanted | {"no model"}


@pytest.mark.parametrize("name", KNOWN)
def test_what_the_model_says_is_known_and_guarded(name: str) -> None:
    model = Net(KNOWN[name]).double().eval()
    net = pursuitify(model, iterations=0)
    for x in (image(8, 6), image(7, 14)):
        assert torch.equal(net(x), model(x))
    if "dtype" in name:
        with pytest.raises(InputError, match=r"`\(relu.dtype == torch.float64\)`"):
            net.float()(image(8, 6).float())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FREE)
def test_what_depends_on_none_converts_for_all_sizes(name: str) -> None:
    model = Net(FREE[name]).double().eval()
    net = pursuitify(model, iterations=0)
    for x in (image(8, 6), image(7, 14), image(16, 16), image(9, 9)):
        assert torch.equal(net(x), model(x))


ANY = {
    "any": lambda net, x: 2 * x if any(n < 9 for n in x.squeeze(-1).shape[-2:]) else x,
    "length": lambda net, x: len(x.squeeze(-1).shape[-2:]) * x,
    "first": lambda net, x: x * float(all(n > 0 for n in x.squeeze(-1).shape[:2])),
}


@pytest.mark.parametrize("name", ANY)
def test_the_last_sizes_of_a_tensor_of_unknown_rank_are_so_many(name: str) -> None:
    model = Net(ANY[name]).double().eval()
    net = pursuitify(model, iterations=0)
    x = image(12, 14)
    assert torch.equal(net(x), model(x))


def test_all_sizes_of_a_tensor_of_unknown_rank_need_an_example() -> None:
    model = Net(lambda _net, x: x * (1 + sum(x.squeeze(-1).shape))).double().eval()
    with pytest.raises(TraceError, match=r"`squeeze.shape`, and how many .* Pass example_inputs="):
        pursuitify(model)
    x = image(12, 14)
    net = pursuitify(model, iterations=0, example_inputs=x)
    assert torch.equal(net(x), model(x))


def test_a_cache_that_still_holds_a_traced_size_works_on() -> None:
    """Equal numbers have equal hashes; the traced one, which is kept, is equal to none."""
    CACHE.clear()
    body: Body = lambda _net, x: x * CACHE.setdefault(x.size(2), float(TABLE.get(x.size(2), 5)))  # noqa: E731
    model, x = Net(body).double().eval(), image(8, 6)
    wanted = 0.0
    for _ in range(2):
        net = pursuitify(model, iterations=0, example_inputs=x)
        assert torch.equal(net(x), model(x))
        wanted = CACHE[8]
    assert wanted == TABLE[8]
    assert torch.equal(model(image(16, 6)), Net.forward(model, image(16, 6)))


def test_a_trial_says_what_a_tensor_of_its_sizes_says() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    trial, tensor = (
        TrialAnswers((7, 14), torch.float16, torch.device("cpu")),
        torch.empty(7, 7, 7, 14),
    )
    for name in ("shape", "device"):
        node = graph.call_function(getattr, (x, name))
        assert trial.value(node, 4) == getattr(tensor, name)
    size = graph.call_method("size", (x, -1))
    assert trial.value(size, 4) == 14
    assert trial.value(graph.call_function(max, (size, 20)), 4) == 20
    assert (
        f"{trial.value(graph.call_function(getattr, (x, 'shape')), 3)}" == "torch.Size([7, 7, 14])"
    )
    assert trial.value(graph.call_function(getattr, (x, "dtype")), 4) == torch.float16


def test_a_text_in_a_message_does_not_hide_why_a_forward_cannot_be_traced() -> None:
    def body(_net: Any, x: Tensor) -> Tensor:
        text = f"{x.shape}"
        return x * float(x.mean()) if text else x

    with pytest.raises(TraceError, match="__float__ of the traced tensor 'mean' would need"):
        pursuitify(Net(body))


def test_conditions_ask_for_the_rank_of_a_tensor_once() -> None:
    """It is found by walking back through the graph; there are hundreds of assignments to try."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    size = graph.call_method("size", (x, 2))
    asked = []
    positive = Positive(lambda node: asked.append(node) or 4)  # type: ignore[func-returns-value]
    for number in (28, 14, 7):
        condition = graph.call_function(operator.ne, (size, number))
        positive.decide(condition)
        positive.choose(condition, value=True)
    assert asked == [x]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NUMBERS)
def test_what_needs_a_size_as_a_number_needs_an_example(name: str) -> None:
    """The size is fixed then, and others are refused at the call."""
    model = Net(NUMBERS[name]).double().eval()
    with pytest.raises(TraceError, match=r"Pass example_inputs=.*the network refuses others"):
        pursuitify(model)
    x = image(6, 5)
    net = pursuitify(model, iterations=0, example_inputs=x)
    assert torch.equal(net(x), model(x))
    wider = image(6, 7) if name != "numpy's integer" else x
    assert torch.equal(net(wider[:1]), model(wider[:1]))
    with pytest.raises(InputError, match=r"the model branches on `\(.* == \d\)`"):
        net(image(8, 5))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CHANNELS)
def test_a_number_that_the_model_says_needs_none(name: str) -> None:
    model = Net(CHANNELS[name]).double().eval()
    net = pursuitify(model, iterations=0)
    for x in (image(6, 6), image(7, 9)):
        assert torch.equal(net(x), model(x))


def test_what_is_no_number_is_said_to_be_none() -> None:
    for body in (lambda _net, x: x * [1.0][x.dtype], lambda _net, x: x * [1.0, 2.0][x.shape]):
        with pytest.raises(TraceError, match=r"is no number|must be integers"):
            pursuitify(Net(body))
