"""The benchmarks share this module: options, environment, timing in turns, counting, tables, JSON.

Whatever is compared runs in turn within one process, so that a drift of the machine's speed hits
everything alike; what is reported is the median over the turns of the ratio within each turn.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision import models

RESULTS = Path(__file__).resolve().parent / "results"

Row = dict[str, Any]

#: Clocks by name. Where other work shares the machine, only CPU time with one thread means much.
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "CPU": time.process_time}


def options(
    doc: str, name: str, *, sweeps: Sequence[int] = (10,), batch: int = 16, size: int = 160
) -> argparse.ArgumentParser:
    """Return the parser with the flags that every benchmark has.

    Args:
        doc: The script's docstring.
        name: Its name; results go to ``benchmarks/results/<name>.json`` unless ``--json`` says
            otherwise.
        sweeps: The values of T.
        batch: Batch size.
        size: Side of the images.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sweeps", type=int, nargs="+", default=list(sweeps), help="values of T")
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--size", type=int, default=size)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, default=RESULTS / f"{name}.json")
    return parser


def floor(sweeps: int) -> int:
    """Return 1 + 2 T: what T sweeps need, in forward passes of the weighted operators."""
    return 1 + 2 * sweeps


# ---------------------------------------------------------------- what is measured


def source(name: str, device: str = "cpu") -> nn.Module:
    """Return a torchvision model with seeded random weights, in eval mode and channels_last."""
    torch.manual_seed(0)
    extra = {"init_weights": True} if name in {"googlenet", "inception_v3"} else {}
    model: nn.Module = models.get_model(name, weights=None, **extra).eval()
    return model.to(device, memory_format=torch.channels_last)


def images(batch: int, size: int, device: str = "cpu", dtype: torch.dtype | None = None) -> Tensor:
    """Return seeded images, channels_last."""
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(batch, 3, size, size, generator=generator)
    return x.to(device, dtype).to(memory_format=torch.channels_last)


# ---------------------------------------------------------------- time


def seconds(call: Callable[[], object], device: str = "cpu", clock: Any = time.perf_counter) -> Any:
    """Return how long a call takes, until the device is done."""
    cuda = torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.synchronize()
    start = clock()
    call()
    if cuda:
        torch.cuda.synchronize()
    return clock() - start


def in_turns(
    calls: Mapping[str, Callable[[], object]],
    repeats: int,
    device: str = "cpu",
    best_of: Mapping[str, int] | None = None,
    clock: Any = time.perf_counter,
) -> dict[str, list[float]]:
    """Return the seconds of every call in every turn, after one call of each to warm up.

    Args:
        calls: What to time.
        repeats: Number of turns.
        device: Where it runs.
        best_of: Calls that are run several times within a turn, the fastest counts.
        clock: ``time.process_time`` where other work shares the machine.
    """
    for call in calls.values():
        call()
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            times = (best_of or {}).get(name, 1)
            found[name].append(min(seconds(call, device, clock) for _ in range(times)))
    return found


def ratio(times: Mapping[str, Sequence[float]], name: str, to: str = "source") -> Row:
    """Return the median and the spread of one call's time as a multiple of another's."""
    values = [a / b for a, b in zip(times[name], times[to], strict=True)]
    return {
        "seconds": statistics.median(times[name]),
        "source_seconds": statistics.median(times[to]),
        "sources": statistics.median(values),
        "spread": [min(values), max(values)],
    }


def per_floor(found: Row, sweeps: int) -> Row:
    """Add the multiple of the (1 + 2 T) floor to a ``ratio``."""
    return {**found, "floors": found["sources"] / floor(sweeps)}


# ---------------------------------------------------------------- counts


class Operators(TorchDispatchMode):
    """Counts convolutions, and elements written by everything else.

    Attributes:
        convolutions: Convolutions, forward and adjoint; the derivative of one counts once for
            each operand it is taken for.
        elements: Elements in the results of the other operators that are no view.
        launches: Operators that compute something: what a device would be sent, one by one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = 0
        self.elements = 0
        self.launches = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.launches += not (func.is_view or name.startswith(("empty", "detach", "_unsafe_view")))
        if name == "convolution_backward":
            self.convolutions += sum(args[-1][:2])
        elif name == "convolution" or name.startswith("_convolution_pointwise"):
            self.convolutions += 1  # the latter with a packed kernel
        elif not func.is_view:
            outputs = result if isinstance(result, (tuple, list)) else (result,)
            self.elements += sum(t.numel() for t in outputs if isinstance(t, Tensor))
        return result


def saved_bytes(call: Callable[[], object], apart: Iterable[Tensor] = ()) -> int:
    """Return the bytes autograd keeps for derivatives while ``call`` runs.

    Storages are counted once; they are held until the end, so that none is counted twice.

    Args:
        call: What to run.
        apart: Tensors that are not counted, such as the parameters.
    """
    known = {t.untyped_storage().data_ptr() for t in apart}
    held: dict[int, torch.UntypedStorage] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        held[storage.data_ptr()] = storage
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        result = call()
    total = sum(storage.nbytes() for pointer, storage in held.items() if pointer not in known)
    del result
    return total


# ---------------------------------------------------------------- results


def environment(device: str = "cpu") -> Row:
    """Return what a figure depends on beside the code."""
    found: Row = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.device(device).type,
    }
    if found["device"] == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor()


def show(title: str, rows: Sequence[Row], columns: Sequence[str]) -> None:
    """Print rows as a table."""
    table = Table(title=title)
    for column in columns:
        table.add_column(column.replace("_", " "))
    for row in rows:
        table.add_row(*(cell(row.get(column, "")) for column in columns))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def cell(value: object) -> str:
    """Return a value as a table shows it."""
    if isinstance(value, float):
        return f"{value:.2e}" if value and abs(value) < 1e-3 else f"{value:.3g}"
    if isinstance(value, (list, tuple)):
        return " to ".join(cell(v) for v in value)
    return str(value)


def write(path: Path, rows: Sequence[Row], key: Sequence[str], device: str = "cpu") -> None:
    """Write rows to a JSON file beside those it has; a row with the same key is replaced.

    Args:
        path: The file, made where it is missing.
        rows: What was measured.
        key: The fields that tell one measurement from another.
        device: Where it was measured.

    Raises:
        SystemExit: If the file's rows come from another environment.
    """
    here = environment(device)
    kept: list[Row] = []
    if path.exists():
        before = json.loads(path.read_text())
        if before["environment"] != here:
            raise SystemExit(
                f"{path} was measured elsewhere ({before['environment']}; here {here}): "
                "its rows cannot stand beside these. Remove it or name another file (--json)"
            )
        mine = [[row.get(k) for k in key] for row in rows]
        kept = [row for row in before["rows"] if [row.get(k) for k in key] not in mine]
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"environment": here, "rows": [*kept, *rows]}
    path.write_text(json.dumps(record, indent=1) + "\n")


def per_model(
    title: str,
    measure: Callable[[str, argparse.Namespace], list[Row]],
    given: argparse.Namespace,
    key: Sequence[str],
    columns: Sequence[str],
) -> int:
    """Measure every model, write what is found after each, print it all; return exit code 0."""
    torch.set_num_threads(given.threads)
    rows: list[Row] = []
    for name in given.models:
        rows += measure(name, given)
        write(given.json, rows, key, given.device)
    show(title, rows, columns)
    return 0
