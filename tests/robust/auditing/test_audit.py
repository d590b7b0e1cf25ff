"""The audit on honest networks and on deliberately masked ones, and its report."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from pursuitify import pursuitify
from pursuitify.errors import InputError, OptionError
from pursuitify.robust import PROTOCOLS, Step, audit, pgd
from pursuitify.robust.auditing import attack_registry
from pursuitify.robust.auditing.gradient_statistics import wilson
from pursuitify.robust.auditing.red_flags import FLAGS
from tests.support.controls import (
    EPS,
    TINY,
    Before,
    Scaled,
    jitter,
    pursue_saturated,
    quantise,
    saturate,
)


def run(net, digits, count=64, **options):
    data = (digits[0][:count], digits[1][:count])
    return audit(net, data, **{"eps": EPS, "progress": False, **options})


def names(report):
    return {flag.name for flag in report.flags}


# -- positive controls ------------------------------------------------------------------------


def test_no_flag_on_an_undefended_network(undefended, digits):
    ours = {"ours": lambda net, x, y, eps: pgd(net, x, y, eps=eps, seed=0)}
    report = run(undefended, digits, attacks=ours)
    assert report.verdict == "no flag raised"
    assert report.worst() < 0.5 < report.clean["network"]
    assert report.curve[-1].unbounded
    assert report.curve[-1].accuracy == 0


def test_no_flag_on_an_adversarially_trained_network(hardened, undefended, digits):
    report = run(hardened, digits, twins={"undefended": undefended})
    assert report.verdict == "no flag raised"
    assert report.worst() > 0.6
    assert report.worst("undefended") < report.worst()
    assert report.accuracy("gradients of undefended") is None


def test_a_huge_logit_scale_is_flagged(undefended, digits):
    report = run(Scaled(undefended, 1e5), digits)
    assert "zero gradients" in names(report)
    assert report.worst() < 0.5  # and the losses that ignore the scale break it all the same


def test_quantised_inputs_are_flagged(undefended, digits):
    report = run(Before(quantise, undefended), digits)
    assert {
        "black-box beats white-box",
        "zero gradients",
        "vanishing gradients",
        "adaptive attacks do better",
    } <= names(report)


def test_dead_units_are_flagged(undefended, digits):
    report = run(Before(saturate, undefended), digits)
    assert {"zero gradients", "vanishing gradients", "noise beats gradients"} <= names(report)


def test_answers_at_random_are_flagged(undefended, digits):
    state = torch.get_rng_state()
    report = run(Before(jitter, undefended), digits, count=32)
    assert "answers at random" in names(report)
    assert "averaged passes" in {result.name for result in report.results}
    assert torch.equal(state, torch.get_rng_state())


def test_a_long_pursuit_with_vanishing_gradients_is_flagged(undefended, digits):
    net = pursue_saturated(undefended, iterations=50)
    once = (Step("FGSM", "fgsm", "one-step"),)
    brief = replace(TINY, twin=once, curve=once, factors=(1.0,))
    report = run(net, digits, count=6, protocol=brief)
    assert report.clean["network"] > 0.5
    assert names(report) & {"zero gradients", "vanishing gradients"}
    own, *others = [g.view for g in report.gradients]
    assert own == "T = 50 (own)"
    assert set(others) <= {f"T = {t}" for t in (*range(50), 100)}


def test_a_pursuit_network_and_its_twin(undefended, digits):
    net = pursuitify(undefended, iterations=2).eval()
    steps = [
        replace(step, options={**step.options, "steps": 3})
        for step in PROTOCOLS["quick"].steps
        if step.attack in ("pgd", "apgd")
    ]
    report = run(net, digits, count=32, protocol=replace(TINY, steps=tuple(steps)))
    assert set(report.clean) == {"network", "same weights at T = 0"}
    assert {"latents", "gradients at 2 T", "few sweeps, mean"} <= {r.name for r in report.results}
    assert report.setting["iterations"] == net.iterations == 2
    assert not names(report) & {"zero gradients", "vanishing gradients", "weak attack"}


def test_an_attack_weaker_than_one_step_is_flagged(undefended, digits):
    idle = {"idle": lambda net, x, y, eps: x}
    report = run(undefended, digits, protocol=TINY, attacks=idle)
    assert [f.detail.split()[0] for f in report.flags if f.name == "weak attack"] == ["idle"]


def test_probabilities_are_flagged(undefended, digits):
    with pytest.warns(UserWarning, match="probabilities") as caught:
        report = run(nn.Sequential(undefended, nn.Softmax(1)).eval(), digits, protocol=TINY)
    assert len(caught) == 1
    assert "probabilities" in names(report)


def test_a_model_without_gradient_is_flagged(undefended, digits):
    class Cut(nn.Module):
        def forward(self, x):
            return undefended(x.detach())

    report = run(Cut().eval(), digits, count=16, protocol=TINY)
    assert any("could not run" in flag.detail for flag in report.flags)
    assert report.accuracy("PGD") is None
    assert "failed" in str(report)


def test_an_attack_outside_the_ball_counts_for_nothing(undefended, digits):
    far = {
        "far": lambda net, x, y, eps: (x + 3 * eps).clamp(0, 1),
        "shape": lambda net, x, y, eps: x[:1],
    }
    report = run(undefended, digits, protocol=TINY, attacks=far)
    failed = {result.name: result.error for result in report.results if result.error}
    assert set(failed) == {"far", "shape"}
    assert "threat model" in failed["far"]


# -- the report -------------------------------------------------------------------------------


def test_the_report_in_every_form(undefended, digits, tmp_path):
    report = run(undefended, digits, protocol=TINY, norm="l2", eps=0.5)
    text = str(report)
    for part in (*FLAGS, "Verdict", "FGSM", "Square", "any image", "l2 ball of 0.5"):
        assert part in text
    assert "robust" not in text.lower()
    report.save(tmp_path / "report.json")
    held = json.loads((tmp_path / "report.json").read_text())
    assert held == json.loads(json.dumps(report.to_dict()))
    assert held["networks"]["network"]["worst"] == report.worst()
    assert list(tmp_path.iterdir()) == [tmp_path / "report.json"]
    low, high = report.interval()
    assert low < report.worst() < high
    assert len(report.fooled()) == round((1 - report.worst()) * 64)
    with pytest.raises(KeyError):
        report.accuracy("none such")


def test_the_plot(undefended, digits, tmp_path):
    pytest.importorskip("matplotlib")
    run(undefended, digits, count=16, protocol=TINY).plot(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 1000


def test_wilson():
    assert wilson(0, 10)[0] == 0
    assert wilson(10, 10)[1] == 1
    low, high = wilson(50, 100)
    assert (round(low, 3), round(high, 3)) == (0.404, 0.596)


def test_protocols_are_plain_data():
    for protocol in PROTOCOLS.values():
        for step in (*protocol.steps, *protocol.twin, *protocol.curve):
            assert step.attack in attack_registry.ATTACKS
            assert step.guide in {"", *attack_registry.GUIDES}
        assert len({step.name for step in protocol.steps}) == len(protocol.steps)


# -- running ----------------------------------------------------------------------------------


def test_it_repeats_and_resumes(undefended, digits, tmp_path, monkeypatch):
    path = tmp_path / "record.json"
    whole = run(undefended, digits, protocol=TINY)

    calls = []
    pgd_ = attack_registry.ATTACKS["pgd"]

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return pgd_(*args, **kwargs)

    monkeypatch.setitem(attack_registry.ATTACKS, "pgd", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(undefended, digits, protocol=TINY, resume=path)
    assert "network | PGD" in json.loads(path.read_text())["results"]
    report = run(undefended, digits, protocol=TINY, resume=path)
    assert len(calls) == 5  # two until the interruption, then one per epsilon
    results = [[r.fooled for r in made.results] for made in (whole, report)]
    assert results[0] == results[1]
    assert whole.curve == report.curve

    run(undefended, digits, protocol=TINY, resume=path)
    assert len(calls) == 5


def test_a_record_of_another_audit_is_refused(undefended, hardened, digits, tmp_path):
    path = tmp_path / "record.json"
    run(undefended, digits, count=16, protocol=TINY, resume=path)
    with pytest.raises(OptionError, match="differs in eps"):
        run(undefended, digits, count=16, protocol=TINY, resume=path, eps=0.2)
    with pytest.raises(OptionError, match="differs in network"):
        run(hardened, digits, count=16, protocol=TINY, resume=path)
    with pytest.raises(OptionError, match="differs in data, images"):
        run(undefended, digits, count=17, protocol=TINY, resume=path)
    path.write_text("{}")
    with pytest.raises(OptionError, match="not the record"):
        run(undefended, digits, count=16, protocol=TINY, resume=path)


def test_batches_of_data(undefended, digits):
    x, y = (part[:30] for part in digits)
    loader = [(x[:20], y[:20]), (x[20:], y[20:])]
    options = {"eps": EPS, "protocol": TINY, "progress": False}
    whole, parts = audit(undefended, (x, y), **options), audit(undefended, loader, **options)
    assert [r.fooled for r in whole.results] == [r.fooled for r in parts.results]
    assert whole.images == 30


def test_samples_of_data(undefended, digits):
    """A Dataset and a list of (x, int) are what the tensors are."""
    x, y = (part[:10] for part in digits)
    options = {"eps": EPS, "protocol": TINY, "progress": False}
    whole = audit(undefended, (x, y), **options)
    for data in (TensorDataset(x, y), [(a, int(b)) for a, b in zip(x, y, strict=True)]):
        assert [r.fooled for r in audit(undefended, data, **options).results] == [
            r.fooled for r in whole.results
        ]


def test_the_network_is_left_as_it_was(undefended, digits):
    net = copy.deepcopy(undefended).train()
    state = {k: v.clone() for k, v in net.state_dict().items()}
    random = torch.get_rng_state()
    with pytest.warns(UserWarning, match="training mode"):
        run(net, digits, count=16, protocol=TINY)
    assert all(module.training for module in net.modules())
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(random, torch.get_rng_state())


def test_two_classes(digits):
    x, y = digits[0][:40], digits[1][:40] % 2
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).eval()
    report = audit(net, (x, y), eps=EPS, progress=False)
    assert not any(result.error for result in report.results)


def test_progress(undefended, digits, capsys):
    run(undefended, digits, count=8, protocol=TINY, progress=True)
    shown = capsys.readouterr()
    assert "epsilon" in shown.err
    assert not shown.out


X, Y = torch.rand(4, 1, 8, 8), torch.arange(4)
BAD = {
    "empty": ((X[:0], Y[:0]), {}, InputError, "empty"),
    "no batches": ([], {}, InputError, "empty"),
    "no pairs": ([X], {}, OptionError, "entry 0 of data is a Tensor, not a pair"),
    "lists": ((X, [0, 1, 2, 3]), {}, OptionError, "labels must be a tensor"),
    "too bright": ((X + 1, Y), {}, InputError, "normalise inside the model"),
    "label": ((X, Y + 7), {}, InputError, "label 10"),
    "protocol": ((X, Y), {"protocol": "slow"}, OptionError, "'quick', 'standard', 'full'"),
    "norm": ((X, Y), {"norm": "l0"}, OptionError, "norm"),
    "eps": ((X, Y), {"eps": 0.0}, OptionError, "eps"),
    "eps of another scale": ((X, Y), {"eps": 8}, OptionError, "Is 8/255 meant?"),
    "eps larger than images": ((X, Y), {"eps": 99.0, "norm": "l2"}, OptionError, "further apart"),
    "batch size": ((X, Y), {"batch_size": 0}, OptionError, "batch_size"),
    "seed": ((X, Y), {"seed": 0.5}, OptionError, "seed"),
    "no function": ((X, Y), {"attacks": {"mine": 3}}, OptionError, "maps names to functions"),
    "a list": ((X, Y), {"attacks": [1]}, OptionError, "not a mapping"),
    "odd inputs": ([(X[0], 1), (X[0, :, :4], 2)], {}, InputError, "several kinds"),
    "triples": ([(X, Y, Y)], {}, OptionError, "entry 0 of data is a tuple of 3, not a pair"),
    "a late twin": (
        (X, Y),
        {"twins": {"few": nn.Sequential(nn.Flatten(), nn.Linear(64, 3))}},
        InputError,
        "twin 'few': y has the label 3, and the network has 3 classes",
    ),
    "twin": ((X, Y), {"twins": {"network": nn.Identity()}}, OptionError, "name of its own"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(undefended, case):
    data, options, error, message = BAD[case]
    with pytest.raises(error, match=message):
        audit(undefended, data, **{"eps": EPS, "progress": False, **options})


def test_tensors_made_in_inference_mode_are_audited():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()
    x, y = torch.rand(8, 1, 4, 4), torch.randint(0, 3, (8,))
    with torch.inference_mode():
        inside = x.clone(), y.clone()
    given = {"eps": 0.1, "progress": False}
    found = audit(net, inside, **given)
    assert found.worst() == audit(net, (x, y), **given).worst()
    assert found.gradients
