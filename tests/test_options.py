"""No option is accepted and ignored: each one changes something that can be seen.

Every public function's options are read off its signature; one that has no entry in ``SEEN`` fails
the first test. An entry gives two observations, without the option and with it, that must differ.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import inspect
import io
import json
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pursuitify as package
from pursuitify import (
    analysis,
    calibrate,
    coherence,
    explain,
    export,
    load,
    plots,
    pursuitify,
    robust,
    save,
    save_pretrained,
    training,
)
from pursuitify import data as data_sets
from pursuitify.analysis.gram.dictionary_blocks import blocks_of
from pursuitify.analysis.gram.normalised_gram import Gram
from pursuitify.checkpoints.origin import Origin, read_origin
from pursuitify.errors import PursuitifyError
from pursuitify.export import export_onnx, export_program
from pursuitify.robust import Protocol, Step
from pursuitify.solvers.settings import OPTIONS

#: Every module whose names are public.
MODULES: tuple[ModuleType, ...] = (package, analysis, robust, training, data_sets, plots, export)
#: Public names that are not walked here -> why.
NO_FUNCTIONS = {
    "Certificate": "a result",
    "ArchitectureBounds": "a result",
    "CoherenceReport": "a result",
    "Comparison": "a result",
    "Config": "tests/training/test_options.py walks its fields",
    "Data": "a result",
    "Interrupted": "an exception",
    "MemoryEstimate": "a result",
    "MinimumFramePotential": "a result",
    "Problem": "a result",
    "Protocol": "plain data: audit's protocol=",
    "PursuitNetwork": "made by pursuitify()",
    "RadiusCertificate": "a result",
    "Report": "a result",
    "AuditReport": "a result",
    "Result": "a result",
    "Score": "a result",
    "Step": "plain data: audit's protocol=",
    "Verdict": "a result",
    "fold_constants": "a step of export_program",
    "largest_difference": "a step of export_onnx",
}


def public() -> dict[str, Callable[..., Any]]:
    """Return every public function, and every class that a user makes himself, by name."""
    found: dict[str, Callable[..., Any]] = {}
    for module in MODULES:
        own = [
            name
            for name, value in vars(module).items()
            if not name.startswith("_") and getattr(value, "__module__", "") == module.__name__
        ]
        for name in getattr(module, "__all__", own):
            value = getattr(module, name)
            error = isinstance(value, type) and issubclass(value, BaseException)
            if callable(value) and not error and name not in NO_FUNCTIONS:
                assert found.get(name, value) is value, f"two things are called {name}"
                found[name] = value
    return found


FUNCTIONS = public()


def model(classes: int = 4, pool: bool = False) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            *([nn.MaxPool2d(2), nn.Upsample(scale_factor=2)] if pool else []),
            nn.Conv2d(4, 3, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(3 * 36, classes),
        )
        found[1].running_var.uniform_(0.3, 2.0)
    return found.eval()


def images(batch: int = 6) -> Tensor:
    return torch.rand(batch, 1, 6, 6, generator=torch.Generator().manual_seed(1))


def network(**options: Any) -> Any:
    return pursuitify(model(), **{"iterations": 3, **options}).eval()


class Net(nn.Module):
    """A network that a leaf module makes opaque, or a rule of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.body = model()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return y


