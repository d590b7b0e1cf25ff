"""The memory of a training step or a call, counted before anything of it is allocated.

The network runs on the meta device, where operations give shapes and no values, and every storage
is followed from the operation that makes it to the moment when nothing holds it any more. What
autograd keeps, what the memory mode keeps and what a backward pass needs for a moment are all seen,
because they are made by the code that would run. What the allocator loses between tensors is not
seen, and added as a measured factor (``TAKEN``).
"""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pursuitify.conversion.explain import meta_twin
from pursuitify.errors import EstimateError, OptionError
from pursuitify.network.pursuit_network import PursuitNetwork
from pursuitify.solvers.settings import OFF
from pursuitify.utils import option_checks
from pursuitify.utils.terminal import Shown
from pursuitify.utils.torch_internals import watch_results

MIB = 2**20
#: By device, the bytes that a process takes for every byte that lives in tensors. On CPUs glibc's
#: malloc leaves holes between tensors: 1.1 to 1.4 measured (docs/memory.md). CUDA's caching
#: allocator was not measured.
TAKEN = {"cpu": 1.25, "cuda": 1.1}
#: Up to so many sweeps all are run; beyond, what two numbers of sweeps need is continued in a line.
_SWEEPS_RUN = 6


@dataclass(frozen=True)
class MemoryEstimate(Shown):
    """The memory that one training step or one call needs, in bytes.

    Attributes:
        weights: Parameters and buffers. They are there before the step.
        gradients: Derivatives of the parameters, which a step leaves behind; 0 in inference.
        kept: What is alive after the forward pass, the result and what its derivatives need.
        peak: The most that is alive at one time of the step, beside the weights. The derivatives
            of the parameters are in it as far as they exist then.
        resident: The most that the process grows by for that, with what its allocator loses.
        batch: The number of samples it was counted for.
    """

    weights: int
    gradients: int
    kept: int
    peak: int
    resident: int
    batch: int

    def __str__(self) -> str:
        """Return the numbers in one line, in MiB."""
        return (
            f"batch of {self.batch}: {self.resident / MIB:,.0f} MiB beside "
            f"{self.weights / MIB:,.0f} MiB of weights ({self.peak / MIB:,.0f} MiB alive at the "
            f"peak, {self.kept / MIB:,.0f} MiB kept after the forward pass, "
            f"{self.gradients / MIB:,.0f} MiB of weights' derivatives)"
        )


def estimate_memory(
    net: nn.Module,
    input_shape: Sequence[int],
    training: bool = True,
    *,
    batch: int = 1,
    memory: str | None = None,
    recompute_levels: int | None = None,
    implicit_last: int | None = None,
    iterations: int | None = None,
) -> MemoryEstimate:
    """Count the memory of a training step, or of a call, without running it.

    Nothing of the size of an activation or a weight is allocated, and the network is not changed.

    Args:
        net: A pursuit network, or any module that takes one batch.
        input_shape: Shape of one sample, for instance (3, 224, 224).
        training: Whether to count forward and backward pass in training mode; else a call in
            evaluation mode that records no derivative.
        batch: The number of samples.
        memory: The derivative mode; the network's own by default. This and the next three are for
            pursuit networks.
        recompute_levels: Likewise.
        implicit_last: Likewise.
        iterations: T likewise.

    Raises:
        OptionError: If an argument is invalid, or is given for a module that has no such option.
        EstimateError: If the network cannot run without values.

    Examples:
        >>> from pursuitify import pursuitify
        >>> from pursuitify.models import ChainNet
        >>> net = pursuitify(ChainNet(3, 10), iterations=2)
        >>> estimate = estimate_memory(net, (3, 32, 32), batch=64)
        >>> estimate.peak > estimate_memory(net, (3, 32, 32), batch=64, iterations=0).peak
        True
    """
    batch = option_checks.positive("batch", batch)
    given = {
        "memory": memory,
        "recompute_levels": recompute_levels,
        "implicit_last": implicit_last,
        "iterations": iterations,
    }
    options = {name: value for name, value in given.items() if value is not None}
    if options and not isinstance(net, PursuitNetwork):
        raise OptionError(
            f"{', '.join(options)} apply to a PursuitNetwork, not to a {type(net).__name__}: "
            "convert it first"
        )
    twin = meta_twin(net).train(training)
    like = next((p for p in twin.parameters() if p.is_floating_point()), torch.empty(0))
    x = torch.empty(batch, *input_shape, device="meta", dtype=like.dtype)

    def step(module: nn.Module) -> Tensor:
        total = torch.zeros((), device="meta")
        for out in _floating(module(x)):
            total = total + out.square().mean()
        return total

    return estimate_step(net, step, batch, training, options, twin)


