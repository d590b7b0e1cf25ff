"""This module plans how training steps fit into memory, which is counted before the first one.

A step that does not fit is run in a memory mode that keeps less, or in micro-batches; the gradients
are the same.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pursuitify.errors import EstimateError, MemoryLimitError
from pursuitify.memory import (
    MemoryWarning,
    StepPlan,
    estimate_step,
    free_memory,
    pass_bytes,
    smallest_change,
)
from pursuitify.network.pursuit_network import PursuitNetwork
from pursuitify.solvers.differentiation.modes import RecomputeMode
from pursuitify.solvers.settings import OPTIONS
from pursuitify.training.config import Config
from pursuitify.training.objectives import TrainingObjective
from pursuitify.training.state import STEP_PLAN, TrainingState

if TYPE_CHECKING:
    from accelerate import Accelerator

#: The part of the free memory that a step may be counted to need: other programs need some, too.
_SHARE = 0.9
#: A step that is counted needs at most so many times what its passes make and its weights take: 2
#: to 12 times on eleven networks, T from 0 to 4 and every objective (one sweep counted for all).
_ROUGHLY = 16


def step_plan(
    net: nn.Module, config: Config, accelerator: Accelerator, state: TrainingState
) -> StepPlan:
    """Return how steps are run so that they fit into the free memory.

    What the user has set is obeyed, with a warning if it does not fit. A run that is resumed goes
    on as it began. With mixed precision nothing is counted: the count knows float32 alone.

    Args:
        net: The network, on its device.
        config: The configuration.
        accelerator: The engine.
        state: The state, whose probe has the shape of a batch; the choice is noted in its facts.

    Raises:
        MemoryLimitError: If nothing fits.
    """
    known = state.facts.get(STEP_PLAN)
    if known is not None:
        return StepPlan(known["options"], known["parts"])
    asked = {} if config.memory is None else {"memory": config.memory}
    own = StepPlan(asked, config.micro_batches or 1)
    free = _least_free(accelerator)
    if state.probe is None or free is None or accelerator.mixed_precision != "no":
        return own
    needs = _StepNeeds(net, config, accelerator, state.probe)
    limit, rows = int(_SHARE * free), len(state.probe)
    at_once = math.ceil(rows / own.parts)
    accumulates = accelerator.gradient_accumulation_steps > 1
    chosen = bool(asked) or config.micro_batches is not None or accumulates
    try:
        if needs.roughly(at_once) <= limit or needs.at_most(asked, at_once) <= limit:
            return own
        if chosen or (isinstance(net, PursuitNetwork) and net.memory != OPTIONS["memory"]):
            size = needs(asked, at_once)
            if size > limit:
                text = f"{_amount(size, free)}. It is run all the same, because its memory mode or "
                warnings.warn(MemoryWarning(text + "its micro-batches were set"), stacklevel=3)
            return own
        choices = _choices(net)
        plan, fits = smallest_change(needs, choices, rows, needs.least, limit)
    except EstimateError as error:
        warnings.warn(MemoryWarning(f"nothing was chosen to save memory: {error}"), stacklevel=3)
        return own
    if not fits:
        raise MemoryLimitError(
            f"{_amount(needs(choices[0], rows), free)}; with {_words(plan, rows)} it still needs "
            f"{_gib(plan.needed)}. Take fewer samples (batch_size), smaller inputs or fewer sweeps "
            "(iterations), free memory, or set memory= or micro_batches= to run it all the same"
        )
    if plan.options or plan.parts > 1:
        state.facts[STEP_PLAN] = plan.to_dict()
        text = f"{_amount(needs(choices[0], rows), free)}. So it is run with {_words(plan, rows)}"
        text += f", for which {_gib(plan.needed)} are needed"
        if plan.parts > 1 and needs.statistics:
            text += (
                ". BatchNorm takes its statistics from each micro-batch, and its running "
                "statistics move once for each: results differ from those of whole batches"
            )
        warnings.warn(MemoryWarning(text), stacklevel=3)
    return plan


class _StepNeeds:
    """The bytes that one training step needs beside what is there before it.

    Attributes:
        statistics: Whether the network takes statistics of batches.
        least: Fewest samples that it takes at a time.
    """

    def __init__(
        self, net: nn.Module, config: Config, accelerator: Accelerator, probe: Tensor
    ) -> None:
        self._net, self._probe = net, probe
        # The frozen estimate of the potential reads values; it is small beside the sweeps.
        self._config = replace(config, frame_potential=0.0)
        self._processes: int = accelerator.num_processes
        norms = (nn.modules.batchnorm._BatchNorm,)
        self.statistics = any(isinstance(module, norms) for module in net.modules())
        self.least = 2 if self.statistics else 1
        self._known: dict[object, int] = {}

    def __call__(self, options: Mapping[str, Any], rows: int) -> int:
        """Return the bytes for so many samples at a time with these settings."""
        key = (*options.items(), rows)
        if key not in self._known:
            self._known[key] = self._count(options, rows, None)
        return self._known[key]

    def roughly(self, rows: int) -> int:
        """Return more than ``at_most`` does, in the time of a pass without sweeps."""
        x = torch.empty(rows, *self._probe.shape[1:], dtype=self._probe.dtype, device="meta")
        sweeps = self._most_sweeps if isinstance(self._net, PursuitNetwork) else 0
        passes = (1 + 2 * sweeps) * (2 if self._config.objective == "trades" else 1)
        tensors = [*self._net.parameters(), *self._net.buffers()]
        weights = sum(t.numel() * t.element_size() for t in tensors)
        return _ROUGHLY * (passes * pass_bytes(self._net, x) + weights)

    def at_most(self, options: Mapping[str, Any], rows: int) -> int:
        """Return more than that, in the time of one sweep: no sweep needs more than the first."""
        if not isinstance(self._net, PursuitNetwork):
            return self(options, rows)
        return 2 * self._sweeps * self._count(options, rows, min(1, self._sweeps))

    @property
    def _most_sweeps(self) -> int:
        assert isinstance(self._net, PursuitNetwork)
        return max(self._net.iterations, self._config.first_sweeps or 0)

    @property
    def _sweeps(self) -> int:
        return max(self._most_sweeps, 1)

    def _count(self, options: Mapping[str, Any], rows: int, sweeps: int | None) -> int:
        if isinstance(self._net, PursuitNetwork):
            options = {**options, "iterations": sweeps or self._sweeps}
        shape, dtype = self._probe.shape[1:], self._probe.dtype
        adversarial = self._config.objective != "standard"

        def step(twin: nn.Module) -> Tensor:
            x = torch.empty(rows, *shape, dtype=dtype, device="meta")
            y = torch.empty(rows, dtype=torch.long, device="meta")
            objective = TrainingObjective(twin, self._config)
            loss: Tensor = objective(x, y, x.clone() if adversarial else None, True, 0)["loss"]
            return loss

        found = estimate_step(self._net, step, rows, True, options)
        copies = 1 if self._config.optimizer == "sgd" else 2  # what the optimizer keeps
        copies += self._processes > 1  # the engine's buckets
        copies += rows < len(self._probe)  # what earlier micro-batches left
        rest = copies * found.gradients + (self._config.ema is not None) * found.weights
        return found.resident + rest


def _choices(net: nn.Module) -> list[dict[str, Any]]:
    """Return settings that save memory, the ones that cost least time first."""
    if not (isinstance(net, PursuitNetwork) and net.pursues):
        return [{}]
    recompute = {"memory": RecomputeMode.name}
    return [{}, *({**recompute, "recompute_levels": levels} for levels in (1, 2))]


def _least_free(accelerator: Accelerator) -> int | None:
    """Return the least memory that a process has free; those of a machine share the CPU's."""
    free = free_memory(accelerator.device)
    if accelerator.num_processes == 1:
        return free
    from accelerate.utils import gather_object

    if free is not None and accelerator.device.type == "cpu":
        free //= int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
    found = gather_object([free])
    return None if None in found else min(found)


def _gib(size: int | None) -> str:
    return f"{(size or 0) / 2**30:.1f} GiB"


def _amount(size: int, free: int) -> str:
    return f"a training step needs about {_gib(size)} of memory, and {_gib(free)} are free"


def _words(plan: StepPlan, rows: int) -> str:
    """Return a plan in words, as the options that ask for it."""
    settings = ", ".join(f"{name}={value!r}" for name, value in plan.options.items())
    parts = f"micro_batches={plan.parts} ({math.ceil(rows / plan.parts)} samples at a time)"
    return " and ".join(part for part in (settings, parts if plan.parts > 1 else "") if part)