class Own(nn.Module):
    """A module that no rule knows."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 1.0


# -- pursuitify, explain, load ------------------------------------------------------------------


def output(**options: Any) -> Any:
    with torch.no_grad():
        return network(**options)(images())


def shared(**options: Any) -> Any:
    source = model()
    net = pursuitify(source, **options)
    return {id(p) for p in net.parameters()} & {id(p) for p in source.parameters()}


def rejects_rule(function: Callable[..., Any]) -> str:
    """A rule that is none is refused, so the option is read."""
    return refused(partial(function, rules={nn.ReLU: "no rule"}))


def rejects_leaf(function: Callable[..., Any]) -> str:
    return refused(partial(function, leaf_modules=("no.such.module",)))


def refused(act: Callable[[], Any]) -> str:
    try:
        report = act()
    except PursuitifyError as error:
        return f"refused: {error}"
    return f"refused: {report.problems}" if getattr(report, "ok", True) is False else "taken"


def slope(**options: Any) -> Tensor:
    net, x = network(iterations=6, **options), images().requires_grad_()
    (found,) = torch.autograd.grad(net(x).square().sum(), x)
    return found


def kept(**options: Any) -> int:
    """Return how many entries a training pass keeps for the way back."""
    count = 0

    def pack(value: Tensor) -> Tensor:
        nonlocal count
        count += value.numel()
        return value

    net, x = network(iterations=16, **options), images().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        net(x)
    return count


def saved(path: Path) -> Path:
    save(network(), path)
    return path


def remembered(write: Callable[..., None], **options: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net"
        write(network(), path, **options)
        return read_origin(path)


def loaded(**options: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        return load(saved(Path(folder) / "net"), model(), **options)


implicit = partial(slope, memory="implicit")
PURSUITIFY: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "iterations": (output, partial(output, iterations=1)),
    "solver": (output, partial(output, solver="layered")),
    "layout": (output, partial(output, layout="encoder")),
    "calibrate": (output, lambda: output(calibrate=[images()])),
    "progress": (
        lambda: shown(partial(output, calibrate=[images()])) != "",
        lambda: shown(partial(output, calibrate=[images()], progress=True)) != "",
    ),
    "copy": (shared, partial(shared, copy=False)),
    "balance": (
        lambda: network().state_dict(),
        lambda: network(balance=True).state_dict(),
    ),
    "paper": (
        lambda: network().pursuit.beta_range,
        lambda: network(paper=True).pursuit.beta_range,
    ),
    "nonnegative_thresholds": (output, partial(output, nonnegative_thresholds=True)),
    "rules": (lambda: refused(network), lambda: rejects_rule(network)),
    "leaf_modules": (lambda: refused(network), lambda: rejects_leaf(network)),
    "example_inputs": (
        lambda: refused(network),
        lambda: refused(partial(network, example_inputs="no input")),
    ),
    "verify": (
        lambda: network().self_check,
        lambda: network(verify="off").self_check,
    ),
    "steps": (output, partial(output, steps="adaptive")),
    "norm_bounds": (output, partial(output, norm_bounds="image")),
    "step_scale": (output, partial(output, step_scale=0.3)),
    "threshold_scale": (output, partial(output, threshold_scale=2.0)),
    "offsets": (
        partial(output, layout="encoder"),
        partial(output, layout="encoder", offsets="threshold"),
    ),
    "stationary_share": (
        partial(output, layout="encoder", offsets="stationary"),
        partial(output, layout="encoder", offsets="stationary", stationary_share=0.4),
    ),
    "memory": (slope, implicit),
    "recompute_levels": (
        partial(kept, memory="recompute"),
        partial(kept, memory="recompute", recompute_levels=2),
    ),
    "implicit_last": (implicit, partial(implicit, implicit_last=1)),
    "implicit_iterations": (implicit, partial(implicit, implicit_iterations=1)),
    "implicit_tolerance": (implicit, partial(implicit, implicit_tolerance=0.5)),
}
EXPLAIN: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "layout": (
        lambda: explain(model()).encoder_rows,
        lambda: explain(model(), "encoder").encoder_rows,
    ),
    "input_shape": (
        lambda: explain(model()).latent_bytes,
        lambda: explain(model(), input_shape=(1, 6, 6)).latent_bytes,
    ),
    "rules": (
        lambda: refused(partial(explain, model())),
        lambda: rejects_rule(partial(explain, model())),
    ),
    "leaf_modules": (
        lambda: refused(partial(explain, model())),
        lambda: rejects_leaf(partial(explain, model())),
    ),
}
EXPLAIN["example_inputs"] = (
    lambda: explain(model()).ok,
    lambda: explain(model(), example_inputs=torch.rand(2, 3, 6, 6)).ok,
)
LOAD = {
    "rules": (lambda: refused(loaded), lambda: rejects_rule(loaded)),
    "leaf_modules": (lambda: refused(loaded), lambda: rejects_leaf(loaded)),
}

# -- coherence, calibrate, certified_radius -----------------------------------------------------


def measured(**options: Any) -> Any:
    net = pursuitify(model(pool=True), iterations=2).eval()
    found = coherence(net, **{"input_shape": (1, 6, 6), **options}).to_dict()
    return {key: value for key, value in found.items() if key != "seconds"}


def shown(act: Callable[[], Any]) -> str:
    """Return what is written to standard error, where progress is shown."""
    with contextlib.redirect_stderr(io.StringIO()) as file:
        act()
    return file.getvalue()


def scales(**options: Any) -> Any:
    net = network(iterations=2)
    found = calibrate(net, [images()], step_scales=options.pop("step_scales", (1.0,)), **options)
    return str(found), found.chosen, (net.step_scale, net.threshold_scale)


def radius(**options: Any) -> Any:
    torch.manual_seed(0)
    net = pursuitify(
        nn.Sequential(nn.Linear(6, 30), nn.ReLU(), nn.Linear(30, 3)).eval(),
        iterations=2,
        solver="synchronous",
    )
    x = torch.rand(16, 6, generator=torch.Generator().manual_seed(0))
    return robust.certified_radius(net.eval(), x, **options).radius


COHERENCE: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "input_shape": (measured, partial(measured, input_shape=(1, 10, 10))),
    "boundary": (measured, partial(measured, boundary="exact")),
    "x": (
        partial(measured, switches="batch", x=images(1), boundary="exact"),
        partial(measured, switches="batch", x=1 - images(1), boundary="exact"),
    ),
    "switches": (measured, partial(measured, switches="worst")),
    "progress": (
        lambda: shown(partial(measured, switches="worst")) != "",
        lambda: shown(partial(measured, switches="worst", progress=True)) != "",
    ),
}
CALIBRATE: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "agreement": (scales, partial(scales, agreement=0.0)),
    "divergence": (scales, partial(scales, divergence=0.0)),
    "step_scales": (scales, partial(scales, step_scales=(0.5,))),
    "threshold_scales": (scales, partial(scales, threshold_scales=(2.0,))),
    "logits": (scales, partial(scales, logits=lambda y: y * 5)),
    "apply": (
        partial(scales, agreement=0.0, step_scales=(0.5,)),
        partial(scales, agreement=0.0, step_scales=(0.5,), apply=True),
    ),
    "gains": (scales, partial(scales, gains=True)),
    "progress": (
        lambda: shown(scales) != "",
        lambda: shown(partial(scales, progress=True)) != "",
    ),
}

# -- attacks ------------------------------------------------------------------------------------


class Watched(nn.Module):
    """A network that notes the sizes of its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.sizes, self.calls = model(), set[int](), 0

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.add(len(x))
        self.calls += 1
        y: Tensor = self.net(x)
        return y


