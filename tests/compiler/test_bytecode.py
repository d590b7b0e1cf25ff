"""Texts of sizes: those that are only shown cost nothing, all others are exact or refused."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import operator
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pursuitify import pursuitify
from pursuitify.errors import InputError, TraceError

LOG = logging.getLogger(__name__)
Body = Callable[[Any, Tensor], Any]


class Net(nn.Module):
    """A layer whose values a body multiplies by a number."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.layer, self.body = nn.Conv2d(3, 3, 3, padding=1), body
        nn.init.ones_(self.layer.bias)
        self.kept = ""
        self.table = {f"{n}x{n}": 2.0 for n in range(1000, 1, -1)}
        setattr(self, "head_" + str(8 * 10), 2.0)

    def keep(self, text: str) -> None:
        self.kept = text

    def say(self, _loud: bool, text: str) -> None:
        tell(text, loud=True)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.layer(x))
        found = self.body(self, y)
        return y * (2.0 if found is True else found if isinstance(found, float) else 1.0)


def image(size: int) -> Tensor:
    return torch.full((2, 3, size, size), 0.25, dtype=torch.float64)


#: The size that decides, and its text: neither is a constant of a body.
EIGHTY = 80
LATER = chr(56) + chr(48)


def described(x: Tensor) -> str:
    return f"{x.shape[2]} by {x.size(3)}"


def tell(text: str, loud: bool = False) -> None:
    if loud:
        print("it says " + text)
    LOG.info(text)


def told(net: Any, x: Tensor) -> None:
    text = f"a {x.size(2)}"
    text += " b %s" % x.size(3)  # noqa: UP031
    net.say(False, text)
    net.say(True, text=described(x))


def warned(_net: Any, x: Tensor) -> None:
    with torch.profiler.record_function(f"layer {x.size(2)}"):
        warnings.warn("w" + f"{x.size(2)}", stacklevel=2)
    LOG.warning("%s", x.shape)
    LOG.warning(f"{x.size(2):>4}")
    LOG.warning("{0}".format(x.size(3)))  # noqa: UP030, UP032


def asserted(_net: Any, x: Tensor) -> None:
    text = f"{tuple(x.shape)} is no batch"
    torch._assert(x.dim() == 4 and x.size(2) > 0, text)
    torch._assert(x.size(2) > 0, message="n" + str(x.size(2)))
    if x.size(2) < 1:
        raise ValueError(text)


SHOWN: dict[str, Body] = {
    "print": lambda _net, x: print(x.shape, described(x), "z", sep=","),
    "told": told,
    "warned": warned,
    "asserted": asserted,
}


def caught(_net: Any, x: Tensor) -> bool:
    try:
        raise ValueError(f"{x.size(2)}")
    except ValueError as error:
        return str(error) == LATER


def raising(x: Tensor) -> None:
    raise KeyError(str(x.size(2)))


def caught_outside(_net: Any, x: Tensor) -> bool:
    try:
        raising(x)
    except KeyError as error:
        return LATER in str(error)
    return False


def written(_net: Any, x: Tensor) -> bool:
    text = io.StringIO()
    print(x.size(2), file=text)
    return text.getvalue().strip() == LATER


def profiled(_net: Any, x: Tensor) -> bool:
    with torch.profiler.record_function(f"{x.size(2)}") as record:
        pass
    return str(record.name) == LATER


def kept_and_shown(net: Any, x: Tensor) -> bool:
    text = f"{x.size(2)}"
    print(text)
    net.keep(text)
    return str(net.kept) == LATER


def closed_over(_net: Any, x: Tensor) -> bool:
    text = f"{x.size(2)}"
    return (lambda: text == LATER)()


def replaced_print(net: Any, x: Tensor) -> bool:
    show: Any = print
    show = net.keep
    show(f"{x.size(2)}")
    return bool(net.kept == LATER)


def walrus(_net: Any, x: Tensor) -> bool:
    print(text := str(x.size(2)))
    return text == LATER


def found_in_table(net: Any, x: Tensor) -> float:
    with contextlib.suppress(KeyError):
        return 3.0 * float("{0}x{0}".format(x.size(2)) == "80x80") + net.table[f"{x.size(3)}x0"]
    return float({f"{n}": 2.0 for n in range(79, 81)}.get(str(x.size(2)), 1.0))


