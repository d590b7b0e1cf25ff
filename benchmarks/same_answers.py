"""Compare the answers of two commits: ten networks, both modes, every solver and memory mode.

    python benchmarks/same_answers.py --write before.npz     # in a checkout of the one commit
    python benchmarks/same_answers.py --against before.npz   # in a checkout of the other

Everything is in float64 and through the public interface alone, so that it runs on any commit.
Outputs, latents, objectives, step sizes, derivatives, coherence reports, dictionaries and
checkpoints are compared; the table says how many are equal to the last bit and how far the others
are apart.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch import Tensor, nn
from torchvision import models as zoo

from pursuitify import coherence, load, pursuitify, save
from pursuitify.models import ChainNet, DenselyConnectedNet, ResidualNet

STORE: dict[str, Any] = {"memory": "store"}
RECOMPUTE: dict[str, Any] = {"memory": "recompute"}
TWO_LEVELS: dict[str, Any] = {"memory": "recompute", "recompute_levels": 2}
IMPLICIT: dict[str, Any] = {"memory": "implicit"}
LAST: dict[str, Any] = {"memory": "implicit", "implicit_last": 1}
#: Solver, memory mode and extrapolation weight.
RUNS = [
    *(("global", memory, 0.0) for memory in (STORE, RECOMPUTE, TWO_LEVELS, IMPLICIT, LAST)),
    *(("global", memory, 0.4) for memory in (STORE, RECOMPUTE, TWO_LEVELS)),
    *(("layered", memory, 0.0) for memory in (STORE, RECOMPUTE)),
    *(("synchronous", memory, 0.0) for memory in (STORE, RECOMPUTE, IMPLICIT, LAST)),
    ("feedforward", STORE, 0.0),
]
#: Of larger arrays this many entries are kept beside a hash of all.
ENTRIES = 2000


def _regnet() -> nn.Module:
    blocks = zoo.regnet.BlockParams.from_init_params(4, 16, 8.0, 2.0, 8, se_ratio=0.25)
    return zoo.RegNet(blocks, num_classes=5)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "chain": (lambda: ChainNet(3, 5, width=4), 16),
    "residual": (lambda: ResidualNet(3, 5, width=4), 16),
    "dense": (lambda: DenselyConnectedNet(3, 5, width=4), 16),
    "resnet18": (lambda: zoo.ResNet(zoo.resnet.BasicBlock, [1, 1, 1, 1], num_classes=5), 32),
    "resnet50": (lambda: zoo.ResNet(zoo.resnet.Bottleneck, [1, 1, 1, 1], num_classes=5), 32),
    "densenet": (lambda: zoo.DenseNet(8, (2, 2, 2, 2), 16, num_classes=5), 32),
    "mobilenet_v2": (lambda: zoo.mobilenet_v2(width_mult=0.25, num_classes=5), 32),
    "squeezenet": (lambda: zoo.squeezenet1_1(num_classes=5), 48),
    "regnet_y": (_regnet, 32),
    "alexnet": (lambda: zoo.AlexNet(num_classes=5).features, 64),
}


def answers() -> Iterator[tuple[str, Any]]:
    """Yield (name, value) for everything that is compared."""
    for name, (build, size) in NETWORKS.items():
        torch.manual_seed(0)
        model = build().double()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.2)
                nn.init.normal_(module.running_mean, std=0.2)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
        x = torch.rand(2, 3, size, size, dtype=torch.float64)
        yield from of_network(name, model, x)


def of_network(name: str, model: nn.Module, x: Tensor) -> Iterator[tuple[str, Any]]:
    """Yield what one network answers."""
    for training in (False, True):
        mode = "train" if training else "eval"
        for solver, options, alpha in RUNS:
            net = pursuitify(model, iterations=2, solver=solver, **options).train(training)
            with torch.no_grad():
                net.pursuit.alpha.fill_(alpha)
            net.train(training)
            key = f"{name} {mode} {solver} {sorted(options.items())} {alpha}"
            yield from of_pass(key, net, x)
        for layout in ("auto", "encoder"):
            net = pursuitify(model, iterations=2, layout=layout).train(training)
            key = f"{name} {mode} {layout}"
            yield from of_queries(key, net, x)
    net = pursuitify(model.eval(), iterations=2)
    report = coherence(net, input_shape=tuple(x.shape[1:]))
    yield f"{name} coherence", report.to_dict() if hasattr(report, "to_dict") else str(report)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.safetensors"
        save(net, path)
        again = load(path, model)
        yield f"{name} loaded", again(x)
        yield f"{name} state", list(again.state_dict())


def of_pass(key: str, net: Any, x: Tensor) -> Iterator[tuple[str, Any]]:
    """Yield an output without and with derivatives, and all derivatives."""
    with torch.no_grad():
        torch.manual_seed(1)
        yield f"{key} output", net(x)
    leaf = x.clone().requires_grad_()
    torch.manual_seed(1)
    out = net(leaf)
    yield f"{key} output, recorded", out
    out.square().sum().backward()
    yield f"{key} dx", leaf.grad
    for parameter, value in net.named_parameters():
        yield f"{key} d{parameter}", value.grad


def of_queries(key: str, net: Any, x: Tensor) -> Iterator[tuple[str, Any]]:
    """Yield latents, steps, objectives, the dictionary's products."""
    torch.manual_seed(1)
    latents = net.latents(x)
    yield from ((f"{key} latent {n}", v) for n, v in latents.items())
    yield from ((f"{key} step {n}", v) for n, v in net.step_sizes(x).items())
    yield f"{key} objective", net.objective(x, latents)
    d = net.dictionary(x)
    rows = d.apply(latents)
    yield from ((f"{key} Bw {n}", v) for n, v in rows.items())
    yield from ((f"{key} BTr {n}", v) for n, v in d.adjoint(rows).items())
    yield from ((f"{key} y {n}", v) for n, v in d.signal.items())
    yield from ((f"{key} lam {n}", v) for n, v in d.thresholds.items())
    for t, sweep in enumerate(net.diagnose(x).sweeps):
        yield f"{key} diagnosed {t}", torch.tensor([sweep.objective, *sweep.residual, *sweep.step])
    edges = [(a, b, sorted(data.items())) for a, b, data in net.graph.edges(data=True)]
    yield f"{key} graph", (list(net.graph.nodes(data=True)), edges)


