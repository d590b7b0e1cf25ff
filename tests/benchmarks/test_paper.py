"""benchmarks/paper: results regenerate, names are their contents, tables are their cells."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.paper import cell, figures, grids, summary
from benchmarks.paper.configuration import Configuration, Evaluation, Training, from_dict
from benchmarks.paper.data import FASHION
from benchmarks.paper.evaluate import converted, evaluate
from benchmarks.paper.figures import FIGURES
from benchmarks.paper.train import build, normalise, reconstruction
from pursuitify import plots

DESK = grids.SIZES["desk"]
COMMITTED = sorted(cell.RESULTS.glob("*.json"))
#: Its result is committed as ``results/cells/<name>.json``.
SMALL = Configuration(
    Training(data="digits", images=1024, epochs=4, width=4, iterations=1),
    Evaluation(images=128, protocol="pgd", diagnose=True),
)
TINY = Configuration(
    Training(data="digits", images=256, epochs=1, width=4, iterations=1, reconstruction=1.0),
    Evaluation(images=32, protocol="pgd", diagnose=True),
)


def test_an_evaluation_while_training_changes_no_setting() -> None:
    net = build(replace(SMALL.training, memory="implicit", solver="feedforward"))
    evaluate(net, SMALL.training, Evaluation(images=8, protocol="fgsm", threshold_scale=2.0))
    assert (net.memory, net.solver, net.threshold_scale) == ("implicit", "feedforward", 1.0)


def test_trained_weights_are_converted_again_as_an_evaluation_asks() -> None:
    training = replace(SMALL.training, solver="feedforward", iterations=0, images=64, epochs=1)
    net = build(training).eval()
    x = torch.rand(4, 1, 8, 8)
    again = converted(net, training, Evaluation(layout="encoder", offsets="threshold", gains=True))
    assert (again.offsets, again.step_scale) == ("threshold", 1.0)
    assert {kind for _, kind in again.graph.nodes(data="layout") if kind} == {"decoder", "encoder"}
    assert len(again.atom_gains) == 1, "of the row that reads the image"
    again.iterations = 0
    assert torch.equal(again(x), net(x))
    found = evaluate(
        net, training, Evaluation(images=8, iterations=2, layout="encoder", protocol="pgd")
    )
    assert found["images"] == 8
    assert (net.iterations, net.solver) == (0, "feedforward")


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_every_result_is_named_by_its_configuration() -> None:
    assert COMMITTED
    for path in COMMITTED:
        result = json.loads(path.read_text())
        assert from_dict(result["configuration"]).name == result["name"] == path.stem


def test_tables_are_those_of_the_committed_cells(tmp_path: Path) -> None:
    docs = Path(__file__).resolve().parents[2] / "docs" / "paper"
    seen, whole = 0, (docs.parent / "paper.md").read_text()
    for name, (grid, draw) in {**FIGURES, "question": ("question", None)}.items():
        page = docs / f"{name}.md"
        if not page.exists():
            continue
        pairs = summary.finished(grids.GRIDS[grid](DESK), cell.RESULTS)
        if draw is None:
            text = summary.table(summary.grouped(pairs), grids.NATURAL)
        else:
            text = draw(pairs, tmp_path / f"{name}.png")
            assert (tmp_path / f"{name}.png").stat().st_size > 1000
        assert page.read_text() == text, name
        assert text in whole, name
        seen += 1
    assert seen >= 2


def test_a_small_cell_regenerates(tmp_path: Path, one_thread: None) -> None:
    """A second of training on digits, committed; tolerances are for other machines.

    With another implementation of the convolutions the losses differed by 0.15 %, accuracies not
    at all, reconstruction by 0.7 %, mutual coherence by 0.3 %; on one machine nothing differs.
    """
    kept = cell.cached(SMALL)
    assert kept is not None
    fresh = cell.run(SMALL, tmp_path / "cells", tmp_path / "weights")
    for now, then in zip(fresh["training"]["history"], kept["training"]["history"], strict=True):
        assert now["loss"] == pytest.approx(then["loss"], rel=1e-2)
    assert fresh["training"]["parameters"] == kept["training"]["parameters"]
    for key in ("clean", "fgsm", "pgd"):
        assert kept["found"][key] > 0.2
        assert fresh["found"][key] == pytest.approx(kept["found"][key], abs=3 / 128), key
    rows = zip(fresh["found"]["reconstruction"], kept["found"]["reconstruction"], strict=True)
    for now, then in rows:
        assert now == pytest.approx(then, rel=0.05)
    for key in ("frame_potential", "mutual_coherence"):
        assert fresh["found"][key] == pytest.approx(kept["found"][key], rel=0.02), key


@pytest.mark.slow
@pytest.mark.skipif(not FASHION.exists(), reason="needs Debian's dataset-fashion-mnist")
def test_a_cell_of_the_results_page_regenerates(tmp_path: Path, one_thread: None) -> None:
    """Equal to the bit on one machine; other processors and torch versions round differently.

    Eight epochs amplify that until another processor is like another seed (measured: 4.4 points
    between two under PGD). The first epoch's loss agrees to a hundredth; accuracies agree as those
    of two seeds do, of which the committed ones differ by up to ten points under attack.
    """
    one = grids.figure5(DESK)[1]
    kept = cell.cached(one.configuration)
    assert kept is not None
    fresh = cell.run(one.configuration, tmp_path / "cells", tmp_path / "weights")
    first = [r["training"]["history"][0]["loss"] for r in (fresh, kept)]
    assert first[0] == pytest.approx(first[1], rel=1e-2)
    assert fresh["training"]["parameters"] == kept["training"]["parameters"]
    for key, room in {"clean": 0.04, "fgsm": 0.1, "pgd": 0.1, "worst": 0.1}.items():
        assert fresh["found"][key] == pytest.approx(kept["found"][key], abs=room), key


def test_a_cell_repeats_to_the_bit_and_is_found_again(tmp_path: Path, one_thread: None) -> None:
    first = cell.run(TINY, tmp_path / "a", tmp_path / "wa")
    second = cell.run(TINY, tmp_path / "b", tmp_path / "wb")
    assert first["found"] == second["found"]
    assert first["training"]["history"] == second["training"]["history"]
    again = cell.run(TINY, tmp_path / "a", tmp_path / "nothing")
    assert again == first
    assert not (tmp_path / "nothing").exists()
    other = replace(TINY, evaluation=replace(TINY.evaluation, images=16))
    weights = list((tmp_path / "wa").iterdir())
    cell.run(other, tmp_path / "a", tmp_path / "wa")
    assert list((tmp_path / "wa").iterdir()) == weights, "another evaluation trains nothing"


def test_figure_8_is_the_mean_over_seeds(tmp_path: Path) -> None:
    def found(*errors: float) -> dict[str, object]:
        return {"found": {"reconstruction": [[e, e] for e in errors]}}

    cells = [
        grids.Cell("DP", Configuration(Training(iterations=8, seed=seed), Evaluation()))
        for seed in (0, 1)
    ]
    text = figures.figure8(
        [(cells[0], found(1.0, 2.0)), (cells[1], found(3.0, 6.0))], tmp_path / "8.png"
    )
    assert text.splitlines()[2] == "| DP | 2 | 4 |"


def drawn_bars(axes: Any) -> list[Any]:
    """Return what ``errorbar`` has drawn; matplotlib types it as any container."""
    return list(axes.containers)


@pytest.mark.parametrize("percent", [True, False])
def test_bars_stand_beside_each_other_at_whole_numbers(percent: bool) -> None:
    pytest.importorskip("matplotlib")
    with plots.style():
        _, axes = plots.panel(None)
        lines = {
            label: {t: summary.Estimate(0.05 * t, 0.2, 3) for t in (1, 3, 8)} for label in "abcdef"
        }
        figures._panel(axes, lines, "clean", "sweeps T", percent)
    assert [t.get_text() for t in axes.get_xticklabels()] == ["1", "3", "8"]
    assert list(axes.get_xticks()) == [0, 1, 2]
    places = sorted(x for bar in drawn_bars(axes) for x in bar.lines[0].get_xdata())
    assert len(places) == 18
    assert min(b - a for a, b in pairwise(places)) > 0.05
    assert all(abs(x - round(x)) <= 0.3 for x in places), "beside the place they belong to"
    bars = drawn_bars(axes)[0].lines[2][0].get_segments()
    factor = 100 if percent else 1
    assert bars[1][:, 1] == pytest.approx([-0.05 * factor, 0.35 * factor])
    if percent:
        assert axes.get_ylim()[0] == 0, "no accuracy is below 0"


def test_without_bars_points_stand_at_their_places() -> None:
    pytest.importorskip("matplotlib")
    with plots.style():
        _, axes = plots.panel(None)
        lines = {label: {t: summary.Estimate(1.0, None, 1) for t in (0, 4)} for label in "ab"}
        figures._panel(axes, lines, "error", "sweep", False)
    for bar in drawn_bars(axes):
        assert list(bar.lines[0].get_xdata()) == [0, 1]


def test_names_ignore_defaults_and_nothing_else() -> None:
    base = Configuration()
    assert Configuration(Training(seed=0)).name == base.name
    assert Configuration(Training(seed=1)).name != base.name
    assert Configuration(evaluation=Evaluation(images=1)).name != base.name


def test_the_paper_rules() -> None:
    for label in ("L-TP", "L-BP", "DP", "DP-res", "DP-dense"):
        c = next(x.training for x in [*grids.figure5(DESK), *grids.figure6(DESK)]
                 if x.label.startswith(label))  # fmt: skip
        assert c.nonnegative
        assert c.learn_steps
    chain, residual = (build(Training(network=n, depth=2)) for n in ("chain", "residual"))
    counts = [sum(p.numel() for p in net.parameters()) for net in (chain, residual)]
    assert counts[0] == counts[1], "equal parameters"


def test_reconstruction_is_relative_and_zero_where_rows_agree() -> None:
    net = build(Training(data="digits", width=2, iterations=2)).double().eval()
    x = torch.rand(3, 1, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        _, latents, dictionary = net.infer(x)
        rows, u = [], dictionary.residual(latents)
        for row in dictionary.rows:
            r = u[row.name].flatten(1)
            signal = row.join(row.decode(latents[row.name])).flatten(1) - r
            rows.append(r.square().sum(1) / signal.square().sum(1))
        found = reconstruction(dictionary, latents)
        assert torch.allclose(found, torch.stack(rows).mean(0), rtol=1e-9)
        first = torch.stack(rows[:2]).mean(0)  # the first unit and, through its skip, its end
        assert torch.allclose(reconstruction(dictionary, latents, "input"), first, rtol=1e-9)
        zero = {k: torch.zeros_like(v) for k, v in latents.items()}
        assert float(reconstruction(dictionary, zero, "input")[0]) == pytest.approx(1.0)


def test_filters_of_unit_length() -> None:
    net = build(Training(data="digits"))
    normalise(net)
    convs = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    for conv in convs:
        assert torch.allclose(conv.weight.flatten(1).norm(dim=1), torch.ones(len(conv.weight)))


def test_intervals() -> None:
    three = summary.estimate([0.5, 0.6, 0.7], 100)
    assert (three.mean, three.seeds) == (pytest.approx(0.6), 3)
    assert three.half == pytest.approx(4.303 * 0.1 / 3**0.5, rel=1e-3)
    assert summary.estimate([0.5], 100).half == pytest.approx(0.098, rel=1e-2)
    assert str(summary.estimate([0.5], None)) == "50.0", "one seed's training images"
    group = {s: {"found": {"worst": 0.5 + 0.1 * s, "images": 100}} for s in range(3)}
    base = {s: {"found": {"worst": 0.4 + 0.1 * s, "images": 100}} for s in range(3)}
    found = summary.effect(group, base, "worst")
    assert found is not None
    assert (found.mean, found.half) == (pytest.approx(0.1), pytest.approx(0.0, abs=1e-12))


def test_times_of_two_machines_are_not_averaged() -> None:
    found = {"clean": 0.5, "fgsm": 0.4, "pgd": 0.3, "worst": 0.2, "images": 100}
    group = {
        seed: {
            "found": found,
            "training": {"cpu_seconds": 10.0 * (seed + 1)},
            "environment": {"torch": "2.14.1+cu130" if seed else "2.15.0+cu132"},
        }
        for seed in range(3)
    }
    assert summary.table({"net": group}).endswith("| 25 (2.14), 10 (2.15) |\n")