#: Bodies that ask in some way whether the text of a size is "80", which no constant says.
READ: dict[str, Body] = {
    "computed key": lambda _net, x: {f"{n}": 2.0 for n in range(79, 81)}.get(str(x.size(2)), 1.0),
    "key of many": lambda net, x: net.table.get(f"{x.size(2)}x{x.size(3)}", 1.0),
    "in": lambda _net, x: "%s" % x.size(2) in map(str, range(79, 82)),  # noqa: UP031
    "attribute": lambda net, x: getattr(net, f"head_{x.size(2)}", 1.0),
    "has": lambda net, x: hasattr(net, "head_" + str(x.size(-1))),
    "eval": lambda _net, x: bool(eval(f"{x.size(2)} > 70 and {x.size(2)} < 90")),
    "length": lambda _net, x: len(str(x.size(2) * x.size(3))) == len("".join(["4"] * 4)),
    "larger": lambda _net, x: str(x.size(2)) < LATER,
    "hash": lambda _net, x: hash(f"{x.size(2)}") == hash(LATER),
    "padded": lambda _net, x: f"{x.size(2):>5}".strip() == LATER,
    "joined": lambda _net, x: "_".join(map(str, x.shape[2:])) == "_".join([LATER] * 2),
    "json": lambda _net, x: json.dumps(str(x.size(2))).endswith(LATER + '"'),
    "operator": lambda _net, x: operator.eq(repr(x.size(2)), LATER),
    "caught": caught,
    "caught outside": caught_outside,
    "written": written,
    "profiled": profiled,
    "kept and shown": kept_and_shown,
    "closed over": closed_over,
    "replaced print": replaced_print,
    "walrus": walrus,
    "table": found_in_table,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SHOWN)
def test_a_text_that_is_only_shown_needs_no_example(name: str) -> None:
    model = Net(SHOWN[name]).double().eval()
    net = pursuitify(model, iterations=0)
    for size in (8, 80):
        assert torch.equal(net(image(size)), model(image(size)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READ)
def test_a_text_that_may_be_read_is_that_of_the_example(name: str) -> None:
    model = Net(READ[name]).double().eval()
    with pytest.raises(TraceError, match=r"Pass example_inputs=|cannot follow"):
        pursuitify(model)
    net = pursuitify(model, iterations=0, example_inputs=image(EIGHTY))
    assert torch.equal(net(image(EIGHTY)), model(image(EIGHTY)))
    with pytest.raises(InputError, match="the model branches on"):
        net(image(8))


WAYS: dict[str, Callable[[Any], str]] = {
    "str": str,
    "format": lambda n: f"{n}",
    "repr": repr,
    "method": lambda n: "{}".format(n),  # noqa: UP032
    "percent": lambda n: "%s" % n,  # noqa: UP031
    "added": lambda n: "" + str(n),
    "joined": lambda n: "".join([str(n)]),
}
TESTS: dict[str, Callable[[str, str], bool]] = {
    "equal": operator.eq,
    "in": lambda text, known: text in {known},
    "starts": lambda text, known: text.startswith(known),
    "hash": lambda text, known: hash(text) == hash(known),
    "key": lambda text, known: {known: True}.get(text, False),
    "index": lambda text, known: [known, text].index(text) == 0,
    "ordered": lambda text, known: not text < known,
}


@given(st.sampled_from(sorted(WAYS)), st.sampled_from(sorted(TESTS)), st.integers(1, 9000))
@settings(max_examples=30, deadline=None)
@pytest.mark.slow
def test_no_text_is_wrong(way: str, test: str, number: int) -> None:
    known = str(number)
    model = Net(lambda _net, x: TESTS[test](WAYS[way](x.size(2) * x.size(0)), known)).double()
    with pytest.raises(TraceError):
        pursuitify(model)
    x = torch.rand(1, 3, number % 97 + 1, 4, dtype=torch.float64)
    net = pursuitify(model, iterations=0, example_inputs=x)
    assert torch.equal(net(x), model(x))
