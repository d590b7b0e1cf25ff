"""Data of every kind is used as a plain PyTorch loop uses it, or refused before the first step."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

pytest.importorskip("accelerate")

from pursuitify import InputError, OptionError, pursuitify
from pursuitify.errors import DataError, PursuitifyError, TrainingError
from pursuitify.models import ChainNet
from pursuitify.robust import audit, pgd
from pursuitify.training import evaluate, finetune, loop
from tests.support.toy import rows

CLASSES = 3
Pairs = list[tuple[Tensor, Tensor]]


def linear(classes: int = CLASSES) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, classes))


class Dicts(Dataset[Any]):
    """Samples with names."""

    def __init__(self, x: Tensor, y: Any) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Any:
        return {"image": self.x[i], "label": self.y[i]}


def picked(samples: list[dict[str, Any]]) -> Any:
    return default_collate([(s["image"], s["label"]) for s in samples])


class Stream(IterableDataset[Any]):
    """Samples in order, with a length."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __iter__(self) -> Iterator[Any]:
        return iter(list(zip(self.x, self.y, strict=True)))

    def __len__(self) -> int:
        return len(self.x)


class Endless(Stream):
    """The same without a length."""

    __len__ = None  # type: ignore[assignment]


class EveryThird:
    """A batch sampler of somebody's own."""

    def __init__(self, count: int, size: int) -> None:
        self.parts = [list(p) for p in torch.arange(0, count, 3).split(size)]

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)


LABELS = {
    "class numbers": lambda y: y,
    "int32": lambda y: y.int(),
    "bytes": lambda y: y.to(torch.uint8),
    "some ignored": lambda y: torch.where(torch.arange(len(y)) % 2 == 0, y, -100),
    "all ignored": lambda y: torch.full_like(y, -100),
    "probabilities": lambda y: F.one_hot(y, CLASSES).float() * 0.7 + 0.1,
    "fractions": lambda y: y + 0.7,
    "beyond the classes": lambda y: y + CLASSES,
    "negative": lambda y: -1 - y,
    "one-hot integers": lambda y: F.one_hot(y, CLASSES),
    "no probabilities": lambda y: F.one_hot(y, CLASSES).float() * 2,
}
GOOD = {"class numbers", "int32", "bytes", "some ignored", "all ignored", "probabilities"}


