"""Save and load: exact round trips, and clear errors that leave everything as it was."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pursuitify import CheckpointError, OptionError, PursuitNetwork, load, pursuitify, save
from pursuitify.checkpoints.save_load import NORMS, save_source
from pursuitify.dictionary import norm_bounds
from pursuitify.models import ChainNet, ResidualNet
from pursuitify.operators import conv_norm_bound
from tests.support.damaged_files import damaged
from tests.support.nets import CASES, Case


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("layout", ["auto", "encoder"])
def test_round_trip(case: Case, layout: Any, tmp_path: Path) -> None:
    net = pursuitify(case.build(), iterations=3, layout=layout, paper=True)
    with torch.no_grad():
        net.pursuit.alpha.fill_(0.2)
        net.pursuit.beta.fill_(0.3)
    save(net, tmp_path / "net.safetensors")
    again = load(tmp_path / "net.safetensors", case.build(seed=5))
    x = case.input()
    with torch.no_grad():
        assert torch.equal(net(x), again(x))
    assert list(again.graph.nodes(data=True)) == list(net.graph.nodes(data=True))


def test_options_come_back(tmp_path: Path) -> None:
    net = pursuitify(ChainNet(), 4, "layered", nonnegative_thresholds=True)
    save(net, tmp_path / "a")
    again = load(tmp_path / "a", ChainNet())
    assert (again.iterations, again.solver) == (4, "layered")
    assert again._program.nonnegative
    assert not list(tmp_path.glob(".*")), "temporary files are left"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save(pursuitify(ChainNet(width=2), iterations=2), tmp_path / "net")
    return tmp_path / "net"


def test_another_architecture_is_refused_by_name(saved: Path) -> None:
    with pytest.raises(CheckpointError, match=r"another graph.*row"):
        load(saved, ResidualNet(width=2))
    with pytest.raises(CheckpointError, match=r"classifier\.weight is \(10, 8\), not \(10, 16\)"):
        load(saved, ChainNet(width=4))


def test_damaged_and_hostile_files(saved: Path, tmp_path: Path) -> None:
    whole = saved.read_bytes()
    model = ChainNet(width=2)
    ran = tmp_path / "ran"
    for name, content in damaged(whole, ran).items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match="not a whole safetensors file"):
            load(tmp_path / name, model)
    assert not ran.exists(), "the file was executed"
    with pytest.raises(CheckpointError, match="no file"):
        load(tmp_path / "nowhere", model)


def deep(levels: int) -> Any:
    """Return lists in lists."""
    return [deep(levels - 1)] if levels else []


@pytest.mark.parametrize("header", ["[" * 100000, '{"graph": ' * 100000, "9" * 5000, "[]"])
def test_headers_that_are_none(saved: Path, header: str) -> None:
    save_file(load_file(saved), saved, metadata={"pursuitify": header})
    with pytest.raises(CheckpointError, match=r"was not written by pursuitify\.save"):
        load(saved, ChainNet(width=2))


def rewritten(saved: Path, change: Any) -> Path:
    from safetensors import safe_open

    with safe_open(saved, framework="pt") as file:
        header = json.loads(file.metadata()["pursuitify"])
    tensors = load_file(saved)
    change(header, tensors)
    target = saved.with_suffix(".changed")
    save_file(tensors, target, metadata={"pursuitify": json.dumps(header)})
    return target


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, t: h.update(format=99), "format 99"),
        (lambda h, t: h.pop("options"), "incomplete or altered"),
        (lambda h, t: h["options"].update(code="import os"), "incomplete or altered"),
        (lambda h, t: h.update(format=[1]), r"format \[1\]"),
        (lambda h, t: h.pop("operations"), "incomplete or altered"),
        (lambda h, t: h.update(graph=[]), "incomplete or altered"),
        (lambda h, t: h["graph"].update(training=[1]), "incomplete or altered"),
        (lambda h, t: h["graph"].update(evaluation=[{}]), "incomplete or altered"),
        (lambda h, t: h["graph"].update(evaluation=[None]), "incomplete or altered"),
        (lambda h, t: h["graph"]["evaluation"][0].__setitem__(1, deep(80)), r"layout is \[\["),
        (lambda h, t: h["graph"]["training"].pop(), "rows in training mode"),
        (lambda h, t: h.update(operations=[]), "incomplete or altered"),
        (lambda h, t: h["operations"].update(training=[[]]), "incomplete or altered"),
        (lambda h, t: h["operations"]["training"][0].update(x=None), "incomplete or altered"),
        (lambda h, t: h["operations"]["training"][1].update(stride={}), "stride is {} in"),
        (lambda h, t: h["operations"]["training"].pop(), "operations in training mode"),
        (lambda h, t: h.update(constants=None), "incomplete or altered"),
        (lambda h, t: h["constants"].update(x=[]), "constant 'x'"),
        (lambda h, t: h["options"].update(iterations=-1), "altered: iterations=-1"),
        (lambda h, t: h["options"].update(iterations=[]), "altered: iterations"),
        (lambda h, t: h["options"].update(solver={}), "altered: solver"),
        (lambda h, t: h["options"].update(steps=None), "altered: steps=None"),
        (lambda h, t: h["options"].update(steps="adaptive", solver="layered"), "altered: steps"),
        (lambda h, t: h["options"].update(norm_bounds="large"), "altered: norm_bounds='large'"),
        (lambda h, t: h["options"].update(step_scale=10**400), "is altered"),
        (lambda h, t: h["options"].update(layout=["auto"]), "altered: layout"),
        (lambda h, t: h["options"].update(paper="yes"), "altered: paper"),
        (lambda h, t: h["options"].update(nonnegative_thresholds=0), "altered: nonneg"),
        (lambda h, t: t.update(extra=torch.zeros(1)), "unexpected extra"),
        (lambda h, t: t.pop("pursuit.beta"), r"missing pursuit\.beta"),
    ],
)
def test_altered_files(saved: Path, change: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(rewritten(saved, change), ChainNet(width=2))


def test_files_of_the_format_before(saved: Path) -> None:
    def older(header: dict[str, Any], _: Any) -> None:
        header["format"] = 1
        del header["operations"], header["constants"]

    path = rewritten(saved, older)
    with pytest.warns(UserWarning, match="did not record what every operation does"):
        net = load(path, ChainNet(width=2))
    assert torch.equal(net.state_dict()["classifier.weight"], load_file(saved)["classifier.weight"])
    with pytest.raises(CheckpointError, match="another graph"):
        load(path, ResidualNet(width=2))


def test_files_that_know_no_rule_of_steps_have_certified_ones(saved: Path) -> None:
    path = rewritten(saved, lambda header, _: header["options"].pop("steps"))
    assert load(path, ChainNet(width=2)).steps == "certified"


def test_files_that_know_no_sizes_of_images_have_bounds_for_any(tmp_path: Path) -> None:
    net = pursuitify(ChainNet(width=2), 3, norm_bounds="image")
    save(net, tmp_path / "net")
    assert load(tmp_path / "net", ChainNet(width=2)).norm_bounds == "image"
    path = rewritten(tmp_path / "net", lambda header, _: header["options"].pop("norm_bounds"))
    assert load(path, ChainNet(width=2)).norm_bounds == "any size"


def test_files_that_know_no_place_of_offsets_have_thresholds(tmp_path: Path) -> None:
    net, x = pursuitify(ResidualNet(width=2), 3, offsets="threshold"), torch.rand(1, 3, 8, 8)
    net.eval()
    save(net, tmp_path / "net")
    path = rewritten(tmp_path / "net", lambda header, _: header["options"].pop("offsets"))
    again = load(path, ResidualNet(width=2)).eval()
    assert again.offsets == "threshold"
    assert torch.equal(again(x), net(x))


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The kernels whose norms are bounded while a test runs, a 1 for each."""
    found: list[int] = []
    bound = conv_norm_bound

    def counted(*kernel: Any, **image: Any) -> Any:
        found.append(1)
        return bound(*kernel, **image)

    monkeypatch.setattr(norm_bounds, "conv_norm_bound", counted)
    return found


