"""The least deep frame potential of an architecture: data-less model selection."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pursuitify.analysis.gram.dictionary_blocks import blocks_of
from pursuitify.analysis.gram.entry_classes import Positions
from pursuitify.analysis.gram.normalised_gram import Gram
from pursuitify.analysis.gram.symbol import UnsupportedError
from pursuitify.analysis.measures import welch_bounds
from pursuitify.analysis.measures.bind_network import bind, layouts, touched
from pursuitify.analysis.measures.block_measures import N_RULE
from pursuitify.analysis.measures.tight_frame_start import start
from pursuitify.compiler.graph.rows import Layout
from pursuitify.conversion.convert import pursuitify
from pursuitify.dictionary.structured import StructuredDictionary
from pursuitify.errors import InputError, OptionError
from pursuitify.network.pursuit_network import PursuitNetwork
from pursuitify.operators import Reshape, Select
from pursuitify.utils import option_checks
from pursuitify.utils.terminal import Shown, bar
from pursuitify.utils.torch_internals import count_multiplications

SCALE_RULE = (
    "columns of the global B have unit norm, identity parts included; the weights are free, each "
    "tensor's scale too, BatchNorms and scales per channel are neutral"
)

#: Iterations after which a search that is limited by time alone ends all the same.
_MANY = 1000
#: Floating-point operations that a search is given where nobody says how many steps: some 10 CPU
#: seconds. What the measure of a pair of latents costs beside its products is counted as so many.
_WORK, _PER_PAIR = 7e11, 1e8
_SPAN = 5.0  # the logarithm of a tensor's scale stays within this of zero


@dataclass(frozen=True)
class MinimumFramePotential(Shown):
    """The least deep frame potential of an architecture.

    Attributes:
        value: The minimum: the closed form over which atoms are in use, or the best that was found.
            An atom is out of use where its weights vanish beside its identity part: where a wide
            latent is read by a narrow one, that goes below ``closed_form``. On dense chains it is
            the infimum; on others what is known to be approached (see ``bounds.chain_excess``).
        closed_form: The closed form of a chain in decoder layout with all its atoms in use, None
            on other graphs.
        seeds: What each seed found; empty where nothing was optimised.
        stopped: Whether a budget ended the search.
        count: N(G).
        input_shape: Shape of one input.
    """

    value: float
    closed_form: float | None
    seeds: tuple[float, ...]
    count: float
    input_shape: tuple[int, ...]
    stopped: bool = False

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        """Return the value and what it stands on."""
        if self.seeds:
            how = f"best of {len(self.seeds)} seeds: " + ", ".join(f"{s:.6f}" for s in self.seeds)
            how += "; the budget ended the search" if self.stopped else ""
        else:
            how = "closed form of a chain in decoder layout, weights large beside the identities"
        lines = [
            f"minimum frame potential {self.value:.6f} (RMS) for inputs {self.input_shape}",
            f"  found     {how}",
            f"  scale     {SCALE_RULE}",
            "  boundary  interior",
            f"  entries   {N_RULE}: {self.count:.6g}",
        ]
        if self.closed_form is not None:
            rest = "" if self.value < self.closed_form * (1 - 1e-6) else ": the minimum"
            rest = rest or ": more than the minimum, in which some atoms are out of use"
            lines.insert(2, f"  all atoms in use {self.closed_form:.6f}{rest}")
        return "\n".join(lines)


def minimum_frame_potential(
    model_or_net: nn.Module,
    input_shape: Sequence[int] = (3, 224, 224),
    *,
    layout: Layout | None = None,
    method: str = "auto",
    seeds: int | None = None,
    steps: int | None = None,
    budget: float | None = None,
    progress: bool = False,
) -> MinimumFramePotential:
    """Return the least frame potential that an architecture allows, whatever its weights.

    Of the model only the architecture counts: the weights it has are not read. Interior
    boundary.

    Args:
        model_or_net: A model, or a PursuitNetwork (whose layout then counts).
        input_shape: Shape of one input, without the batch.
        layout: Layout of the rows, for a model; ``auto`` by default.
        method: ``auto`` (closed form on chains, else optimise), ``closed`` or ``optimise``.
        seeds: Number of starts of the optimiser, 3 by default, by turns of three kinds: tight
            frames on as many taps as the stride has, on all taps, and with a part of the atoms out
            of use.
        steps: Iterations (L-BFGS) per start; 100 by default.
        budget: Seconds after which the search ends, with what it has found; one evaluation is made
            whatever they are. No limit by default. The result then depends on the machine.
        progress: Whether to show a progress bar.

    Raises:
        OptionError: If an option has no such value or would have no effect, or the graph has no
            closed form.
        InputError: If the network does not take such an input, or its graph has no interior form.
    """
    option_checks.one_of("method", method, ("auto", "closed", "optimise"))
    if budget is not None:
        option_checks.number("budget", budget, least=0.0)
    for name, given in (("seeds", seeds), ("steps", steps), ("budget", budget)):
        if given is not None:
            if name != "budget":
                option_checks.positive(name, given)
            if method == "closed":
                raise OptionError(
                    f"{name}={given} would have no effect with method='closed', which searches "
                    "nothing: leave it out, or give method='optimise'"
                )
    seeds, steps = seeds or 3, steps or 100
    if isinstance(model_or_net, PursuitNetwork) and layout is not None:
        raise OptionError(
            f"layout={layout!r} would have no effect: a PursuitNetwork has its own. Give the model "
            "that it was made of"
        )
    limit = Limit(time.monotonic() + (math.inf if budget is None else budget))
    search = PotentialSearch(converted(model_or_net, layout or "auto"), tuple(input_shape))
    closed = search.closed_form()
    if method == "closed" and closed is None:
        raise OptionError(
            "method='closed': only chains in decoder layout have a closed form, and this network "
            "is none. Use method='optimise', which searches"
        )
    found: list[Found] = []
    if closed is not None and method != "optimise":
        value = closed[1]
    else:
        with bar(progress, "minimum frame potential", seeds * steps) as advance:
            for seed in range(seeds):
                if not found or not limit.reached:
                    found.append(search.run(seed, steps, advance, limit))
        value = min(one.value for one in found)
    return MinimumFramePotential(
        value,
        None if closed is None else closed[0],
        tuple(one.value for one in found),
        search.count,
        tuple(input_shape),
        len(found) not in (0, seeds) or any(one.stopped for one in found),
    )


def converted(model_or_net: nn.Module, layout: Layout) -> PursuitNetwork:
    """Return a network of its own to search with, in float64 if it is small."""
    if isinstance(model_or_net, PursuitNetwork):
        net = copy.deepcopy(model_or_net).eval()
    else:
        net = pursuitify(model_or_net, layout=layout).eval()
    return net.double() if sum(p.numel() for p in net.parameters()) < 1_000_000 else net


@dataclass(frozen=True)
class Found:
    """The end of a search.

    Attributes:
        value: The least frame potential met.
        starts: How many starts were looked at.
        stopped: Whether its limit ended the search before it had converged.
        steps: How often the frame potential was evaluated.
    """

    value: float
    starts: int
    stopped: bool
    steps: int


@dataclass
class Limit:
    """The limit of a search: whichever comes first ends it.

    Attributes:
        until: The time of ``time.monotonic``.
        steps: The number of evaluations of the frame potential.
        taken: How many were made.
    """

    until: float = math.inf
    steps: float = math.inf
    taken: int = 0

    @property
    def reached(self) -> bool:
        """Whether the search is to end."""
        return self.taken >= self.steps or time.monotonic() >= self.until


class _LimitReached(Exception):  # noqa: N818 -- its name: it is no error
    """Leaves L-BFGS from inside its closure, which nothing else ends before its last iteration."""


class _Rebound(nn.Module):
    """Binds the dictionary with other parameters than the network's own."""

    def __init__(self, net: PursuitNetwork, x: Tensor) -> None:
        super().__init__()
        self.net, self.x = net, x

    def forward(self) -> StructuredDictionary:
        return self.net.dictionary(self.x)