def flat(value: Any) -> np.ndarray[Any, Any]:
    """Return a value as an array: numbers as they are, everything else by the hash of its repr."""
    if isinstance(value, Tensor):
        array = value.detach().numpy().reshape(-1)
        if array.size <= ENTRIES:
            return array
        digest = hashlib.sha256(array.tobytes()).digest()[:8]
        # The hash as a number, so that any difference anywhere in a large array is seen.
        return np.append(array[:ENTRIES], float(int.from_bytes(digest[:6], "big")))
    if value is None:
        return np.zeros(0)
    digest = hashlib.sha256(repr(value).encode()).digest()[:8]
    return np.frombuffer(digest, dtype=np.uint8)


def main() -> None:
    """Write the answers, or compare with some."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--against", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found = {key: flat(value) for key, value in answers()}
    if given.write:
        np.savez(given.write, **found)
        print(f"{len(found)} answers written")
    if given.against:
        before = dict(np.load(given.against))
        missing = sorted(before.keys() ^ found.keys())
        print(f"{len(before)} answers before, {len(found)} now; on one side alone: {missing[:5]}")
        equal, worst = 0, []
        for key in sorted(before.keys() & found.keys()):
            a, b = before[key], found[key]
            if a.shape == b.shape and np.array_equal(a, b, equal_nan=a.dtype.kind == "f"):
                equal += 1
            elif a.shape != b.shape or a.dtype.kind != "f":
                worst.append((np.inf, key))
            else:
                # Beyond ENTRIES the last entry is a hash, which says only that something differs.
                x, y = (v[:ENTRIES] for v in (a, b))
                worst.append((np.abs(x - y).max() / max(np.abs(x).max(), 1e-300), key))
        print(f"equal to the last bit: {equal}; others: {len(worst)}")
        for error, key in sorted(worst, reverse=True)[:20]:
            print(f"{error:.2g} {key}")


if __name__ == "__main__":
    main()
