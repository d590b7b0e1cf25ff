"""What stands for a data set: one element changed anywhere, in memory or in a file, changes it."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from pursuitify.data import content
from pursuitify.data.content import of_attributes, of_value, sizes

COUNT = 7


class Holder(Dataset[Any]):
    """A data set that keeps whatever it is given."""

    def __init__(self, **kept: Any) -> None:
        self.__dict__.update(kept)

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> Any:
        return torch.zeros(1), 0


class Slotted(Dataset[Any]):
    """A data set with slots."""

    __slots__ = ("rows",)

    def __init__(self, rows: Any) -> None:
        self.rows = rows


class Row:
    """A sample as an object of somebody's own."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def method(self) -> Any:
        return self.value


def table(values: list[Any]) -> Any:
    return pytest.importorskip("pandas").DataFrame({"a": values, "b": ["x"] * COUNT})


#: A data set made of seven numbers, kept in one way or another.
KEPT: dict[str, Callable[[list[int]], Any]] = {
    "tensor": lambda v: Holder(x=torch.tensor(v)),
    "tensor of floats in two rows": lambda v: Holder(x=torch.tensor([v, v]).float()),
    "transposed tensor": lambda v: Holder(x=torch.tensor([v, v]).T),
    "half precision": lambda v: Holder(x=torch.tensor(v).half()),
    "tensors": lambda v: Holder(x=[torch.tensor(n) for n in v]),
    "tensors of several shapes": lambda v: Holder(
        x=[torch.full((i,), n) for i, n in enumerate(v, 1)]
    ),
    "array": lambda v: Holder(x=np.array(v)),
    "array of bytes": lambda v: Holder(x=np.array(v, dtype=np.uint8)),
    "array in the other order": lambda v: Holder(x=np.array([v, v], order="F")),
    "array of objects": lambda v: Holder(x=np.array([*v, None], dtype=object)),
    "array of records": lambda v: Holder(x=np.array([(n, 0.5) for n in v], dtype="i4,f4")),
    "list": lambda v: Holder(x=v),
    "pairs": lambda v: Holder(x=[(n, {"label": n}) for n in v]),
    "dict": lambda v: Holder(x={str(i): n for i, n in enumerate(v)}),
    "keys": lambda v: Holder(x=dict.fromkeys(enumerate(v))),
    "set": lambda v: Holder(x={(i, n) for i, n in enumerate(v)}),
    "texts": lambda v: Holder(x=list(map(str, v))),
    "bytes": lambda v: Holder(x=[bytes(v)]),
    "objects": lambda v: Holder(x=[Row(n) for n in v]),
    "pictures": lambda v: Holder(x=[Image.new("L", (2, 2), n) for n in v]),
    "table": lambda v: Holder(x=table(v)),
    "column": lambda v: Holder(x=table(v)["a"]),
    "closure": lambda v: Holder(x=lambda i: v[i]),
    "partial": lambda v: Holder(x=functools.partial(max, v)),
    "method of an object": lambda v: Holder(x=[Row(v).method]),
    "slots": Slotted,
    "TensorDataset": lambda v: TensorDataset(torch.tensor(v)),
    "subset": lambda v: Subset(Holder(x=[0]), v),
    "data set in a subset": lambda v: Subset(Holder(x=v), [0]),
    "data sets in a list": lambda v: ConcatDataset([Holder(x=[1]), Holder(x=v)]),
    "data set in a dict": lambda v: Holder(x={"a": Holder(x=v)}),
}  # fmt: skip


def marks(data: Any) -> dict[str, Any]:
    return {k: (c.held, c.written) for k, c in of_attributes(data).items()}


