"""A run changed between its halves goes on bit by bit, or is refused by name."""

from __future__ import annotations

import copy
import functools
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    RandomSampler,
    Sampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)

pytest.importorskip("accelerate")

from pursuitify import CheckpointError, pursuitify
from pursuitify.data import Images, content, load_data
from pursuitify.data.image_folder import Folder
from pursuitify.training import finetune, loop, run_folder, run_identity
from pursuitify.utils import fingerprint
from pursuitify.utils.atomic_files import read_tensors, write_tensors
from tests.support.toy import rows

STRENGTH = 0.1


class Shifted(nn.Module):
    """A network with a constant that no file holds."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mean = 0.25
        self.hidden = (torch.tensor(1.0),)  # a tensor that is neither parameter nor plain
        self.features = nn.Linear(36, 6)
        self.norm = nn.BatchNorm1d(6)
        self.dropout = nn.Dropout(0.2)
        self.classifier = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Any:
        x = (x.flatten(1) - self.mean) * self.hidden[0]
        return self.classifier(self.dropout(torch.relu(self.norm(self.features(x)))))


def noise(image: Tensor) -> Tensor:
    return image + STRENGTH * torch.rand(())


def blank(image: Tensor) -> Tensor:
    return image * 0


class StopError(Exception):
    """Ends the first half."""


class Sizes(Dataset[Any]):
    """A data set of somebody's own over the same tensors."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Any:
        return self.x[i], int(self.y[i])


def half(folder: Path, at: int, **call: Any) -> Any:
    """Train until step ``at`` and no further, the state being saved."""
    inner = loop._step

    def step(run: Any, group: Any) -> None:
        if run.progress.step == at:
            loop._save(run)
            raise StopError
        inner(run, group)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_step", step)
        with pytest.raises(StopError):
            train(folder, **call)