def data() -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return images(), model()(images()).argmax(1)


def points(name: str, **options: Any) -> Tensor:
    found: Tensor = FUNCTIONS[name](model(), *data(), **{"eps": 0.01, "seed": 0, **options})
    return found


def sizes(name: str, **options: Any) -> set[int]:
    watched = Watched().eval()
    seeded = {"seed": 0} if "seed" in inspect.signature(FUNCTIONS[name]).parameters else {}
    FUNCTIONS[name](watched, *data(), **{"eps": 0.05, **seeded, **options})
    return watched.sizes


def calls(name: str, **options: Any) -> int:
    watched = Watched().eval()
    given = {"eps": 0.01, "early_stop": False, "seed": 0, **options}
    FUNCTIONS[name](watched, *data(), **given)
    return watched.calls


def guide(points: Tensor, labels: Tensor, clean: Tensor, loss: Any) -> Tensor:
    return points.flatten(1).sum(1)


#: What makes each attack short here, and its options that change the points; eps is one of them.
BRIEF: dict[str, dict[str, Any]] = {
    "fgsm": {},
    "pgd": {"steps": 3},
    "apgd": {"steps": 20},
    "random_noise": {"draws": 2},
    "square": {"queries": 60},
    "hard_label": {"queries": 12},
    "autoattack": {"version": "custom", "attacks": ["apgd-ce"], "eps": 0.05},
    "foolbox": {"steps": 3},
}
POINTS: dict[str, dict[str, Any]] = {
    "fgsm": {"loss": "margin", "guide": guide},
    "pgd": {
        "step_size": 0.003,
        "restarts": 3,
        "random_start": False,
        "loss": "margin",
        "guide": guide,
    },
    "apgd": {"restarts": 3, "targets": 2, "loss": "margin", "guide": guide},
    "random_noise": {"draws": 30},
    "square": {"queries": 3, "area": 0.1, "loss": "ce"},
    "hard_label": {"queries": 3},
    "autoattack": {"attacks": ["square"]},
    "foolbox": {"attack": "LinfBasicIterativeAttack", "options": {"rel_stepsize": 0.3}},
}
LIBRARY = {"autoattack": "pyautoattack", "foolbox": "foolbox"}


def attack_entries(name: str) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    brief, seedless = BRIEF[name], name == "fgsm"
    run = partial(points, name, **brief) if not seedless else partial(signed, **brief)
    found: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        option: (run, partial(run, **(value if option == "options" else {option: value})))
        for option, value in {"eps": 0.3, **POINTS[name]}.items()
    }
    valid = inspect.signature(FUNCTIONS[name]).parameters
    own = partial(sizes, name, **brief)
    found["batch_size"] = own, partial(own, batch_size=2)
    if "seed" in valid:
        found["seed"] = run, partial(run, seed=1)
    if "norm" in valid:
        more = {"attack": "L2PGD"} if name == "foolbox" else {}
        found["norm"] = run, partial(run, norm="l2", **more)
    if "progress" in valid:
        found["progress"] = tuple(  # type: ignore[assignment]
            partial(lambda act: shown(act) != "", partial(run, progress=p)) for p in (False, True)
        )
    if "steps" in valid:
        found["steps"] = partial(calls, name), partial(calls, name, steps=3)
    if "early_stop" in valid:
        found["early_stop"] = partial(run, eps=0.3), partial(run, eps=0.3, early_stop=False)
    if "version" in valid:
        found["version"] = (
            lambda: refused(partial(points, name, version="standard", attacks=["square"])),
            lambda: refused(partial(points, name, **brief)),
        )
    return found


