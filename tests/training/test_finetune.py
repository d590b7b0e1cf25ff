"""Fine-tuning: against loops written out by hand, and what every option does."""

from __future__ import annotations

import functools
import math
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

pytest.importorskip("accelerate")

from pursuitify import OptionError, estimate_memory, load, pursuitify
from pursuitify.errors import CheckpointError, MemoryLimitError, MissingExtraError, TrainingError
from pursuitify.memory import MemoryWarning
from pursuitify.models import ChainNet, ResidualNet
from pursuitify.training import (
    Config,
    Result,
    Score,
    adversarial_inputs,
    evaluate,
    finetune,
    loop,
    reconstruction,
)
from pursuitify.training.optimizer import LearningRateSchedule
from tests.support.toy import model, network, rows

#: The module, which the function of its name hides.
step_plan_module = sys.modules["pursuitify.training.step_plan"]

QUIET = {"progress": False, "batch_size": 8}


def by_hand(net: nn.Module, batches: Any, rates: list[float]) -> list[float]:
    """Train with AdamW, clipping at 1, decay 0.01 on kernels and matrices; return the losses."""
    norms = {p for m in net.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}
    decayed = [p for p in net.parameters() if p not in norms and p.dim() > 1]
    others = [p for p in net.parameters() if p in norms or p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    )
    net.train()
    losses = []
    for (x, y), rate in zip(batches, rates, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return a list that the loss of every batch is added to."""
    seen: list[float] = []
    inner = loop._note

    def note(run: Any, parts: dict[str, Tensor], *counts: int) -> None:
        seen.append(parts["loss"].item())
        inner(run, parts, *counts)

    monkeypatch.setattr(loop, "_note", note)
    return seen


def cosine(steps: int, lr: float) -> list[float]:
    return [lr * (1 + math.cos(math.pi * i / steps)) / 2 for i in range(steps)]


@pytest.mark.parametrize("how", ["no sweeps", "step scale 0", "feedforward", "plain"])
def test_without_sweeps_it_is_training_the_source_step_for_step(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = rows()
    batches = list(zip(x.split(8), y.split(8), strict=True))
    source = model()
    net: nn.Module = model()
    if how != "plain":
        solver = "feedforward" if how == "feedforward" else "global"
        net = pursuitify(net, iterations=0 if how == "no sweeps" else 3, solver=solver)
        net.step_scale = 0.0 if how == "step scale 0" else 1.0
    losses = by_hand(source, batches, cosine(6, 1e-2))
    seen = recorded(monkeypatch)
    result = finetune(
        net, batches, (x, y), epochs=1, lr=1e-2, warmup=0.0, keep="last", log_every=2, **QUIET
    )
    assert seen == pytest.approx(losses, rel=0, abs=1e-5)
    assert result.history[0]["loss"] == pytest.approx(sum(losses) / 6, abs=1e-6)
    trained = net.state_dict()
    for name, value in source.state_dict().items():
        assert torch.allclose(trained[name], value, rtol=0, atol=1e-5), name


def test_what_sweeps_change_is_learnt(tmp_path: Path) -> None:
    net = network()
    net.pursuit.alpha.requires_grad_()
    x, y = rows(96)
    before = evaluate(net, (x, y))
    result = finetune(net, (x, y), rows(48, 1), epochs=6, lr=2e-2, output=tmp_path, **QUIET)
    after = evaluate(net, (x, y))
    assert after.loss < 0.5 * before.loss
    assert after.accuracy > 0.9
    assert float((net.pursuit.beta.detach() - 1).abs().max()) > 1e-3
    assert float(net.pursuit.alpha.detach().abs().max()) > 1e-3
    assert [e["epoch"] for e in result.history] == list(range(1, 7))
    assert result.best in result.history
    assert result.best["val_accuracy"] == max(e["val_accuracy"] for e in result.history)
    assert evaluate(net, rows(48, 1)).accuracy == pytest.approx(result.best["val_accuracy"])
    lines = (tmp_path / "log.csv").read_text().splitlines()
    assert lines[0].startswith("epoch,step,lr")
    assert len(lines) == 7


def test_modes_settings_and_random_state_are_as_before() -> None:
    net = network(iterations=3).eval()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    net.step_scale = 0.8
    finetune(net, rows(), rows(), epochs=1, first_sweeps=1, step_ramp=1.0, **QUIET)
    assert not net.training
    assert (net.iterations, net.step_scale) == (3, 0.8)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_network_follows_its_schedules(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, float]] = []
    inner = adversarial_inputs.attack

    def attack(net: Any, *args: Any) -> Any:
        seen.append((net.iterations, net.step_scale))
        return inner(net, *args)

    monkeypatch.setattr(loop, "attack", attack)
    net = network(iterations=4)
    finetune(net, rows(), rows(), epochs=1, first_sweeps=1, step_ramp=0.5, **QUIET)
    assert [t for t, _ in seen] == [1, 2, 3, 4, 4, 4]
    assert [scale for _, scale in seen] == pytest.approx([0, 1 / 3, 2 / 3, 1, 1, 1])


def test_every_way_to_give_samples_is_the_same() -> None:
    x, y = rows(20)
    ways = {
        "tensors": (x, y),
        "dataset": TensorDataset(x, y),
        "pairs": list(zip(x, y, strict=True)),
        "pairs with numbers": [(image, int(label)) for image, label in zip(x, y, strict=True)],
    }
    histories = {}
    for name, way in ways.items():
        net = network(iterations=1)
        histories[name] = finetune(net, way, (x, y), epochs=2, **QUIET).history
    for name, history in histories.items():
        assert history == histories["tensors"], name
    assert histories["tensors"][-1]["step"] == 4, "20 rows in batches of 8 are 2 batches a pass"


def test_a_loader_is_read_as_it_is_and_repeats() -> None:
    x, y = rows(20)
    histories = []
    for workers in (0, 0, 1):
        loader = DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True, num_workers=workers)
        torch.manual_seed(workers)  # the run's own seed decides, not what was drawn before
        histories.append(finetune(network(1), loader, (x, y), epochs=2, **QUIET).history)
    assert histories[0] == histories[1] == histories[2]
    assert histories[0][-1]["step"] == 6, "the loader has 3 batches a pass, the last of 4 rows"


def test_augmentation_repeats() -> None:
    def noisy(image: Tensor) -> Tensor:
        return (image + 0.1 * torch.rand(())).clamp(0, 1)

    runs = [
        finetune(network(1), rows(), rows(), epochs=1, augment=noisy, workers=w, **QUIET).history
        for w in (0, 2)
    ]
    plain = finetune(network(1), rows(), rows(), epochs=1, **QUIET).history
    assert runs[0] == runs[1]
    assert runs[0] != plain


def test_early_stop_and_keep() -> None:
    net = network(1)
    options = {"epochs": 9, "patience": 2, "lr": 1e-12, **QUIET}
    result = finetune(net, rows(), rows(), **options)
    assert len(result.history) < 9
    assert result.stopped_early
    assert len(result.history) == result.best["epoch"] + 2
    last = network(1)
    final = finetune(last, rows(), rows(16, 2), epochs=3, lr=0.05, keep="last", **QUIET)
    assert not final.stopped_early
    found = evaluate(last, rows(16, 2))
    assert found.loss == pytest.approx(final.history[-1]["val_loss"], rel=1e-5)


def test_ema_is_the_average_of_the_weights() -> None:
    weights: list[Tensor] = []
    net = network(1)
    inner = torch.optim.AdamW.step

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        done = inner(self, *args, **kwargs)
        weights.append(net.classifier.weight.detach().clone())
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step)
        finetune(net, rows(), rows(), epochs=1, lr=0.05, ema=0.7, keep="last", **QUIET)
    average = weights[0]
    for value in weights[1:]:
        average = 0.7 * average + 0.3 * value
    assert len(weights) == 6
    assert torch.allclose(net.classifier.weight, average, atol=1e-6)


def test_rates_decay_and_groups() -> None:
    net = network(1)
    still = {k: v.clone() for k, v in net.named_parameters()}
    finetune(
        net, rows(), rows(), epochs=1, lr=1e-3, pursuit_lr=0.0, weight_decay=0.5, keep="last",
        optimizer="sgd", clip=1e-30, **QUIET,
    )  # fmt: skip
    for name, value in net.named_parameters():
        shrunk = value.dim() > 1 and not name.startswith("pursuit.")
        factor = float((value.detach() / still[name]).flatten()[0]) if shrunk else 1.0
        assert torch.allclose(value, factor * still[name], rtol=1e-4, atol=1e-12), name
        assert (factor < 1) == shrunk, name


def test_schedules() -> None:
    config = Config(warmup=0.2, final_lr=0.1, first_sweeps=1, sweeps_ramp=0.5, step_ramp=0.25)
    schedule = LearningRateSchedule(config, steps=20, sweeps=9, scale=0.8)
    rates = [schedule.rate(i) for i in range(21)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[12] == pytest.approx(0.55)
    assert rates[20] == pytest.approx(0.1)
    assert [schedule.iterations(i) for i in (0, 5, 10, 19)] == [1, 5, 9, 9]
    assert [schedule.step_scale(i) for i in (0, 1, 5, 19)] == pytest.approx([0, 0.16, 0.8, 0.8])


def test_configuration_lists_every_problem() -> None:
    with pytest.raises(OptionError) as caught:
        Config(epochs=0, lr=-1.0, optimizer="lion", ema=1.0, label_smoothing=True, progress=1)  # type: ignore[arg-type]
    text = str(caught.value)
    for name in ("epochs=0", "lr=-1.0", "'lion'", "ema=1.0", "label_smoothing=True", "progress=1"):
        assert name in text
    with pytest.raises(OptionError, match="did you mean 'epochs'"):
        finetune(network(), rows(), rows(), epoch=3)


def test_refusals() -> None:
    with pytest.raises(OptionError, match=r"reconstruction apply to a PursuitNetwork"):
        finetune(model(), rows(), rows(), reconstruction=1.0)
    with pytest.raises(OptionError, match="read only once"):
        finetune(network(), iter([rows()]), rows(), **QUIET)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="val is a int"):
        finetune(network(), rows(), 3, **QUIET)
    with pytest.raises(OptionError, match="single samples"):
        finetune(network(), [rows()], rows(), augment=lambda x: x, **QUIET)
    with pytest.raises(OptionError, match="ended after 1"):
        finetune(network(), Short(), rows(), **QUIET)
    with pytest.raises(OptionError, match="needs the output folder"):
        finetune(network(), rows(), rows(), resume=True)
    with pytest.raises(TrainingError, match="not finite"):
        finetune(network(), rows(), rows(), lr=1e30, clip=None, epochs=5, **QUIET)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"eps": 0.1, "attack_steps": 3}, ("eps=0.1 needs objective='pgd' or", "attack_steps=3")),
        ({"objective": "pgd", "trades_weight": 1.0}, ("trades_weight=1.0 needs objective='trad",)),
        ({"sweeps_ramp": 0.2}, ("sweeps_ramp=0.2 needs first_sweeps",)),
    ],
)
def test_options_that_nothing_would_read_are_refused(
    options: dict[str, Any], words: tuple[str, ...]
) -> None:
    net = network()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(OptionError, match="no effect") as caught:
        finetune(net, rows(), rows(), Config(**options))
    assert all(word in str(caught.value) for word in words)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_options_may_wait_for_the_objective_that_reads_them() -> None:
    prepared = Config(eps=0.1, attack_steps=1, trades_weight=2.0)
    prepared.with_options({"objective": "trades"}).check_read()
    Config().check_read()


class Short:
    """Says it has two batches and has one."""

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Any:
        return iter([rows(8)])


def test_missing_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingExtraError, match="pursuitify\\[train\\]"):
        finetune(network(), rows(), rows())


def test_trackers_of_an_own_accelerator_get_the_log() -> None:
    from accelerate import Accelerator
    from accelerate.tracking import GeneralTracker

    seen: list[dict[str, Any]] = []

    class Tracker(GeneralTracker):  # type: ignore[misc]
        name, requires_logging_directory = "mine", False

        @property
        def tracker(self) -> Any:
            return self

        def store_init_configuration(self, values: dict[str, Any]) -> None:
            pass

        def log(self, values: dict[str, Any], step: int | None, **_: Any) -> None:
            seen.append({"step": step, **values})

    own = Accelerator(log_with=Tracker())
    finetune(network(1), rows(), rows(), epochs=2, accelerator=own, **QUIET)
    assert [entry["step"] for entry in seen] == [6, 12]
    assert {"loss", "val_accuracy", "objective", "mean_beta"} <= seen[0].keys()


def test_reconstruction_against_the_dense_dictionary() -> None:
    net = pursuitify(model().double(), iterations=2).eval()
    x = rows(1)[0].double()
    _, latents, dictionary = net.infer(x)
    found = reconstruction(dictionary, latents)
    total = []
    for row in dictionary.rows:
        own = {k: v if k == row.name else torch.zeros_like(v) for k, v in latents.items()}
        others = {k: v if k != row.name else torch.zeros_like(v) for k, v in latents.items()}
        mine = dictionary.apply(own)[row.name]
        u = dictionary.signal[row.name] - dictionary.apply(others)[row.name]
        total.append(float((mine - u).square().sum() / u.square().sum()))
    assert float(found) == pytest.approx(sum(total) / len(total), rel=1e-10)


def free(monkeypatch: pytest.MonkeyPatch, amount: int) -> None:
    """Let the machine have so many bytes free, of which a step may take 90 %."""
    monkeypatch.setattr(step_plan_module, "free_memory", lambda device: amount)


def needed(net: nn.Module, count: int, **options: Any) -> int:
    """Return the bytes that a step with AdamW is counted to need, with ``count`` samples."""
    found = estimate_memory(net, (1, 6, 6), batch=count, **options)
    return found.resident + 2 * found.gradients


MICRO = {"epochs": 2, "lr": 0.05, "optimizer": "sgd", "keep": "last", "workers": 0, **QUIET}


MORE: dict[str, dict[str, Any]] = {
    "label_smoothing": {"label_smoothing": 0.1},
    "reconstruction": {"reconstruction": 0.5, "frame_potential": 0.1},
    "noise": {"noise": 0.1, "clip": 0.1, "ema": 0.5},
    "objective": {"objective": "trades", "attack_steps": 1, "eps": 0.0},
}


@functools.cache
def in_parts(parts: int, more: str) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Train with so many micro-batches; return the last epoch of the log and the weights."""
    x, y = rows(24)
    x = x.double()
    y[[0, 3, 4, 5, 17]] = -100  # parts have different numbers of labels, some none
    net = pursuitify(model(False).double(), iterations=1)
    run = finetune(net, (x, y), (x, y), micro_batches=parts, **MICRO, **MORE[more])
    return run.history[-1], net.state_dict()


@pytest.mark.parametrize("more", MORE)
@pytest.mark.parametrize("parts", [2, 3, pytest.param(8, marks=pytest.mark.slow), 50])
def test_micro_batches_give_what_whole_batches_give(parts: int, more: str) -> None:
    (whole, ones), (cut, others) = in_parts(1, more), in_parts(parts, more)
    for name in whole.keys() - {"reconstruction"}:
        assert cut[name] == pytest.approx(whole[name], rel=1e-5), name
    for name, value in ones.items():
        assert torch.allclose(value, others[name], atol=1e-9, rtol=1e-9), name


def test_micro_batches_take_batch_statistics_of_their_own() -> None:
    nets = [pursuitify(model(True), iterations=1) for _ in range(2)]
    for net, count in zip(nets, (1, 2), strict=True):
        finetune(net, rows(24), rows(24), micro_batches=count, **MICRO)
    counts = [
        next(v for k, v in net.state_dict().items() if k.endswith("num_batches_tracked"))
        for net in nets
    ]
    assert counts[1] == 2 * counts[0]


def test_a_step_that_does_not_fit_recomputes_sweeps(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    net = network(iterations=8)
    store, recompute = (needed(net, 8, memory=mode) for mode in ("store", "recompute"))
    assert recompute < 0.8 * store
    free(monkeypatch, int((store + recompute) / 2 / 0.9))
    seen: list[str] = []
    inner = loop._note

    def note(run: Any, *rest: Any) -> None:
        seen.append(run.net.memory)
        inner(run, *rest)

    monkeypatch.setattr(loop, "_note", note)
    with pytest.warns(MemoryWarning, match="run with memory='recompute', recompute_levels=1"):
        result = finetune(net, rows(), rows(), epochs=1, output=tmp_path, **QUIET)
    assert set(seen) == {"recompute"}
    assert (net.memory, net.recompute_levels) == ("store", 1)
    assert result.best_path is not None
    assert load(result.best_path, model()).memory == "store"
    # Resumed with all the memory in the world, it goes on as it began.
    free(monkeypatch, 2**60)
    seen.clear()
    with pytest.raises(CheckpointError, match="epochs"):
        finetune(net, rows(), rows(), epochs=2, output=tmp_path, resume=True, **QUIET)
    finetune(net, rows(), rows(), epochs=1, output=tmp_path, resume=True, **QUIET)
    assert seen == []


def test_a_resumed_run_goes_on_with_its_plan(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def stop(run: Any, group: Any) -> Any:
        seen.append((run.plan.options, run.plan.parts))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return inner(run, group)

    seen: list[Any] = []
    inner = loop._step
    monkeypatch.setattr(loop, "_step", stop)
    net = network(iterations=8)
    options = {"epochs": 2, "output": tmp_path, "save_every": 1, **QUIET}
    free(monkeypatch, int((needed(net, 8) + needed(net, 8, memory="recompute")) / 2 / 0.9))
    with pytest.warns(MemoryWarning), pytest.raises(KeyboardInterrupt):
        finetune(net, rows(), rows(), **options)
    assert net.memory == "store"
    free(monkeypatch, 2**60)
    again = network(iterations=8)
    finetune(again, rows(), rows(), resume=True, **options)
    assert len(seen) > 3
    assert {(options["memory"], parts) for options, parts in seen} == {("recompute", 1)}
    assert again.memory == "store"


@pytest.mark.parametrize("batch_norm", [True, False])
def test_a_step_that_does_not_fit_at_all_is_cut(
    batch_norm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = network(iterations=3, batch_norm=batch_norm)
    least = {"memory": "recompute", "recompute_levels": 2}
    found = estimate_memory(net, (1, 6, 6), batch=3, **least)
    free(monkeypatch, int((needed(net, 3, **least) + found.gradients) / 0.9) + 2000)
    with pytest.warns(MemoryWarning, match="micro_batches=3") as caught:
        finetune(net, rows(), rows(), epochs=1, **QUIET)
    assert ("BatchNorm takes its statistics" in str(caught[0].message)) == batch_norm


def test_a_step_that_cannot_fit_is_refused_before_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net, plain = network(iterations=2), model()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    monkeypatch.setattr(loop, "_step", None)
    free(monkeypatch, 1000)
    for module in (net, plain):
        with pytest.raises(MemoryLimitError, match=r"micro_batches=4 \(2 samples at a time\)"):
            finetune(module, rows(), rows(), epochs=1, **QUIET)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("how", ["memory", "micro_batches", "network"])
def test_what_the_user_sets_is_obeyed(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = network(iterations=2)
    options: dict[str, Any] = {"memory": {"memory": "store"}, "micro_batches": {"micro_batches": 1}}
    if how == "network":
        net.memory = "recompute"
    free(monkeypatch, 1000)
    with pytest.warns(MemoryWarning, match="It is run all the same"):
        finetune(net, rows(), rows(), epochs=1, **options.get(how, {}), **QUIET)
    assert net.memory == ("recompute" if how == "network" else "store")
    free(monkeypatch, 2**60)
    with warnings.catch_warnings():
        warnings.simplefilter("error", MemoryWarning)
        finetune(net, rows(), rows(), epochs=1, **options.get(how, {}), **QUIET)


class OneProcess:
    num_processes = 1


@pytest.mark.parametrize(
    "more",
    [{}, {"objective": "pgd"}, {"objective": "trades", "reconstruction": 1.0}, {"first_sweeps": 2}],
    ids=str,
)
@pytest.mark.parametrize(("kind", "sweeps"), [(ChainNet, 0), (ResidualNet, 2)])
def test_the_rough_count_is_the_larger_one(kind: Any, more: dict[str, Any], sweeps: int) -> None:
    net = pursuitify(kind(3, 10), iterations=sweeps)
    needs = step_plan_module._StepNeeds(net, Config(**more), OneProcess(), torch.empty(4, 3, 8, 8))
    assert needs.at_most({}, 4) <= needs.roughly(4)


def test_a_small_step_is_counted_roughly_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    inner = step_plan_module._StepNeeds.at_most

    def at_most(self: Any, options: Any, rows: int) -> int:
        counted.append(rows)
        return inner(self, options, rows)

    monkeypatch.setattr(step_plan_module._StepNeeds, "at_most", at_most)
    net = network(iterations=2)
    probe = rows()[0][:8]
    rough = step_plan_module._StepNeeds(net, Config(), OneProcess(), probe).roughly(8)
    for size, calls in ((rough, []), (rough - 1, [8])):
        free(monkeypatch, math.ceil(size / 0.9))
        finetune(net, rows(), rows(), epochs=1, **QUIET)
        assert counted == calls


class ReadsValues(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = model()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * float(x.mean() > -1)


def test_where_nothing_can_be_counted_nothing_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 1000)
    with pytest.warns(MemoryWarning, match="nothing was chosen to save memory"):
        finetune(ReadsValues(), rows(), rows(), epochs=1, **QUIET)
    monkeypatch.setattr(step_plan_module, "free_memory", lambda device: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error", MemoryWarning)
        finetune(ReadsValues(), rows(), rows(), epochs=1, **QUIET)


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_the_picture_shows_the_history(epochs: int) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    entry = {"loss": 0.5, "accuracy": 0.6, "val_loss": 0.7, "val_accuracy": 0.4}
    history = [
        {"epoch": 1 + n, **{k: v / (1 + n) for k, v in entry.items()}} for n in range(epochs)
    ]
    outcome = Result(history, history[-1], False)
    for axes, key in zip(outcome.plot().axes, ("loss", "accuracy"), strict=True):
        training, validation, _ = axes.lines
        assert list(training.get_ydata()) == [found[key] for found in history]
        assert list(validation.get_ydata()) == [found[f"val_{key}"] for found in history]
        assert all(tick == round(tick) for tick in axes.get_xticks())
    figure = Figure()
    assert outcome.plot(ax=figure.subplots()) is figure
    (only,) = figure.axes
    assert list(only.lines[0].get_ydata()) == [found["accuracy"] for found in history]


def test_a_result_is_shown_as_a_table() -> None:
    first = {"epoch": 1, "loss": 0.5, "accuracy": 0.6, "val_loss": 0.7, "val_accuracy": 0.4}
    second = {**first, "epoch": 2, "val_accuracy": 0.875, "iterations": 3, "objective": 2.5}
    text = f"{Result([first, second], second, True, Path('run/best.safetensors'))}"
    lines = text.splitlines()
    assert lines[0].strip() == "2 epochs, stopped early"
    (row,) = [line for line in lines if "87.50%" in line]
    assert row.split()[1] == "2"
    assert "best" in row
    assert "best weights: run/best.safetensors" in text
    assert "{" not in text
    plain = str(Result([first], first, False))
    assert "objective" not in plain
    assert plain.splitlines()[0].strip() == "1 epoch"
    assert f"{Score(0.5, 1.25, 8)}" == "accuracy 50.00%, loss 1.2500, 8 samples"