def called(searches: list[int], net: PursuitNetwork, x: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Return the output, and how many norms were bounded on the way to it."""
    searches.clear()
    with torch.no_grad():
        output = net(x)
    return output, len(searches)


def test_a_loaded_network_knows_its_norms(tmp_path: Path, searches: list[int]) -> None:
    model, x = ResidualNet(width=2).eval(), torch.rand(2, 3, 8, 8)
    net = pursuitify(model, iterations=3)
    save(net, tmp_path / "before")
    expected, needed = called(searches, net, x)
    assert needed > 0
    save(net, tmp_path / "after")
    for name, wanted in (("before", needed), ("after", 0)):
        output, count = called(searches, load(tmp_path / name, model), x)
        assert torch.equal(output, expected)
        assert count == wanted
    again = load(tmp_path / "after", model)
    save(again, tmp_path / "uncalled")
    assert called(searches, load(tmp_path / "uncalled", model), x)[1] == 0
    assert called(searches, pickle.loads(pickle.dumps(again)), x)[1] == 0


def test_a_loaded_network_knows_its_norms_on_images_of_one_size(
    tmp_path: Path, searches: list[int]
) -> None:
    model, x, other = ResidualNet(width=2).eval(), torch.rand(2, 3, 8, 8), torch.rand(2, 3, 5, 6)
    net = pursuitify(model, iterations=3, norm_bounds="image")
    expected = {size: called(searches, net, y)[0] for size, y in ((5, other), (8, x))}
    save(net, tmp_path / "net")
    again = load(tmp_path / "net", model)
    output, count = called(searches, again, x)
    assert torch.equal(output, expected[8])
    assert count == 0
    output, count = called(searches, again, other)
    assert torch.equal(output, expected[5])
    assert count > 0
    again = load(tmp_path / "net", model)
    again.norm_bounds = "any size"
    plain = pursuitify(model, iterations=3)
    output, count = called(searches, again, x)
    assert count > 0
    assert torch.equal(output, called(searches, plain, x)[0])


@pytest.mark.parametrize("change", ["weights", "statistics", "precision", "version"])
def test_norms_of_other_kernels_are_not_taken(
    change: str, tmp_path: Path, searches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = ResidualNet(width=2).eval(), torch.rand(2, 3, 8, 8)
    net = pursuitify(model, iterations=3)
    called(searches, net, x)
    save(net, tmp_path / "net")
    if change == "version":  # a later one may bound otherwise
        monkeypatch.setattr("pursuitify.checkpoints.save_load.VERSION", "0.0.0")
    again = load(tmp_path / "net", model)
    with torch.no_grad():
        if change == "weights":
            again.blocks[1][0].conv1.weight[0, 0, 0, 0] += 1.0
        elif change == "statistics":
            again.blocks[1][0].norm1.running_var[0] *= 0.5
        elif change == "precision":
            again, x = again.double(), x.double()
    fresh = copy.deepcopy(pursuitify(model.to(x), iterations=3))
    fresh.load_state_dict(again.state_dict())
    output, count = called(searches, again, x)
    assert count > 0
    assert torch.equal(output, called(searches, fresh, x)[0])


def _shorter(record: Any) -> None:
    place = next(iter(record["bounds"]))
    record["bounds"][place] *= 0.5


ALTERED = {
    "a bound": _shorter,
    "contents": lambda record: record.update(contents="0" * 64),
    "no sum": lambda record: record.pop("check"),
    "more": lambda record: record.update(more=1),
    "no bounds": lambda record: record.pop("bounds"),
}


@pytest.mark.parametrize("change", [*ALTERED, "a list"])
def test_altered_norms_are_refused(change: str, tmp_path: Path) -> None:
    model = ResidualNet(width=2).eval()
    net = pursuitify(model, iterations=1)
    with torch.no_grad():
        net(torch.rand(1, 3, 8, 8))
    save(net, tmp_path / "net")

    def alter(header: dict[str, Any], _: Any) -> None:
        if change == "a list":
            header[NORMS] = [1]
        else:
            ALTERED[change](header[NORMS])

    with pytest.raises(CheckpointError, match=r"altered.*certified norms"):
        load(rewritten(tmp_path / "net", alter), model)


@pytest.mark.parametrize("write", [save, save_source])
def test_only_pursuit_networks_are_saved(write: Any, tmp_path: Path) -> None:
    for wrong, kind in [(ChainNet(), "ChainNet"), (None, "NoneType")]:
        with pytest.raises(OptionError, match=f"takes a PursuitNetwork.*not a {kind}.*Convert"):
            write(wrong, tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_failed_write_keeps_the_old_file(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def full(*_args: Any, **_kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pursuitify.utils.atomic_files.save_file", full)
    with pytest.raises(CheckpointError, match="No space left"):
        save(pursuitify(ChainNet(width=2)), saved)
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]
    with pytest.raises(CheckpointError, match=r"cannot write to .*no: No such file or directory$"):
        save(pursuitify(ChainNet(width=2)), saved.parent / "no" / "folder")


def test_way_back_to_the_source(saved: Path) -> None:
    net = load(saved, ChainNet(width=2))
    own = {k: v for k, v in net.state_dict().items() if not k.startswith("pursuit.")}
    ChainNet(width=2).load_state_dict(own, strict=True)
