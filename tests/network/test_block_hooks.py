"""Forward hooks of blocks get what the source's get at T = 0, and pursued latents at T > 0."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pursuitify import PursuitNetwork, pursuitify
from pursuitify.compiler.lowering import emit
from pursuitify.errors import ConversionError
from tests.support.nets import randomise

X = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


class Unit(nn.Module):
    """A residual unit; its ReLU, which works in place, is called twice."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.relu = nn.Conv2d(width, width, 3, padding=1), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.conv2(self.relu(self.norm(self.conv1(x)))) + x)


class Net(nn.Module):
    """Stages as resnets have them, and a classifier of several layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        self.stage1, self.stage2 = nn.Sequential(Unit(4), Unit(4)), nn.Sequential(Unit(4))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stage2(self.stage1(self.stem(x))))


BLOCKS = ("stem", "stage1.0", "stage1.1", "stage1", "stage2.0", "stage2", "head")
#: Blocks whose values later latents read, and those that the head alone reads.
READ, LAST = BLOCKS[:4], BLOCKS[4:]


def source() -> nn.Module:
    torch.manual_seed(0)
    return randomise(Net(), 1).double().eval()


def network(iterations: int = 3, **options: Any) -> PursuitNetwork:
    return pursuitify(source(), iterations=iterations, **options)


def watched(model: nn.Module, paths: tuple[str, ...] = BLOCKS) -> list[tuple[str, Tensor]]:
    """Hook the blocks; return the list that calls fill."""
    seen: list[tuple[str, Tensor]] = []

    def hook(path: str) -> Callable[..., None]:
        return lambda module, args, output: seen.append((path, output))

    for path in paths:
        model.get_submodule(path).register_forward_hook(hook(path))
    return seen


@pytest.mark.parametrize("training", [False, True])
def test_without_sweeps_hooks_get_what_the_sources_hooks_get(training: bool) -> None:
    found = []
    for model in (source().train(training), network(0).train(training)):
        seen = watched(model)
        y = model(X)
        bars = torch.autograd.grad(y[:, 1].sum(), [value for _, value in seen])
        found.append((seen, bars, y))
    (wanted, wanted_bars, wanted_y), (got, bars, y) = found
    assert [path for path, _ in got] == [path for path, _ in wanted] == [*BLOCKS]
    assert torch.equal(y, wanted_y)
    for (path, value), (_, expected) in zip(got, wanted, strict=True):
        assert torch.equal(value, expected), path
    assert all(map(torch.equal, bars, wanted_bars))


@pytest.mark.parametrize("memory", ["store", "recompute", "implicit"])
@pytest.mark.parametrize("training", [False, True])
def test_after_sweeps_hooks_get_the_latents_that_the_head_reads(
    training: bool, memory: str
) -> None:
    plain, net = (network(memory=memory).train(training) for _ in range(2))
    y, latents, _ = plain.infer(X)
    seen = watched(net)
    assert torch.equal(net(X), y)
    assert [path for path, _ in seen] == [*BLOCKS]
    names = dict(zip(BLOCKS[:-1], [0, 2, 4, 4, 6, 6], strict=True))
    in_order = [*latents.values()]
    for path, value in seen[:-1]:
        assert torch.equal(value, in_order[names[path]]), path
    assert torch.equal(seen[-1][1], y)
    # By hand, of the latent that the head reads alone.
    seen.clear()
    logit = net(X)[:, 1].sum()
    w = in_order[-1].detach().requires_grad_()
    (expected,) = torch.autograd.grad(plain.head(w)[:, 1].sum(), w)
    for path, value in seen[4:6]:
        (bar,) = torch.autograd.grad(logit, value, retain_graph=True)
        torch.testing.assert_close(bar, expected, rtol=0, atol=1e-12, msg=path)
    for path, value in seen[:4]:  # the output is no function of these alone
        with pytest.raises(RuntimeError, match="not have been used"):
            torch.autograd.grad(logit, value, retain_graph=True)
        assert value.requires_grad, path


def grad_cam(model: nn.Module, block: nn.Module, target: int) -> Tensor:
    """Do what captum's LayerGradCam does: a hook keeps the output and returns a clone of it."""
    kept: list[Tensor] = []

    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        kept.append(output)
        return output.clone()

    handle = block.register_forward_hook(hook)
    logits = model(X)[:, target]
    handle.remove()
    (bar,) = torch.autograd.grad(logits.unbind(), kept)
    return (bar.mean((2, 3), keepdim=True) * kept[0]).sum(1, keepdim=True)


