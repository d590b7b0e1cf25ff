"""Everything that wants a CUDA device, in one command: tests marked gpu, then one table and JSON.

python benchmarks/gpu.py --json gpu.json
python benchmarks/gpu.py --device cpu --quick     # a smoke test of the script itself

Per model, in turn within one process, against the source and against the floor of 1 + 2 T of its
passes: inference in eager mode, compiled, as CUDA graphs (mode="reduce-overhead"), and each under
autocast to bfloat16; then a training step. Each way is compared with the source run alike: bfloat16
with bfloat16, compiled with eager. Where a way fails, its row says why, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import common
from pursuitify import pursuitify
from pursuitify.models import ResidualNet

ROOT = Path(__file__).resolve().parent.parent
MODELS = ("resnet18", "resnet50", "densenet121")
KEY = ("model", "batch", "size", "sweeps", "way")
COLUMNS = ("model", "way", "sweeps", "source_seconds", "seconds", "sources", "floors", "failed")
#: The model of ``--quick``.
SMALL = "ResidualNet"


def source(name: str, device: str) -> nn.Module:
    if name != SMALL:
        return common.source(name, device)
    torch.manual_seed(0)
    return ResidualNet(3, 10, width=4).eval().to(device, memory_format=torch.channels_last)


def ways(given: argparse.Namespace) -> dict[str, tuple[bool, dict[str, Any] | None]]:
    """Return by name whether a way runs under bfloat16, and what it is compiled with, if it is."""
    compiled: dict[str, Any] = {"fullgraph": True}
    if given.quick:
        compiled["backend"] = "aot_eager"
    found = {"eager": (False, None), "compiled": (False, compiled)}
    if torch.device(given.device).type == "cuda":
        found["graphs"] = (False, {**compiled, "mode": "reduce-overhead"})
    return found | {f"{name}, bf16": (True, how) for name, (_, how) in found.items()}


def inference(
    model: nn.Module, bf16: bool, how: dict[str, Any] | None, x: Tensor, graphs: bool
) -> Callable[[], object]:
    run = model if how is None else torch.compile(model, **how)

    def call() -> object:
        if graphs:
            torch.compiler.cudagraph_mark_step_begin()
        with torch.no_grad(), torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            return run(x)

    return call


def training(model: nn.Module, x: Tensor) -> Callable[[], object]:
    def step() -> None:
        model.zero_grad()
        model.train()
        model(x).square().mean().backward()
        model.eval()

    return step


def measure(name: str, given: argparse.Namespace) -> list[common.Row]:
    model = source(name, given.device)
    sweeps = given.sweeps[0]
    net = pursuitify(model, iterations=sweeps)
    x = common.images(given.batch, given.size, given.device)
    pairs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {}
    for way, (bf16, how) in ways(given).items():
        graphs = how is not None and "mode" in how
        plain = inference(model, bf16, None, x, False)
        pairs[way] = plain, inference(net, bf16, how, x, graphs)
    few = x[: max(given.batch // 4, 2)]
    pairs["training step"] = training(model, few), training(net, few)
    rows = []
    for way, (plain, ours) in pairs.items():
        row: common.Row = {"model": name, "batch": len(few) if "step" in way else given.batch}
        row |= {"size": given.size, "sweeps": sweeps, "way": way}
        torch.compiler.reset()
        try:
            times = common.in_turns({"source": plain, "ours": ours}, given.repeats, given.device)
            row |= common.per_floor(common.ratio(times, "ours"), sweeps)
        except Exception as error:  # any failure of a compiler or a device is a result here
            row["failed"] = f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
        rows.append(row)
        given.failed = given.failed or "failed" in row
    return rows


def main(argv: list[str] | None = None) -> int:
    parser = common.options(__doc__, "gpu", batch=32, size=224)
    parser.set_defaults(device="cuda", failed=False)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--quick", action="store_true", help="a small network, to try the script")
    given = parser.parse_args(argv)
    if given.quick:
        given.models, given.batch, given.size = [SMALL], 2, 12
        given.sweeps, given.repeats = [2], 1
    cuda = torch.device(given.device).type == "cuda"
    if cuda and not torch.cuda.is_available():
        print("no CUDA device: nothing was run")
        return 0
    tests = 0
    if cuda:
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "tests/test_gpu.py"]
        tests = subprocess.run(command, cwd=ROOT).returncode
    common.per_model("on " + given.device, measure, given, KEY, COLUMNS)
    return 1 if tests or given.failed else 0


if __name__ == "__main__":
    sys.exit(main())
