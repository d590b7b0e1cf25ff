"""Data sets by name: parts that share nothing, values in [0, 1], and refusals that say why."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pursuitify import OptionError, pursuitify
from pursuitify.data import Images, load_data
from pursuitify.data.idx_files import read_idx
from pursuitify.errors import DataError
from pursuitify.models import ChainNet


def idx(values: np.ndarray, kind: int = 8) -> bytes:
    shape = b"".join(n.to_bytes(4, "big") for n in values.shape)
    return bytes([0, 0, kind, values.ndim]) + shape + values.tobytes()


def every(part: object) -> tuple[Tensor, Tensor]:
    assert isinstance(part, Images)
    return part.tensors()


def fashion(folder: Path, count: int = 40, classes: int = 10) -> np.ndarray:
    """Write a tiny Fashion-MNIST as torchvision lays it out; return the training images."""
    raw = folder / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    generator = np.random.default_rng(0)
    first = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
    for part, images in (("train", first), ("t10k", first[:10])):
        labels = (np.arange(len(images)) % classes).astype(np.uint8)
        (raw / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    return first


def test_a_data_set_is_shown_in_a_few_lines() -> None:
    pytest.importorskip("sklearn")
    lines = f"{load_data('digits')}".splitlines()
    assert lines[0] == "digits: images (1, 8, 8) in [0, 1]; 1293 train, 144 val, 360 test"
    assert lines[1].split() == [
        "10",
        "classes:",
        *["0,", "1,", "2,", "3,", "4,", "5,", "6,", "7,", "8,", "9"],
    ]
    assert len(lines) == 3


def test_digits() -> None:
    pytest.importorskip("sklearn")
    from sklearn.datasets import load_digits

    data = load_data("digits", validation=0.2, seed=3)
    parts = [every(part) for part in (data.train, data.val, data.test)]
    assert [len(y) for _, y in parts] == [1150, 287, 360]
    assert data.shape == (1, 8, 8) == tuple(parts[0][0].shape[1:])
    assert data.augment is None
    x = torch.cat([x for x, _ in parts]).flatten(1)
    bunch = load_digits()
    assert sorted(map(tuple, (x * 16).tolist())) == sorted(map(tuple, bunch.data.tolist()))
    assert torch.bincount(torch.cat([y for _, y in parts])).tolist() == [
        int((bunch.target == k).sum()) for k in range(10)
    ]
    assert data.mean == pytest.approx([float(parts[0][0].mean())], abs=1e-4)
    assert data.std == pytest.approx([float(parts[0][0].std())], abs=1e-4)


def test_the_test_part_does_not_depend_on_the_seed() -> None:
    pytest.importorskip("sklearn")
    one, two = (load_data("digits", seed=seed) for seed in (0, 1))
    assert torch.equal(every(one.test)[0], every(two.test)[0])
    assert not torch.equal(every(one.val)[0], every(two.val)[0])


def test_fashion_mnist_in_torchvisions_layout(tmp_path: Path) -> None:
    images = fashion(tmp_path)
    data = load_data("Fashion_MNIST", root=tmp_path, validation=0.25)
    assert (len(data.train), len(data.val), len(data.test)) == (30, 10, 10)  # type: ignore[arg-type]
    together = torch.cat([every(data.train)[0], every(data.val)[0]])
    found = sorted((together * 255).round().byte().flatten(1).tolist())
    assert found == sorted(images.reshape(40, -1).tolist())
    assert data.classes[0] == "T-shirt/top"
    assert data.augment is not None
    assert tuple(data.augment(every(data.train)[0][0]).shape) == (1, 28, 28)


@pytest.mark.skipif(
    not Path("/usr/share/datasets/fashion-mnist").is_dir(), reason="Debian's package is not there"
)
def test_fashion_mnist_of_debian(tmp_path: Path) -> None:
    data = load_data("fashion-mnist", root=tmp_path)
    assert (len(data.train), len(data.val), len(data.test)) == (54000, 6000, 10000)  # type: ignore[arg-type]
    assert torch.bincount(every(data.test)[1]).tolist() == [1000] * 10


def test_missing_data_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pursuitify.data.datasets.DEBIAN", tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"dataset-fashion-mnist.*--download"):
        load_data("fashion-mnist", root=tmp_path)
    for name in ("cifar10", "CIFAR-100"):
        with pytest.raises(DataError, match="--download"):
            load_data(name, root=tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b[: len(b) // 2], "holds 384"),
        (lambda b: b + b"x", "holds more"),
        (lambda b: b[:3], "no idx file"),
        (lambda b: b[:9], "truncated in its header"),
        (lambda b: b"\0\0\x0d" + b[3:], "no idx file of bytes"),
        (lambda b: b[:4] + b"\xff" * 8 + b[12:], "more than"),
        (lambda b: b"PK" + b[2:], "no idx file"),
        (lambda b: b"", "no idx file"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_damaged_idx_files(change, message: str, packed: bool, tmp_path: Path) -> None:
    whole = idx(np.arange(784, dtype=np.uint8).reshape(1, 28, 28))
    data = change(whole)
    path = tmp_path / ("x.gz" if packed else "x")
    path.write_bytes(gzip.compress(data) if packed else data)
    with pytest.raises(DataError, match=message):
        read_idx(path)


def test_a_truncated_gzip_file(tmp_path: Path) -> None:
    path = tmp_path / "x.gz"
    noise = np.random.default_rng(0).integers(0, 256, (9, 28, 28), dtype=np.uint8)
    path.write_bytes(gzip.compress(idx(noise)))
    assert read_idx(path).tolist() == noise.tolist()
    path.write_bytes(path.read_bytes()[:-900])
    with pytest.raises(DataError, match="truncated"):
        read_idx(path)
    with pytest.raises(DataError, match="no file"):
        read_idx(tmp_path / "nowhere")


def test_labels_and_images_that_do_not_belong_together(tmp_path: Path) -> None:
    fashion(tmp_path)
    raw = tmp_path / "FashionMNIST" / "raw"
    labels = raw / "train-labels-idx1-ubyte"
    labels.write_bytes(idx(np.zeros(7, dtype=np.uint8)))
    with pytest.raises(DataError, match="do not belong together"):
        load_data("fashion-mnist", root=tmp_path)
    labels.write_bytes(idx(np.full(40, 200, dtype=np.uint8)))
    with pytest.raises(DataError, match="label 200"):
        load_data("fashion-mnist", root=tmp_path)
    labels.unlink()
    with pytest.raises(DataError, match="lacks"):
        load_data("fashion-mnist", root=tmp_path)


def folder(path: Path, parts: tuple[str, ...], classes: tuple[str, ...] = ("cat", "dog")) -> None:
    from PIL import Image

    generator = np.random.default_rng(0)
    for part in parts:  # no two images alike
        for kind in classes:
            (path / part / kind).mkdir(parents=True)
            for i in range(6):
                pixels = generator.integers(0, 256, (20, 30, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(path / part / kind / f"{i}.png")


@pytest.mark.parametrize("parts", [("",), ("train",), ("train", "test"), ("train", "val", "test")])
def test_image_folder(parts: tuple[str, ...], tmp_path: Path) -> None:
    folder(tmp_path, parts)
    whole = {"val", "test"} <= {*parts}  # nothing is split off then, and no share can be given
    data = load_data(tmp_path, size=16, validation=None if whole else 0.25)
    sizes = {"train": len(data.train), "val": len(data.val), "test": len(data.test)}  # type: ignore[arg-type]
    assert sum(sizes.values()) == 12 * len(parts)
    assert all(sizes[part] == 12 for part in parts[1:])
    x = data.train[0][0]
    assert (x.shape, x.dtype) == ((3, 16, 16), torch.float32)
    assert 0 <= float(x.min()) <= float(x.max()) <= 1
    assert data.classes == ("cat", "dog")
    seen = [
        tuple(part[i][0].flatten().tolist())  # type: ignore[index]
        for part in (data.train, data.val, data.test)
        for i in range(len(part))  # type: ignore[arg-type]
    ]
    assert len(set(seen)) == 12 * len(parts), "the parts share images"


def test_bad_image_folders(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="neither a data set"):
        load_data("imagenet")
    with pytest.raises(DataError, match="subfolder of images per class"):
        load_data(tmp_path)
    folder(tmp_path, ("train",))
    (tmp_path / "test" / "horse").mkdir(parents=True)
    (tmp_path / "test" / "horse" / "1.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"differ in classes: \['cat', 'dog', 'horse'\]"):
        load_data(tmp_path, size=8)
    (tmp_path / "test" / "horse").rename(tmp_path / "test" / "cat")
    (tmp_path / "test" / "dog").mkdir()
    (tmp_path / "test" / "dog" / "2.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"1\.png cannot be read"):
        load_data(tmp_path, size=8).test[0]


def test_size_and_channels() -> None:
    pytest.importorskip("sklearn")
    data = load_data("digits", size=16, channels=3)
    x, _ = data.train[0]  # type: ignore[index]
    assert data.shape == (3, 16, 16) == tuple(x.shape)
    assert torch.equal(x[0], x[2])
    for wrong in ({"channels": 2}, {"size": 0}, {"validation": 1.0}):
        with pytest.raises(OptionError):
            load_data("digits", **wrong)


def test_normalisation_stays_inside_the_model() -> None:
    pytest.importorskip("sklearn")
    data = load_data("digits")
    inner = ChainNet(1, width=2).eval()
    model = data.normalise(inner)
    x = torch.rand(2, 1, 8, 8)
    wanted = inner((x - data.mean[0]) / data.std[0])
    net = pursuitify(model, iterations=0)
    assert torch.allclose(model(x), wanted, atol=1e-6)
    assert torch.equal(net(x), model(x))
    net.iterations = 4
    objectives = [sweep.objective for sweep in net.diagnose(x).sweeps]
    assert objectives == sorted(objectives, reverse=True)


@pytest.mark.parametrize(
    ("name", "meant"), [("digts", "digits"), ("CIFAR1O", "cifar10"), ("FOLDER/image", "images")]
)
def test_a_misspelt_name_is_answered_with_the_nearest(
    name: str, meant: str, tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(OptionError) as error:
        load_data(name.replace("FOLDER", str(tmp_path)))
    assert str(error.value).endswith(f"{meant}'?")
    assert "did you mean" in str(error.value)


def test_images_are_printed_as_their_number_and_shape() -> None:
    assert repr(Images(torch.zeros(5, 3, 8, 6), torch.zeros(5))) == "Images(5 of (3, 8, 6))"
