"""Folders of images as they are in life: read right, or refused with the name of the file."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torch import Tensor, nn

from pursuitify import OptionError
from pursuitify.data import image_folder, load_data
from pursuitify.data.image_files import fitted, read_picture
from pursuitify.data.image_folder import Folder
from pursuitify.errors import DataError

RAMP = np.linspace(0, 1, 256).reshape(16, 16)
BYTES = (RAMP * 255).round().astype(np.uint8)
COLOURS = np.stack([BYTES, BYTES[::-1], BYTES.T], 2)


def put(path: Path, pixels: Any = BYTES, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def wide_png(path: Path, pixels: Any) -> Path:
    """Write a PNG of 16 bits per colour, which PIL does not write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


def grey(values: Any) -> Tensor:
    return torch.as_tensor(np.ascontiguousarray(values)).float().expand(3, -1, -1)


def colours(values: Any) -> Tensor:
    return torch.as_tensor(np.ascontiguousarray(values)).permute(2, 0, 1).float() / 255


SIXTEEN = (RAMP * 65535).round().astype(np.uint16)
LEVELS = np.array(Image.fromarray(COLOURS).quantize(64).convert("RGB"))
#: How a file is written -> what it shows, in [0, 1], and how exactly.
KINDS: dict[str, tuple[Callable[[Path], Path], Tensor, float]] = {
    "grey": (lambda p: put(p / "x.png"), grey(BYTES / 255), 1e-6),
    "colour": (lambda p: put(p / "x.png", COLOURS), colours(COLOURS), 1e-6),
    "jpeg": (lambda p: put(p / "x.JPG", COLOURS, quality=100), colours(COLOURS), 0.1),
    "bitmap": (lambda p: put(p / "x.bmp", COLOURS), colours(COLOURS), 1e-6),
    "webp": (lambda p: put(p / "x.webp", COLOURS, lossless=True), colours(COLOURS), 1e-6),
    "16-bit png": (lambda p: put(p / "x.png", SIXTEEN), grey(RAMP), 1e-4),
    "16-bit tiff": (lambda p: put(p / "x.tif", SIXTEEN), grey(RAMP), 1e-4),
    "16-bit tiff, big endian": (
        lambda p: put(p / "x.tiff", Image.fromarray(SIXTEEN).convert("I").convert("I;16B")),
        grey(RAMP), 1e-4,
    ),
    "16-bit pgm": (lambda p: put(p / "x.pgm", SIXTEEN), grey(RAMP), 1e-4),
    "16-bit colour": (
        lambda p: wide_png(p / "x.png", COLOURS.astype(np.uint16) * 257), colours(COLOURS), 4e-3
    ),
    "float tiff": (lambda p: put(p / "x.tif", RAMP.astype(np.float32)), grey(RAMP), 1e-6),
    "one bit": (
        lambda p: put(p / "x.png", Image.fromarray(BYTES > 127)), grey((BYTES > 127) * 1.0), 1e-6
    ),
    "palette": (
        lambda p: put(p / "x.png", Image.fromarray(COLOURS).quantize(64)), colours(LEVELS), 1e-6
    ),
    "gif": (
        lambda p: put(p / "x.gif", Image.fromarray(COLOURS).quantize(64)), colours(LEVELS), 1e-6
    ),
    "cmyk": (
        lambda p: put(p / "x.tif", Image.fromarray(COLOURS).convert("CMYK")), colours(COLOURS), 5e-3
    ),
    "cmyk jpeg": (
        lambda p: put(p / "x.jpg", Image.fromarray(COLOURS).convert("CMYK"), quality=100),
        colours(COLOURS), 0.1,
    ),
    "opaque": (
        lambda p: put(p / "x.png", Image.fromarray(COLOURS).convert("RGBA")),
        colours(COLOURS), 1e-6,
    ),
    "half transparent": (
        lambda p: put(p / "x.png", np.dstack([COLOURS, np.full((16, 16), 128, np.uint8)])),
        colours(COLOURS) * 128 / 255 + 127 / 255, 5e-3,
    ),
    "transparent grey": (
        lambda p: put(p / "x.png", np.dstack([BYTES, np.zeros_like(BYTES)])),
        torch.ones(3, 16, 16), 1e-6,
    ),
    "transparent palette": (
        lambda p: put(p / "x.png", Image.fromarray(COLOURS).quantize(8), transparency=bytes(8)),
        torch.ones(3, 16, 16), 1e-6,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_files_of_every_kind(kind: str, tmp_path: Path) -> None:
    write, wanted, error = KINDS[kind]
    path = write(tmp_path)
    found = fitted(read_picture(path, 3), 16)
    assert (found.shape, found.dtype) == ((3, 16, 16), torch.float32)
    assert float((found - wanted).abs().max()) <= error
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    alone = fitted(read_picture(path, 1), 16)
    assert alone.shape == (1, 16, 16)
    luma = wanted * torch.tensor([0.299, 0.587, 0.114]).reshape(3, 1, 1)
    assert float((alone[0] - luma.sum(0)).abs().max()) <= error + 5e-3


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("pixels", [COLOURS[:12], SIXTEEN[:12]])
def test_orientation(turn: int, pixels: Any, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    path = put(tmp_path / "x.png", pixels, exif=exif)
    upright = read_picture(put(tmp_path / "plain.png", pixels), 3)
    with Image.open(path) as image:
        turned = ImageOps.exif_transpose(image)
        assert read_picture(path, 3).shape[1:] == turned.size[::-1]
    back = {
        1: lambda z: z, 2: lambda z: z.flip(2), 3: lambda z: z.rot90(2, (1, 2)),
        4: lambda z: z.flip(1), 5: lambda z: z.transpose(1, 2), 6: lambda z: z.rot90(-1, (1, 2)),
        7: lambda z: z.flip(1, 2).transpose(1, 2), 8: lambda z: z.rot90(1, (1, 2)),
    }  # fmt: skip
    assert torch.equal(read_picture(path, 3), back[turn](upright))


def truncated(path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    put(path, noise).write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def written(path: Path, body: bytes) -> Path:
    path.write_bytes(body)
    return path


BAD: dict[str, Callable[[Path], Path]] = {
    "truncated png": lambda p: truncated(p / "x.png"),
    "truncated jpeg": lambda p: truncated(p / "x.jpg"),
    "truncated tiff": lambda p: truncated(p / "x.tif"),
    "empty": lambda p: written(p / "x.png", b""),
    "text": lambda p: written(p / "x.jpg", b"<html>404 Not Found</html>"),
    "bomb": lambda p: put(p / "x.png", Image.new("1", (20000, 20000))),
    "float beyond 1": lambda p: put(p / "x.tif", RAMP.astype(np.float32) * 255),
    "nan": lambda p: put(p / "x.tif", np.full((16, 16), np.nan, np.float32)),
    "32 bits": lambda p: put(p / "x.tif", (RAMP * 2e9).astype(np.int32)),
    "a line": lambda p: put(p / "x.png", Image.new("L", (60000, 1))),
}


@pytest.mark.parametrize("kind", sorted(BAD))
def test_bad_files_are_named_or_left_out(kind: str, tmp_path: Path) -> None:
    for name in "ab":
        for i in range(8):
            put(tmp_path / "set" / name / f"{i}.png")
    bad = BAD[kind](tmp_path / "set" / "a")
    data = load_data(tmp_path / "set", size=16 if kind != "a line" else 224)
    parts: list[Any] = [data.train, data.val, data.test]
    assert sum(map(len, parts)) == 17
    with pytest.raises(DataError) as caught:
        [part[i] for part in parts for i in range(len(part))]
    assert str(bad) in str(caught.value)
    size = 16 if kind != "a line" else 224
    kept = load_data(tmp_path / "set", size=size, skip_bad=True)
    assert len(kept.skipped) == 1
    assert str(bad) in kept.skipped[0]
    parts = [kept.train, kept.val, kept.test]
    assert sum(map(len, parts)) == 16
    assert all(float(part[i][0].min()) >= 0 for part in parts for i in range(len(part)))
    assert data.skipped == ()


@pytest.mark.filterwarnings("ignore")  # PIL's, of what it passes over
@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(["PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP", "PPM"]),
    cut=st.integers(0, 2000),
    places=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=6),
)
def test_damaged_files_are_images_or_named(
    kind: str, cut: int, places: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    buffer = io.BytesIO()
    Image.fromarray(COLOURS).save(buffer, kind)
    body = bytearray(buffer.getvalue())
    for place, value in places:
        body[place % len(body)] = value
    path = tmp_path_factory.getbasetemp() / f"damaged.{kind.lower()}"
    path.write_bytes(bytes(body[: len(body) - cut % len(body)] if cut % 3 == 0 else body))
    message = None
    try:
        found, _ = Folder(path.parent, ("a",), ((path.name, 0),), 8, 3)[0]
    except DataError as error:
        message = str(error)
    if message is not None:
        assert str(path) in message
        return
    assert found.shape == (3, 8, 8)
    assert 0 <= float(found.min()) <= float(found.max()) <= 1


def grown(path: Path, *folders: str, count: int = 4, offset: int = 0) -> Path:
    for folder in folders:
        for i in range(count):
            pixels = np.full((9, 9), (10 * i + offset) % 256, np.uint8)
            put(path / folder / f"{i}.png", pixels)
    return path


@pytest.mark.parametrize(
    "names",
    [("train", "val", "test"), ("training", "validation", "testing"), ("Train", "Valid", "TEST")],
)
def test_parts_by_every_name(names: tuple[str, str, str], tmp_path: Path) -> None:
    for offset, part in enumerate(names):
        grown(tmp_path / part, "cat", "dog", offset=offset)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "readme.txt").write_text("no image")
    data = load_data(tmp_path, size=8)
    assert data.classes == ("cat", "dog")
    found: list[Any] = [data.train, data.val, data.test]
    assert [len(part) for part in found] == [8, 8, 8]
    for offset, part in enumerate(found):
        values = {round(float(part[i][0].mean() * 255)) for i in range(8)}
        assert values == {10 * i + offset for i in range(4)}


def test_what_is_hidden_or_no_image_is_passed_over(tmp_path: Path) -> None:
    grown(tmp_path, "a", "b", ".ipynb_checkpoints", "__MACOSX", "a/.cache")
    put(tmp_path / "a" / "._0.png")
    (tmp_path / "b" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / ".DS_Store").write_bytes(b"x")
    data = load_data(tmp_path, size=8)
    assert data.classes == ("a", "b")
    parts: list[Any] = [data.train, data.val, data.test]
    assert sum(map(len, parts)) == 8


def test_names_in_every_script_and_deeper_folders(tmp_path: Path) -> None:
    grown(tmp_path, "Füchse", "猫/黒/一", "a b'c")
    put(tmp_path / "Füchse" / "naïve 🦊.PNG")
    data = load_data(tmp_path, size=8)
    assert data.classes == ("Füchse", "a b'c", "猫")
    parts: list[Any] = [data.train, data.val, data.test]
    assert sum(map(len, parts)) == 13
    (tmp_path / "Füchse" / "naïve 🦊.PNG").write_bytes(b"")
    with pytest.raises(DataError, match="naïve 🦊"):
        [part[i] for part in parts for i in range(len(part))]


def test_links_that_lead_back_end(tmp_path: Path) -> None:
    grown(tmp_path, "a", "b")
    os.symlink(tmp_path / "a", tmp_path / "a" / "again", target_is_directory=True)
    data = load_data(tmp_path, size=8)
    parts: list[Any] = [data.train, data.val, data.test]
    assert sum(map(len, parts)) == 8


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (["a", "b", "c/"], "c has no image"),
        (["a"], "has one class, 'a', and nothing can be told apart"),
        (["set/a", "set/b"], r"one class, 'set'.*set looks like it"),
        (["train/a", "train/b", "cat"], "beside it, images in 'cat'"),
        (["train/a", "training/b"], "two parts of one kind"),
        (["validation/a", "validation/b"], "has 'validation' but no part for training"),
        (["test/a", "test/b", "cat"], "has 'test' but no part for training"),
        (["a/train", "a/test", "b/train"], "the parts come first, then the classes"),
        (["train/a", "train/b", "test/a", "test/c"], r"differ in classes: \['b', 'c'\]"),
        (["train/a", "train/b", "test/a", "test/b/"], "b has no image"),
        ([], "one subfolder of images per class"),
    ],
)
def test_folders_that_cannot_be_meant(folders: list[str], words: str, tmp_path: Path) -> None:
    grown(tmp_path, *(f for f in folders if not f.endswith("/")))
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    with pytest.raises(DataError, match=words):
        load_data(tmp_path, size=8)