class PotentialSearch:
    """Frame potential of an architecture as a function of its weights."""

    def __init__(self, net: PursuitNetwork, input_shape: tuple[int, ...]) -> None:
        with torch.no_grad():
            self.first = bind(net, input_shape, None)
        try:
            self.blocks = blocks_of(self.first, border=False)
            self.positions = Positions(self.blocks, keep=True)
            self.gram = Gram(self.blocks, self.positions)
        except UnsupportedError as error:
            raise InputError(
                f"the frame potential of this graph cannot be searched: {error}, so there is no "
                "interior form. coherence(net, input_shape, boundary='exact') measures the weights "
                "that it has, on small inputs"
            ) from error
        self.count = self.gram.count()
        self.bound = _Rebound(net, self.first.inputs[0])
        self.neutral = _neutral(net)
        self.shapes = {
            f"net.{name}": p.shape
            for name, p in net.named_parameters()
            if p.dim() >= 2 and f"net.{name}" not in self.neutral
        }
        self.strides = {
            f"net.{name}.weight": module.stride
            for name, module in net.named_modules()
            if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
        }

    def closed_form(self) -> tuple[float, float] | None:
        """Return the closed form of a chain, with all atoms in use and with the best number."""
        if not is_chain(self.first):
            return None
        channels = [site.channels for site in self.blocks.sites]
        columns, heights = self.positions.columns, self.positions.heights
        whole = sum(k * max(k / d - 1, 0.0) for k, d in zip(columns, heights, strict=True))
        least = welch_bounds.chain_excess(channels, columns, heights)
        return tuple(math.sqrt(e / self.count) if self.count else 0.0 for e in (whole, least))  # type: ignore[return-value]

    @property
    def layouts(self) -> tuple[int, int]:
        """The numbers of decoder and encoder rows."""
        return layouts(self.first)

    def lower_bound(self) -> float:
        """Return a proven lower bound of the frame potential if no column is zero."""
        excess = welch_bounds.excess_of_frames(
            self.positions.frames(), self.positions.columns, touched(self.first)
        )
        return math.sqrt(excess / self.count) if self.count else 0.0

    def within(self, limit: Limit, seeds: int, counts_work: bool = False) -> Found:
        """Search up to a limit: all starts are looked at first, then left by descent.

        Args:
            limit: When to stop; the first start is looked at in any case.
            seeds: Number of starts.
            counts_work: Whether ``limit.steps`` is set from the work of the first evaluation.
        """
        work = 0

        def counted(operations: int) -> None:
            nonlocal work
            work += operations

        with count_multiplications(counted) if counts_work else contextlib.nullcontext():
            values = [self._at(0, limit)]
        if counts_work:
            pairs = sum(1 for _ in self.positions.related())
            limit.steps = steps_for(work + _PER_PAIR * pairs, seeds)
        for seed in range(1, seeds):
            if limit.reached:
                break
            values.append(self._at(seed, limit))
        stopped, best = len(values) < seeds, min(values)
        for seed in sorted(range(len(values)), key=values.__getitem__):
            if limit.reached:
                stopped = True
                break
            found = self.run(seed, _MANY, lambda: None, limit)
            best, stopped = min(best, found.value), stopped or found.stopped
        return Found(best, len(values), stopped, limit.taken)

    def _at(self, seed: int, limit: Limit) -> float:
        """Return the frame potential of a start."""
        limit.taken += 1
        with torch.no_grad():
            return math.sqrt(float(self.squares(self._start(seed))) / self.count)

    def _start(self, seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        like = self.first.inputs[0]
        return {
            n: start(s, self.strides.get(n, ()), seed, generator).to(like)
            for n, s in self.shapes.items()
        }

    def run(
        self, seed: int, steps: int, advance: Callable[[], None], limit: Limit | None = None
    ) -> Found:
        """Minimise from one start, up to a limit if there is one."""
        limit = limit or Limit()
        like = self.first.inputs[0]
        tensors = {n: t.requires_grad_() for n, t in self._start(seed).items()}
        scales = {n: like.new_ones(()).requires_grad_() for n in tensors}
        optimiser = torch.optim.LBFGS(
            [*tensors.values(), *scales.values()],
            max_iter=steps,
            history_size=8,
            tolerance_grad=1e-9,
            tolerance_change=1e-12,
            line_search_fn="strong_wolfe",
        )
        values: list[float] = []

        def closure() -> Tensor:
            optimiser.zero_grad()
            weights = {n: _SPAN * torch.tanh(scales[n] / _SPAN) for n in tensors}
            weights = {n: weights[n].exp() * t for n, t in tensors.items()}
            if values and limit.reached:
                raise _LimitReached
            limit.taken += 1
            value = self.squares(weights)
            values.append(float(value.detach()))
            loss = value / max(values[0], 1e-12)
            loss.backward()  # type: ignore[no-untyped-call]
            advance()
            return loss.detach()

        stopped = True
        with contextlib.suppress(_LimitReached):
            optimiser.step(closure)  # type: ignore[no-untyped-call]
            stopped = False
        value = math.sqrt(min(values) / self.count) if self.count else 0.0
        return Found(value, 1, stopped, len(values))

    def squares(self, weights: dict[str, Tensor]) -> Tensor:
        """Return the sum of squared off-diagonal entries for given weights."""
        dictionary = torch.func.functional_call(self.bound, {**self.neutral, **weights}, ())
        gram = Gram(blocks_of(dictionary, border=False), self.positions)
        return squares(gram)


def steps_for(work: float, seeds: int) -> int:
    """Return how many evaluations a search is given; one at least.

    Args:
        work: The floating-point operations of one evaluation; one with derivatives takes twice.
        seeds: Number of starts, which are evaluated first, without derivatives.
    """
    units = int(_WORK / max(work, 1.0))
    return max(1, min(units, seeds) + max(units - seeds, 0) // 2)


def squares(gram: Gram) -> Tensor:
    """Return the sum of squared off-diagonal entries, differentiable."""
    like = gram.blocks.uses[0][0].symbol.weight
    total = like.new_zeros(())
    for j, k in gram.positions.related():
        for entries in gram.entries(j, k):
            total = total + entries.raw.count * entries.off_diagonal().square().sum()
    return total


def is_chain(dictionary: StructuredDictionary) -> bool:
    """Whether every row is a decoder row of one path without weights from the latent before."""
    for i, row in enumerate(dictionary.rows):
        paths = [p for slot in row.slots for p in slot]
        if row.diagonal is None or len(row.slots) != 1 or len(paths) != 1:
            return False
        if paths[0].leaf != i - 1 and not (i == 0 and paths[0].leaf < 0):
            return False
        if i and any(_has_weight(m) for m in paths[0].maps):
            return False
    return True


def _has_weight(item: object) -> bool:
    return not isinstance(item, (Reshape, Select))


def _neutral(net: PursuitNetwork) -> dict[str, Tensor]:
    """Return neutral BatchNorms, zero biases and scales of one by name."""
    found: dict[str, Tensor] = {}
    for name, module in net.named_modules():
        prefix = f"net.{name}." if name else "net."
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for key, value in (("weight", 1.0), ("bias", 0.0)):
                if getattr(module, key, None) is not None:
                    found[prefix + key] = torch.full_like(getattr(module, key), value).detach()
            if module.running_var is not None and module.running_mean is not None:
                found[f"{prefix}running_var"] = torch.ones_like(module.running_var)
                found[f"{prefix}running_mean"] = torch.zeros_like(module.running_mean)
        elif getattr(module, "bias", None) is not None:
            found[f"{prefix}bias"] = torch.zeros_like(module.bias).detach()
        for key, p in module.named_parameters(recurse=False):
            if p.dim() < 2 and prefix + key not in found and not isinstance(module, nn.PReLU):
                found[prefix + key] = torch.ones_like(p).detach()
    return found