def signed(**options: Any) -> Tensor:
    return robust.fgsm(model(), *data(), **{"eps": 0.05, **options})


# -- audit, export ------------------------------------------------------------------------------

TINY = Protocol(
    "tiny",
    (Step("noise", "noise", "noise", {"draws": 2}),),
    (Step("FGSM", "fgsm", "one-step"),),
    (Step("FGSM", "fgsm", "one-step"),),
    (1.0,),
)
OTHER = Protocol("other", TINY.twin, TINY.twin, TINY.curve, (1.0,))


def audited(**options: Any) -> Any:
    given = {"eps": 0.05, "protocol": TINY, "progress": False, **options}
    found = robust.audit(model(), data(), **given).to_dict()
    for result in found["results"]:
        result.pop("seconds")
    return {key: value for key, value in found.items() if key != "seconds"}


def audit_sizes(**options: Any) -> set[int]:
    watched = Watched().eval()
    robust.audit(watched, data(), eps=0.05, protocol=TINY, progress=False, **options)
    return watched.sizes


def noise_points(seed: int) -> Any:
    """Return the inputs that an audit's attack was given chance for."""
    seen: list[float] = []

    def mine(net: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        seen.append(float(torch.rand(())))
        return x

    audited(attacks={"mine": mine}, seed=seed)
    return seen


def record(**options: Any) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "record.json"
        audited(**({"resume": path} if options else {}))
        return path.exists() and bool(json.loads(path.read_text())["results"])


AUDIT: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "eps": (audited, partial(audited, eps=0.3)),
    "protocol": (audited, partial(audited, protocol=OTHER)),
    "norm": (audited, partial(audited, norm="l2")),
    "seed": (partial(noise_points, 0), partial(noise_points, 1)),
    "twins": (audited, lambda: audited(twins={"other": model()})),
    "attacks": (audited, lambda: audited(attacks={"mine": lambda net, x, y, eps: x})),
    "batch_size": (audit_sizes, partial(audit_sizes, batch_size=2)),
    "resume": (record, partial(record, resume=True)),
    "progress": (
        lambda: shown(audited) != "",
        lambda: shown(partial(audited, progress=True)) != "",
    ),
}


def runs_at(batch: int, **options: Any) -> bool:
    program = export_program(network(), images(2), **options).module()
    try:
        return len(program(images(batch))) == batch
    except (RuntimeError, AssertionError):
        return False


def onnx(**options: Any) -> Any:
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        try:
            found = export_onnx(network(), images(2), path, **options)
        except PursuitifyError as error:
            return type(error)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return found is None, session.get_inputs()[0].shape


# -- analysis -----------------------------------------------------------------------------------


