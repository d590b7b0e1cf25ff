"""Proofs of a network on one input: it is its source, and its dictionary is that of its source.

torch.fx sees calls, not what they mean: whatever Python decides in a forward, or a user changes
after the conversion, can make the compiled program differ from the model. So a network is proven
on the values of a pass, row by row:

* ``source``: the source's own operations, started from the recorded latents of earlier rows, give
  the recorded latent. Every row starts from recorded values, so that rounding does not add up.
* ``u`` and ``equation``: the bound dictionary gives u_j and, by (17),
  w_j = phi_j(B_j^T u_j - lam_j).
* ``adjoint``: <A x, y> = <x, A^T y> for the operators of the row, x and y random. At the pass's own
  values an adjoint may be wrong unseen: half of a latent is zero, and all of it may be constant.

Errors are measured against the size of what is added up, so that neither large nor small weights
matter. Where a sum cancels, that size is found by giving the terms random signs: the sum of what is
then left is as large as rounding could make it, for every operator alike.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from pursuitify.compiler.graph.rows import Row, needed_operations
from pursuitify.compiler.lowering.emit import Recorded, recorded
from pursuitify.compiler.lowering.program import Pass, Program
from pursuitify.compiler.tracing.hidden_state import random_state, restore_random_state
from pursuitify.compiler.tracing.nodes import describe
from pursuitify.dictionary.bound_rows import BoundRow, Parts
from pursuitify.dictionary.readers import Branch
from pursuitify.dictionary.structured import StructuredDictionary
from pursuitify.errors import Problem, VerificationError
from pursuitify.network import tensor_differences
from pursuitify.operators import Conv, LinearMap, Scale
from pursuitify.operators.onednn_conv import PackedConv
from pursuitify.utils import func_transforms, torch_internals
from pursuitify.utils.running_statistics import untouched, writes_buffers
from pursuitify.utils.terminal import Shown

#: Largest relative error of a right network, by the dtype in which it computes.
TOLERANCES = {
    torch.float64: 1e-10,
    torch.float32: 1e-4,
    torch.float16: 2e-2,
    torch.bfloat16: 0.15,
}
#: The same for float32 where an accelerator rounds the factors of products to ten bits.
_TF32 = 2e-2
#: Samples on which a network proves itself: two, so that what mixes them is seen.
SAMPLES = 2
#: Seed of the directions of the dot tests; a generator of its own, so that no one else's moves.
_SEED = 17
#: Entries of a direction after which it starts again: drawing costs more than the tests. A prime
#: number, so that no size of a tensor lines the repetitions up.
_DRAWN = 16381
#: Where among these numbers the other direction of a dot test starts: <A x, x> = <x, A x> would
#: hold for an operator that took itself for its adjoint.
_OTHER = 8192
#: Entries of a tensor by which a self-check first judges how large it is.
_SAMPLED = 4096
#: A chain that several paths begin with: the leaf, and the identity of the map next to it.
_Beginning = tuple[int, int]
_HINT = (
    "If the network was changed after its conversion (a module replaced, an attribute, a hook, a "
    "forward), convert the changed source again. If the source itself does what torch.fx cannot "
    "see, name the module in leaf_modules and give it a rule, or write it as plain tensor "
    "operations. iterations=0 runs the source's operations alone"
)


@dataclass(frozen=True)
class RowProof:
    """Relative errors of one row; NaN where one does not apply, as in a row that is not finite.

    Attributes:
        name: The latent's name.
        module: Path of the module it comes from.
        source: Of the source's operations against the recorded latent.
        u: Of u_j by the dictionary's operators against its recorded value.
        equation: Of (17) against the recorded latent.
        adjoint: Of the dot test.
    """

    name: str
    module: str
    source: float
    u: float
    equation: float
    adjoint: float


@dataclass(frozen=True)
class Verification(Shown):
    """The report of a proof on one input.

    Attributes:
        model: Name of the source's class.
        training: Whether it was proven in training mode.
        tolerance: Largest relative error that rounding explains, by the dtype.
        rows: One record per row, in graph order.
        output: Relative error of the output from the feed-forward latents; NaN if not compared.
        problems: What is wrong, in graph order; empty where everything holds.
    """

    model: str
    training: bool
    tolerance: float
    rows: tuple[RowProof, ...]
    output: float
    problems: tuple[Problem, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether everything holds."""
        return not self.problems

    def worst(self, what: str) -> float:
        """Return the largest error of one kind over the rows; NaN where there is none."""
        values = [value for row in self.rows if (value := getattr(row, what)) == value]
        return max(values, default=float("nan"))

    def __str__(self) -> str:
        """Return a summary and one line per problem."""
        mode = "training" if self.training else "evaluation"
        errors = ", ".join(
            f"{what} {self.worst(what):.2g}" for what in ("source", "u", "equation", "adjoint")
        )
        verdict = "holds" if self.ok else f"{len(self.problems)} problem(s)"
        lines = [
            f"{self.model} in {mode} mode, {len(self.rows)} rows: {verdict}",
            f"largest relative errors: {errors}, output {self.output:.2g} "
            f"(tolerance {self.tolerance:g})",
        ]
        return "\n".join([*lines, *(f"  - {problem}" for problem in self.problems)])

    def demand(self) -> Verification:
        """Return the report.

        Raises:
            VerificationError: If something does not hold; lists all of it.
        """
        if self.problems:
            mode = "training" if self.training else "evaluation"
            raise VerificationError(
                f"{self.model} is not the network its dictionary describes, in {mode} mode: "
                f"{len(self.problems)} row(s) or outputs differ by more than {self.tolerance:g} "
                "of their size",
                self.problems,
            )
        return self