@pytest.mark.parametrize("kind", KEPT)
@given(
    values=st.lists(st.integers(0, 50), min_size=COUNT, max_size=COUNT),
    place=st.integers(0, COUNT - 1),
    add=st.integers(1, 200),
)
@settings(max_examples=10, deadline=None)
def test_one_element_anywhere_counts(kind: str, values: list[int], place: int, add: int) -> None:
    make = KEPT[kind]
    other = [n + add * (i == place) for i, n in enumerate(values)]
    first = marks(make(list(values)))
    assert first
    assert marks(make(list(values))) == first
    changed = marks(make(other))
    assert changed.keys() == first.keys()
    assert changed != first


@pytest.mark.parametrize(
    "data",
    [
        Holder(),
        Holder(cache={}, other=[None] * 5, root="/no/such/folder", x=torch.empty(0)),
        Holder(draw=torch.Generator(), other=np.random.default_rng()),
        Holder(here=os.getcwd()),
        object(),
        [],
    ],
)
def test_what_holds_nothing_has_no_content(data: Any) -> None:
    assert of_attributes(data) == {}


def test_texts_that_stand_alone_and_random_states_do_not_count() -> None:
    one: Any = Holder(x=[1], url="a", draw=[np.random.default_rng(0)])
    other: Any = Holder(x=[1], url="b", draw=[np.random.default_rng(1)])
    assert marks(one) == marks(other)
    one.size, other.size = 3, 4
    assert marks(one) != marks(other)
    assert sizes(one) != sizes(other)
    circle: Any = Holder(x=[1])
    circle.me, circle.list = circle, [circle]
    assert marks(circle)["x"] == marks(one)["x"]
    circle.x.append(circle.x)
    assert marks(circle)["x"] != marks(one)["x"]


def test_an_order_that_differs_between_processes_does_not_count() -> None:
    assert of_value({"a": 1, "b": 2}) == of_value({"b": 2, "a": 1})
    one, other = {0, 8}, {8, 0}
    assert list(one) != list(other), "what was put in first comes first"
    assert of_value(one) == of_value(other)
    assert of_value([1, 2]) != of_value([2, 1])


@pytest.mark.parametrize("cache", [dict, list, set, lambda: [None] * 3, lambda: torch.zeros(3)])
def test_caches_are_told_from_data(cache: Callable[[], Any]) -> None:
    data: Any = Holder(x=[1, 2], cache=cache(), array=np.ones(2), same=(1, 2), table={"a": 1})
    before = sizes(data)
    if isinstance(data.cache, set):
        data.cache.add(1)
    elif isinstance(data.cache, list) and not data.cache:
        data.cache.append(1)
    else:
        data.cache[0] = 1
    after = sizes(data)
    assert {name for name in before if before[name] != after[name]} == {"cache"}


def files(root: Path, count: int = COUNT, size: int = 300) -> list[Path]:
    draw = np.random.default_rng(0)
    found = []
    for number in range(count):
        path = root / f"{number % 2}" / f"{number}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(draw.bytes(size + number))
        os.utime(path, ns=(0, 10**18 + number))
        found.append(path)
    return found


#: How a data set names its files, given their folder.
NAMED: dict[str, Callable[[Path, list[Path]], Any]] = {
    "paths": lambda root, found: Holder(files=found),
    "texts": lambda root, found: Holder(files=[str(path) for path in found]),
    "pairs": lambda root, found: Holder(samples=[(str(path), 1) for path in found]),
    "relative to a folder": lambda root, found: Holder(
        root=str(root), names=[str(path.relative_to(root)) for path in found]
    ),
    "keys": lambda root, found: Holder(labels=dict.fromkeys(found, 0)),
    "a set": lambda root, found: Holder(files={str(path) for path in found}),
    "array": lambda root, found: Holder(files=np.array([str(path) for path in found])),
    "table": lambda root, found: Holder(rows=table([str(path) for path in found])),
    "objects": lambda root, found: Holder(rows=[Row(path) for path in found]),
    "in a subset": lambda root, found: Subset(Holder(files=found), [0]),
}


def flipped(path: Path, place: int) -> None:
    """Change one byte, and nothing that the file system would tell."""
    kept = path.stat()
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(kept.st_atime_ns, kept.st_mtime_ns))