def matrix() -> Tensor:
    draw = torch.randn(6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    unit = draw / draw.norm(dim=0)
    return unit.T @ unit


def gram() -> Gram:
    return Gram(blocks_of(convolutional().double().dictionary(images(1).double()), border=False))


def convolutional() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [
            nn.Conv2d(1, 3, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(3, 3, 3, padding=1),
            nn.ReLU(),
        ]
        return pursuitify(nn.Sequential(*layers).eval(), iterations=2).eval()


def certified(**options: Any) -> Any:
    dense = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for layer in (dense[0], dense[2]):
            layer.reset_parameters()
    x = torch.rand(1, 6, generator=torch.Generator().manual_seed(1))
    found = analysis.certify(pursuitify(dense.eval(), iterations=2).eval(), x, **options)
    return {"latents": found.latents, "text": str(found), "sigma": found.sigma_min}


lanczos = partial(certified, method="lanczos")


def extremes(**options: Any) -> Any:
    bound = convolutional().dictionary(images(1))
    everything = {n: torch.ones(s) for n, s in zip(bound.names, bound.shapes, strict=True)}
    return analysis.extreme_eigenvalues(bound, everything, **options).smallest


def penalties(**options: Any) -> list[float]:
    kind = analysis.FramePotentialPenalty(
        convolutional_flat(), **{"input_shape": (1, 6, 6), **options}
    )
    return [kind.count, *(float(kind().detach()) for _ in range(3))]


def one_penalty(**options: Any) -> list[float]:
    net = convolutional_flat()
    given = {"input_shape": (1, 6, 6), **options}
    return [float(analysis.frame_potential_penalty(net, **given).detach()) for _ in range(3)]


def convolutional_flat() -> Any:
    return pursuitify(nn.Sequential(model(), nn.ReLU()).eval(), iterations=2).eval()


def residual() -> Any:
    from pursuitify.models import ResidualNet

    return ResidualNet(1, 3, depth=1, width=2)


def least(source: Callable[[], nn.Module] = residual, **options: Any) -> Any:
    given = {"input_shape": (1, 4, 4), "seeds": 1, "steps": 2, **options}
    if options.get("method") == "closed":
        del given["seeds"], given["steps"]
    found = analysis.minimum_frame_potential(source(), **given)
    return found.value, found.count, found.input_shape, found.seeds


def dense() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU())


def compared(source: Callable[[], nn.Module] = dense, **options: Any) -> Any:
    given = {"input_shape": (4,), "seeds": 1, "budget": 1e6, **options}
    found = analysis.compare({"net": source()}, **given)
    return found.input_shape, [dataclasses.replace(row, seconds=0.0) for row in found.rows]


def chain() -> nn.Module:
    layers = [nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 2), nn.ReLU()]
    return nn.Sequential(*layers).eval()


ANALYSIS: dict[str, dict[str, Any]] = {
    "babel": {
        "most": (lambda: len(analysis.babel(matrix())), lambda: len(analysis.babel(matrix(), 2)))
    },
    "babel_function": {
        "most": (
            lambda: len(analysis.babel_function(gram())),
            lambda: len(analysis.babel_function(gram(), 2)),
        )
    },
    "certify": {
        "method": (lambda: certified()["text"], lambda: lanczos()["text"]),
        "iterations": (lanczos, partial(lanczos, iterations=1)),
        "steps": (lanczos, partial(lanczos, steps=1)),
        "progress": tuple(
            partial(lambda p: shown(partial(lanczos, progress=p)) != "", p) for p in (False, True)
        ),
    },
    "compare": {
        "input_shape": tuple(
            partial(compared, chain, budget=0.0, input_shape=shape)
            for shape in ((1, 4, 4), (1, 6, 6))
        ),
        "layout": (compared, partial(compared, layout="encoder")),
        "budget": (compared, partial(compared, budget=0.0)),
        "steps": (compared, partial(compared, steps=1)),
        "seeds": (compared, partial(compared, seeds=2)),
        "progress": tuple(
            partial(lambda p: shown(partial(compared, progress=p)) != "", p) for p in (False, True)
        ),
    },
    "convolutional_welch": {
        "stride": (
            lambda: analysis.convolutional_welch(3, 16, 3),
            lambda: analysis.convolutional_welch(3, 16, 3, stride=2),
        )
    },
    "extreme_eigenvalues": {
        "steps": (partial(extremes, steps=5), partial(extremes, steps=6)),
        "seed": (partial(extremes, steps=5), partial(extremes, steps=5, seed=1)),
    },
    "FramePotentialPenalty": {
        "input_shape": (penalties, partial(penalties, input_shape=(1, 6, 6), blocks=None)),
        "blocks": (penalties, partial(penalties, blocks=None)),
        "seed": (penalties, partial(penalties, seed=1)),
    },
    "frame_potential_penalty": {
        "input_shape": (
            lambda: refused(one_penalty),
            lambda: refused(partial(one_penalty, input_shape=(1, 9, 9))),
        ),
        "blocks": (one_penalty, partial(one_penalty, blocks=None)),
    },
    "minimum_frame_potential": {
        "input_shape": (least, partial(least, input_shape=(1, 6, 6))),
        "layout": (least, partial(least, layout="encoder")),
        "method": (partial(least, chain), partial(least, chain, method="optimise")),
        "seeds": (least, partial(least, seeds=2)),
        "steps": (least, partial(least, steps=20)),
        "budget": (least, partial(least, budget=0.0)),
        "progress": tuple(
            partial(lambda p: shown(partial(least, progress=p)) != "", p) for p in (False, True)
        ),
    },
    "slack_form": {
        "kkt": (
            lambda: analysis.slack_form(0.5, 0.5).radius,
            lambda: analysis.slack_form(0.5, 0.5, 0.1).radius,
        )
    },
    "theorem_a": {
        "noise": (
            lambda: analysis.theorem_a(0.01, 2, 1.0, 1.0).holds,
            lambda: analysis.theorem_a(0.01, 2, 1.0, 1.0, 5.0).holds,
        )
    },
    "theorem_b": {
        "kkt": (
            lambda: analysis.theorem_b(0.01, 2, 0.5).radius,
            lambda: analysis.theorem_b(0.01, 2, 0.5, 0.1).radius,
        )
    },
    **{name: {} for name in ("chain_frame_potential", "layered_gain", "margin_radius", "welch")},
}

