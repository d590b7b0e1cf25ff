"""Memory and time of a training step in every memory mode, as multiples of the source's own.

python benchmarks/memory.py --model resnet18 --sweeps 10 --curve 1 4

``--curve`` measures what is saved at further T. Rows of other models and values of T stay in the
JSON, from which ``benchmarks/render.py`` draws. Every measurement has a process of its own.
"saved" is what autograd keeps after the forward pass,
seen through its saved-tensor hooks: unique storages, parameters apart; every mode hands what it
keeps to those hooks. "resident" is the growth of the process's resident
set to its peak over forward and backward, "cpu" the process time of one step with one thread, the
smallest of the repeats.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torchvision import models

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import common
from pursuitify import pursuitify

MIB = 2**20
#: What tells one row from another.
KEY = ("model", "batch", "size", "mode", "sweeps")
MODES: dict[str, dict[str, Any]] = {
    "store": {"memory": "store"},
    "recompute": {"memory": "recompute"},
    "recompute-2": {"memory": "recompute", "recompute_levels": 2},
    "implicit": {"memory": "implicit"},
    "implicit-last-1": {"memory": "implicit", "implicit_last": 1},
}


def saved(net: nn.Module, x: Tensor) -> tuple[float, Tensor]:
    """Return the MiB that autograd keeps after a forward pass, and its result."""
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = net(x)
    own = {p.untyped_storage().data_ptr() for p in net.parameters()}
    return sum(n for pointer, n in seen.items() if pointer not in own) / MIB, out


def resident() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(mode: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure one mode in this process."""
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    net: nn.Module = models.get_model(arguments.model, weights=None).train()
    net = net.to(memory_format=torch.channels_last)
    if mode != "source":
        net = pursuitify(net, iterations=arguments.sweeps, copy=False, **MODES[mode])
    shape = (arguments.batch, 3, arguments.size, arguments.size)
    x = torch.rand(shape).to(memory_format=torch.channels_last)
    net(x[:2]).sum().backward()
    before = resident()
    kept, out = saved(net, x)
    after_forward = resident() - before
    out.square().mean().backward()
    grown = max(peak() - before, 0.0)
    del out
    cpu, wall = [], []
    for _ in range(arguments.repeats):
        net.zero_grad()
        start, clock = time.process_time(), time.perf_counter()
        net(x).square().mean().backward()
        cpu.append(time.process_time() - start)
        wall.append(time.perf_counter() - clock)
    row: dict[str, Any] = {
        "model": arguments.model,
        "batch": arguments.batch,
        "size": arguments.size,
        "mode": mode,
        "sweeps": 0 if mode == "source" else arguments.sweeps,
        "saved": kept,
        "resident_forward": after_forward,
        "resident": grown,
        "cpu": min(cpu, default=0.0),
        "wall": min(wall, default=0.0),
    }
    solves = getattr(net, "solves", None)
    if solves is not None:
        row |= {"forward_residual": solves.forward, "adjoint_residual": solves.adjoint}
    return row


def spawn(mode: str, sweeps: int, arguments: argparse.Namespace, repeats: int) -> common.Row:
    """Measure one mode in a fresh process; without repeats, what it saves alone."""
    command = [sys.executable, __file__, "--one", mode, "--sweeps", str(sweeps)]
    for name in ("model", "batch", "size", "threads"):
        command += [f"--{name}", str(getattr(arguments, name))]
    command += ["--repeats", str(repeats)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: common.Row = json.loads(done.stdout.splitlines()[-1])
    if not repeats:
        found = {k: v for k, v in found.items() if k in (*KEY, "saved")}
    return found


def show(rows: list[dict[str, Any]], sweeps: int) -> None:
    source, store = rows[0], rows[1]
    table = Table(title=f"one training step, T = {sweeps}; x source: memory, time per 1 + 2T")
    headings = ("mode", "saved MiB", "x source", "resident MiB", "x source", "cpu s", "x floor")
    for heading in (*headings, "x store", "wall s"):
        table.add_column(heading)
    for row in rows:
        floor = source["cpu"] * (1 + 2 * row["sweeps"])
        table.add_row(
            row["mode"],
            f"{row['saved']:.0f}",
            f"{row['saved'] / source['saved']:.2f}",
            f"{row['resident']:.0f}",
            f"{row['resident'] / source['resident']:.2f}",
            f"{row['cpu']:.2f}",
            f"{row['cpu'] / floor:.2f}",
            f"{row['cpu'] / store['cpu']:.2f}",
            f"{row['wall']:.2f}",
        )
    Console(width=120).print(table)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--sweeps", type=int, default=10)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=list(MODES))
    parser.add_argument("--curve", nargs="*", type=int, default=[])
    parser.add_argument("--json", type=Path, default=common.RESULTS / "memory.json")
    parser.add_argument("--one", choices=["source", *MODES], help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.one:
        print(json.dumps(measure(arguments.one, arguments)))
        return 0
    torch.set_num_threads(arguments.threads)
    modes = ["source", "store", *(m for m in arguments.modes if m != "store")]
    rows = [spawn(mode, arguments.sweeps, arguments, arguments.repeats) for mode in modes]
    show(rows, arguments.sweeps)
    others = [t for t in arguments.curve if t != arguments.sweeps]
    rows += [spawn(mode, t, arguments, 0) for mode in modes[1:] for t in others]
    common.write(arguments.json, rows, KEY)
    return 0


if __name__ == "__main__":
    sys.exit(main())