# -- the state a pass starts from -----------------------------------------------------------------


@dataclass(frozen=True)
class RecordedProducts:
    """The source's own products of one pass, and a way to run the source around them.

    Attributes:
        operands: What the chains of its operations started from.
        values: What they gave.
        plain: ``Recorded.plain``.
    """

    operands: tuple[Any, ...]
    values: tuple[Any, ...]
    plain: Callable[..., Any]


@dataclass
class Start:
    """The random numbers and buffers a pass starts from, kept so that it can be run again.

    Attributes:
        numbers: State of the random number generators of the CPU; None where the pass draws none.
            Nobody's numbers are touched then, so that other threads may draw meanwhile.
        device: Where the inputs are.
        device_numbers: State of that device's generator; None on a CPU, or as above.
        buffers: Copies of the buffers, by the identity of the network's own; none where no pass
            writes into them.
        values: The arguments of the pass, as the network was given them.
        key: What is proven if the proof holds.
        products: What the source's operations with weights gave in the pass, if that was recorded.
        kept: The network's own buffers, by the identity of the copy that stands in for them.
    """

    numbers: Any
    device: torch.device
    device_numbers: Tensor | None
    buffers: dict[int, Tensor]
    values: tuple[Any, ...]
    key: object = None
    products: RecordedProducts | None = None
    kept: dict[int, Tensor] = field(default_factory=dict)
    _clean: dict[int, Tensor] = field(default_factory=dict)

    @contextlib.contextmanager
    def again(self, network: nn.Module) -> Iterator[None]:
        """Run from there once more; random numbers and buffers are left as they are now.

        Inside, the buffers are the copies in ``buffers``.
        """
        drawn = None if self.numbers is None else (random_state(), _device_numbers(self.device))
        held = [
            (module, name, buffer)
            for module in (network.modules() if self.buffers else ())
            for name, buffer in module._buffers.items()
            if buffer is not None and id(buffer) in self.buffers
        ]
        self._clean = {name: copy.clone() for name, copy in self.buffers.items()}
        self.kept = {id(self.buffers[id(buffer)]): buffer for _, _, buffer in held}
        try:
            self.restore_numbers()
            for module, name, buffer in held:
                module._buffers[name] = self.buffers[id(buffer)]
            yield
        finally:
            for module, name, buffer in held:
                module._buffers[name] = buffer
            if drawn is not None:
                restore_random_state(drawn[0])
                _set_device_numbers(self.device, drawn[1])

    def restore(self, network: nn.Module) -> None:
        """Start once more inside ``again``: the first attempt has drawn numbers and written."""
        self.restore_numbers()
        for name, copy in self.buffers.items():
            copy.copy_(self._clean[name])

    def restore_numbers(self) -> None:
        """Put the random number generators back to where the pass started."""
        if self.numbers is None:
            return
        restore_random_state(self.numbers)
        _set_device_numbers(self.device, self.device_numbers)


def start(network: nn.Module, values: Sequence[Any], draws: bool = True) -> Start:
    """Return what a pass that begins now starts from.

    Args:
        network: The network.
        values: The arguments of the pass.
        draws: Whether the pass may draw random numbers.
    """
    device = next((v.device for v in values if isinstance(v, Tensor)), torch.device("cpu"))
    copies: dict[int, Tensor] = {}
    if writes_buffers(network):
        copies = {id(b): b.detach().clone() for b in network.buffers()}
    if not draws:
        return Start(None, device, None, copies, tuple(values))
    return Start(random_state(), device, _device_numbers(device), copies, tuple(values))


@contextlib.contextmanager
def aside(network: nn.Module, values: Sequence[Any], draws: bool = True) -> Iterator[Start]:
    """Run a pass that leaves no trace: buffers and random numbers stay, nothing is recorded.

    The arguments are those of ``start``.
    """
    with torch.no_grad(), untouched(network):
        began = start(network, values, draws)
        try:
            yield began
        finally:
            began.restore_numbers()