# -- surrogates ---------------------------------------------------------------------------------


def guided(kind: Callable[..., Any], **options: Any) -> Tensor:
    guide = kind(network(), **options)
    found: Tensor = robust.pgd(network(), *data(), eps=0.1, steps=2, seed=0, guide=guide)
    return found


def passes(**options: Any) -> int:
    watched = Watched().eval()
    guide = robust.Averaged(watched, **options)
    guide(images(), data()[1], images(), lambda logits, labels: logits.sum(1))
    return watched.calls


def certified_guide(**options: Any) -> Tensor:
    found: Tensor = robust.CertifiedSteps(network(steps="adaptive"), **options)(images())
    return found.detach()


SURROGATES: dict[str, dict[str, Any]] = {
    "CertifiedSteps": {"factor": (certified_guide, partial(certified_guide, factor=3))},
    "Averaged": {"draws": (passes, partial(passes, draws=3))},
    "SmoothedBackward": {
        "slope": (
            partial(guided, robust.SmoothedBackward),
            partial(guided, robust.SmoothedBackward, slope=5.0),
        )
    },
    "Sweeps": {
        "counts": (
            partial(guided, robust.Sweeps),
            partial(guided, robust.Sweeps, counts=[0]),
        ),
        "how": (partial(guided, robust.Sweeps), partial(guided, robust.Sweeps, how="worst")),
    },
    **{name: {} for name in ("AtIterations", "LatentChange", "iterations")},
}

# -- training, data -----------------------------------------------------------------------------