def estimate_step(
    net: nn.Module,
    step: Callable[[nn.Module], Tensor],
    batch: int,
    training: bool = True,
    options: Mapping[str, Any] | None = None,
    twin: nn.Module | None = None,
) -> MemoryEstimate:
    """Count the memory of a step of the caller's own.

    Args:
        net: The network whose weights are counted.
        step: Runs the forward pass of a network on the meta device and returns the loss.
        batch: The number of samples, for the record.
        training: Whether the loss is differentiated.
        options: Settings of a pursuit network that the step is counted with.
        twin: The network on the meta device, where it exists already; it is changed.

    Raises:
        EstimateError: If the network cannot run without values, or holds sparse tensors.
    """
    for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
        if tensor.layout is not torch.strided:
            raise EstimateError(
                f"'{name}' is sparse ({tensor.layout}), whose memory is not counted: count the "
                "network of the same model with the dense tensor (tensor.to_dense())"
            )
    twin = meta_twin(net).train(training) if twin is None else twin
    weights = _size([*net.parameters(), *net.buffers()])
    own = [p for p in twin.parameters() if p.requires_grad and training]
    if isinstance(twin, PursuitNetwork):
        twin.self_check = OFF
        twin.restore_norm_state({})
        for name, value in (options or {}).items():
            setattr(twin, name, value)
        kept, peak = _continued(twin, step, training)
    else:
        kept, peak = _counted(twin, step, training)
    device = next((p.device.type for p in net.parameters()), "cpu")
    resident = int(TAKEN.get(device, 1.0) * peak)
    return MemoryEstimate(weights, _size(own), kept, peak, resident, batch)


def pass_bytes(net: nn.Module, x: Tensor) -> int:
    """Return the bytes of all that a plain pass makes, views and what is freed at once included.

    A pursuit network's is its pass at T = 0. It takes a small part of the time of
    ``estimate_step``.

    Args:
        net: The network; it is not changed.
        x: A batch on the meta device.

    Raises:
        EstimateError: If the network cannot run without values.
    """
    twin, total = meta_twin(net).eval(), 0
    if isinstance(twin, PursuitNetwork):
        twin.iterations = 0

    def saw(value: Tensor) -> None:
        nonlocal total
        total += value.numel() * value.element_size()

    try:
        with warnings.catch_warnings(), torch.no_grad(), watch_results(saw):
            warnings.simplefilter("ignore")
            twin(x)
    except (RuntimeError, NotImplementedError, ImportError) as error:
        raise _uncounted(twin, error) from error
    return total


def _uncounted(twin: nn.Module, error: Exception) -> EstimateError:
    return EstimateError(
        f"the memory of {type(twin).__name__} cannot be counted, because it does not run on "
        f"the meta device, where tensors have no values: {error}"
    )


def _continued(
    twin: PursuitNetwork, step: Callable[[nn.Module], Tensor], training: bool
) -> tuple[int, int]:
    """Return what is kept and the peak for all sweeps, many of which are not run.

    A sweep between the first and the last two keeps what the one before kept, so that three and
    four sweeps give the line. With two levels of recomputation the latents of every sqrt(T)-th
    sweep are kept, which is no line in T: all sweeps are run then, as they are where they are few.
    """
    sweeps, last = twin.iterations, twin.implicit_last or 0
    low = max(3, last + 2)
    if sweeps <= max(_SWEEPS_RUN, low + 1) or not twin.pursues or twin.recompute_levels > 1:
        return _counted(twin, step, training)
    twin.iterations = low
    first = _counted(twin, step, training)
    twin.iterations = low + 1
    second = _counted(twin, step, training)
    twin.iterations = sweeps
    kept, peak = (a + (sweeps - low) * max(b - a, 0) for a, b in zip(first, second, strict=True))
    return kept, peak


class _Storages:
    """The storages that operations have made and something still holds.

    Attributes:
        alive: Their bytes.
        peak: The most that ``alive`` has been.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        self.alive = self.peak = 0
        self._known = {id(t.untyped_storage()): t.untyped_storage() for t in known}
        self._seen: dict[int, int] = {}

    def saw(self, value: Tensor) -> None:
        """Count a tensor's storage until nothing holds it."""
        storage = value.untyped_storage()
        key = id(storage)
        if key in self._seen or key in self._known:
            return
        # torch keeps one Python object per storage for as long as the storage lives, so that its
        # identity tells storages apart and its end is theirs.
        size = self._seen[key] = storage.nbytes()
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.alive -= self._seen.pop(key)