def _device_numbers(device: torch.device) -> Tensor | None:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_device_numbers(device: torch.device, state: Tensor | None) -> None:
    if state is not None:
        torch.cuda.set_rng_state(state, device)


# -- when a network proves itself -----------------------------------------------------------------


class Proofs:
    """The programs, dtypes and sizes a network has proven itself on."""

    def __init__(self) -> None:
        self._proven: set[object] = set()
        self._recorded: dict[tuple[int, bool], tuple[Program, Recorded]] = {}

    def forget(self) -> None:
        """Forget what was proven."""
        self._proven.clear()

    def __deepcopy__(self, memo: Any) -> Proofs:
        """Return none: a copy proves itself."""
        return Proofs()

    def __reduce__(self) -> tuple[type[Proofs], tuple[()]]:
        """Pickle none of them."""
        return Proofs, ()

    def begin(
        self,
        network: nn.Module,
        program: Program,
        values: Sequence[Any],
        version: int,
        packs: bool,
    ) -> Start | None:
        """Return what the pass starts from if it has to be proven, None otherwise.

        Args:
            network: The network.
            program: The program of its mode.
            values: The arguments of the call.
            version: Another number wherever the network's modules were changed.
            packs: Whether the sweeps may run on packed kernels.
        """
        if func_transforms.active() or torch.jit.is_tracing():  # type: ignore[no-untyped-call, attr-defined]
            return None
        tensors = [v for v in values if isinstance(v, Tensor)]
        if any(v.is_meta for v in tensors):
            return None
        sizes = tuple((v.dtype, v.device, v.shape[1:], v.shape[:1] == (1,)) for v in tensors)
        key = (version, network.training, packs, sizes, _autocast(tensors))
        if key in self._proven:
            return None
        began = start(network, values, program.may_draw(network))
        began.key = key
        return began

    def recorded_pass(
        self, network: nn.Module, program: Program, began: Start, values: Sequence[Any]
    ) -> Pass:
        """Run the feed-forward pass and keep its products in ``began``."""
        key = id(program), not began.buffers
        known = self._recorded.get(key)
        if known is None:
            known = self._recorded[key] = program, recorded(program, network, key[1])
        *found, operands, given = known[1].forward(network, *values)
        began.products = RecordedProducts(operands, given, known[1].plain)
        return program.passed(tuple(found))

    def passed(self, began: Start) -> None:
        """Note that the pass that began there was proven."""
        self._proven.add(began.key)


def _autocast(tensors: Sequence[Tensor]) -> torch.dtype | None:
    kind = tensors[0].device.type if tensors else "cpu"
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return None


# -- the proof ------------------------------------------------------------------------------------


@torch.no_grad()
def prove(
    network: nn.Module,
    name: str,
    program: Program,
    began: Start,
    first: Pass,
    bound: StructuredDictionary,
    used: StructuredDictionary,
    thresholds: Sequence[Tensor | None],
    every: bool = True,
) -> Verification:
    """Prove one pass.

    Args:
        network: The network.
        name: Class name of its source.
        program: The program of its mode.
        began: What the pass started from.
        first: The feed-forward pass.
        bound: The dictionary bound to it.
        used: The same as the sweeps use it, its kernels packed where they are.
        thresholds: lam_j per row as the feed-forward pass has them, unscaled.
        every: Whether every operator is put to the dot test. If not, of the convolutions that
            differ in nothing but their weights one is: their adjoint is the same code, and (17)
            tests the weights of all.

    Returns:
        The report; nothing is raised for what does not hold.
    """
    tensors = [v for v in bound.inputs if isinstance(v, Tensor)]
    dtype = _autocast(tensors) or _computed_in([*first.latents, *tensors])
    tolerance = tolerance_of(dtype, tensors[0].device)
    problems: list[Problem] = []
    gaps, output = [float("nan")] * len(bound.rows), float("nan")
    if not program.nonnegative:
        with began.again(network):
            answer = _around_products(network, began, first, began.values)
            gaps = [0.0] * len(bound.rows)
            if answer is None:
                began.restore(network)
                replay = _Replay(network, program, first)
                answer = replay.run(*map(_own, began.values), enable_io_processing=False)
                gaps = replay.gaps
            if began.buffers:
                problems += _state_problems(network, began)
            output = _output_error(network, program, first, began.values, answer, tolerance)
    began.products = None
    work = _Work(bound, used, first, thresholds, tolerance, every, program.rows)
    rows = tuple(
        RowProof(row.name, plan.source, *work.row(j, gaps[j]))
        for j, (row, plan) in enumerate(zip(bound.rows, program.rows, strict=True))
    )
    for row, plan in zip(rows, program.rows, strict=True):
        reasons = [
            text.format(error)
            for text, error in (
                (_REASONS["source"], row.source),
                (_REASONS["u"], row.u),
                (_REASONS["equation"], row.equation),
                (_REASONS["adjoint"] + work.blame(row.name), row.adjoint),
            )
            if error > tolerance
        ]
        if reasons:
            op = describe(program.nodes[plan.name], network)
            problems.append(Problem(row.name, op, row.module, "; ".join(reasons), _HINT))
    if output > tolerance:
        reason = (
            "the output from the feed-forward latents differs from that of the source's "
            f"operations by {output:.3g} of its size"
        )
        problems.append(Problem("output", name, "", reason, _HINT))
    return Verification(name, network.training, tolerance, rows, output, tuple(problems))


