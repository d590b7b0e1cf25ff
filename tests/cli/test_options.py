"""Options that several commands share: radii, devices, outputs and labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pursuitify import CheckpointError, InputError, OptionError, pursuitify
from pursuitify.checkpoints.origin import Origin
from pursuitify.cli import options
from pursuitify.cli.subject import Subject
from pursuitify.data import Data, Images, Normalised
from pursuitify.models import ChainNet


@pytest.mark.parametrize(
    ("text", "norm", "value"),
    [("0.1", "linf", 0.1), ("8/255", "linf", 8 / 255), ("1", "linf", 1.0), ("8", "l2", 8.0)],
)
def test_radii(text: str, norm: str, value: float) -> None:
    assert options.radius(text, (1, 8, 8), norm) == value


@pytest.mark.parametrize(
    ("text", "norm", "words"),
    [
        ("8", "linf", "Is 8/255 meant?"),
        ("1.01", "linf", "Is 1.01/255 meant?"),
        ("9", "l2", "further apart than 8 in l2"),
        ("300", "linf", "any image into any other"),
        ("0", "linf", "not a positive number"),
        ("-1", "linf", "not a positive number"),
        ("8/0", "linf", "not a positive number"),
        ("nan", "linf", "not a positive number"),
        ("inf", "linf", "not a positive number"),
        ("x", "l2", "not a positive number"),
    ],
)
def test_radii_that_are_none(text: str, norm: str, words: str) -> None:
    with pytest.raises(OptionError) as error:
        options.radius(text, (1, 8, 8), norm)
    assert words in str(error.value)
    assert ("meant?" in str(error.value)) == ("meant?" in words or text == "9")


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert options.device_of(None) == options.device_of("cpu") == torch.device("cpu")
    with pytest.raises(OptionError, match="none of cpu, cuda"):
        options.device_of("graphics")
    with pytest.raises(OptionError, match="no such device"):
        options.device_of("meta")
    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: cuda)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    assert options.device_of("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(OptionError, match="the CPU and 2 x cuda"):
        options.device_of("cuda:2")
    with pytest.raises(OptionError, match="the CPU and 2 x cuda"):
        options.device_of("mps")


def data(classes: int) -> Data:
    part = Images(torch.rand(2, 1, 8, 8), torch.zeros(2).long())
    names = tuple(map(str, range(classes)))
    return Data("toy", part, part, part, (1, 8, 8), names, (0.5,), (0.2,), None)


@pytest.mark.parametrize("wrap", [lambda net: net, lambda net: pursuitify(net, iterations=3)])
def test_outputs_are_compared_with_labels(wrap: Any, capsys: pytest.CaptureFixture[str]) -> None:
    net: nn.Module = wrap(ChainNet(1, 4, width=2).eval())
    options.check_outputs(net, "net", data(4))
    assert capsys.readouterr().err == ""
    options.check_outputs(net, "net", data(3))
    assert "net has 4 outputs, and toy has 3 classes" in capsys.readouterr().err
    with pytest.raises(OptionError, match=r"4 outputs, and toy has 6 classes.*last 2"):
        options.check_outputs(net, "net", data(6))
    assert getattr(net, "iterations", 3) == 3


TWO = Data(
    "two",
    *[Images(torch.rand(2, 1, 8, 8), torch.tensor([0, 1]))] * 3,
    (1, 8, 8),
    ("a", "b"),
    (0.4,),
    (0.3,),
    None,
)


@pytest.mark.parametrize("weights", ["DEFAULT", "weights.pth"])
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("was", [Origin(), Origin(mean=(0.5,), std=(0.2,))], ids=["new", "run"])
def test_a_normalisation_in_front(
    weights: str,
    normalise: bool,
    was: Origin,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """It is the data's where it is asked for, else the run's; published weights ask for one."""
    monkeypatch.setattr(options, "load_model", lambda *args, **kwargs: ChainNet(1, 2, width=2))
    monkeypatch.chdir(tmp_path)
    torch.save(ChainNet(1, 2, width=2).state_dict(), "weights.pth")
    subject = Subject("resnet18", None, was)
    model, origin = options.model_for(subject, TWO, was, Path(weights), normalise)
    wanted = (TWO.mean, TWO.std) if normalise else (was.mean, was.std)
    assert (origin.mean, origin.std) == wanted
    assert isinstance(model, Normalised) == bool(wanted[0])
    if wanted[0]:
        assert model.mean.item() == pytest.approx(wanted[0][0])
    said = "--normalise puts the data's normalisation in front" in capsys.readouterr().err
    assert said == (weights == "DEFAULT" and not wanted[0])


@pytest.mark.parametrize("inside", [True, False])
def test_weights_of_a_normalised_model(inside: bool, tmp_path: Path) -> None:
    """They say what to save instead, and that is taken."""
    (tmp_path / "nets.py").write_text(
        "from pursuitify.models import ChainNet\ndef make():\n    return ChainNet(1, 2, width=2)\n"
    )
    net = Normalised(ChainNet(1, 2, width=2), (0.4,), (0.3,))
    state = net.model.state_dict() if inside else net.state_dict()
    torch.save(state, tmp_path / "weights.pth")
    subject = Subject(f"{tmp_path / 'nets.py'}:make", None, Origin())
    arguments = (subject, TWO, Origin(), tmp_path / "weights.pth", True)
    if inside:
        model, _ = options.model_for(*arguments)
        for name, value in net.state_dict().items():
            assert torch.equal(model.state_dict()[name], value)
    else:
        with pytest.raises(CheckpointError, match=r"net\.model\.state_dict\(\), .* --normalise"):
            options.model_for(*arguments)


@pytest.mark.parametrize(
    ("takes", "image", "name", "hint"),
    [
        (3, (1, 8, 8), "digits", "Give --channels 3"),
        (1, (3, 8, 8), "photos", "Give --channels 1"),
        (1, (3, 8, 8), "cifar10", None),
        (2, (1, 8, 8), "digits", None),
        (2, (3, 8, 8), "photos", None),
    ],
)
def test_other_channels_are_named_where_the_network_takes_them(
    takes: int, image: tuple[int, ...], name: str, hint: str | None
) -> None:
    net = pursuitify(ChainNet(takes, 2, width=2).eval(), 1)
    images = Images(torch.rand(2, *image), torch.tensor([0, 1]))
    data = Data(name, images, images, images, image, ("a", "b"), (0.5,), (0.2,), None)
    with pytest.raises(InputError, match=rf"needs \(batch, {takes}, size, size\)") as error:
        options.check_outputs(net, "nets.py:make", data)
    assert str(error.value).endswith(hint or "size, size)")
