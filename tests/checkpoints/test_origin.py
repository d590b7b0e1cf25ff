"""The origin of a network: kept in its file, checked when it is read."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pursuitify import CheckpointError, OptionError, PursuitNetwork, load, pursuitify, save
from pursuitify.checkpoints.files import ORIGIN
from pursuitify.checkpoints.origin import Origin, origin_of, read_origin
from pursuitify.checkpoints.save_load import save_source
from pursuitify.data import Normalised
from pursuitify.models import ChainNet

FULL = Origin(
    model="nets.py:make",
    code="0f" * 32,
    shape=(1, 8, 8),
    classes=2,
    mean=(0.459,),
    std=(0.226,),
    data="images",
    labels=("cats", "dogs"),
    root="data",
    size=8,
    channels=1,
    skip_bad=True,
    seed=3,
)


def source() -> Normalised:
    torch.manual_seed(0)
    return Normalised(ChainNet(1, 2, width=2), FULL.mean, FULL.std).eval()


def network() -> PursuitNetwork:
    return pursuitify(source(), iterations=1)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("origin") / "net.safetensors"
    save(network(), path, origin=FULL)
    return path


def test_it_comes_back_and_the_network_loads(saved: Path, tmp_path: Path) -> None:
    assert read_origin(saved) == FULL
    assert load(saved, source()).iterations == 1
    save(network(), tmp_path / "plain")
    assert read_origin(tmp_path / "plain") is None, "as every file from before"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_the_normalisation_is_compared_in_every_precision(dtype: torch.dtype) -> None:
    tensors = source().to(dtype).state_dict()
    FULL.check_tensors(tensors)
    with pytest.raises(OptionError, match="mean"):
        Origin(mean=(0.5,), std=FULL.std).check_tensors(tensors)


def test_another_normalisation_is_not_saved(tmp_path: Path) -> None:
    plain = pursuitify(ChainNet(1, 2, width=2), iterations=1)
    with pytest.raises(OptionError, match="is not the normalisation"):
        save(plain, tmp_path / "net", origin=FULL)
    with pytest.raises(OptionError, match="not an Origin"):
        save(plain, tmp_path / "net", origin="nets.py:make")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [0, 8, 8]},
        {"shape": [3, 8, 8]},
        {"shape": "188"},
        {"classes": 1},
        {"classes": -1},
        {"classes": True},
        {"labels": ["cats", "cats"]},
        {"labels": [1, 2]},
        {"mean": [0.5]},
        {"mean": []},
        {"std": [0.0]},
        {"std": [0.226, 0.226]},
        {"size": 0},
        {"channels": 1.5},
        {"skip_bad": 1},
        {"seed": "3"},
        {"seed": 2**70},
        {"model": None},
        {"model": ["nets.py", "make"]},
        {"code": "not hexadecimal"},
        {"code": "0f"},
        {"run": "rm"},
    ],
    ids=str,
)
def test_altered_origins_are_refused(saved: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "altered"
    with safe_open(saved, framework="pt") as file:
        header = json.loads(file.metadata()["pursuitify"])
    header[ORIGIN] |= change
    save_file(load_file(saved), path, metadata={"pursuitify": json.dumps(header)})
    with pytest.raises(CheckpointError, match="altered"):
        read_origin(path)
    with pytest.raises(CheckpointError, match="altered"):
        load(path, source())


TENSORS = source().state_dict()
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@settings(max_examples=80, deadline=None)
@given(name=st.sampled_from([field.name for field in fields(Origin)]), value=JSON)
def test_whatever_stands_there_is_read_or_refused(name: str, value: Any) -> None:
    """An origin that is read back states what it was made of; anything else is our error."""
    stated = json.loads(json.dumps({**FULL.to_dict(), name: value}))
    try:
        origin = origin_of({ORIGIN: stated}, TENSORS, Path("net"))
    except CheckpointError:
        return
    assert origin is not None
    assert origin.to_dict() == stated


@pytest.mark.parametrize("value", [None, [], "origin", 3, {}])
def test_an_origin_that_is_none(value: Any) -> None:
    with pytest.raises(CheckpointError, match="altered"):
        origin_of({ORIGIN: value}, {}, Path("net"))


def test_the_weights_inside_a_normalisation(tmp_path: Path) -> None:
    save_source(network(), tmp_path / "own", part="model")
    ChainNet(1, 2, width=2).load_state_dict(load_file(tmp_path / "own"), strict=True)
    with pytest.raises(OptionError, match="'body' is no submodule"):
        save_source(network(), tmp_path / "own", part="body")