#: Errors of a row of which nothing can be said.
_NOTHING = (math.nan,) * 4
_REASONS = {
    "source": "the source's operations give another value than the feed-forward pass of the "
    "sweeps, by {:.3g} of its size",
    "u": "the operators of the row do not give its u_j: they differ by {:.3g} of its size",
    "equation": "equation (17), w_j = phi_j(B_j^T u_j - lam_j), fails at the feed-forward latents "
    "by {:.3g} of the latent's size",
    "adjoint": "its adjoint is not that of its operator: the dot test fails by {:.3g}",
}


def tolerance_of(dtype: torch.dtype, device: torch.device) -> float:
    """Return the largest relative error that rounding explains."""
    backends: Any = torch.backends  # the older questions have no answer where newer settings differ
    settings = backends.cudnn.conv.fp32_precision, backends.cuda.matmul.fp32_precision
    rounds = "tf32" in settings
    if dtype is torch.float32 and device.type == "cuda" and rounds:
        return _TF32
    return TOLERANCES.get(dtype, max(TOLERANCES.values()))


@functools.lru_cache(maxsize=8)
def _floor(dtype: torch.dtype) -> float:
    """Return the size below which products lose digits because they leave the dtype's range."""
    info = torch.finfo(dtype)
    return 1e3 * info.smallest_normal * info.eps if dtype is torch.float16 else info.tiny / info.eps


def _computed_in(tensors: Sequence[Tensor]) -> torch.dtype:
    """Return the least exact dtype of some tensors."""
    kinds = [t.dtype for t in tensors if t.is_floating_point()]
    return max(kinds, key=lambda kind: torch.finfo(kind).eps)


