"""The objectives, against their formulas; accumulation and mixed precision of accelerate."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

pytest.importorskip("accelerate")

from pursuitify import coherence, pursuitify
from pursuitify.errors import InputError, OptionError
from pursuitify.training import RECIPES, Config, finetune, recipe
from pursuitify.training.adversarial_inputs import attack, noisy
from pursuitify.training.objectives import TrainingObjective
from tests.support.toy import model, network, rows

QUIET: dict[str, Any] = {"progress": False, "batch_size": 8}


def parts_of(config: Config, attacked: Tensor | None) -> tuple[Any, Any]:
    # Evaluation mode: in training the norms' power iterations move on from pass to pass.
    net = pursuitify(model().double(), iterations=2).eval()
    x, y = rows(8)
    with torch.no_grad():
        found = TrainingObjective(net, config)(x.double(), y, attacked, True, 0)
    return net, found


def test_standard() -> None:
    x, y = rows(8)
    net, found = parts_of(Config(label_smoothing=0.2), None)
    log = F.log_softmax(net(x.double()), 1)
    wanted = 0.8 * -log[torch.arange(8), y].mean() + 0.2 * -log.mean()
    assert found["loss"].item() == pytest.approx(wanted.item(), rel=1e-12)
    latents = net.latents(x.double())
    objective = net.objective(x.double(), latents).mean().item()
    assert found["objective"].item() == pytest.approx(objective, rel=1e-12)
    assert int(found["correct"]) == int((log.argmax(1) == y).sum())


def test_pgd_trains_on_the_attacked_inputs() -> None:
    y = rows(8)[1]
    moved = rows(8, seed=7)[0].double()
    net, found = parts_of(Config(objective="pgd"), moved)
    assert found["loss"].item() == pytest.approx(F.cross_entropy(net(moved), y).item(), rel=1e-12)


def test_trades() -> None:
    x, y = rows(8)
    moved = rows(8, seed=7)[0].double()
    net, found = parts_of(Config(objective="trades", trades_weight=3.0), moved)
    clean, other = net(x.double()), net(moved)
    kl = F.kl_div(F.log_softmax(other, 1), F.softmax(clean, 1), reduction="batchmean")
    wanted = F.cross_entropy(clean, y) + 3.0 * kl
    assert found["loss"].item() == pytest.approx(wanted.item(), rel=1e-12)


@pytest.mark.parametrize("objective", ["pgd", "trades"])
def test_the_attack_raises_what_it_should(objective: str) -> None:
    net = network(1).train()
    x, y = rows(8)
    config = Config(objective=objective, eps=0.1, attack_steps=3)
    moved = attack(net, x, y, config, seed=3)
    assert moved is not None
    assert net.training
    assert float((moved - x).abs().max()) <= 0.1 + 1e-6
    assert 0 <= float(moved.min()) <= float(moved.max()) <= 1
    assert torch.equal(moved, attack(net, x, y, config, seed=3))
    net.eval()
    with torch.no_grad():
        before, after = net(x), net(moved)
        if objective == "pgd":
            assert F.cross_entropy(after, y) > F.cross_entropy(before, y)
        else:
            noise = (x + 0.1 * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
            kl = [
                F.kl_div(F.log_softmax(v, 1), F.softmax(before, 1), reduction="batchmean")
                for v in (after, net(noise))
            ]
            assert kl[0] > kl[1]
    assert attack(net, x, y, Config(), seed=3) is None
    assert attack(net, x, y, Config(objective=objective, eps=0.0), seed=3) is x


def test_inputs_outside_the_unit_range_are_refused() -> None:
    x, y = rows()
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        finetune(network(1), (x * 3, y), (x, y), objective="pgd", attack_steps=1, **QUIET)


def test_noise_is_what_is_asked_for_and_repeats() -> None:
    x, y = torch.full((200, 1, 6, 6), 0.5), torch.zeros(200, dtype=torch.long)
    config = Config(noise=0.1)
    moved = noisy(x, config, seed=3)
    assert float((moved - x).std()) == pytest.approx(0.1, rel=0.05)
    assert torch.equal(moved, noisy(x, config, seed=3))
    assert not torch.equal(moved, noisy(x, config, seed=4))
    wide = noisy(x, Config(noise=5.0), seed=3)
    assert (float(wide.min()), float(wide.max())) == (0.0, 1.0)
    assert noisy(x, Config(), seed=3) is x
    with pytest.raises(InputError, match="must be bfloat16 or float16 or float32"):
        noisy(x.to(torch.uint8), config, seed=3)
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        finetune(network(1), (x * 3, y), (x, y), noise=0.1, **QUIET)


def test_noise_reaches_the_training() -> None:
    def loss(**options: Any) -> float:
        net = pursuitify(model(False), iterations=1)
        result = finetune(net, rows(), rows(), epochs=1, keep="last", **options, **QUIET)
        return float(result.history[-1]["loss"])

    assert loss() == loss() != loss(noise=0.3) == loss(noise=0.3)


def test_recipes() -> None:
    assert recipe().objective == "pgd"
    assert recipe("noise", epochs=2) == Config(noise=0.1, epochs=2)
    assert recipe("noise", noise=0.2).noise == 0.2, "options go before the recipe's"
    for name in RECIPES:
        assert recipe(name) != Config()
    with pytest.raises(OptionError, match="recipe='magic' is not one of 'adversarial'"):
        recipe("magic")
    with pytest.raises(OptionError, match="'nose'"):
        recipe("noise", nose=1)
    with pytest.raises(OptionError, match="takes back what the recipe 'adversarial' is"):
        recipe(objective="standard")


def test_penalties_do_what_they_say() -> None:
    def after(**options: Any) -> tuple[float, float]:
        net = pursuitify(model(False), iterations=2)
        result = finetune(net, rows(), rows(), epochs=3, lr=0.02, keep="last", log_every=1,
                          **options, **QUIET)  # fmt: skip
        potential = coherence(net, (1, 6, 6)).frame_potential
        return result.history[-1].get("reconstruction", float("nan")), potential

    _, plain = after()
    assert after(frame_potential=30.0)[1] < plain
    weak, strong = after(reconstruction=1e-6)[0], after(reconstruction=3.0)[0]
    assert strong < weak


def test_accumulation_is_one_larger_batch() -> None:
    from accelerate import Accelerator

    options = {"epochs": 1, "lr": 0.05, "optimizer": "sgd", "keep": "last", "progress": False}
    x, y = rows(32)
    whole, parts = (pursuitify(model(False), iterations=1) for _ in range(2))
    eights = list(zip(x.split(8), y.split(8), strict=True))
    fours = list(zip(x.split(4), y.split(4), strict=True))
    finetune(whole, eights, (x, y), **options)
    own = Accelerator(gradient_accumulation_steps=2)
    result = finetune(parts, fours, (x, y), accelerator=own, **options)
    assert result.history[0]["step"] == 4
    for (name, one), two in zip(
        whole.state_dict().items(), parts.state_dict().values(), strict=True
    ):
        assert torch.allclose(one, two, atol=1e-6), name


def test_bfloat16() -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    try:
        own = Accelerator(mixed_precision="bf16", cpu=True)
        net = network(2)
        result = finetune(net, rows(96), rows(48, 1), epochs=4, lr=2e-2, accelerator=own, **QUIET)
        assert result.history[-1]["loss"] < result.history[0]["loss"]
        assert all(p.dtype == torch.float32 for p in net.parameters())
    finally:
        AcceleratorState._reset_state(True)
        GradientState._reset_state()
