"""No option is accepted and ignored: each one changes something that can be seen.

Every public function's options are read off its signature; one that has no entry in ``SEEN`` fails
the first test. An entry gives two observations, without the option and with it, that must differ.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import io
import json
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pursuitify import calibrate, coherence, explain, load, pursuitify, robust, save
from pursuitify.errors import PursuitifyError
from pursuitify.export import export_onnx, export_program
from pursuitify.robust import Protocol, Step
from pursuitify.solvers.settings import OPTIONS

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "pursuitify": pursuitify,
    "explain": explain,
    "coherence": coherence,
    "calibrate": calibrate,
    "save": save,
    "load": load,
    **{name: getattr(robust, name) for name in ("fgsm", "pgd", "apgd", "random_noise", "square")},
    **{name: getattr(robust, name) for name in ("hard_label", "autoattack", "foolbox", "audit")},
    "certified_radius": robust.certified_radius,
    "export_program": export_program,
    "export_onnx": export_onnx,
}


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


def loaded(**options: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        return load(saved(Path(folder) / "net"), model(), **options)


implicit = partial(slope, memory="implicit")
PURSUITIFY: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "iterations": (output, partial(output, iterations=1)),
    "solver": (output, partial(output, solver="layered")),
    "layout": (output, partial(output, layout="encoder")),
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
    "step_scale": (output, partial(output, step_scale=0.3)),
    "threshold_scale": (output, partial(output, threshold_scale=2.0)),
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
    FUNCTIONS[name](watched, *data(), **{"eps": 0.05, **options})
    return watched.sizes


def calls(name: str, **options: Any) -> int:
    watched = Watched().eval()
    FUNCTIONS[name](watched, *data(), **{"eps": 0.01, "early_stop": False, **options})
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


SEEN: dict[str, Any] = {
    "pursuitify": PURSUITIFY,
    "explain": EXPLAIN,
    "coherence": COHERENCE,
    "calibrate": CALIBRATE,
    "save": {},
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


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_option_has_an_entry(name: str) -> None:
    assert set(SEEN[name]) == set(options_of(name))


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    return bool(one == other)


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
    first = without()
    assert same(first, without()), "what is seen repeats, so that a change of it means something"
    assert not same(first, given())


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name not in ("pursuitify", "save")])
def test_an_option_that_there_is_not_is_refused(name: str) -> None:
    if name in LIBRARY and importlib.util.find_spec(LIBRARY[name]) is None:
        pytest.skip(f"{name} needs {LIBRARY[name]}")
    given = (model(), *data()) if name == "foolbox" else ()
    needed = {"eps": 0.1} if name == "foolbox" else {}
    with pytest.raises((TypeError, PursuitifyError), match="no_such_option"):
        FUNCTIONS[name](*given, **needed, no_such_option=1)


def test_settings_that_there_are_not_are_refused() -> None:
    with pytest.raises(PursuitifyError, match="no_such_option"):
        pursuitify(model(), no_such_option=1)