def _own(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _output_error(
    network: nn.Module,
    program: Program,
    first: Pass,
    inputs: Sequence[Any],
    answer: Any,
    tolerance: float,
) -> float:
    """Return the error of the head's output from the feed-forward latents against ``answer``."""

    def head(latents: Sequence[Tensor]) -> Any:
        return program.head(network, tuple(latents), first, tuple(inputs))

    found = head(first.latents)
    error = tensor_differences.difference(found, answer)
    if error <= tolerance:
        return error
    # The head may amplify rounding, as a BatchNorm of samples that are alike does: what it makes
    # of latents that are off by the tolerance is no error either, nor is as small a part of an
    # offset that it adds, since the offset may cancel.
    generator = torch.Generator().manual_seed(_SEED)

    def moved(w: Tensor) -> Tensor:
        signs = torch.randn(w.shape, generator=generator).sign().to(w)
        return w * (1 + tolerance * signs)

    moves = tensor_differences.spread(found, head([moved(w) for w in first.latents]))
    rows = set(needed_operations(program.rows))
    offsets = [op.offset for name, op in first.bound.items() if name not in rows]
    offset = max((tensor_differences.size(o) for o in offsets if o is not None), default=0.0)
    moves = {path: max(move, tolerance * offset) for path, move in moves.items()}
    return tensor_differences.difference(found, answer, moves, tolerance)


def _state_problems(network: nn.Module, began: Start) -> list[Problem]:
    """Compare the buffers the source's operations left with those of the pass; inside ``again``."""
    wrong = [
        path
        for path, buffer in network.named_buffers()
        if (twin := began.kept.get(id(buffer))) is not None
        and tensor_differences.difference(twin, buffer) > tolerance_of(twin.dtype, twin.device)
    ]
    return [
        Problem(
            path.rpartition(".")[2],
            "buffer",
            path.rpartition(".")[0],
            "the pass leaves another value in it than the source's operations do",
            _HINT,
        )
        for path in wrong
    ]


def _around_products(
    network: nn.Module, began: Start, first: Pass, inputs: Sequence[Any]
) -> Any | None:
    """Return the source's output, its products taken from the pass; inside ``again``.

    None unless every latent and every operand of a product is that of the pass to the last bit:
    then the source has to be run in full, from latent to latent.
    """
    products = began.products
    if products is None:
        return None
    values = [v.detach() if isinstance(v, Tensor) else v for v in products.values]
    answer, latents, operands = products.plain(network, *map(_own, inputs), *values)
    found, known = (*latents, *operands), (*first.latents, *products.operands)
    # Most operands are latents, and a concat may be the operand of several: each pair is read once,
    # and an identity latent, which is a product itself, not at all.
    given = {id(v) for v in values}
    pairs = {(id(a), id(b)): (a, b) for a, b in zip(found, known, strict=True)}
    return answer if all(_same(a, b) for a, b in pairs.values() if id(a) not in given) else None


def _same(a: Any, b: Any) -> bool:
    return isinstance(a, Tensor) and isinstance(b, Tensor) and tensor_differences.same(a, b)


class _Replay(fx.Interpreter):
    """Runs the source's graph, every latent started from its recorded value."""

    def __init__(self, network: nn.Module, program: Program, first: Pass) -> None:
        super().__init__(network, graph=program.graph)
        self.rows = {program.nodes[row.name]: row for row in program.rows}
        self.first = first
        self.gaps = [float("nan")] * len(program.rows)

    def run_node(self, n: fx.Node) -> Any:
        """Run a node; of a latent, note the difference and hand the recorded value on.

        What is handed on is a tensor of its own: later operations may work on it in place.
        """
        value = super().run_node(n)
        row = self.rows.get(n)
        if row is None:
            return value
        recorded = self.first.latents[row.index]
        if not isinstance(value, Tensor) or value.shape != recorded.shape:
            self.gaps[row.index] = float("inf")
            return recorded.clone()
        if tensor_differences.same(value, recorded):
            self.gaps[row.index] = 0.0
            return value
        self.gaps[row.index] = tensor_differences.gap(value, recorded)
        return recorded.clone()


@functools.lru_cache(maxsize=8)
def _drawn(device: torch.device) -> Tensor:
    """Return the random numbers that directions are made of, the same ones every time."""
    with torch_internals.without_dispatch_modes(), torch.inference_mode(False):
        generator = torch.Generator(device).manual_seed(_SEED)
        return torch.randn(_DRAWN, generator=generator, device=device, dtype=torch.float32)


@dataclass(eq=False)
class _Work:
    """The tests of the rows of one dictionary.

    Attributes:
        bound: The dictionary.
        used: The same with its kernels packed, or itself.
        first: The pass it is bound to.
        thresholds: lam_j per row, unscaled.
        tolerance: Errors below it are not looked at again.
        every: See ``prove``.
        plans: The rows that the dictionary's are bound from; none where it is made by hand.
        tested: Identities of the convolutions that are put to the dot test.
        packed: The packed form of a map, by its identity.
        waiting: How many paths begin with a leaf and a map, where they are several.
        begun: What that map made of the leaf, while paths wait for it.
        leaves: What the rows' paths start from, by the paths' leaves.
        drawn: Random numbers.
        directions: The same by dtype, repeated as often as the largest tensor so far needed.
        blamed: By row, which operator failed its dot test.
    """

    bound: StructuredDictionary
    used: StructuredDictionary
    first: Pass
    thresholds: Sequence[Tensor | None]
    tolerance: float
    every: bool = True
    plans: Sequence[Row] = ()
    tested: set[int] = field(default_factory=set)
    packed: dict[int, PackedConv] = field(default_factory=dict)
    waiting: Counter[_Beginning] = field(default_factory=Counter)
    begun: dict[_Beginning, Tensor] = field(default_factory=dict)
    leaves: dict[int, Tensor] = field(init=False)
    drawn: Tensor = field(init=False)
    directions: dict[torch.dtype, Tensor] = field(default_factory=dict)
    blamed: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Find the packed form of every map that has one, and what is tested of them."""
        if self.used is not self.bound:
            for plain, row in zip(self.bound.rows, self.used.rows, strict=True):
                if plain.diagonal is not None and row.diagonal is not None:
                    for one, other in zip(plain.diagonal.maps, row.diagonal.maps, strict=True):
                        self._pair(one, other)
            for branch, twin in zip(self.bound.branches, self.used.branches, strict=True):
                self._pair_branch(branch, twin)
        self.leaves = {j: w.detach() for j, w in enumerate(self.first.latents)}
        inputs = enumerate(self.bound.inputs)
        self.leaves.update({-1 - i: v.detach() for i, v in inputs if isinstance(v, Tensor)})
        self.drawn = _drawn(self.first.latents[0].device)
        paths = [path for row in self.bound.rows for slot in row.slots for path in slot]
        begins = Counter((path.leaf, id(path.maps[0])) for path in paths if path.maps)
        self.waiting = Counter({begin: n for begin, n in begins.items() if n > 1})
        chains = [path.maps for path in paths if path.leaf >= 0]
        chains += [row.diagonal.maps for row in self.bound.rows if row.diagonal is not None]
        self._choose([item for maps in chains for item in maps if type(item) is Conv])

    def _choose(self, convs: Sequence[Conv]) -> None:
        """Choose the convolutions whose adjoints are tested: of each kind the one of least work."""
        if not self.every:
            convs = sorted(convs, key=lambda conv: conv.weight.numel() * math.prod(conv.size))
        kinds: set[object] = set()
        for conv in convs:
            kind = id(conv) if self.every else self._kind(conv)
            if kind not in kinds:
                kinds.add(kind)
                self.tested.add(id(conv))

    def _pair(self, plain: LinearMap, used: LinearMap) -> None:
        if isinstance(used, PackedConv):
            self.packed[id(plain)] = used

    def _pair_branch(self, plain: Branch, used: Branch) -> None:
        for (one, rest), (other, more) in zip(plain.through, used.through, strict=True):
            self._pair(one, other)
            self._pair_branch(rest, more)

    def blame(self, name: str) -> str:
        """Return which operator of a row failed its dot test, in words."""
        return self.blamed.get(name, "")

    def direction(self, like: Tensor, start: int = 0) -> Tensor:
        """Return a random direction, of the shape and memory order of a value.

        Args:
            like: The value.
            start: Which of the random numbers is the first.
        """
        known, end = self.directions.get(like.dtype), start + like.numel()
        if known is None or len(known) < end:
            known = self.drawn.to(like.dtype).repeat(-(-end // _DRAWN))
            self.directions[like.dtype] = known
        flat = known[start:end]
        if like.is_contiguous():
            return flat.view(like.shape)
        order = tensor_differences.order(like)
        shape = [like.shape[d] for d in order]
        back = sorted(range(like.dim()), key=order.__getitem__)
        return flat.reshape(shape).permute(back)

    def apply(self, maps: Sequence[LinearMap], x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return A x and what every map of the chain was given."""
        given = []
        for item in maps:
            given.append(x)
            packed = self.packed.get(id(item))
            if packed is not None and _usable(packed.direct.factor):
                x = packed.direct.apply(x).div_(packed.direct.factor)
            else:
                x = item.apply(x)
        return x, given

    def adjoint(self, maps: Sequence[LinearMap], given: Sequence[Tensor], y: Tensor) -> Tensor:
        """Return A^T y."""
        for item, x in zip(reversed(maps), reversed(given), strict=True):
            packed = self.packed.get(id(item))
            turned = None if packed is None else packed.turned
            if turned is not None and _usable(turned.factor):
                y = turned.add(torch.zeros_like(x), y).div_(turned.factor)
            else:
                y = item.adjoint(y)
        return y

    def row(self, j: int, gap: float) -> tuple[float, float, float, float]:
        """Return the errors of one row, in the order of ``RowProof``.

        Args:
            j: The row.
            gap: Largest difference of its latent from what the source's operations give.
        """
        row, w, lam = self.bound.rows[j], self.leaves[j], self.thresholds[j]
        whole, floor = self._sampled(w), _floor(w.dtype)
        if whole is None or whole < floor:
            whole = tensor_differences.largest(w)
            if not math.isfinite(whole) or 0 < whole < floor:
                return _NOTHING  # the source overflows or underflows: nothing to prove
        recorded = _in_one(row.u, row.dim).detach()
        maps = () if row.diagonal is None else row.diagonal.maps
        try:
            u, adjoint = self._u_of(row)
            u = u if row.offset is None else u + row.offset.detach()
            z, _ = self.apply(maps, u)
            value = row.feedforward(z if lam is None else z - lam)
            if self._is_tested(maps, u, z):
                found = self._dot_test(row.name, maps, u)
                adjoint = max(found, adjoint) if adjoint == adjoint else found
        except RuntimeError as error:  # shapes that do not fit
            if 0 < tensor_differences.size(recorded) < floor:
                return _NOTHING
            self.blamed[row.name] = f" ({error})"
            return tensor_differences.ratio(gap, whole), math.inf, math.inf, math.inf
        gaps = [gap, math.inf, math.inf]
        if u.shape == recorded.shape:
            gaps[1] = tensor_differences.gap(u, recorded)
        if value.shape == w.shape:
            gaps[2] = tensor_differences.gap(value, w)
        # The size of u is looked at where it matters alone: where nothing differs, it does not.
        within = whole
        if gaps[1] > 0 or adjoint > self.tolerance:
            within = self._sampled(recorded) or tensor_differences.size(recorded)
        errors = _ratios(gaps, (whole, within, whole))
        if 0 < within < floor or self._too_large(errors):
            whole, within = tensor_differences.largest(w), tensor_differences.size(recorded)
            if 0 < within < floor or not math.isfinite(whole):
                return _NOTHING
            errors = _ratios(gaps, (whole, within, whole))
        if self._too_large(errors):
            terms = self._terms(row, recorded)
            inner = tensor_differences.size(self.first.u[j].detach() - recorded)
            within = max(tensor_differences.size(terms), within, inner)
            # Gains are divided out: (17) compares latents, which know nothing of them.
            unit = 1.0 if row.gains is None else 1.0 / row.gains.detach()
            spread = within
            if maps:
                signs = self.direction(terms).sign()
                spread = tensor_differences.size(self.apply(maps, terms * signs)[0] * unit)
            offset = 0.0 if lam is None else tensor_differences.size(lam * unit)
            whole = max(tensor_differences.size(z * unit), whole, spread, offset, self._offsets(j))
            errors = _ratios(gaps, (whole, within, whole))
        return errors[0], errors[1], errors[2], adjoint

    def _offsets(self, j: int) -> float:
        """Return the size of the largest offset that an operation of a row adds.

        Offsets may cancel: a norm over values that are alike takes off what a bias has added, and
        enlarges what rounding leaves of them.
        """
        names = self.plans[j].operations if self.plans else ()
        offsets = (self.first.bound[name].offset for name in names)
        return max(
            (tensor_differences.size(o.detach()) for o in offsets if o is not None), default=0.0
        )

    def _too_large(self, errors: Sequence[float]) -> bool:
        """Whether one of the errors is no rounding; NaN is none of which anything can be said."""
        return any(error > self.tolerance for error in errors)

    def _sampled(self, value: Tensor) -> float | None:
        """Return the largest of a tensor's first entries; None if that is not positive.

        It is a lower bound of the tensor's own, and errors relative to it are upper bounds. Where
        these are small a self-check needs nothing else; where not, ``row`` reads all entries.
        """
        if self.every:
            return None
        if value.numel() > 2 * _SAMPLED:
            value = tensor_differences.flat(value)[:_SAMPLED]
        found = float(value.amax()) if value.numel() else 0.0
        return found if 0 < found < math.inf else None

    def _u_of(self, row: BoundRow) -> tuple[Tensor, float]:
        """Return u_j by the row's operators, and the worst error of their dot tests; NaN without.

        Paths from latents alone are tested: nothing applies the adjoint of what reads the input.
        """
        errors: list[float] = []
        factors = _slot_factors(row)
        parts = []
        for paths, like in zip(row.slots, row.u, strict=True):
            total: Tensor | None = None
            for path in paths:
                value = self.leaves[path.leaf]
                maps = path.maps if factors is None else path.maps[:-1]
                if maps:
                    value = self._through(row.name, path.leaf, maps, errors)
                total = value if total is None else total + value
            total = torch.zeros_like(like) if total is None else total
            parts.append(total if total.shape == like.shape else total.expand_as(like))
        whole = row.join(tuple(parts))
        if factors is not None:
            whole = whole * torch.cat(factors, row.dim)
        return whole, max(errors, default=math.nan)

    def _through(
        self, name: str, leaf: int, maps: Sequence[LinearMap], errors: list[float]
    ) -> Tensor:
        """Return what a path of a row makes of its leaf; append the errors of its dot tests.

        What several paths begin with, as the rows that read a pooled value do, is computed and
        tested at the first of them.
        """
        x = self.leaves[leaf]
        begin = leaf, id(maps[0])
        if begin in self.waiting:
            left = self.waiting[begin] = self.waiting[begin] - 1
            value = self.begun.get(begin)
            if value is None:
                value = self.begun[begin] = self._step(name, leaf, maps[:1], x, errors)
            if left == 0:
                del self.begun[begin]
            x, maps = value, maps[1:]
        return self._step(name, leaf, maps, x, errors)

    def _step(
        self,
        name: str,
        leaf: int,
        maps: Sequence[LinearMap],
        x: Tensor,
        errors: list[float],
    ) -> Tensor:
        """Return what maps make of ``x``; append the error of their dot test."""
        value, _ = self.apply(maps, x)
        if leaf >= 0 and self._is_tested(maps, x, value):
            errors.append(self._dot_test(name, maps, x))
        return value

    def _dot_test(self, name: str, maps: Sequence[LinearMap], like: Tensor) -> float:
        """Return the error of a chain's dot test; where it fails, note which map is to blame.

        Args:
            name: The row.
            maps: The chain.
            like: What the chain is applied to in the pass.
        """
        x = self.direction(like, _OTHER)
        found, given = self._tested(maps, x)
        if not found <= self.tolerance:
            # Numbers of order one may leave the range of half precision where the pass's do not.
            x = x * (tensor_differences.size(like) or 1.0)
            found, given = self._tested(maps, x)
        if found > self.tolerance:
            for item, operand in zip(maps, given, strict=True):
                if self._tested([item], operand)[0] > self.tolerance:
                    self.blamed[name] = f" in its {type(item).__name__}"
        return found

    def _tested(self, maps: Sequence[LinearMap], x: Tensor) -> tuple[float, list[Tensor]]:
        """Return the error of the dot test at ``x``, and what every map of the chain was given."""
        value, given = self.apply(maps, x)
        y = self.direction(value)
        return self._dot(value, y, x, self.adjoint(maps, given, y)), given

    def _is_tested(self, maps: Sequence[LinearMap], x: Tensor, value: Tensor) -> bool:
        """Whether a chain that made ``value`` of ``x`` has to pass the dot test.

        Factors alone are their own adjoint by construction.
        """
        rest = [item for item in maps if type(item) is not Scale]
        if not rest:
            return value.shape != x.shape
        convs = all(type(item) is Conv for item in rest)
        return not convs or any(id(item) in self.tested for item in rest)

    def _kind(self, conv: Conv) -> object:
        """Return all that the code of a convolution's adjoint depends on: not weights and sizes.

        Packed kernels are among it.
        """
        packed = self.packed.get(id(conv))
        kernels = packed and (
            _usable(packed.direct.factor),
            packed.turned and (packed.turned.spread, _usable(packed.turned.factor)),
        )
        return conv.adjoint_form, kernels

    def _dot(self, value: Tensor, y: Tensor, x: Tensor, back: Tensor) -> float:
        """Return the error of <A x, y> = <x, A^T y>, relative to the size of A x.

        Where that cancels, relative to the terms' root sum of squares: a random y makes the terms
        add up like that, and rounding errors too.

        Args:
            value: A x.
            y: The direction.
            x: What A was applied to.
            back: A^T y.
        """
        if x.shape != back.shape:
            return math.inf
        gap = abs(tensor_differences.inner(value, y) - tensor_differences.inner(x, back))
        # As in ``_sampled``: relative to the size of some entries, an upper bound at first.
        part = value if self.every else tensor_differences.flat(value)[:_SAMPLED]
        error = tensor_differences.ratio(gap, tensor_differences.square(part) ** 0.5)
        if error > self.tolerance or error != error:
            gap = abs(
                tensor_differences.inner(value, y, True) - tensor_differences.inner(x, back, True)
            )
            scale = tensor_differences.square(value)
            scale += tensor_differences.square(_product(x, back))
            error = tensor_differences.ratio(gap, scale**0.5)
        if error != error and bool(value.isfinite().all()):
            return math.inf  # A x is finite, and A^T y is not: NaN would pass every comparison
        return error

    def _terms(self, row: BoundRow, recorded: Tensor) -> Tensor:
        """Return, entry by entry, how large the terms of u_j are, cancelled or not."""
        parts = []
        for paths, like in zip(row.slots, row.u, strict=True):
            total = torch.zeros_like(like)
            for path in paths:
                x = self.leaves[path.leaf]
                total = total + self.apply(path.maps, x * self.direction(x).sign())[0].abs()
            parts.append(total)
        return row.join(tuple(parts)) + recorded.abs()


def _slot_factors(row: BoundRow) -> list[Tensor] | None:
    """Return the last factor of each slot where all slots end in one per entry of their dimension.

    BatchNorm of a concat is that: the factors then scale the joined slots at once. None elsewhere.
    """
    found: list[Tensor] = []
    if not row.sizes:
        return None
    for paths, like, size in zip(row.slots, row.u, row.sizes, strict=True):
        last = paths[0].maps[-1] if len(paths) == 1 and paths[0].maps else None
        factor = last.factor if type(last) is Scale else None
        if not isinstance(factor, Tensor) or factor.dim() != like.dim():
            return None
        if factor.numel() != size or factor.shape[row.dim] != size:
            return None
        found.append(factor.detach())
    return found


def _in_one(parts: Parts, dim: int) -> Tensor:
    """Return slots put together: a view where they are the pieces of one tensor, side by side."""
    head = parts[0]
    if len(parts) == 1:
        return head
    start = head.storage_offset()
    for part in parts:
        same = part.stride() == head.stride() and part.data_ptr() - head.data_ptr() == (
            (start - head.storage_offset()) * head.element_size()
        )
        if not same:
            return torch.cat(parts, dim)
        start += part.shape[dim] * part.stride(dim)
    shape = list(head.shape)
    shape[dim] = sum(part.shape[dim] for part in parts)
    return head.as_strided(shape, head.stride())


def _usable(factor: float) -> bool:
    return factor != 0 and abs(factor) < float("inf")


def _ratios(gaps: Sequence[float], sizes: Sequence[float]) -> list[float]:
    return [tensor_differences.ratio(gap, size) for gap, size in zip(gaps, sizes, strict=True)]


def _product(a: Tensor, b: Tensor) -> Tensor:
    if a.dtype in (torch.float16, torch.bfloat16):
        a, b = a.float(), b.float()
    return a * b
