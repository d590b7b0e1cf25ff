"""explain(): every node in its place, text and Markdown, sizes, warnings."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

from pursuitify import Report, explain, pursuitify
from pursuitify.conversion.explain import summary
from pursuitify.models import ResidualNet
from tests.support.examples import examples
from tests.support.nets import CASES, LAYOUTS, Case, Gated, random_net

cases = pytest.mark.parametrize("case", CASES, ids=str)


@pytest.mark.parametrize("layout", LAYOUTS)
@cases
def test_agrees_with_the_conversion(case: Case, layout: str) -> None:
    model = case.build()
    report, net = explain(model, layout), pursuitify(model, layout=layout)
    graph = net.graph
    layouts = Counter(v for _, v in graph.nodes(data="layout"))
    assert report.ok
    assert not report.problems
    assert report.latents + report.identity_latents == len(case.order)
    assert (report.decoder_rows, report.encoder_rows) == (layouts["decoder"], layouts["encoder"])
    assert report.edges == sum(graph.edges[edge]["paths"] for edge in graph.edges)
    latents = [e.node for e in report.entries if e.role in ("latent", "identity latent")]
    assert latents == list(case.order)
    assert [e.node for e in report.entries] == [n.name for n in net.source.graph.nodes]


@examples(20, 100, drawn=random_net())
def test_every_node_has_a_role(drawn: tuple[nn.Module, Tensor]) -> None:
    model, x = drawn
    report = explain(model, input_shape=x.shape[1:])
    assert report.ok
    roles = {
        "latent", "identity latent", "diagonal operator", "edge", "head", "frozen", "constant",
        "input", "output", "unused",
    }  # fmt: skip
    assert {e.role for e in report.entries} <= roles
    assert summary(report)["output"] == summary(report)["input"] == 1
    with torch.no_grad():
        latents = pursuitify(model).latents(x[:1])
    assert report.latent_bytes == sum(v.numel() * v.element_size() for v in latents.values())


def test_roles_in_detail() -> None:
    report = explain(Gated(), input_shape=(2, 9, 9))
    roles = {e.node: e.role for e in report.entries}
    assert roles["x"] == "input"
    assert roles["conv"] == roles["norm"] == "diagonal operator"
    assert roles["relu"] == roles["relu_2"] == "latent"
    assert roles["max_pool2d"] == "edge"
    assert roles["mul"] == "frozen gate"
    assert roles["squeeze"] == roles["relu_1"] == roles["sigmoid"] == "frozen"
    assert roles["last"] == "diagonal operator"
    assert roles["mean_1"] == "head"
    assert (report.gates, report.latents, report.weighted_per_sweep) == (1, 2, 4)
    modules = {e.node: (e.op, e.module) for e in report.entries}
    assert modules["conv"] == ("Conv2d", "conv")


def test_the_model_is_not_run_nor_changed() -> None:
    model = ResidualNet(3, 10).train()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    report = explain(model, input_shape=(3, 512, 512))
    assert report.latent_bytes == 4 * 8 * (2 * 512**2 + 4 * 256**2 + 8 * 128**2)
    assert model.training
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_refusals() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.GELU(), nn.ReLU(), nn.Softmax(1), nn.ReLU())
    report = explain(model)
    assert not report.ok
    assert [p.op for p in report.problems] == ["GELU", "Softmax"]
    refused = {e.op: e.note for e in report.entries if e.role == "refused"}
    assert set(refused) == {"GELU", "Softmax"}
    for text in (str(report), report.markdown()):
        assert "does not convert: 2 problem(s)" in text
        assert "GELU" in text
    for problem in report.problems:
        assert str(problem) in report.markdown()


def test_an_activation_that_is_missing() -> None:
    report = explain(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)))
    assert not report.ok
    assert "no activation" in str(report.problems[0])


def test_text_and_markdown() -> None:
    report = explain(ResidualNet(2, 5), input_shape=(2, 8, 8))
    text, page = str(report), report.markdown()
    for found in (text, page):
        assert "ResidualNet converts" in found
        assert "3 decoder, 3 encoder" in found
        assert "6 + 0 identity" in found
        assert report.picture.splitlines()[0] in found
        assert "MiB" in found
    assert page.count("\n| blocks_0_0_relu1 | ReLU | blocks.0.0.relu1 | latent |") == 1
    console = Console(width=160)
    with console.capture() as captured:
        console.print(report)
    assert "ResidualNet converts" in captured.get()


def test_terminal_overcomplete_latents_are_named() -> None:
    wide = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Flatten())
    assert "terminal and overcomplete" in explain(wide).warnings[0]
    assert "'_1'" in explain(wide).warnings[0]
    assert "terminal" in str(explain(wide))
    assert "terminal" in explain(wide).markdown()
    strided = nn.Sequential(nn.Conv2d(2, 6, 3, stride=2), nn.ReLU())
    for narrow in (nn.Sequential(nn.Linear(8, 4), nn.ReLU()), strided, ResidualNet(2, 5)):
        assert not explain(narrow).warnings
    followed = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2), nn.ReLU())
    assert not explain(followed).warnings


@pytest.mark.parametrize("shape", [(1, 8, 8), (2,), (2, 1, 1, 1), ("a",), 3])
def test_an_input_shape_that_does_not_fit_raises_nothing(shape: object) -> None:
    report = explain(ResidualNet(2, 5), input_shape=shape)  # type: ignore[arg-type]
    assert report.ok
    assert report.latent_bytes is None
    assert "input_shape" in report.warnings[0]


def test_bad_layout_is_reported() -> None:
    report = explain(ResidualNet(2, 5), "dense")  # type: ignore[arg-type]
    assert isinstance(report, Report)
    assert not report.ok
    assert "'auto'" in str(report)


@pytest.mark.parametrize("option", ["rules", "leaf_modules"])
def test_bad_options_are_reported(option: str) -> None:
    wrong: dict[str, Any] = {option: 3}
    report = explain(ResidualNet(2, 5), **wrong)
    assert not report.ok
    assert f"{option}=3" in str(report)


def test_modes_are_explained_as_they_are() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.first(x))
            return F.relu(self.second(x)) if self.training else x

    assert explain(Auxiliary().train()).latents == 2
    assert explain(Auxiliary().eval()).latents == 1