@st.composite
def sources(draw: st.DrawFn) -> tuple[Any, Any, bool, str]:
    """Return the same loader twice, whether it can be trained on, and what it is."""
    count, size = draw(st.integers(1, 20)), draw(st.integers(1, 7))
    kind = draw(st.sampled_from(sorted(LABELS)))
    inputs, numbers = rows(count)
    labels = LABELS[kind](numbers)
    what = draw(st.sampled_from(["tensors", "pairs", "dicts", "dicts picked", "stream", "endless"]))
    order = draw(
        st.sampled_from(
            ["in order", "shuffled", "replaced", "fewer", "subset", "weighted", "own batches"]
        )
    )
    drop, workers = draw(st.booleans()), draw(st.sampled_from([0] * 12 + [1, 2]))

    def make() -> DataLoader[Any]:
        made: dict[str, Any] = {
            "tensors": lambda: TensorDataset(inputs, labels),
            "pairs": lambda: list(zip(inputs, labels, strict=True)),
            "dicts": lambda: Dicts(inputs, labels),
            "dicts picked": lambda: Dicts(inputs, labels),
            "stream": lambda: Stream(inputs, labels),
            "endless": lambda: Endless(inputs, labels),
        }
        data = made[what]()
        own = torch.Generator().manual_seed(7)
        options: dict[str, Any] = {"num_workers": workers, "generator": own}
        options["collate_fn"] = picked if what == "dicts picked" else None
        if what in ("stream", "endless"):
            return DataLoader(data, size, drop_last=drop, **options)
        if order == "own batches":
            return DataLoader(data, batch_sampler=EveryThird(count, size), **options)  # type: ignore[arg-type]
        samplers: dict[str, Any] = {
            "in order": lambda: None,
            "shuffled": lambda: RandomSampler(data, generator=own),
            "replaced": lambda: RandomSampler(
                data, replacement=True, num_samples=count + 5, generator=own
            ),
            "fewer": lambda: RandomSampler(data, num_samples=max(count // 2, 1), generator=own),
            "subset": lambda: SubsetRandomSampler(range(0, count, 2), generator=own),
            "weighted": lambda: WeightedRandomSampler(
                [1.0 + i for i in range(count)], count, generator=own
            ),
        }
        return DataLoader(data, size, sampler=samplers[order](), drop_last=drop, **options)

    fits = kind in GOOD and what not in ("dicts", "endless")
    return make(), make(), fits, f"{what}, {order}, {kind}, {count} by {size}, {workers} workers"


def plain(loader: Any, epochs: int) -> Pairs:
    """Read a loader as a loop in torch's tutorials does."""
    return [(x, y) for _ in range(epochs) for x, y in loader]


def trained_on(net: nn.Module, data: Any, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Pairs:
    """Return the batches of all steps of a training that steps nowhere."""
    seen: Pairs = []
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_step", lambda run, group: seen.extend(group))
        finetune(net, data, rows(4), epochs=2, progress=False, **options)
    return seen


def same(one: Pairs, other: Pairs) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, c) and torch.equal(b.double(), d.double())
        for (a, b), (c, d) in zip(one, other, strict=True)
    )


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(drawn=sources())
def test_a_loader_is_what_a_plain_loop_reads_or_is_refused(
    drawn: tuple[Any, Any, bool, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loader, twin, fits, what = drawn
    net = linear()
    if not fits or not plain(copy.deepcopy(twin), 1):
        steps: list[Any] = []
        with monkeypatch.context() as patch:
            patch.setattr(loop, "_step", lambda *a: steps.append(a))
            with pytest.raises(PursuitifyError):
                finetune(net, loader, rows(4), epochs=2, progress=False)
        assert steps == [], what
        return
    assert same(trained_on(net, loader, monkeypatch), plain(twin, 2)), what


@pytest.mark.filterwarnings("ignore:Length of IterableDataset")
@settings(max_examples=80, deadline=None)
@given(drawn=sources())
def test_evaluation_is_that_of_a_plain_loop_or_refused(drawn: tuple[Any, Any, bool, str]) -> None:
    loader, twin, fits, what = drawn
    net = linear()
    fits = fits or ("endless" in what and any(f", {kind}," in what for kind in GOOD))
    read = plain(twin, 1) if fits else []
    kept = [(net(x), y) for x, y in read]
    kept = [(o, y) if y.is_floating_point() else (o[y != -100], y[y != -100]) for o, y in kept]
    if not any(len(y) for _, y in kept):
        with pytest.raises(PursuitifyError):
            evaluate(net, loader)
        return
    found = evaluate(net, loader)
    logits, labels = torch.cat([o for o, _ in kept]), torch.cat([y for _, y in kept])
    wanted = labels.argmax(1) if labels.is_floating_point() else labels
    labels = labels if labels.is_floating_point() else labels.long()
    assert found.count == len(logits), what
    assert found.accuracy == pytest.approx(float((logits.argmax(1) == wanted).float().mean()))
    assert found.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)


@pytest.mark.parametrize("kind", sorted(LABELS))
@pytest.mark.parametrize("place", [0, -1])
def test_labels_in_memory_are_checked_before_the_first_step(
    kind: str, place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = rows(40)
    odd = LABELS[kind](y)
    mixed = y.to(odd.dtype) if odd.dim() == 1 else LABELS["probabilities"](y).to(odd.dtype)
    if kind in ("beyond the classes", "negative"):  # one of forty
        mixed[place] = odd[place]
    else:
        mixed = odd
    for data in ((x, mixed), TensorDataset(x, mixed), list(zip(x, mixed, strict=True))):
        if kind in GOOD and kind != "all ignored":  # which leave nothing to learn from
            assert len(trained_on(linear(), data, monkeypatch, batch_size=4)) == 20
            continue
        steps: list[Any] = []
        with monkeypatch.context() as patch:
            patch.setattr(loop, "_step", lambda *a: steps.append(a))  # noqa: B023
            with pytest.raises(PursuitifyError):
                finetune(linear(), data, rows(4), epochs=1, batch_size=4, progress=False)
        assert steps == []
        with pytest.raises(PursuitifyError):
            evaluate(linear(), data)


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        (lambda x, y: (x, y, 0), "is a tuple of 3, not a pair"),
        (lambda x, y: {"image": x, "label": y}, "is a dict with 'image', 'label', not a pair"),
        (lambda x, y: None, "is a NoneType, not a pair"),
        (lambda x, y: x, "is a Tensor, not a pair"),
        (lambda x, y: (x, "cat"), "must hold tensors"),
        (lambda x, y: (x[:, : 3 + y % 2], y), "cannot be put into one batch"),
        (lambda x, y: ("a.png", y), "must hold tensors"),
    ],
)
def test_samples_that_are_no_pairs(sample: Any, words: str) -> None:
    x, y = rows(8)

    class Odd(Dicts):
        def __getitem__(self, i: int) -> Any:
            return sample(self.x[i], int(self.y[i]))

    with pytest.raises(OptionError, match=words):
        finetune(linear(), Odd(x, y), (x, y), epochs=1, progress=False)
    with pytest.raises(OptionError, match=words):
        finetune(linear(), (x, y), Odd(x, y), epochs=1, progress=False)
    with pytest.raises(OptionError, match=words):
        evaluate(linear(), Odd(x, y))


def test_the_advice_on_dicts_works() -> None:
    x, y = rows(8)
    found = evaluate(linear(), DataLoader(Dicts(x, y), 4, collate_fn=picked))
    assert found == evaluate(linear(), (x, y), batch_size=4)


def test_a_data_set_without_a_length() -> None:
    x, y = rows(8)
    with pytest.raises(OptionError, match="train is a Endless without a length"):
        finetune(linear(), Endless(x, y), (x, y), epochs=1, progress=False)
    assert evaluate(linear(), Endless(x, y)) == evaluate(linear(), (x, y))

    class Unsized(Dicts):
        __len__ = None  # type: ignore[assignment]

    with pytest.raises(OptionError, match="Unsized without a length"):
        finetune(linear(), Unsized(x, y), (x, y), epochs=1, progress=False)


def test_a_stream_of_samples_is_read_in_order_by_its_length(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, y = rows(20)
    seen = trained_on(linear(), Stream(x, y), monkeypatch, batch_size=8)
    assert same(seen, plain(DataLoader(Stream(x, y), 8, drop_last=True), 2))


@pytest.mark.filterwarnings("ignore:Length of IterableDataset")
def test_workers_of_a_stream_may_yield_more_than_its_length(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, y = rows(5)
    seen = trained_on(linear(), DataLoader(Stream(x, y), 4, num_workers=2), monkeypatch)
    assert [len(y) for _, y in seen] == [4, 4, 1, 1] * 2, "each worker reads all, as torch has it"


def test_iterables_that_do_not_keep_to_their_length() -> None:
    class Long(list[Any]):
        def __len__(self) -> int:
            return 2

    with pytest.raises(OptionError, match="says it has 2 batches but goes on"):
        finetune(linear(), Long([rows(4)] * 3), rows(4), epochs=1, progress=False)


def test_shares_that_are_dealt_out_twice() -> None:
    data = TensorDataset(*rows(8))
    dealt: DistributedSampler[Any] = DistributedSampler(data, num_replicas=2, rank=0)
    with pytest.raises(OptionError, match="give the loader without it"):
        finetune(linear(), DataLoader(data, 4, sampler=dealt), rows(4), epochs=1, progress=False)


def test_augmentation_of_a_loader_is_of_single_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = DataLoader(TensorDataset(*rows(10)), 4, sampler=SequentialSampler(range(10)))

    def twice(image: Tensor) -> Tensor:
        assert image.shape == (1, 6, 6)
        return image * 0.5

    seen = trained_on(linear(), loader, monkeypatch, augment=twice)
    assert same(seen, [(x * 0.5, y) for x, y in plain(loader, 2)])
    noisy = [
        trained_on(linear(), loader, monkeypatch, augment=lambda z: z + torch.rand(()))
        for _ in range(2)
    ]
    assert same(*noisy)
    assert not torch.equal(noisy[0][0][0], noisy[0][3][0]), "the epochs draw anew"


def test_options_that_a_loader_makes_void_are_refused() -> None:
    loader = DataLoader(TensorDataset(*rows(8)), 4)
    with pytest.raises(OptionError, match=r"batch_size=3 and workers=1 would have no effect"):
        finetune(linear(), loader, loader, epochs=1, batch_size=3, workers=1, progress=False)
    finetune(linear(), loader, loader, epochs=1, batch_size=4, progress=False)
    finetune(linear(), loader, rows(8), epochs=1, batch_size=3, progress=False)
    with pytest.raises(OptionError, match="batch_size=4 would have no effect: data is a DataL"):
        evaluate(linear(), loader, batch_size=4)
    with pytest.raises(OptionError, match="workers=1 would have no effect: data is a list"):
        evaluate(linear(), [rows(4)], workers=1)


@pytest.mark.parametrize("how", ["tensors", "batches", "samples", "loader"])
def test_tensors_made_in_inference_mode(how: str) -> None:
    with torch.inference_mode():
        x, y = (part.clone() for part in rows(8))
    data = {
        "tensors": (x, y),
        "batches": [(x, y)],
        "samples": list(zip(x, y, strict=True)),
        "loader": DataLoader(TensorDataset(x, y), 4),
    }[how]
    given = {} if how in ("batches", "loader") else {"batch_size": 4}
    assert finetune(linear(), data, data, epochs=1, progress=False, **given).history


@pytest.mark.parametrize(
    ("augment", "words"),
    [
        (lambda x: (x, 1), "augment returned a (tuple|list) for a sample|must hold tensors"),
        (lambda x: None, "cannot be put"),
        (lambda x: x[:, : 4 + int(torch.randint(3, ()))], "cannot be put"),
        (lambda x: {"a": x}, "augment returned a dict|must hold tensors"),
    ],
)
@pytest.mark.parametrize("loaded", [False, True])
def test_an_augmentation_that_returns_something_else(
    augment: Any, words: str, loaded: bool
) -> None:
    torch.manual_seed(0)
    data = DataLoader(TensorDataset(*rows(32)), 16) if loaded else rows(32)
    with pytest.raises(OptionError, match=words):
        finetune(linear(), data, rows(4), epochs=1, batch_size=16, augment=augment, progress=False)


def test_arguments_of_the_wrong_kind() -> None:
    config: Any = {"epochs": 1}
    with pytest.raises(OptionError, match="config is a dict, not a Config"):
        finetune(linear(), rows(8), rows(8), config)
    for output in (5, True, "", b"run"):
        with pytest.raises(OptionError, match="is not the path of a file or a folder"):
            finetune(linear(), rows(8), rows(8), output=output)  # type: ignore[arg-type]


def test_one_logit_is_refused() -> None:
    with pytest.raises(OptionError, match="one logit per sample"):
        evaluate(linear(1), rows(8, classes=1))
    with pytest.raises(OptionError, match="one logit per sample"):
        finetune(linear(1), rows(8, classes=1), rows(8, classes=1), epochs=1, progress=False)


@pytest.mark.parametrize("objective", ["pgd", "trades"])
def test_adversarial_training_passes_over_what_has_no_label(objective: str) -> None:
    x, y = rows(16)
    options: Any = {"objective": objective, "eps": 0.1, "attack_steps": 1, "progress": False}
    mixed = torch.where(torch.arange(16) % 3 == 0, -100, y)
    assert finetune(linear(), (x, mixed), (x, y), epochs=1, **options).history[0]["loss"] > 0
    with pytest.raises(InputError, match="probabilities, and class numbers are needed"):
        finetune(linear(), (x, LABELS["probabilities"](y)), (x, y), epochs=1, **options)


def test_data_without_a_label_is_refused_where_nothing_else_is_learned() -> None:
    x, y = rows(16)
    none = torch.full_like(y, -100)
    options: Any = {"epochs": 2, "batch_size": 4, "progress": False}
    net = linear()
    before = [p.clone() for p in net.parameters()]
    with pytest.raises(InputError, match=r"no sample of train has a label.*reconstruction=1"):
        finetune(net, (x, none), (x, y), **options)
    with pytest.raises(InputError, match="no sample of val has a label"):
        finetune(net, (x, y), (x, none), **options)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    stream = DataLoader(Stream(x, none), 4)  # its labels are known once it is read
    with pytest.raises(TrainingError, match=r"nothing was learned in epoch 1.*reconstruction=1"):
        finetune(net, stream, (x, y), epochs=2, progress=False)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_what_has_no_label_is_learned_from_by_reconstruction(parts: int, share: float) -> None:
    torch.manual_seed(0)
    x, y = torch.rand(12, 1, 8, 8), torch.randint(0, 3, (12,))
    some = torch.where(torch.arange(12) < share * 12, y, -100)
    net = pursuitify(ChainNet(1, 3, width=2).eval(), iterations=1)
    options: Any = {"epochs": 1, "batch_size": 6, "reconstruction": 1.0, "micro_batches": parts}
    before = [p.clone() for p in net.parameters()]
    found = finetune(net, (x, some), (x, y), progress=False, keep="last", **options).history[0]
    assert found["reconstruction"] > 0
    assert found["loss"] >= found["reconstruction"] * 0.9  # of all samples, in every batch
    assert ("accuracy" in found) == (share > 0)
    assert not all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "use",
    [
        lambda net, x, y: evaluate(net, (x, y)),
        lambda net, x, y: finetune(net, (x, y), (x, y), epochs=1, progress=False),
        lambda net, x, y: pgd(net, x, y, eps=0.1),
        lambda net, x, y: audit(net, (x, y), eps=0.1, progress=False),
    ],
    ids=["evaluate", "finetune", "pgd", "audit"],
)
def test_inputs_of_another_type_than_the_network_are_said(use: Any, dtype: torch.dtype) -> None:
    x, y = rows(8)
    net = linear().to(dtype)
    with pytest.raises(InputError, match=r"are torch\.float32 and the network's weights") as said:
        use(net, x, y)
    advice = str(said.value).rpartition("for instance ")[2]
    assert advice == "net.to(torch.float32)"
    use(net.to(torch.float32), x, y)

    class Casting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = linear().to(dtype)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.to(dtype)).float()

    use(Casting(), x, y)  # it casts by itself


def test_what_is_counted_is_what_has_a_label() -> None:
    x, y = rows(16)
    mixed = torch.where(torch.arange(16) % 4 == 0, y, -100)
    options: Any = {"epochs": 1, "batch_size": 16, "lr": 1e-9, "progress": False}
    found = finetune(linear(), (x, mixed), (x, mixed), **options).history[0]
    logits = linear()(x[::4])
    right = float((logits.argmax(1) == y[::4]).float().mean())
    assert found["accuracy"] == found["val_accuracy"] == pytest.approx(right)
    wanted = F.cross_entropy(logits, y[::4]).item()
    assert found["loss"] == pytest.approx(wanted, rel=1e-5)
    assert found["val_loss"] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(("count", "group"), [(2, 4), (5, 2), (3, 3), (7, 4)])
def test_a_step_is_the_mean_of_its_own_batches(count: int, group: int) -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState

    batches = [rows(4, seed=i) for i in range(count)]
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    own = Accelerator(gradient_accumulation_steps=group, cpu=True)
    net, twin = linear(), linear()
    finetune(
        net, batches, rows(4), accelerator=own, epochs=2, optimizer="sgd", lr=0.1, warmup=0.0,
        final_lr=1.0, clip=None, weight_decay=0.0, keep="last", progress=False,
    )  # fmt: skip
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    for _ in range(2):
        for start in range(0, count, group):
            part = batches[start : start + group]
            optimizer.zero_grad()
            torch.stack([F.cross_entropy(twin(x), y) for x, y in part]).mean().backward()
            optimizer.step()
    for one, other in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-7)


