"""calibrate(): the lowest objective among the scales that keep the outputs, found by hand too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pursuitify import InputError, OptionError, PursuitNetwork, pursuitify
from pursuitify.conversion.calibration import Calibration, Kept, Trial, calibrate
from pursuitify.models import ResidualNet
from tests.support.nets import randomise

STEPS, THRESHOLDS = (0.05, 0.3, 1.0), (0.5, 1.0, 3.0)


def network(**options: Any) -> PursuitNetwork:
    torch.manual_seed(0)
    model = randomise(ResidualNet(2, 4, width=3)).double().eval()
    with torch.no_grad():  # centred logits, so that predictions differ and can change
        model.classifier.bias -= model(torch.cat(batches())).mean(0)
    return pursuitify(model, iterations=5, **options)


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(n, 2, 8, 8, generator=generator, dtype=torch.float64) for n in (7, 5)]


def by_hand(net: PursuitNetwork, x: Tensor, step: float, threshold: float) -> tuple[float, ...]:
    """Agreement, divergence and objective of one pair on one batch."""
    with torch.no_grad():
        net.step_scale, net.threshold_scale = 0.0, 1.0
        source = net(x)
        net.step_scale, net.threshold_scale = step, threshold
        scores, latents = net(x), net.latents(x)
        net.step_scale, net.threshold_scale = 1.0, 1.0
        objective = float(net.objective(x, latents).mean())
    agreement = float((source.argmax(1) == scores.argmax(1)).double().mean())
    divergence = torch.nn.functional.kl_div(
        scores.log_softmax(1), source.log_softmax(1), log_target=True, reduction="batchmean"
    )
    return agreement, float(divergence), objective


@pytest.fixture(scope="module")
def report() -> Calibration:
    return calibrate(
        network(), batches(), agreement=0.7, step_scales=STEPS, threshold_scales=THRESHOLDS
    )


def test_every_trial_is_what_it_says(report: Calibration) -> None:
    assert len(report.trials) == 1 + len(STEPS) * len(THRESHOLDS)
    assert report.samples == 12
    x = torch.cat(batches())
    net = network()
    for trial in report.trials:
        found = by_hand(net, x, trial.step_scale, trial.threshold_scale)
        wanted = (trial.agreement, trial.divergence, trial.objective)
        assert wanted == pytest.approx(found, rel=1e-9, abs=1e-12)
    source = report.trials[0]
    assert (source.step_scale, source.agreement, source.divergence) == (0.0, 1.0, 0.0)


def test_the_choice_is_the_lowest_objective_allowed(report: Calibration) -> None:
    allowed = [t for t in report.trials if t.agreement >= 0.7]
    assert 1 < len(allowed) < len(report.trials), "the level asked for must matter"
    assert report.chosen.objective == min(t.objective for t in allowed)
    assert report.chosen.step_scale > 0


def test_a_bound_on_the_divergence_counts_too(report: Calibration) -> None:
    limit = sorted(t.divergence for t in report.trials)[3]
    stricter = calibrate(
        network(),
        batches(),
        agreement=0.0,
        divergence=limit,
        step_scales=STEPS,
        threshold_scales=THRESHOLDS,
    )
    allowed = [t for t in report.trials if t.divergence <= limit]
    assert stricter.chosen == min(allowed, key=lambda t: t.objective)
    assert len(allowed) == 4


def test_nothing_allowed_means_the_source() -> None:
    found = calibrate(network(), batches(), agreement=1.0, divergence=0.0, step_scales=(1.0,))
    assert found.chosen.step_scale == 0
    assert found.chosen.agreement == 1
    assert found.trials[1].objective < found.chosen.objective


def test_the_network_is_changed_only_if_asked_to() -> None:
    net = network(step_scale=0.4, threshold_scale=2.0)
    found = calibrate(net, batches(), agreement=0.7, step_scales=STEPS)
    assert (net.step_scale, net.threshold_scale) == (0.4, 2.0)
    assert not found.applied
    applied = calibrate(net, batches(), agreement=0.7, step_scales=STEPS, apply=True)
    assert (net.step_scale, net.threshold_scale) == (found.chosen.step_scale, 1.0) != (0.4, 2.0)
    assert applied.chosen == found.chosen, "the scales set before must not matter"
    assert applied.trials == found.trials, "nothing is random"

    def broken() -> Any:
        yield batches()[0]
        raise RuntimeError("the disk is gone")

    with pytest.raises(RuntimeError, match="the disk is gone"):
        calibrate(net, broken(), step_scales=STEPS)
    assert net.step_scale == found.chosen.step_scale


def test_labels_are_not_looked_at() -> None:
    class Label:
        def __getattr__(self, name: str) -> Any:
            raise AssertionError("a label was used")

    plain = calibrate(network(), batches(), step_scales=(0.5,))
    labelled = calibrate(network(), [(x, Label()) for x in batches()], step_scales=(0.5,))
    assert plain == labelled


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = ResidualNet(2, 4, width=2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"scores": self.net(x), "same": x}


def test_other_outputs_need_a_function() -> None:
    net = pursuitify(Named().double().eval(), iterations=1)
    with pytest.raises(InputError, match="logits="):
        calibrate(net, batches())
    found = calibrate(net, batches(), step_scales=(0.5,), logits=lambda out: out["scores"])
    assert len(found.trials) == 2


def test_classes_per_pixel() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 1)).double().eval()
    net = pursuitify(model, iterations=2)
    found = calibrate(net, batches(), step_scales=(1.0,))
    x = torch.cat(batches())
    with torch.no_grad():
        same = net(x).argmax(1) == model(x).argmax(1)
    assert found.trials[-1].agreement == pytest.approx(float(same.double().mean()), rel=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"agreement": 1.5}, "agreement=1.5"),
        ({"divergence": -1.0}, "divergence=-1.0"),
        ({"step_scales": (0.5, 2.0)}, "step_scales=2.0"),
        ({"threshold_scales": (-1.0,)}, "threshold_scales=-1.0"),
        ({"threshold_scales": ()}, "threshold_scales is empty"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        calibrate(network(), batches(), **options)


def test_wrong_networks_and_no_data() -> None:
    with pytest.raises(OptionError, match="evaluation mode"):
        calibrate(network().train(), batches())
    with pytest.raises(OptionError, match="not a ResidualNet"):
        calibrate(ResidualNet(2), batches())  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no batch"):
        calibrate(network(), [])


def test_the_table_marks_the_choice(report: Calibration) -> None:
    lines = [line for line in str(report).splitlines() if "chosen" in line]
    assert len(lines) == 1
    assert f" {report.chosen.step_scale:g} " in lines[0]
    assert report.to_dict()["chosen"]["objective"] == report.chosen.objective


def course(net: PursuitNetwork, count: int) -> tuple[float, float]:
    """Agreement and movement of the latents after so many sweeps, on all batches."""
    x = torch.cat(batches())
    with torch.no_grad():
        net.iterations = 0
        source, start = net(x), net.latents(x)
        net.iterations = count
        agreement = float((net(x).argmax(1) == source.argmax(1)).double().mean())
        reached = net.latents(x)
    moved = [float((reached[n] - w).norm() / w.norm()) for n, w in start.items()]
    return agreement, sum(moved) / len(moved)


def test_what_is_kept_is_said_at_every_number_of_sweeps() -> None:
    net = network()
    found = calibrate(net, batches(), agreement=0.7, step_scales=STEPS)
    assert [k.sweeps for k in found.kept] == [1, 2, 5]
    net.step_scale = found.chosen.step_scale
    for kept in found.kept:
        wanted = course(net, kept.sweeps)
        assert (kept.agreement, kept.moved) == pytest.approx(wanted, rel=1e-9)
    last = found.kept[-1]
    assert (last.agreement, last.divergence) == (found.chosen.agreement, found.chosen.divergence)
    assert 0 < found.kept[0].moved < last.moved
    net.iterations = 3
    assert [k.sweeps for k in calibrate(net, batches(), step_scales=(1.0,)).kept] == [1, 2, 3]
    lines = str(found).splitlines()
    assert any("latents moved" in line for line in lines)


def test_gains_are_the_networks_only_if_asked_to() -> None:
    net = network()
    x = batches()[0]
    name = next(row.name for row in net.compiled_program.rows if not row.encoder)
    net.atom_gains = {name: torch.full((1, 1, 1), 0.7)}
    held = net.pursuit.log_gains
    before = net(x)
    found = calibrate(net, batches(), gains=True, step_scales=(1.0,))
    assert found.gains
    assert net.pursuit.log_gains is held
    assert torch.equal(net(x), before)

    def broken() -> Any:
        yield batches()[0]
        yield "no input"

    with pytest.raises(InputError):
        calibrate(net, broken(), gains=True)
    assert torch.equal(net(x), before)
    applied = calibrate(net, batches(), gains=True, step_scales=(1.0,), apply=True)
    assert applied.gains == found.gains, "the gains set before must not matter"
    assert applied.trials == found.trials
    assert len(net.atom_gains) == len(found.gains) > 1
    net.iterations = 0
    assert torch.equal(net(x), pursuitify(network().source, 0)(x))
    assert "atom gains of decoder rows" in str(found)
    assert "atom gains" not in str(calibrate(network(), batches(), step_scales=(1.0,)))


def source_model() -> nn.Module:
    torch.manual_seed(0)
    return randomise(ResidualNet(2, 4, width=3)).double().eval()


def test_one_call_keeps_the_outputs() -> None:
    net = pursuitify(source_model(), iterations=5, calibrate=iter(batches()))
    report = net.calibration
    assert isinstance(report, Calibration)
    assert net.offsets == "signal"
    rows = net.compiled_program.rows
    assert [fit.latent for fit in report.gains] == [r.name for r in rows if not r.encoder]
    assert sum(not row.encoder for row in rows) == 1, "the layout is the encoder's"
    assert list(net.atom_gains) == [fit.latent for fit in report.gains]
    assert report.applied
    assert report.chosen.agreement >= 0.99
    assert report.kept[-1].agreement == report.chosen.agreement
    by_steps = pursuitify(source_model(), iterations=5, layout="encoder", offsets="signal")
    calibrate(by_steps, batches(), gains=True, step_scales=(1.0,), apply=True)
    assert net.step_scale == by_steps.step_scale == 1, "full steps keep the outputs here"
    assert torch.equal(net(batches()[0]), by_steps(batches()[0]))
    assert pursuitify(source_model()).calibration is None


def test_one_call_shortens_steps_where_outputs_would_change() -> None:
    model = network().source.double().eval()
    net = pursuitify(model, 30, layout="auto", offsets="threshold", calibrate=batches())
    assert net.offsets == "threshold"
    assert sum(not row.encoder for row in net.compiled_program.rows) > 1
    assert net.step_scale == net.calibration.chosen.step_scale < 1
    assert net.calibration.gains
    assert net.calibration.chosen.agreement >= 0.99
    assert len(net.calibration.trials) > 2


def test_one_call_takes_stationary_rows_where_latents_move_farther_with_them() -> None:
    model = network().source
    net = pursuitify(model, 10, calibrate=batches())
    given = pursuitify(model, 10, calibrate=batches(), offsets="signal")
    assert (net.offsets, given.offsets) == ("stationary", "signal")
    assert net.calibration.offsets == "stationary"
    assert "offsets 'stationary'" in str(net.calibration)
    assert not net.atom_gains
    assert net.calibration.chosen.agreement >= 0.99
    assert given.step_scale < net.step_scale == net.calibration.chosen.step_scale == 1
    assert net.calibration.kept[-1].moved > given.calibration.kept[-1].moved
    by_hand = pursuitify(model, 10, layout="encoder", offsets="stationary")
    assert torch.equal(net(batches()[0]), by_hand(batches()[0]))


def test_one_call_keeps_the_signal_and_the_gains_where_these_move_latents_farther() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(96, 12), nn.ReLU(), nn.Linear(12, 4),
    ).double().eval()  # fmt: skip
    with torch.no_grad():
        model[-1].bias -= model(torch.cat(batches())).mean(0)
    net = pursuitify(model, 20, calibrate=batches())
    given = pursuitify(model, 20, calibrate=batches(), offsets="signal")
    assert net.offsets == net.calibration.offsets == "signal"
    assert 0 < net.step_scale == given.step_scale < 1
    assert net.atom_gains
    assert net.calibration == given.calibration
    assert torch.equal(net(batches()[0]), given(batches()[0]))


def test_the_one_call_shows_how_far_it_is_if_asked_to(capsys: pytest.CaptureFixture[str]) -> None:
    for progress in (False, True):
        pursuitify(source_model(), 2, calibrate=batches()[:1], progress=progress)
        assert ("calibrate: " in capsys.readouterr().err) == progress
    with pytest.raises(OptionError, match="progress=True shows how far calibrate= is"):
        pursuitify(source_model(), 2, progress=True)


def test_one_call_and_the_paper() -> None:
    net = pursuitify(source_model(), 2, paper=True, calibrate=batches())
    assert net.offsets == "threshold"
    with pytest.raises(OptionError, match=r"call model\.eval\(\) first"):
        pursuitify(source_model().train(), 2, calibrate=batches())
    with pytest.raises(OptionError, match="give \\[x\\]"):
        pursuitify(source_model(), 2, calibrate=batches()[0])
    with pytest.raises(InputError, match="no batch"):
        pursuitify(source_model(), 2, calibrate=[])


def test_the_picture_shows_what_is_kept() -> None:
    pytest.importorskip("matplotlib")
    trial = Trial(0.5, 1.0, 1.0, 0.0, 1.0)
    kept = (Kept(1, 0.9, 0.1, 0.2), Kept(2, 0.8, 0.1, 0.3), Kept(50, 0.7, 0.1, 1.4))
    figure = Calibration(50, "global", 8, 0.5, None, trial, (trial,), False, (), kept).plot()
    (axes,) = figure.axes
    assert [t.get_text() for t in axes.get_xticklabels()] == ["0", "1", "2", "50"]
    agreement, moved = axes.lines
    assert list(agreement.get_ydata()) == [1, 0.9, 0.8, 0.7]
    assert list(moved.get_ydata()) == [0, 0.2, 0.3, 1.4]
    assert axes.get_ylim()[0] == 0