def between(folder: Path, **call: Any) -> Any:
    """Train one epoch, the state being saved after it, and stop before the second one begins."""
    inner = loop._epoch

    def epoch(run: Any, *rest: Any) -> None:
        if run.progress.epoch == 1:
            raise StopError
        inner(run, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_epoch", epoch)
        patch.setattr(run_folder, "PAUSE", 0.0)
        patch.setattr(run_folder, "TIMES", 0.0)
        with pytest.raises(StopError):
            train(folder, **call)


def train(
    folder: Path,
    *,
    data: Any = None,
    val: Any = None,
    net: Any = None,
    augment: Any = noise,
    resume: bool = False,
    **options: Any,
) -> Any:
    given = {"epochs": 2, "batch_size": 8, "lr": 1e-2, "optimizer": "sgd", "progress": False}
    return finetune(
        Shifted() if net is None else net,
        rows(40) if data is None else data,
        rows(12, 1) if val is None else val,
        output=folder,
        augment=augment,
        resume=resume,
        **{**given, **options},
    )


def altered(change: Callable[[Any], Any]) -> nn.Module:
    net = Shifted()
    change(net)
    return net


def one_less(places: Any) -> tuple[Tensor, Tensor]:
    x, y = rows(40)
    x[places] = 1 - x[places]
    return x, y


X, Y = rows(40)
#: What is changed -> the call of the second half, and words of the refusal; None goes on.
CHANGES: dict[str, tuple[Callable[[], dict[str, Any]], str | None]] = {
    "nothing": (dict, None),
    "a data set of the same samples": (lambda: {"data": TensorDataset(X, Y)}, None),
    "an own data set of the same samples": (lambda: {"data": Sizes(X, Y)}, None),
    "a list of the same samples": (lambda: {"data": list(zip(X, Y, strict=True))}, None),
    "a subset of all": (lambda: {"data": Subset(Images(X, Y), range(40))}, None),
    "workers": (lambda: {"workers": 1}, None),
    "more often saved": (lambda: {"save_every": 1}, None),
    "one image": (lambda: {"data": one_less(17)}, "train: all inputs changed"),
    "one image of an own data set": (
        lambda: {"data": Sizes(*one_less(0))}, "train: the inputs changed"
    ),
    "other labels": (lambda: {"data": (X, (Y + 1) % 3)}, "train: the labels changed"),
    "other order": (lambda: {"data": (X.flip(0), Y.flip(0))}, "train: .*changed"),
    "fewer images": (lambda: {"data": (X[:39], Y[:39])}, "samples was 40 and is 39"),
    "batches": (lambda: {"data": [(X, Y)], "augment": None}, "kind was 'samples' and is 'batches'"),
    "validation": (lambda: {"val": rows(12, 2)}, "val: the inputs changed"),
    "fewer validated": (lambda: {"val": rows(11, 1)}, "val: number of samples was 12 and is 11"),
    "augmentation": (lambda: {"augment": blank}, "augment changed"),
    "no augmentation": (lambda: {"augment": None}, "augment was there and is not now"),
    "an attribute": (
        lambda: {"net": altered(lambda n: setattr(n, "mean", 0.3))}, r"mean was 0\.25 and is 0\.3"
    ),
    "an attribute that is no number": (
        lambda: {"net": altered(lambda n: setattr(n, "hidden", (torch.tensor(2.0),)))},
        "answers otherwise",
    ),
    "dropout": (
        lambda: {"net": altered(lambda n: setattr(n.dropout, "p", 0.3))}, r"dropout\.p was 0\.2"
    ),
    "momentum": (
        lambda: {"net": altered(lambda n: setattr(n.norm, "momentum", 0.2))}, r"norm\.momentum was"
    ),
    "a module": (
        lambda: {"net": altered(lambda n: setattr(n, "dropout", nn.Identity()))},
        "class was Dropout and is Identity",
    ),
    "a frozen parameter": (
        lambda: {"net": altered(lambda n: n.features.requires_grad_(False))},
        r"frozen parameters was \[\] and is \['features.bias'",
    ),
    "lr": (lambda: {"lr": 0.5}, "lr was 0.01 and is 0.5"),
    "seed": (lambda: {"seed": 3}, "seed was 0 and is 3"),
    "ema": (lambda: {"ema": 0.5}, "ema was None and is 0.5"),
    "batch size": (lambda: {"batch_size": 4}, "batch_size was 8 and is 4"),
    "network": (lambda: {"net": pursuitify(Shifted(), iterations=1)}, "settings was None"),
}  # fmt: skip


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a function that gives the folder of a run that stopped after so many of ten steps."""
    root = tmp_path_factory.mktemp("halves")

    @functools.cache
    def folder(at: int) -> Path:
        half(root / str(at), at)
        return root / str(at)

    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return list(train(tmp_path_factory.mktemp("whole") / "run").history)


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(what=st.sampled_from(sorted(CHANGES)), at=st.integers(1, 9))
def test_a_run_goes_on_or_is_refused(
    what: str, at: int, halves: Any, whole: list[Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("half") / "run"
    shutil.copytree(halves(at), folder)
    make, words = CHANGES[what]
    call = make()
    if words is None:
        assert train(folder, resume=True, **call).history == whole, what
        return
    before = (folder / "state.safetensors").read_bytes()
    net = call.setdefault("net", Shifted())
    weights = copy.deepcopy(net.state_dict())
    with pytest.raises(CheckpointError, match=words):
        train(folder, resume=True, **call)
    assert (folder / "state.safetensors").read_bytes() == before
    assert all(torch.equal(v, weights[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize("what", sorted(CHANGES))
def test_every_change_once(
    what: str, halves: Any, whole: list[Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    test_a_run_goes_on_or_is_refused.hypothesis.inner_test(  # type: ignore[attr-defined]
        what, 7, halves, whole, tmp_path_factory
    )


class Cached(Sizes):
    """A data set that keeps what it has read, and counts."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        super().__init__(x, y)
        self.cache: dict[int, Any] = {}
        self.last: Any = None
        self.reads = 0

    def __getitem__(self, i: int) -> Any:
        self.reads += 1
        self.last = self.cache.setdefault(i, super().__getitem__(i))
        return self.last


class Identified(Sizes):
    """A data set with an attribute of the name of a method of ours, as torchvision's CelebA has."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        super().__init__(x, y)
        self.identity = torch.zeros(3)


class Pixels(Dataset[Any]):
    """Files of bytes, read when they are asked for."""

    def __init__(self, root: Path, names: list[str]) -> None:
        self.root, self.names = str(root), names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> Any:
        pixels = (Path(self.root) / self.names[i]).read_bytes()
        return torch.tensor(list(pixels)).reshape(1, 6, 6) / 255, i % 3


class Shifting(Sizes):
    """A data set with a setting that shows in one sample alone."""

    def __init__(self, x: Tensor, y: Tensor, shift: float = 0.0, on: bool = True) -> None:
        super().__init__(x, y)
        self.shift, self.on, self.reads = shift, on, 0

    def __getitem__(self, i: int) -> Any:
        self.reads += 1
        return self.x[i] + self.shift * self.on * (i == 33), int(self.y[i])


@pytest.mark.parametrize("wrapped", [lambda d: d, lambda d: DataLoader(d, 8), lambda d: Subset(
    d, list(range(40)))])  # fmt: skip
def test_a_setting_of_a_data_set_counts_and_a_counter_does_not(
    wrapped: Callable[[Any], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_identity, "_SAMPLES", 2)
    call: dict[str, Any] = {"augment": None, "val": rows(12, 1)}
    data = wrapped(Shifting(X, Y))
    half(tmp_path / "run", 7, data=data, **call)
    for other in (Shifting(X, Y, 0.5), Shifting(X, Y, on=False)):
        with pytest.raises(CheckpointError, match=r"attribute '(dataset\.)?(shift|on)' changed"):
            train(tmp_path / "run", data=wrapped(other), resume=True, **call)
    assert train(tmp_path / "run", data=data, resume=True, **call).history


def as_pixels(root: Path, x: Tensor) -> Pixels:
    names = [f"{number:02}.raw" for number in range(len(x))]
    root.mkdir(exist_ok=True)
    for name, image in zip(names, x, strict=True):
        (root / name).write_bytes(bytes((image * 255).round().int().flatten().tolist()))
    return Pixels(root, names)


def as_folder(root: Path, x: Tensor) -> Path:
    from PIL import Image

    for number, image in enumerate(x):
        path = root / str(number % 3) / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image[0] * 255).round().byte().numpy()).save(path, compress_level=0)
    return root


def ours(root: Path, x: Tensor) -> Any:
    found = load_data(as_folder(root, x), size=6, channels=1)
    assert isinstance(found.train, Folder)
    paths = sorted(path.relative_to(root) for path in root.rglob("*.png"))
    labels = [int(path.parts[0]) for path in paths]
    files = tuple((str(path), label) for path, label in zip(paths, labels, strict=True))
    return replace(found.train, files=files)


def torchvisions(root: Path, x: Tensor) -> Any:
    from torchvision import datasets, transforms

    steps = [transforms.Grayscale(), transforms.ToTensor()]
    return datasets.ImageFolder(str(as_folder(root, x)), transforms.Compose(steps))


#: Data of which few samples are read before a run goes on: made of images in a folder of its own.
UNREAD: dict[str, Callable[[Path, Tensor], Any]] = {
    "own data set": lambda root, x: Sizes(x, Y),
    "with a cache": lambda root, x: Cached(x, Y),
    "with the name of a method": lambda root, x: Identified(x, Y),
    "subset": lambda root, x: Subset(Sizes(x, Y), list(range(40))),
    "list of arrays": lambda root, x: [(image.numpy(), i % 3) for i, image in enumerate(x)],
    "loader": lambda root, x: DataLoader(Sizes(x, Y), 8),
    "loader of a list": lambda root, x: DataLoader(list(zip(x, Y, strict=True)), 8),  # type: ignore[arg-type]
    "loader with a cache": lambda root, x: DataLoader(Cached(x, Y), 8),
    "files": as_pixels,
    "files in a loader": lambda root, x: DataLoader(as_pixels(root, x), 8),
    "image folder": ours,
    "image folder of torchvision": torchvisions,
}


@pytest.mark.parametrize("kind", UNREAD)
@settings(
    max_examples=1,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(spots=st.lists(st.tuples(st.integers(0, 39), st.integers(0, 35)), min_size=3, max_size=3))
def test_a_pixel_that_is_not_read_counts(
    kind: str, spots: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """One pixel of any sample, though two of forty are read to tell data from other data."""
    root = tmp_path_factory.mktemp("unread")
    call: dict[str, Any] = {"augment": None, "val": rows(12, 1)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_identity, "_SAMPLES", 2)
        data = UNREAD[kind](root / "data", X)
        half(root / "run", 2, data=data, **call)
        for place, pixel in spots:
            other = X.clone()
            spot = other[place].view(-1)[pixel : pixel + 1]
            spot.copy_((spot * 255).round().add(1) % 256 / 255)
            with pytest.raises(CheckpointError, match=r"train: .*changed"):
                train(root / "run", data=UNREAD[kind](root / "data", other), resume=True, **call)
        UNREAD[kind](root / "data", X)  # writes the files anew
        # The very object goes on as well, as in a notebook, though it has read much since.
        assert len(train(root / "run", data=data, resume=True, **call).history) == 2


def test_a_file_that_ended_a_run_is_mended_and_the_run_goes_on(tmp_path: Path) -> None:
    call: dict[str, Any] = {"augment": None, "val": rows(12, 1)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_identity, "_SAMPLES", 2)
        data = as_pixels(tmp_path / "data", X)
        whole = train(tmp_path / "whole", data=data, **call)
        bad = tmp_path / "data" / data.names[17]
        good = bad.read_bytes()
        bad.write_bytes(good[:20])
        with pytest.raises(RuntimeError, match="shape"):
            train(tmp_path / "run", data=data, **call)
        bad.write_bytes(good)
        assert train(tmp_path / "run", data=data, resume=True, **call).history == whole.history


def test_a_data_set_that_moved_or_was_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small files count with their bytes, large ones with their times, which a copy may keep."""
    call: dict[str, Any] = {"augment": None, "val": rows(12, 1)}
    data = as_pixels(tmp_path / "data", X)
    for limit, refused in ((2**28, False), (100, True)):
        monkeypatch.setattr(content, "_WHOLE", limit)
        run = tmp_path / str(limit)
        half(run, 2, data=data, **call)
        shutil.copytree(tmp_path / "data", tmp_path / f"moved{limit}")  # keeps the times
        moved = Pixels(tmp_path / f"moved{limit}", data.names)
        shutil.copytree(run, tmp_path / f"run{limit}")
        assert train(tmp_path / f"run{limit}", data=moved, resume=True, **call)
        os.utime(tmp_path / "data" / data.names[7], (limit, limit))
        if refused:
            with pytest.raises(CheckpointError, match="'names': all times of its files changed"):
                train(run, data=data, resume=True, **call)
        else:
            assert train(run, data=data, resume=True, **call)


class Noisy(Sizes):
    """Samples with noise."""

    def __getitem__(self, i: int) -> Any:
        return self.x[i] + 0.1 * torch.rand(()), int(self.y[i])


def loader(how: str, x: Tensor = X, y: Tensor = Y) -> Any:
    own = torch.Generator().manual_seed(3)
    data: Any = TensorDataset(x, y)
    samplers: dict[str, Callable[[], Any]] = {
        "in order": lambda: DataLoader(data, 8),
        "shuffled": lambda: DataLoader(data, 8, shuffle=True),
        "own generator": lambda: DataLoader(data, 8, shuffle=True, generator=own),
        "sampler's generator": lambda: DataLoader(
            data, 8, sampler=RandomSampler(data, replacement=True, num_samples=37, generator=own)
        ),
        "weighted": lambda: DataLoader(
            data, 8, sampler=WeightedRandomSampler([1.0 + i for i in range(40)], 40)
        ),
        "workers": lambda: DataLoader(Noisy(x, y), 8, shuffle=True, num_workers=2),
        "list": lambda: list(zip(x.split(8), y.split(8), strict=True)),
    }
    return samplers[how]()


LOADERS = [
    "in order", "shuffled", "own generator", "sampler's generator", "weighted", "workers", "list"
]  # fmt: skip


@pytest.mark.parametrize("at", [3, None, 7])
@pytest.mark.parametrize("how", LOADERS)
def test_runs_on_loaders_go_on_bit_by_bit(how: str, at: int | None, tmp_path: Path) -> None:
    """From the middle of either epoch, and from between both."""
    call: dict[str, Any] = {"augment": None}
    if how != "list":
        call["val"] = DataLoader(Images(*rows(12, 1)), 5)
    whole = train(tmp_path / "whole", data=loader(how), **call).history
    if at is None:
        between(tmp_path / "half", data=loader(how), **call)
    else:
        half(tmp_path / "half", at, data=loader(how), **call)
    assert train(tmp_path / "half", data=loader(how), resume=True, **call).history == whole


@pytest.mark.parametrize("at", [3, 5, 7])
@pytest.mark.parametrize("how", ["in order", "own generator", "workers", "list"])
def test_other_batches_are_refused(how: str, at: int, tmp_path: Path) -> None:
    call: dict[str, Any] = {"augment": None}
    half(tmp_path, at, data=loader(how), **call)
    for data in (loader(how, X, (Y + 1) % 3), loader(how, X.flip(3), Y)):
        with pytest.raises(CheckpointError, match=r"changed|other batches than the run read"):
            train(tmp_path, data=data, resume=True, **call)
    if how != "list":
        other = loader(how)
        half_of_it = DataLoader(other.dataset, 8, sampler=range(20))
        with pytest.raises(CheckpointError, match="number of batches was 5 and is 3"):
            train(tmp_path, data=half_of_it, resume=True, **call)


class Forgetful(Sampler[int]):
    """A sampler with a random state that nobody can see."""

    def __init__(self) -> None:
        self.state = [0]

    def __iter__(self) -> Any:
        self.state.append(0)
        generator = torch.Generator().manual_seed(len(self.state))
        return iter(torch.randperm(40, generator=generator).tolist())

    def __len__(self) -> int:
        return 40


def test_a_sampler_with_a_hidden_state(tmp_path: Path) -> None:
    def data() -> Any:
        return DataLoader(TensorDataset(X, Y), 8, sampler=Forgetful())

    whole = train(tmp_path / "whole", data=data(), augment=None).history
    half(tmp_path / "first", 3, data=data(), augment=None)
    assert train(tmp_path / "first", data=data(), augment=None, resume=True).history == whole
    for at in (None, 5, 7):  # in the second epoch its state is another one
        if at is None:
            between(tmp_path / str(at), data=data(), augment=None)
        else:
            half(tmp_path / str(at), at, data=data(), augment=None)
        with pytest.raises(CheckpointError, match="other batches than the run read"):
            train(tmp_path / str(at), data=data(), augment=None, resume=True)


class OwnNoise:
    """An augmentation with a generator that nobody can seed."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.rand((), generator=self.generator)


def test_an_augmentation_with_a_generator_of_its_own(tmp_path: Path) -> None:
    half(tmp_path, 3, augment=OwnNoise())
    with pytest.raises(CheckpointError, match=r"cannot be resumed: augment draws|inputs changed"):
        train(tmp_path, augment=OwnNoise(), resume=True)


def test_a_state_from_before_data_was_recorded(tmp_path: Path, whole: list[Any]) -> None:
    half(tmp_path, 7)
    path = tmp_path / "state.safetensors"
    header, tensors = read_tensors(path, "pursuitify.training", "this run")
    old = {"batches per epoch", "gradient accumulation", "settings"}
    header["facts"] = {name: value for name, value in header["facts"].items() if name in old}
    del header["progress"]["read"], header["answers"], header["check"]
    write_tensors(path, tensors, "pursuitify.training", json.dumps(header))
    assert train(tmp_path, resume=True).history == whole


def closure(strength: float) -> Callable[[Any], Any]:
    return lambda x: x * strength


class Scale:
    """An augmentation as an object."""

    def __init__(self, strength: float) -> None:
        self.strength = strength

    def __call__(self, x: Any) -> Any:
        return x * self.strength


def scaled(x: Any, strength: float = 2.0) -> Any:
    return x * strength


@pytest.mark.parametrize(
    "make",
    [
        closure,
        Scale,
        lambda s: Scale(s).__call__,
        lambda s: functools.partial(scaled, strength=s),
        lambda s: [Scale(1.0), Scale(s)],
        lambda s: {"a": torch.tensor(s)},
        lambda s: nn.Sequential(nn.Dropout(s)),
        lambda s: lambda x: closure(s)(x),
    ],
)
def test_fingerprints_of_callables(make: Callable[[float], Any]) -> None:
    one, again, other = (fingerprint.of_values(make(s)) for s in (0.5, 0.5, 0.25))
    assert one == again
    assert one != other
    assert not fingerprint.holds_generator(make(0.5))


def test_fingerprints_of_rows_are_those_of_the_whole() -> None:
    assert fingerprint.of_stacked(list(X)) == fingerprint.of_tensors(X)
    assert fingerprint.of_stacked(list(X.flip(0))) != fingerprint.of_tensors(X)
    assert fingerprint.of_tensors(X.reshape(1, -1)) != fingerprint.of_tensors(X)


def test_fingerprints_of_code_and_of_what_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint.of_values(noise)
    assert before != fingerprint.of_values(blank)
    monkeypatch.setattr(f"{__name__}.STRENGTH", 0.2)
    assert fingerprint.of_values(noise) != before
    assert fingerprint.holds_generator(OwnNoise())
    first: list[Any] = [1]
    first.append(first)
    assert fingerprint.of_values(first) == fingerprint.of_values(first), "a circle ends"
    assert not fingerprint.comparable("#3.11:a", "#3.12:a")
    assert fingerprint.comparable("#3.11:a", "#3.11:b")