class Failing(Dicts):
    """Samples of which one cannot be read any more."""

    bad = -1

    def __getitem__(self, i: int) -> Any:
        if i == self.bad:
            raise DataError(f"sample {i} is gone")
        return self.x[i], self.y[i]


@pytest.mark.parametrize("where", ["train", "val", "label"])
def test_a_sample_that_fails_loses_no_step(where: str, tmp_path: Any) -> None:
    x, y = rows(24)
    options: Any = {"epochs": 2, "batch_size": 4, "output": tmp_path / "run", "progress": False}
    options |= {"optimizer": "sgd", "lr": 0.05}
    whole = finetune(linear(), (x, y), (x, y), **{**options, "output": tmp_path / "whole"})
    data = {"train": Failing(x, y), "val": Failing(x, y)}
    labels = y.clone()
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    if where == "label":
        data["train"] = Failing(x, labels)
    else:
        data[where].bad = int(order[20])
    del order
    bad = 5 if where == "label" else data[where].bad
    # The samples that stand for the data are read first; this one breaks after that.
    data[where if where != "label" else "train"].bad = -1
    inner = loop._step

    def step(run: Any, group: Any) -> None:
        inner(run, group)
        if run.progress.step == 2:
            if where == "label":
                labels[:] = CLASSES
            else:
                data[where].bad = bad

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_step", step)
        with pytest.raises((DataError, InputError)):
            finetune(linear(), data["train"], data["val"], **options)
    labels[:] = y
    data["train"].bad = data["val"].bad = -1
    assert (tmp_path / "run" / "state.safetensors").is_file()
    resumed = finetune(linear(), data["train"], data["val"], resume=True, **options)
    assert resumed.history == whole.history


def test_batch_samplers_of_batches() -> None:
    data = TensorDataset(*rows(10))
    loader = DataLoader(
        data, batch_size=None, sampler=BatchSampler(SequentialSampler(data), 4, drop_last=False)
    )
    assert evaluate(linear(), loader) == evaluate(linear(), rows(10), batch_size=4)
    with pytest.raises(OptionError, match="A single sample is no batch"):
        evaluate(linear(), DataLoader(data, batch_size=None))


def test_progress_is_no_output(capsys: pytest.CaptureFixture[str]) -> None:
    finetune(linear(), rows(), rows(), epochs=1)
    seen = capsys.readouterr()
    assert seen.out == ""
    assert "fine-tuning" in seen.err