def test_every_empty_class_is_named_and_what_lies_there(tmp_path: Path) -> None:
    grown(tmp_path, "a", "b")
    for name, file in (("c", "1.heic"), ("d", "2.txt")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_bytes(b"x")
    with pytest.raises(DataError) as caught:
        load_data(tmp_path, size=8)
    assert "c has no image: only .heic" in str(caught.value)
    assert "d has no image: only .txt" in str(caught.value)


def test_a_class_that_only_has_bad_files(tmp_path: Path) -> None:
    grown(tmp_path, "a", "b")
    for i in range(4):
        (tmp_path / "b" / f"{i}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"b has no image(.|\n)*b/0\.png cannot be read"):
        load_data(tmp_path, size=8, skip_bad=True)


def test_a_class_may_be_called_test(tmp_path: Path) -> None:
    grown(tmp_path, "control", "test")
    assert load_data(tmp_path, size=8).classes == ("control", "test")


def test_channels_and_moments(tmp_path: Path) -> None:
    grown(tmp_path, "a", "b")
    data = load_data(tmp_path, size=8, channels=1)
    assert data.shape == (1, 8, 8) == tuple(data.train[0][0].shape)
    assert len(data.mean) == len(data.std) == 1
    model = data.normalise(nn.Identity())
    assert model(torch.full((2, 1, 8, 8), 0.459)).abs().max() < 1e-6
    assert load_data(tmp_path, size=8, channels=3).shape == (3, 8, 8)
    assert data.augment is not None
    assert data.augment(data.train[0][0]).shape == (1, 8, 8)


def test_options_that_nothing_reads_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    grown(tmp_path, "a", "b")
    for name, options in (
        (tmp_path, {"root": "elsewhere"}),
        (tmp_path, {"download": True}),
        ("digits", {"root": "elsewhere"}),
        ("digits", {"download": True}),
        ("digits", {"skip_bad": True}),
    ):
        with pytest.raises(OptionError, match="would have no effect"):
            load_data(name, **options)  # type: ignore[arg-type]


def test_every_option_of_load_data_changes_something(tmp_path: Path) -> None:
    import inspect

    grown(tmp_path, "a", "b", count=20)
    (tmp_path / "a" / "bad.png").write_bytes(b"")

    def what(**options: Any) -> Any:
        data = load_data(tmp_path, **{"size": 8, **options})
        parts: list[Folder] = [data.train, data.val, data.test]  # type: ignore[list-item]
        return data.shape, [part.files for part in parts], len(data.skipped)

    changes: dict[str, Any] = {
        "validation": 0.3, "size": 9, "channels": 1, "seed": 5, "skip_bad": True
    }  # fmt: skip
    refused = {"root", "download"}
    assert changes.keys() | refused | {"name"} == inspect.signature(load_data).parameters.keys()
    for name, value in changes.items():
        assert what(**{name: value}) != what(), name


def test_the_identity_of_a_folder_is_its_files(tmp_path: Path) -> None:
    def identity(**options: Any) -> str:
        part = load_data(tmp_path, **{"size": 8, **options}).train
        assert isinstance(part, Folder)
        return part.identity()

    grown(tmp_path, "a", "b")
    first = identity()
    assert identity() == first
    assert len({first, identity(size=9), identity(channels=1), identity(seed=1)}) == 4
    (tmp_path / "a" / "0.png").rename(tmp_path / "a" / "00.png")
    assert identity() != first


def test_training_on_a_folder_names_the_file_and_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    from pursuitify.training import finetune

    grown(tmp_path / "set", "a", "b", count=100)
    data = load_data(tmp_path / "set", size=8, channels=1)
    assert isinstance(data.train, Folder)
    sampled = {data.train.files[i][0] for i in range(0, len(data.train), -(-len(data.train) // 64))}
    bad = next(f for f, _ in data.train.files if f not in sampled)
    options: Any = {"epochs": 1, "batch_size": 1, "progress": False, "output": tmp_path / "run"}
    whole = (tmp_path / "set" / bad).read_bytes()

    def net() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 2))

    (tmp_path / "set" / bad).write_bytes(whole[:20])
    with pytest.raises(DataError) as caught:
        finetune(net(), data.train, data.val, **options)
    assert bad in str(caught.value)
    (tmp_path / "set" / bad).write_bytes(whole)
    resumed = finetune(net(), data.train, data.val, resume=True, **options)
    other = {**options, "output": tmp_path / "other"}
    assert resumed.history == finetune(net(), data.train, data.val, **other).history


@pytest.mark.skipif(os.name != "posix", reason="a program is a file that says so")
def test_no_program_is_started_for_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostScript under the name of a picture: PIL would hand it to Ghostscript."""
    from PIL import EpsImagePlugin

    ran, program = tmp_path / "ran", tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {ran}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    path = tmp_path / "x.png"
    text = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    path.write_text(text)
    with contextlib.suppress(OSError):
        Image.open(path).load()
    assert ran.exists(), "PIL alone starts it"
    ran.unlink()
    with pytest.raises(DataError, match=r"x\.png cannot be read: cannot identify"):
        read_picture(path, 3)
    assert not ran.exists()


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are decoded from here on."""
    names: list[str] = []

    def read(path: Path, channels: int) -> Tensor:
        names.append(path.name)
        return read_picture(path, channels)

    monkeypatch.setattr("pursuitify.data.image_folder.read_picture", read)
    return names


def small(root: Path) -> Folder:
    for name in ("one", "two"):
        put(root / "a" / f"{name}.png")
    return Folder(root, ("a",), (("a/one.png", 0), ("a/two.png", 0)), 8, 3)


def test_small_images_are_decoded_once(tmp_path: Path, decoded: list[str]) -> None:
    folder = small(tmp_path)
    first = folder[0][0]
    kept = first.clone()
    first.zero_()  # what is returned belongs to the caller
    assert torch.equal(folder[0][0], kept)
    folder[1], folder[1]
    assert decoded == ["one.png", "two.png"]
    again = pickle.loads(pickle.dumps(folder))
    assert torch.equal(again[0][0], kept)
    assert decoded[2:] == ["one.png"]


def test_a_file_that_changed_is_decoded_again(tmp_path: Path, decoded: list[str]) -> None:
    folder = small(tmp_path)
    before = folder[0][0]
    put(tmp_path / "a" / "one.png", 255 - BYTES)
    assert not torch.equal(folder[0][0], before)
    assert decoded == ["one.png", "one.png"]
    (tmp_path / "a" / "one.png").unlink()
    with pytest.raises(DataError, match=r"one\.png"):
        folder[0]


def test_many_images_and_those_of_workers_are_not_kept(
    tmp_path: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = small(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(image_folder, "get_worker_info", object)
        folder[0], folder[0]
    assert decoded == ["one.png", "one.png"]
    monkeypatch.setattr(image_folder, "_KEPT_AT_MOST", 2 * 4 * 3 * 8 * 8 - 1)
    folder[1], folder[1]
    assert decoded[2:] == ["two.png", "two.png"]