@pytest.mark.parametrize("how", NAMED)
@given(file=st.integers(0, COUNT - 1), place=st.integers(0, 300))
@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_one_byte_of_any_file_counts(
    how: str, file: int, place: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("files")
    found = files(root)
    data = NAMED[how](root, found)
    first = marks(data)
    assert all(written is None for _, written in first.values())
    for path in found:
        os.utime(path, ns=(5, 5))
    assert marks(data) == first, "where every byte is read, times do not count"
    moved = root.parent / f"{root.name}-moved"
    shutil.copytree(root, moved)
    there = NAMED[how](moved, [moved / path.relative_to(root) for path in found])
    assert marks(there) == first, "nor does the folder"
    flipped(found[file], place)
    assert marks(data) != first
    shutil.rmtree(moved)


@pytest.mark.parametrize("how", NAMED)
@given(file=st.integers(0, COUNT - 1), what=st.sampled_from(["size", "time", "name", "gone"]))
@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_of_many_bytes_names_sizes_and_times_count(
    how: str, file: int, what: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(content, "_WHOLE", 1000)
        patch.setattr(content, "_FILES", 2)
        root = tmp_path_factory.mktemp("files")
        found = files(root)
        first = marks(NAMED[how](root, found))
        path = found[file]
        kept = path.stat()
        if what == "size":
            path.write_bytes(path.read_bytes() + b"a")
            os.utime(path, ns=(kept.st_atime_ns, kept.st_mtime_ns))
        elif what == "time":
            os.utime(path, ns=(kept.st_atime_ns, kept.st_mtime_ns + 1))
        elif what == "name":
            found[file] = path.rename(path.with_name("other.bin"))
        else:
            path.unlink()
        changed = marks(NAMED[how](root, found))
        assert changed != first
        if what == "time":
            assert {k: v[0] for k, v in changed.items()} == {k: v[0] for k, v in first.items()}
        shutil.rmtree(root)


def test_of_many_bytes_the_beginning_of_some_files_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content, "_WHOLE", 1000)
    monkeypatch.setattr(content, "_FILES", 4)
    monkeypatch.setattr(content, "_BEGINNING", 100)
    found = files(tmp_path)
    seen = []
    for path in found:
        for place in (0, 99, 100):
            before = of_value(found)
            flipped(path, place)
            seen.append(of_value(found) != before)
    assert seen == [number % 2 == 0 and place != 2 for number in range(7) for place in range(3)]


def test_files_by_one_name_open_files_and_maps(tmp_path: Path) -> None:
    (path,) = files(tmp_path, 1, 4096)
    array = np.memmap(path, dtype=np.uint8, mode="r")
    with path.open("rb") as opened:
        for data in (Holder(x=path), Holder(x=opened), Holder(x=array), Holder(x=str(path))):
            before = marks(data)
            flipped(path, 4000)
            assert before
            assert marks(data) != before


def test_a_large_map_is_not_read_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "_WHOLE", 1000)
    monkeypatch.setattr(content, "_BEGINNING", 10)
    (path,) = files(tmp_path, 1, 4096)
    found = of_value(np.memmap(path, dtype=np.uint8, mode="r"))
    assert found is not None
    assert found.written is not None
    flipped(path, 4000)
    assert of_value(np.memmap(path, dtype=np.uint8, mode="r")) == found, "as the docs say"
    os.utime(path)
    assert of_value(np.memmap(path, dtype=np.uint8, mode="r")) != found


def test_what_cannot_be_read_is_no_error(tmp_path: Path) -> None:
    found = files(tmp_path)
    found[3].chmod(0)
    link = tmp_path / "link"
    link.symlink_to(link)
    names = [*found, link, tmp_path / "gone", "a\0b", "x" * 5000, "\ud800", tmp_path, ""]
    assert of_value(names) == of_value(names)