def captums(model: nn.Module, block: nn.Module, target: int) -> Tensor:
    captum = pytest.importorskip("captum.attr")
    return captum.LayerGradCam(model, block).attribute(X, target=target)


@pytest.mark.parametrize("attribute", [grad_cam, captums])
def test_attributions_of_a_block(attribute: Callable[..., Tensor]) -> None:
    model, net = source(), network(0)
    for path in ("stage1", "stage2"):
        wanted = attribute(model, model.get_submodule(path), 1)
        assert torch.equal(attribute(net, net.get_submodule(path), 1), wanted)
    net.iterations = 3
    w = [*net.infer(X).latents.values()][-1].detach().requires_grad_()
    (bar,) = torch.autograd.grad(net.head(w)[:, 1].sum(), w)
    expected = (bar.mean((2, 3), keepdim=True) * w).sum(1, keepdim=True)
    found = attribute(net, net.stage2, 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert not torch.allclose(found, wanted, atol=1e-3), "the sweeps did nothing"


@pytest.mark.parametrize("iterations", [0, 3])
def test_a_hook_may_replace_what_the_head_alone_reads(iterations: int) -> None:
    changed = source()
    changed.stage2.register_forward_hook(lambda module, args, output: 1.5 * output)
    wanted = pursuitify(changed, iterations=iterations)(X)  # the hook is traced
    net = network(iterations)
    net.stage2.register_forward_hook(lambda module, args, output: 1.5 * output)
    torch.testing.assert_close(net(X), wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(net.infer(X).output, wanted, rtol=0, atol=1e-12)
    found = net.outputs_at([0, iterations], X)
    torch.testing.assert_close(found[iterations], wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(found[0], changed(X), rtol=0, atol=1e-12)
    torch.testing.assert_close(net.source_output(X), changed(X), rtol=0, atol=1e-12)


@pytest.mark.parametrize("iterations", [0, 3])
def test_what_the_sweeps_would_not_follow_is_refused(iterations: int) -> None:
    def written(module: nn.Module, args: Any, output: Tensor) -> None:
        output.mul_(2)

    def doubled(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return 2 * output

    def single(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output.float()

    for path in BLOCKS:
        for hook in (written, doubled, single) if path in READ else (written,):
            net = network(iterations)
            expected = net(X)
            handle = net.get_submodule(path).register_forward_hook(hook)
            with torch.no_grad(), pytest.raises(ConversionError, match=rf"hook of '{path}'"):
                net(X)
            handle.remove()
            assert torch.equal(net(X), expected)


def test_keyword_hooks_and_several_hooks_are_called_in_order() -> None:
    net, order = network(), []
    net.stage2.register_forward_hook(lambda m, a, o: order.append(("second", a)))
    net.stage2.register_forward_hook(
        lambda m, a, k, o: order.append(("keywords", a, k)), with_kwargs=True
    )
    net.stage2.register_forward_hook(lambda m, a, o: order.append(("first", a)), prepend=True)
    net(X)
    assert order == [("first", ()), ("second", ()), ("keywords", (), {})]


def test_the_advice_on_a_leafs_hook_works() -> None:
    for iterations in (0, 3):
        net = network(iterations)
        handle = net.stage2[0].relu.register_forward_hook(lambda *_: None)
        with pytest.raises(ConversionError, match=r"'head', 'stage1', 'stage2', 'stem'") as raised:
            net(X)
        assert raised.value.problems[0].module == "stage2.0.relu"
        handle.remove()
        seen = watched(net, ("stage2",))
        net(X)
        assert len(seen) == 1


def test_other_hooks_of_blocks_stay_refused() -> None:
    for register in ("register_forward_pre_hook", "register_full_backward_hook"):
        net = network()
        getattr(net.stage2, register)(lambda *_: None)
        with pytest.raises(ConversionError, match="Remove the hook"):
            net(X)


def test_copies_and_pickles_go_on_calling_hooks() -> None:
    net = network()
    calls = watched(net, ("stage2", "head"))
    expected = net(X)
    assert torch.equal(copy.deepcopy(net)(X), expected)
    assert [path for path, _ in calls] == 2 * ["stage2", "head"]
    plain = network()
    plain(X)
    again = pickle.loads(pickle.dumps(plain))
    calls = watched(again, ("stage2", "head"))
    assert torch.equal(again(X), expected)
    assert [path for path, _ in calls] == ["stage2", "head"]


def test_hooks_cost_no_proof_and_nothing_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    made, net = [], network()
    hooked = emit.hooked
    monkeypatch.setattr(
        "pursuitify.network.block_hooks.hooked", lambda *a: made.append(a[2]) or hooked(*a)
    )
    net(X)
    assert not made
    monkeypatch.setattr(net, "_self_prove", lambda *_: pytest.fail("another proof"))
    for _ in range(2):
        handle = net.stage1.register_forward_hook(lambda *_: None)
        net(X)
        handle.remove()
        net(X)
    assert made == [("stage1",)]


def test_compiled_code_refuses_hooks() -> None:
    torch.compiler.reset()
    net = network(1)
    net(X)
    net.stage2.register_forward_hook(lambda *_: None)
    with torch.no_grad(), pytest.raises(Exception, match="compiled code does not call"):
        torch.compile(net, backend="eager")(X)


class Block(nn.Module):
    """A block that returns a latent, a tuple, or a latent that it has written into."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor, how: str = "") -> Any:
        x = torch.relu(self.conv(x))
        if how == "written":
            x.mul_(2)
        return (x, x.mean()) if how == "tuple" else x


class Odd(nn.Module):
    """A network that calls its block in one of several ways."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.block, self.last = kind, Block(), nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "once":
            y = self.block(x)
        elif self.kind == "twice":
            y = self.block(self.block(x))
        elif self.kind == "twice, a tuple once":
            y = self.block(self.block(x, how="tuple")[0])
        elif self.kind == "without derivatives":
            with torch.no_grad():
                y = self.block(x)
        elif self.kind == "without derivatives, and more":
            with torch.no_grad():
                y = 2 * self.block(x)
        elif self.kind == "written":
            y = self.block(x, how="written")
        else:
            y = self.block(x, how="tuple")[0]
        return torch.relu(self.last(y)).mean((2, 3))


@pytest.mark.parametrize(
    ("kind", "calls"),
    [
        ("once", 1),
        ("twice", 2),
        ("twice, a tuple once", None),
        ("without derivatives", None),
        ("without derivatives, and more", None),
        ("written", None),
        ("a tuple", None),
    ],
)
def test_hooks_are_called_once_a_call_or_refused(kind: str, calls: int | None) -> None:
    torch.manual_seed(0)
    made = pursuitify(Odd(kind).double().eval(), iterations=2)
    for net in (made, pickle.loads(pickle.dumps(made))):
        called = watched(net, ("block",))
        for iterations in (2, 0):
            net.iterations = iterations
            called.clear()
            if calls is None:
                with pytest.raises(ConversionError, match="forward hooks"):
                    net(X)
            else:
                net(X)
                assert len(called) == calls
