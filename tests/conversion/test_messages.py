"""A refusal names what is wrong, once and at its root, and its advice works when it is followed."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, remove_spectral_norm, remove_weight_norm
from torch.optim.swa_utils import AveragedModel

from pursuitify import explain, pursuitify
from pursuitify.errors import ConversionError, PursuitifyError
from pursuitify.rules import frozen
from tests.support.agreement import error

Change = Callable[[Tensor], Tensor]


class With(nn.Module):
    """A convolution, something, and a dense layer."""

    def __init__(self, change: Change) -> None:
        super().__init__()
        self.change, self.relu = change, nn.ReLU()
        self.conv, self.last = nn.Conv2d(3, 8, 3), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.change(F.relu(self.conv(x)))).mean((2, 3)))


class Listed(nn.Module):
    """Layers in a list of some kind, or of these dropout alone, which has no tensors but a mode."""

    def __init__(self, kind: Callable[[list[nn.Module]], object], alone: bool = False) -> None:
        super().__init__()
        layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Dropout(0.2)]
        self.first = nn.Sequential(*layers[:2]) if alone else nn.Identity()
        layers = layers[2:] if alone else layers
        self.body = kind(layers)
        self.last = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.body:  # type: ignore[attr-defined]
            x = layer(x)
        return self.last(x.mean((2, 3)))


def chain() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 2)).eval()


def image() -> Tensor:
    return torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def said(model: nn.Module) -> str:
    report = explain(model)
    assert not report.ok
    with pytest.raises(PursuitifyError) as caught:
        pursuitify(model)
    assert len(report.problems) == 1
    assert report.problems[0].reason in str(caught.value)
    return str(report.problems[0])


def assert_converts(model: nn.Module, wanted: Tensor | None = None) -> None:
    net, x = pursuitify(model.eval(), iterations=2), image()
    assert net(x).isfinite().all()
    net.iterations = 0
    assert error(net(x), model(x) if wanted is None else wanted) <= 1e-6


def hooked(utility: Callable[[nn.Module], object]) -> nn.Sequential:
    model = chain()
    utility(model[0])
    return model


@pytest.mark.parametrize(
    ("refused", "advice", "mended"),
    [
        (
            lambda: With(lambda x: nn.Dropout(0.5)(x)),
            "make it once, in __init__",
            lambda: With(nn.Dropout(0.5).eval()),
        ),
        (lambda: Listed(list), "self.body = nn.ModuleList", lambda: Listed(nn.ModuleList)),
        (lambda: Listed(tuple), "plain tuple", lambda: Listed(nn.ModuleList)),
        (
            lambda: Listed(list, alone=True),
            "train() and eval() do not reach it. Make it self.body = nn.ModuleList",
            lambda: Listed(nn.ModuleList, alone=True),
        ),
        (
            lambda: With(
                lambda x: x + torch.zeros(x.size(0), 1, 1, 1, pin_memory=x.is_cuda)  # read of x
            ),
            "x.new_zeros(x.size(0), ...)",
            lambda: With(lambda x: x + x.new_zeros(x.size(0), 1, 1, 1)),
        ),
        (
            lambda: With(lambda x: x * torch.rand(x.shape[0], 1, 1, 1, pin_memory=x.is_cuda)),
            "x.new_empty(x.size(0), ...).bernoulli_(p)",
            lambda: With(lambda x: x * x.new_empty(x.size(0), 1, 1, 1).bernoulli_(1.0)),
        ),
        (
            lambda: With(lambda x: x.__setitem__((slice(None), 0), 0) or x),
            "torch.cat",
            lambda: With(lambda x: torch.cat([0 * x[:, :1], x[:, 1:]], 1)),
        ),
    ],
    ids=["made-in-forward", "list", "tuple", "list-of-activations", "zeros", "rand", "assignment"],
)
def test_the_advice_works(
    refused: Callable[[], nn.Module], advice: str, mended: Callable[[], nn.Module]
) -> None:
    text = said(refused())
    assert advice in text
    assert "test_messages.py, line" in text
    assert_converts(mended())


def test_casts_to_a_type_that_is_computed() -> None:
    """Such a type is no tensor, whose device could be asked."""
    assert_converts(With(lambda x: x.to(torch.promote_types(x.dtype, torch.float32))))
    assert_converts(With(lambda x: x.to(torch.result_type(x, torch.ones(1)))))
    assert_converts(With(lambda x: x.to(F.relu(x), True, True)))  # not to wait, and to copy


def test_checkpointing_in_the_forward_is_followed() -> None:
    def kept(x: Tensor) -> Tensor:
        checkpoint = torch.utils.checkpoint.checkpoint
        return checkpoint(lambda t: t * 1.5, x, use_reentrant=False)  # type: ignore[no-any-return]

    assert_converts(With(kept))


@pytest.mark.parametrize(
    ("utility", "advice", "mend"),
    [
        (
            lambda m: prune.l1_unstructured(m, "weight", 0.5),
            "torch.nn.utils.prune.remove(module, 'weight')",
            lambda m: prune.remove(m, "weight"),
        ),
        (
            torch.nn.utils.spectral_norm,
            "remove_spectral_norm(module, 'weight')",
            lambda m: remove_spectral_norm(m, "weight"),
        ),
        (
            torch.nn.utils.weight_norm,
            "remove_weight_norm(module, 'weight')",
            lambda m: remove_weight_norm(m, "weight"),
        ),
    ],
    ids=["prune", "spectral_norm", "weight_norm"],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_hooks_of_torch_are_named(
    utility: Callable[[nn.Module], object],
    advice: str,
    mend: Callable[[nn.Module], object],
) -> None:
    model = hooked(utility)
    text = said(model)
    assert advice in text
    assert "'0'" in text
    assert "ReLU family" not in text
    wanted = model(image()).detach()
    mend(model[0])
    assert_converts(model, wanted)


@pytest.mark.parametrize("name", ["spectral_norm", "weight_norm"])
def test_the_parametrisations_that_are_advised_convert(name: str) -> None:
    model = chain()
    getattr(parametrizations, name)(model[0])
    assert_converts(model)


def test_an_activation_after_what_is_refused_is_not_said_to_be_missing() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Conv2d(4, 4, 1), nn.ReLU())
    with pytest.raises(ConversionError) as caught:
        pursuitify(model)
    assert "no activation" not in str(caught.value)
    assert [p.op for p in caught.value.problems] == ["GELU"]


@pytest.mark.parametrize(
    ("wrap", "attribute"),
    [
        (torch.compile, "_orig_mod"),
        (AveragedModel, "module"),
        (nn.DataParallel, "module"),
    ],
    ids=["compile", "average", "parallel"],
)
def test_wrappers_name_the_attribute_to_pass(
    wrap: Callable[[nn.Module], nn.Module], attribute: str
) -> None:
    model = wrap(chain())
    assert f"pass the wrapped model, which this {type(model).__name__} holds as .{attribute}" in (
        said(model)
    )
    assert_converts(getattr(model, attribute))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_and_compiled_parts_are_named() -> None:
    model = chain()
    part = model[0]
    model[0] = torch.jit.script(part)
    assert "module '0' is scripted" in said(model)
    model[0] = torch.compile(part)
    assert "._orig_mod" in said(model)
    model[0] = model[0]._orig_mod
    assert_converts(model)


class Excited(nn.Module):
    """Squeeze and excite around some activation."""

    def __init__(self, activation: type[nn.Module]) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 4, 3), activation()
        self.down, self.inner, self.up = nn.Conv2d(4, 2, 1), activation(), nn.Conv2d(2, 4, 1)
        self.gate, self.project = nn.Sigmoid(), nn.Conv2d(4, 4, 1)
        self.last = activation()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.conv(x))
        scale = self.gate(self.up(self.inner(self.down(x.mean((2, 3), keepdim=True)))))
        return self.last(self.project(scale * x)).mean((2, 3))


@pytest.mark.parametrize("activation", [nn.SiLU, nn.Hardswish, nn.GELU])
def test_gates_are_no_problem_of_their_own(activation: type[nn.Module]) -> None:
    report = explain(Excited(activation))
    assert {p.op for p in report.problems} == {activation.__name__}
    assert max(Counter(p.node for p in report.problems).values()) == 1
    named = {p.module for p in report.problems}
    model = Excited(activation)
    for path in named:
        setattr(model, path, nn.ReLU())
    assert explain(model).ok, "what was listed is all there was to replace"


def test_a_real_problem_beside_a_gate_is_still_listed() -> None:
    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.act, self.gate = nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Softmax(1)
            self.last, self.relu = nn.Conv2d(4, 4, 1), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            x = self.act(self.conv(x))
            gate = self.gate(x)
            return self.relu(self.last(gate * x + gate))

    assert [p.op for p in explain(Beside()).problems] == ["SiLU", "Softmax"]


def divided(x: Tensor) -> Tensor:
    """Return a divisor, or a factor."""
    return x + 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x: torch.cat([(x[:, :4] * 2) * divided(x[:, 4:])] * 2, 1), "neither is a gate"),
        (lambda x: x + 1.0 / divided(x), "divides by a value"),
    ],
    ids=["product", "quotient"],
)
def test_reasons_that_frozen_mends_say_so(change: Change, reason: str) -> None:
    text = said(With(change))
    assert reason in text
    assert "frozen()" in text
    net = pursuitify(With(change).eval(), iterations=2, rules={divided: frozen()})
    assert net(image()).isfinite().all()


def test_a_checkpoint_of_the_source_loads_strictly() -> None:
    source = chain()
    net = pursuitify(chain(), iterations=2)
    with torch.no_grad():
        net.pursuit.alpha.fill_(0.5)
    given = source.state_dict()
    names = set(given)
    assert not any(net.load_state_dict(given))
    assert set(given) == names, "the caller's dict is left alone"
    assert torch.equal(net(image()), pursuitify(source, iterations=2)(image()))
    assert not net.pursuit.alpha.any()
    clone = copy.deepcopy(net)
    clone.load_state_dict(given)


def test_a_strict_load_still_refuses_what_does_not_fit() -> None:
    net = pursuitify(chain())
    whole = net.state_dict()
    for missing in ("0.weight", "pursuit.beta"):
        with pytest.raises(RuntimeError, match=missing):
            net.load_state_dict({k: v for k, v in whole.items() if k != missing})
    with pytest.raises(RuntimeError, match="other"):
        net.load_state_dict({**chain().state_dict(), "other": torch.zeros(1)})
    with torch.no_grad():
        net.pursuit.alpha.fill_(0.5)
    found = net.load_state_dict(chain().state_dict(), strict=False)
    assert set(found.missing_keys) == {"pursuit.beta", "pursuit.alpha"}
    assert bool((net.pursuit.alpha == 0.5).all())