class Numbers(torch.utils.data.Dataset[Any]):
    """Samples that say by their label in which process they were read."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Any:
        return images()[index], int(torch.utils.data.get_worker_info() is not None)


def evaluated(**options: Any) -> Any:
    watched = Watched().eval()
    return training.evaluate(watched, Numbers(), **options).loss, watched.sizes


def tuned(*given: Any, **options: Any) -> Any:
    pytest.importorskip("accelerate")
    net = model()
    call = {"epochs": 1, "batch_size": 3, "progress": False, **options}
    if given:
        del call["epochs"]
    done = training.finetune(net, data(), data(), *given, **call)
    return done.history, net.state_dict()


def resumed(**options: Any) -> str:
    with tempfile.TemporaryDirectory() as folder:
        tuned(output=folder)
        return refused(lambda: tuned(output=folder, **options)).replace(folder, "FOLDER")


def written() -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        tuned(output=folder)
        return sorted(path.name for path in Path(folder).iterdir())


def origin_kept(**options: Any) -> Any:
    pytest.importorskip("accelerate")
    with tempfile.TemporaryDirectory() as folder:
        call = {"epochs": 1, "batch_size": 3, "progress": False, "output": folder, **options}
        training.finetune(network(), data(), data(), **call)
        return [read_origin(Path(folder) / f"{name}.safetensors") for name in ("best", "last")]


def with_accelerator(steps: int) -> Any:
    from accelerate import Accelerator

    return tuned(accelerator=Accelerator(gradient_accumulation_steps=steps))


FINETUNE: dict[str, Any] = {
    "config": (tuned, lambda: tuned(training.Config(epochs=2))),
    "output": (list, written),
    "resume": (resumed, partial(resumed, resume=True)),
    "augment": (tuned, partial(tuned, augment=torch.zeros_like)),
    "accelerator": (tuned, partial(with_accelerator, 2)),
    "origin": (origin_kept, partial(origin_kept, origin=Origin("mine.py:make"))),
    "options": (tuned, partial(tuned, lr=0.5)),
}


@contextlib.contextmanager
def picture_folder(parts: bool = False) -> Iterator[Path]:
    """Yield a folder of 2 x 20 images, one of which cannot be read."""
    from PIL import Image

    with tempfile.TemporaryDirectory() as name:
        for part in ("train", "val", "test") if parts else ("",):
            for kind in ("cats", "dogs"):
                place = Path(name) / part / kind
                place.mkdir(parents=True)
                for number in range(20):
                    colour = (10 * number, 5 * number, 40)
                    Image.new("RGB", (8, 8), colour).save(place / f"{number}.png")
        if not parts:
            (Path(name) / "cats" / "broken.png").write_bytes(b"no image")
        yield Path(name)


def folder_data(parts: bool = False, **options: Any) -> Any:
    with picture_folder(parts) as path:
        found: Any = data_sets.load_data(path, **{"size": 4, **options})
        read = {
            name: [path.name for path, _ in [(Path(f), y) for f, y in part.files]]
            for name, part in (("train", found.train), ("val", found.val), ("test", found.test))
        }
        return read, found.shape, len(found.skipped)


def void(**options: Any) -> str:
    """Return the refusal of an option where it would have no effect."""
    return refused(partial(folder_data, parts=True, **options)).partition("/")[0]


def named_data(name: str, **options: Any) -> str:
    """Load a data set that is not there, past the network: what is said names the folder."""
    from torchvision import datasets

    def fetch(root: str, train: bool, download: bool) -> Any:
        raise RuntimeError(f"from {root}, download {download}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "CIFAR10", fetch)
        return refused(partial(data_sets.load_data, name, **options))


def cropped(**options: Any) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        step = data_sets.augmentation((6, 6), **options)
        return torch.stack([step(image) for image in images()])


DATA: dict[str, dict[str, Any]] = {
    "load_data": {
        "root": (partial(named_data, "cifar10"), partial(named_data, "cifar10", root="/elsewhere")),
        "download": (partial(named_data, "cifar10"), partial(named_data, "cifar10", download=True)),
        "validation": (folder_data, partial(folder_data, validation=0.3)),
        "size": (folder_data, partial(folder_data, size=5)),
        "channels": (folder_data, partial(folder_data, channels=1)),
        "seed": (folder_data, partial(folder_data, seed=1)),
        "skip_bad": (folder_data, partial(folder_data, skip_bad=True)),
    },
    "augmentation": {
        "padding": (cropped, partial(cropped, padding=1)),
        "flip": (cropped, partial(cropped, flip=False)),
    },
    **{name: {} for name in ("Images", "Normalised")},
}
TRAINING: dict[str, dict[str, Any]] = {
    "finetune": FINETUNE,
    "evaluate": {
        "batch_size": (evaluated, partial(evaluated, batch_size=4)),
        "workers": (evaluated, partial(evaluated, workers=1)),
    },
    "recipe": {
        "name": (training.recipe, partial(training.recipe, "noise")),
        "options": (training.recipe, partial(training.recipe, epochs=3)),
    },
    "reconstruction": {},
}

#: Options that would have no effect beside another one, and are refused by name.
VOID: dict[str, Callable[[], str]] = {
    "iterations=5": lambda: refused(partial(certified, method="dense", iterations=5)),
    "steps=5": lambda: refused(partial(certified, method="dense", steps=5)),
    "layout='auto'": lambda: refused(partial(least, convolutional, layout="auto")),
    "seeds=2": lambda: refused(
        partial(analysis.minimum_frame_potential, chain(), (1, 6, 6), method="closed", seeds=2)
    ),
    "steps=2": lambda: refused(
        partial(analysis.minimum_frame_potential, chain(), (1, 6, 6), method="closed", steps=2)
    ),
    "loss='dlr'": lambda: refused(partial(points, "apgd", targets=2, loss="dlr", steps=2)),
    "validation=0.1": partial(void, validation=0.1),
    "skip_bad=True": lambda: refused(partial(data_sets.load_data, "digits", skip_bad=True)),
    "root='x'": lambda: refused(partial(data_sets.load_data, "digits", root="x")),
    "origin would have no effect": lambda: refused(partial(tuned, origin=Origin("mine.py:make"))),
    "attacks goes with version": lambda: refused(partial(points, "autoattack", attacks=["square"])),
}


def counted(**options: Any) -> tuple[int, ...]:
    found = package.estimate_memory(network(iterations=5), tuple(images().shape[1:]), **options)
    return dataclasses.astuple(found)


MEMORY: dict[str, Any] = {
    "training": (counted, partial(counted, training=False)),
    "batch": (counted, partial(counted, batch=3)),
    "memory": (partial(counted, batch=64), partial(counted, batch=64, memory="recompute")),
    "recompute_levels": (
        partial(counted, batch=64, memory="recompute"),
        partial(counted, batch=64, memory="recompute", recompute_levels=2),
    ),
    "implicit_last": (
        partial(counted, batch=64, memory="implicit"),
        partial(counted, batch=64, memory="implicit", implicit_last=3),
    ),
    "iterations": (partial(counted, batch=64), partial(counted, batch=64, iterations=9)),
}


def replaced(**options: Any) -> Any:
    """Return what a twin has in place of a GELU."""
    return [r.new for r in package.relu_twin(nn.Sequential(nn.GELU()), **options).replaced]


def pictured(name: str) -> dict[str, Any]:
    """Return the entries of a function that draws a network, or what it does sweep by sweep."""

    def draw(**options: Any) -> Any:
        net = network()
        subject = net if name == "plot_structure" else net.diagnose(images())
        return getattr(plots, name)(subject, **options)

    def written(named: bool) -> bool:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "a.png")
            draw(path=path if named else None)
            return path.exists()

    def taken(given: bool) -> bool:
        from matplotlib.figure import Figure

        axes = Figure().subplots()
        return draw(ax=axes if given else None) is axes.figure

    return {
        "path": (partial(written, False), partial(written, True)),
        "ax": (partial(taken, False), partial(taken, True)),
    }


SEEN: dict[str, Any] = {
    "estimate_memory": MEMORY,
    **ANALYSIS,
    **SURROGATES,
    **DATA,
    **TRAINING,
    **{name: pictured(name) for name in ("plot_structure", "plot_objective")},
    "pursuitify": PURSUITIFY,
    "explain": EXPLAIN,
    "relu_twin": {
        "mapping": (replaced, partial(replaced, mapping={nn.GELU: nn.Softplus})),
    },
    "coherence": COHERENCE,
    "calibrate": CALIBRATE,
    **{
        write.__name__: {
            "origin": (
                partial(remembered, write),
                partial(remembered, write, origin=Origin("mine.py:make")),
            )
        }
        for write in (save, save_pretrained)
    },
    "load": LOAD,
    **{name: attack_entries(name) for name in BRIEF},
    "audit": AUDIT,
    "certified_radius": {"local": (radius, partial(radius, local=False))},
    "export_program": {
        "dynamic_batch": (partial(runs_at, 3), partial(runs_at, 3, dynamic_batch=False)),
    },
    "export_onnx": {
        "dynamic_batch": (onnx, partial(onnx, dynamic_batch=False)),
        "tolerance": (onnx, partial(onnx, tolerance=None)),
    },
}


def options_of(name: str) -> Iterator[str]:
    for option, parameter in inspect.signature(FUNCTIONS[name]).parameters.items():
        if name == "pursuitify" and parameter.kind is parameter.VAR_KEYWORD:
            yield from OPTIONS
        elif parameter.default is not parameter.empty or parameter.kind in (
            parameter.KEYWORD_ONLY,
            parameter.VAR_KEYWORD,
        ):
            yield option


def test_every_public_function_has_an_entry() -> None:
    assert SEEN.keys() == FUNCTIONS.keys()
    names = {name for module in MODULES for name in vars(module)}
    assert names >= NO_FUNCTIONS.keys(), "these are gone"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_option_has_an_entry(name: str) -> None:
    assert set(SEEN[name]) == set(options_of(name))


@pytest.mark.parametrize("option", VOID)
def test_an_option_that_would_have_no_effect_is_refused(option: str) -> None:
    if "attacks" in option:
        pytest.importorskip("pyautoattack")
    told = VOID[option]()
    assert told.startswith("refused: ")
    assert option in told


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        pairs = zip(one, other, strict=True) if len(one) == len(other) else [(0, 1)]
        return all(same(a, b) for a, b in pairs)
    return bool(one == other)


@functools.cache
def repeated(without: Callable[[], Any]) -> Any:
    """Return what is seen without an option, which many options of a function share."""
    first = without()
    assert same(first, without()), "what is seen repeats, so that a change of it means something"
    return first


@pytest.mark.parametrize(
    ("name", "option"), [(name, option) for name in SEEN for option in SEEN[name]]
)
def test_every_option_changes_something(name: str, option: str) -> None:
    if name in LIBRARY:
        pytest.importorskip(LIBRARY[name])
    if name == "export_onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    without, given = SEEN[name][option]
    assert not same(repeated(without), given())


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "pursuitify"])
def test_an_option_that_there_is_not_is_refused(name: str) -> None:
    if name in LIBRARY and importlib.util.find_spec(LIBRARY[name]) is None:
        pytest.skip(f"{name} needs {LIBRARY[name]}")
    x, y = data()
    given = {"foolbox": (model(), x, y), "finetune": (model(), (x, y), (x, y))}.get(name, ())
    needed = {"eps": 0.1} if name == "foolbox" else {}
    with pytest.raises((TypeError, PursuitifyError), match="no_such_option"):
        FUNCTIONS[name](*given, **needed, no_such_option=1)


def test_settings_that_there_are_not_are_refused() -> None:
    with pytest.raises(PursuitifyError, match="no_such_option"):
        pursuitify(model(), no_such_option=1)