def _counted(
    twin: nn.Module, step: Callable[[nn.Module], Tensor], training: bool
) -> tuple[int, int]:
    """Return the bytes alive after the forward pass, and the most at any time of the step."""
    twin.zero_grad(set_to_none=True)
    found = _Storages([*twin.parameters(), *twin.buffers()])
    try:
        with (
            warnings.catch_warnings(),
            torch.set_grad_enabled(training),
            watch_results(found.saw),
        ):
            warnings.simplefilter("ignore")  # of derivatives that are approximate: none is used
            loss = step(twin)
            kept = found.alive
            if training:
                loss.backward()  # type: ignore[no-untyped-call]
    except (RuntimeError, NotImplementedError, ImportError) as error:
        raise _uncounted(twin, error) from error
    finally:
        twin.zero_grad(set_to_none=True)
    return kept, found.peak


def _size(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of some tensors, each once."""
    return sum(t.numel() * t.element_size() for t in {id(t): t for t in tensors}.values())


def _floating(out: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors in what a network returns."""
    if isinstance(out, Tensor):
        if out.is_floating_point():
            yield out
    elif isinstance(out, Mapping):
        for value in out.values():
            yield from _floating(value)
    elif isinstance(out, (tuple, list)):
        for value in out:
            yield from _floating(value)


# ---------------------------------------------------------------- what fits


class MemoryWarning(UserWarning):
    """A training step was arranged otherwise than asked for so that it fits, or may not fit."""


@dataclass(frozen=True)
class StepPlan:
    """The form in which a training step fits into memory.

    Attributes:
        options: Settings that the network has during steps, where they differ from its own.
        parts: The number of micro-batches that every batch is cut into.
        needed: The bytes that a step was counted to need; None where nothing was counted.
    """

    options: Mapping[str, Any]
    parts: int = 1
    needed: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return what decides the numbers of a run, for the file of its state."""
        return {"options": dict(self.options), "parts": self.parts}


def smallest_change(
    needed: Callable[[Mapping[str, Any], int], int],
    choices: Sequence[Mapping[str, Any]],
    rows: int,
    least: int,
    limit: int,
) -> tuple[StepPlan, bool]:
    """Return the first way of running a step that fits, and whether it does.

    The whole batch is tried with every choice in order; then the last choice with as few
    micro-batches as do. If nothing fits, the plan is the one that needs least.

    Args:
        needed: Bytes that a step needs, by settings and number of samples at a time.
        choices: Settings of the network, the ones that cost least time first.
        rows: Samples in a batch.
        least: Fewest samples that a micro-batch may have.
        limit: Bytes that there are.
    """
    size = 0
    for options in choices:
        size = needed(options, rows)
        if size <= limit:
            return StepPlan(options, 1, size), True
    options, whole, most = choices[-1], size, max(rows // least, 1)
    # What a step needs is a line in the number of samples; two of its points give a first guess.
    half = max(least, rows // 2)
    slope = (whole - needed(options, half)) / max(rows - half, 1)
    fixed = whole - slope * rows
    fit = (limit - fixed) / slope if slope > 0 else 0.0
    parts = min(max(math.ceil(rows / fit), 2), most) if fit > 0 else most
    while True:
        size = needed(options, math.ceil(rows / parts))
        if size <= limit or parts >= most:
            return StepPlan(options, parts, size), size <= limit
        parts = min(parts + 1, most)


# ---------------------------------------------------------------- what a machine has


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that may still be taken on a device; None where nothing says so.

    On a CPU that is what the system has left, or what the process's control group has, if that is
    less. On CUDA it is what the device has left and what torch holds of it without using it.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    if device.type != "cpu":
        return None
    found = [n for n in (_system_memory(), _group_memory(Path("/sys/fs/cgroup"))) if n is not None]
    return min(found, default=None)


def _system_memory() -> int | None:
    try:
        import psutil
    except ImportError:  # it comes with accelerate, without which nothing is trained here
        return None
    return int(psutil.virtual_memory().available)


def _group_memory(folder: Path) -> int | None:
    """Return what a control group (version 2) has left; None where there is no limit.

    Files that the system can drop from memory count as left.
    """
    try:
        limit = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
        entries = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
        inactive = int(dict(entries).get("inactive_file", 0))
        return None if limit == "max" else max(int(limit) - used + inactive, 0)
    except (OSError, ValueError):
        return None
