"""A checkpoint as a folder: what the Hugging Face Hub keeps, and what is read or refused in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pursuitify import CheckpointError, load, pursuitify, save, save_pretrained
from pursuitify.checkpoints.origin import Origin, read_origin
from pursuitify.models import ChainNet, ResidualNet

ORIGIN = Origin(model="nets.py:make", shape=(1, 8, 8), classes=10, labels=("a", "b"), data="images")


def source() -> ChainNet:
    torch.manual_seed(0)
    return ChainNet(1, 10, width=2).eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "me" / "net"
    save_pretrained(pursuitify(source(), 3, "layered"), folder, origin=ORIGIN)
    return folder


def copied(saved: Path, target: Path) -> Path:
    target.mkdir()
    for file in saved.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def test_the_folder_holds_the_file_that_save_writes(saved: Path, tmp_path: Path) -> None:
    assert {path.name for path in saved.iterdir()} == {"config.json", "model.safetensors"}
    save(pursuitify(source(), 3, "layered"), tmp_path / "net", origin=ORIGIN)
    assert (saved / "model.safetensors").read_bytes() == (tmp_path / "net").read_bytes()
    config = json.loads((saved / "config.json").read_text())
    assert config["library_name"] == "pursuitify"
    assert (config["options"]["iterations"], config["options"]["solver"]) == (3, "layered")
    assert config["origin"] == json.loads(json.dumps(ORIGIN.to_dict()))


def test_it_comes_back(saved: Path) -> None:
    x = torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        wanted = pursuitify(source(), 3, "layered")(x)
        for path in (saved, str(saved), saved / "model.safetensors"):
            again = load(path, ChainNet(1, 10, width=2).eval())
            assert (again.iterations, again.solver) == (3, "layered")
            assert torch.equal(again(x), wanted)
            assert read_origin(Path(path)) == ORIGIN


def test_a_folder_of_links_as_the_hub_s_cache_keeps_it(saved: Path, tmp_path: Path) -> None:
    for file in saved.iterdir():
        (tmp_path / file.name).symlink_to(file)
    assert load(tmp_path, source()).iterations == 3


def test_saved_again_it_is_the_new_one_and_the_card_stays(saved: Path, tmp_path: Path) -> None:
    folder = copied(saved, tmp_path / "net")
    (folder / "README.md").write_text("the card")
    save_pretrained(pursuitify(source(), 7), folder)
    assert load(folder, source()).iterations == 7
    assert read_origin(folder) is None
    assert (folder / "README.md").read_text() == "the card"


#: Whatever JSON can hold.
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 99) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=4,
)
PLACES: list[tuple[str, ...]] = [
    ("options", "iterations"),
    ("options", "solver"),
    ("options", "more"),
    ("origin", "mean"),
]
PLACES += [(key,) for key in ("format", "version", "options", "origin")]


@settings(max_examples=25, deadline=None)
@given(place=st.sampled_from(PLACES), value=ANYTHING)
def test_a_config_that_says_something_else_is_refused(
    saved: Path, tmp_path_factory: pytest.TempPathFactory, place: tuple[str, ...], value: Any
) -> None:
    """Who edits config.json is told that it changes nothing, wherever the edit is."""
    folder = copied(saved, tmp_path_factory.mktemp("edited") / "net")
    file = folder / "config.json"
    config = json.loads(file.read_text())
    inner = config if len(place) == 1 else config[place[0]]
    same = place[-1] in inner and inner[place[-1]] == value
    inner[place[-1]] = value
    file.write_text(json.dumps(config))
    if same:
        assert read_origin(folder) == ORIGIN
        return
    with pytest.raises(CheckpointError, match=r"config\.json and the header of .* contradict"):
        read_origin(folder)
    file.unlink()
    assert read_origin(folder) == ORIGIN, "the advice of the message works"


def test_what_others_add_to_the_config_is_theirs(saved: Path, tmp_path: Path) -> None:
    folder = copied(saved, tmp_path / "net")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "license": "mit"}))
    assert load(folder, source()).iterations == 3


@pytest.mark.parametrize("text", ["", "[" * 100000, "[]", "{", "3"])
def test_a_config_that_is_none(saved: Path, tmp_path: Path, text: str) -> None:
    folder = copied(saved, tmp_path / "net")
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json (is no JSON|holds a)"):
        load(folder, source())


def test_folders_that_hold_no_network(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors"):
        load(tmp_path, source())
    save_file(source().state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors was not written by pursuitify"):
        load(tmp_path, source())
    with pytest.raises(CheckpointError, match="another graph"):
        load(saved, ResidualNet(1, 10, width=2))
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot make the folder"):
        save_pretrained(pursuitify(source()), tmp_path / "file")


def test_huggingface_hub_reads_the_folder(saved: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    found = hub.get_local_safetensors_metadata(saved)
    tensors = found.files_metadata["model.safetensors"].tensors
    assert tensors.keys() == load_file(saved / "model.safetensors").keys()


def test_a_model_with_huggingface_hub_s_mixin_converts(tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")

    class Net(nn.Module, hub.PyTorchModelHubMixin):  # type: ignore[misc, name-defined]
        def __init__(self, width: int) -> None:
            super().__init__()
            self.body = ChainNet(1, 10, width=width)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)

    Net(width=3).save_pretrained(tmp_path / "plain")
    model = Net.from_pretrained(tmp_path / "plain")
    net = pursuitify(model, iterations=0)
    x = torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(net(x), model(x))
