"""torch.compile: seconds to compile against T, compiled against eager time, bfloat16 autocast.

python benchmarks/compile.py --models resnet18 --sweeps 1 3 10

Compilation is timed in CPU seconds with its caches off and one worker, so that other work on the
machine does not count; so are runs of one thread on a CPU. Breaks in the graph are refused
(``fullgraph=True``). The dtype rows compare autocast to bfloat16 with float32: time, and how far
the outputs differ, for source and network.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

# Read by the compiler when it is imported.
os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import common
from pursuitify import pursuitify

KEY = ("model", "batch", "size", "sweeps", "backend", "way")
COLUMNS = (
    "model", "sweeps", "way", "compile_cpu_seconds", "source_seconds", "seconds", "sources",
    "floors", "to_eager", "difference",
)  # fmt: skip


def cpu_seconds() -> float:
    """Return the CPU time of this process and of the compilers it has waited for."""
    used = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def difference(found: Tensor, expected: Tensor) -> float:
    """Return the relative difference in norm."""
    return float((found.float() - expected).norm() / expected.norm())


@torch.no_grad()
def measure(name: str, given: argparse.Namespace) -> list[common.Row]:
    source = common.source(name, given.device)
    x = common.images(given.batch, given.size, given.device)
    net = pursuitify(source)
    rows = []
    for sweeps in given.sweeps:
        net.iterations = sweeps
        expected = net(x)
        torch.compiler.reset()
        compiled = torch.compile(net, fullgraph=True, backend=given.backend)
        found: list[Tensor] = []
        compiling = common.seconds(
            lambda run=compiled, into=found: into.append(run(x)), given.device, clock=cpu_seconds
        )
        calls = {"source": lambda: source(x), "eager": lambda: net(x)}
        if given.repeats:
            calls["compiled"] = lambda run=compiled: run(x)
        if given.bf16:
            calls["bf16"] = lambda: _autocast(net, x)
            calls["source bf16"] = lambda: _autocast(source, x)
        times = (
            common.in_turns(calls, given.repeats, given.device, clock=_clock(given))
            if given.repeats
            else {}
        )
        outputs = {"compiled": (found[0], expected), "eager": (expected, expected)}
        if given.bf16:
            outputs["bf16"] = (_autocast(net, x), expected)
            outputs["source bf16"] = (_autocast(source, x), source(x))
        for way, (mine, theirs) in outputs.items():
            row: common.Row = {
                "model": name,
                "batch": given.batch,
                "size": given.size,
                "sweeps": sweeps,
                "backend": given.backend,
                "way": way,
                "difference": difference(mine, theirs),
            }
            if times:
                row |= common.per_floor(common.ratio(times, way), sweeps)
                row["to_eager"] = common.ratio(times, way, "eager")["sources"]
            if way == "compiled":
                row["compile_cpu_seconds"] = compiling
            rows.append(row)
    return rows


def _clock(given: argparse.Namespace) -> Callable[[], float]:
    alone = given.threads == 1 and torch.device(given.device).type == "cpu"
    return time.process_time if alone else time.perf_counter


def _autocast(run: torch.nn.Module, x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        value: Tensor = run(x)
    return value


def main(argv: list[str] | None = None) -> int:
    parser = common.options(__doc__, "compile", sweeps=(1, 3, 10), batch=4, size=96)
    parser.add_argument("--models", nargs="+", default=["resnet18", "densenet121"])
    parser.add_argument("--backend", default="inductor")
    parser.add_argument("--bf16", action="store_true", help="time autocast to bfloat16 as well")
    given = parser.parse_args(argv)
    return common.per_model("torch.compile", measure, given, KEY, COLUMNS)


if __name__ == "__main__":
    sys.exit(main())
