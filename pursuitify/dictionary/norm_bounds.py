"""Bounds of the norms of blocks, rows and columns of the dictionary (mathematics.md, section 5)."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pursuitify.dictionary.structured import StructuredDictionary
from pursuitify.errors import InputError
from pursuitify.operators import (
    FilterBank,
    LinearMap,
    conv_norm_bound,
    conv_norm_estimate,
    kernel_contents,
    typical_norm,
)
from pursuitify.operators.norms.fingerprint import Versions, kernel_forms, kernel_sums
from pursuitify.operators.norms.symbol import frequencies
from pursuitify.utils import func_transforms


def operator_bound(dictionary: StructuredDictionary, norms: Norms) -> Tensor:
    """Return an upper bound of ||B||: the norm of the matrix of its blocks' norm bounds.

    It is one number, or one per sample where frozen values differ between samples. Computed in
    float64 and raised by more than the rounding of a singular value.
    """
    blocks, _ = block_norms(dictionary, norms)
    slack = 1.0 + 16 * blocks.shape[-1] * torch.finfo(blocks.dtype).eps
    norm: Tensor = torch.linalg.matrix_norm(blocks, 2)
    return slack * norm


def block_norms(dictionary: StructuredDictionary, norms: Norms) -> tuple[Tensor, Tensor]:
    """Return bounds of the blocks' norms, rows by latents (l, l), and of P's, rows (l,).

    Both have the batch in front where frozen values differ between samples. The paths of one slot
    add up; the slots of a row are orthogonal.
    """
    norm_of = norms.recall(dictionary)
    like = dictionary.inputs[0]
    count, samples = len(dictionary.rows), dictionary.samples
    squares: dict[tuple[int, int], Tensor | float] = {}
    for i, row in enumerate(dictionary.rows):
        for s, paths in enumerate(row.slots):
            sums: dict[int, Tensor | float] = {}
            for p, path in enumerate(paths):
                norm = chain_norm(norm_of, f"{row.name}.{s}.{p}", path.maps, samples)
                column = path.leaf if path.leaf >= 0 else count - 1 - path.leaf
                sums[column] = sums.get(column, 0.0) + norm
            for column, norm in sums.items():
                squares[i, column] = squares.get((i, column), 0.0) + norm * norm
        own: Tensor | float = 1.0
        if row.diagonal is not None:
            own = chain_norm(norm_of, f"{row.name}.diagonal", row.diagonal.maps, samples)
        squares[i, i] = own * own
    # A number of Python's would pass through float32 without the dtype, and be rounded there.
    values = [torch.as_tensor(v, dtype=torch.float64, device=like.device) for v in squares.values()]
    batched = next((v for v in values if v.dim() > 0), values[0])
    stacked = torch.stack([v.expand_as(batched) for v in values], -1)
    # The root has no derivative at zero: keep it away from blocks that vanish.
    stacked = torch.where(stacked > 0, torch.where(stacked > 0, stacked, 1.0).sqrt(), 0.0)
    rows, columns = zip(*squares, strict=True)
    whole = stacked.new_zeros(*batched.shape, count, count + len(dictionary.inputs))
    whole[..., rows, columns] = stacked
    return whole[..., :count], torch.linalg.vector_norm(whole[..., count:], dim=-1)


#: Power steps per training step, from a warm state.
_WARM_STEPS = 2
#: Image sizes for which the state of a power iteration is kept, per kernel.
_TORI = 8


#: Bound of a map; the name of its place in the dictionary comes first.
NormOf = Callable[[str, LinearMap], "Tensor | float"]


@dataclass(frozen=True)
class CertifiedNorms:
    """Certified norm bounds, with what tells for which kernels they were found.

    Attributes:
        contents: SHA-256 of the kernels' contents (``kernel_contents``), in hexadecimal; empty for
            no kernels.
        bounds: The bounds by place in the dictionary.
    """

    contents: str = ""
    bounds: Mapping[str, float] = field(default_factory=dict)


def _digest(contents: bytes) -> str:
    return hashlib.sha256(contents).hexdigest()


class Norms:
    """Norm bounds of a network's weighted maps.

    In evaluation mode every bound is certified, once per parameter version: what was found is kept
    as long as the kernels' contents stay what they were, and its derivative is evaluated afresh
    wherever one is wanted. In training mode, where the weights move at every step, a warm-started
    power iteration with a stated margin (``power_iteration.ESTIMATE_MARGIN``) stands in; its state
    is kept from step to step.

    Where ``on_image`` is set bounds and estimates are those for images of the size at hand, smaller
    and, for small images, far cheaper; otherwise they hold for images of every size.

    Where ``typical`` is set no bound is found in either mode: a weighted map counts with the norm
    that random weights of its energy have (``operators.typical_norm``), the others with their
    bounds. That is a scale, for steps that need no more (mathematics.md, section 5).
    """

    def __init__(self) -> None:
        self._states: dict[str, Tensor] = {}
        self._kept: tuple[bytes, dict[NormOf, dict[str, float]]] = b"", {}
        self._restored = CertifiedNorms()
        self._on_device: _OnDevice | None = None
        self.training = False
        self.typical = False
        self.on_image = False
        #: On accelerators: the tensors that kernels are made of.
        self.made_of: Sequence[Tensor] = ()
        #: On accelerators: NaN if kernels changed and no version counted it, else 0; or None.
        self.lost: Tensor | None = None

    @property
    def contents(self) -> bytes:
        """The kernels' contents when the bounds were last looked up; empty in training mode."""
        return b"" if self.training else self._kept[0]

    def clear(self) -> None:
        """Forget the states of the power iterations: the next ones start cold."""
        self._states.clear()
        self.look_again()

    def look_again(self) -> None:
        """Read kernels on accelerators at the next call, whatever version counters say."""
        self._on_device = None

    def __getstate__(self) -> dict[str, object]:
        """Leave what belongs to tensors of this network out of copies and pickles."""
        return {**vars(self), "_on_device": None, "made_of": (), "lost": None}

    def state(self) -> dict[str, Tensor]:
        """Return the states of the power iterations by place: training's next step reads them."""
        return dict(self._states)

    def restore(self, states: Mapping[str, Tensor]) -> None:
        """Go on from states that ``state`` returned."""
        self._states = dict(states)

    def certified(self) -> CertifiedNorms:
        """Return the certified bounds that are known, of kernels on the CPU; empty for none."""
        contents, found = self._kept
        bounds = found.get(self._certifier)
        return CertifiedNorms(_digest(contents), dict(bounds)) if bounds else self._restored

    def restore_certified(self, known: CertifiedNorms) -> None:
        """Take bounds that ``certified`` returned; they count for kernels of the same contents."""
        self._restored = known

    @property
    def _certifier(self) -> NormOf:
        return _certify_on_image if self.on_image else _certify

    def _bank(self, linear: LinearMap) -> FilterBank | None:
        return linear.bank_on_image() if self.on_image else linear.filter_bank()

    def recall(self, dictionary: StructuredDictionary) -> NormOf:
        """Return the bounds for a dictionary; those found before only if its kernels are the same.

        One transfer for all kernels, so that an accelerator is waited for once. As long as the
        version counters of what its kernels are made of stand still, it is not waited for at all:
        the sums are compared there, and ``lost`` says so where they differ.

        Raises:
            InputError: If bounds for the image at hand would be frozen by torch.jit.trace.
        """
        if self.on_image and not self.typical and torch.jit.is_tracing():  # type: ignore[no-untyped-call, attr-defined]
            raise InputError(
                'norm_bounds="image" cannot be traced by torch.jit.trace: the traced code would '
                "keep the steps of this image size and use them for any other, where they may be "
                "too long. Set net.norm_bounds = 'any size' before tracing, or use "
                "pursuitify.export, whose programs refuse other sizes"
            )
        certify = self._certifier
        fresh = _typical if self.typical else certify
        self.lost = None
        if func_transforms.active():  # nothing of such a call may be kept for the next one
            func_transforms.refuse_tracing()
            return fresh
        if self.training:
            return fresh if self.typical else self._estimate
        if torch.compiler.is_compiling() or dictionary.inputs[0].is_meta:
            return fresh
        banks = [bank for m in dictionary.maps() if (bank := self._bank(m)) is not None]
        forms = repr([bank[1:4] for bank in banks]).encode()
        if self.on_image:  # said also where no kernel has a size, so that bounds are kept apart
            forms += repr(["image", *(bank.reaches for bank in banks)]).encode()
        if torch.is_grad_enabled():
            # What is trained may be written by fused optimizers, which no version counts.
            self.look_again()
        elif dictionary.inputs[0].device.type != "cpu":
            return self._recall_on_device(fresh, [bank.weight for bank in banks], forms)
        contents = kernel_contents([bank.weight for bank in banks]) + forms
        kept = self._kept
        if contents != kept[0]:
            # Replaced as a whole, not cleared: another thread may be reading the one before.
            restored = self._restored
            known = restored.bounds if restored.contents == _digest(contents) else {}
            self._kept = kept = contents, {_typical: {}, certify: dict(known)}
        return functools.partial(_remembered, kept[1][fresh], fresh)

    def _recall_on_device(self, fresh: NormOf, weights: Sequence[Tensor], forms: bytes) -> NormOf:
        forms, sums = kernel_forms(weights) + forms, kernel_sums(weights)
        kept = self._on_device
        if kept is not None and kept.forms == forms and kept.versions.still(self.made_of):
            same = [(a == b).all() for a, b in zip(sums, kept.sums, strict=True)]
            if same:
                self.lost = torch.where(torch.stack(same).all(), 0.0, torch.nan)
        else:
            kept = self._on_device = _OnDevice(
                forms, sums, Versions.of(self.made_of), {_typical: {}, self._certifier: {}}, {}
            )
        return functools.partial(_remembered, kept.found[fresh], fresh)

    def vector(self, numbers: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return numbers as a vector; one that was made before where a device would be waited for.

        Args:
            numbers: The numbers.
            dtype: Precision.
            device: Where the vector is to be.
        """
        kept = None if device.type == "cpu" else self._on_device
        if kept is None:
            return torch.tensor(numbers, dtype=dtype, device=device)
        key = (*numbers, dtype)
        if key not in kept.vectors:
            kept.vectors[key] = torch.tensor(numbers, dtype=dtype, device=device)
        return kept.vectors[key]

    def _estimate(self, key: str, linear: LinearMap) -> Tensor | float:
        bank = self._bank(linear)
        if bank is None:
            return linear.norm_bound()
        reaches = bank.reaches
        if reaches is not None:  # a vector on one torus says nothing on another
            place, key = key, f"{key}@{frequencies(*bank[:3], reaches=reaches).label}"
            if key not in self._states:
                others = [other for other in self._states if other.startswith(f"{place}@")]
                for other in others[: len(others) - _TORI + 1]:
                    del self._states[other]
        state = self._states.get(key)
        value, state = conv_norm_estimate(*bank[:4], state, _WARM_STEPS, reaches=reaches)
        self._states[key] = state.detach()
        return value


@dataclass(frozen=True, eq=False)
class _OnDevice:
    """The norms of kernels on an accelerator, with what tells that they are still those kernels.

    Attributes:
        forms: Shapes, orders and strides of the kernels.
        sums: Their fingerprint, on the device.
        versions: Versions of what they are made of.
        found: Norms by place: the estimates, and the bounds.
        vectors: Vectors of numbers, by these.
    """

    forms: bytes
    sums: list[Tensor]
    versions: Versions
    found: dict[NormOf, dict[str, float]]
    vectors: dict[object, Tensor]


def _remembered(
    found: dict[str, float], fresh: NormOf, key: str, linear: LinearMap
) -> Tensor | float:
    """Return a norm that was found before, or find it by ``fresh`` and keep it in ``found``.

    It is kept as Python's number, which takes no operation on a device to read and to calculate
    with; a norm that is differentiated is found anew.
    """
    bank = linear.filter_bank()
    if bank is None or (torch.is_grad_enabled() and bank.weight.requires_grad):
        return fresh(key, linear)
    value = found.get(key)
    if value is None:
        value = found[key] = float(fresh(key, linear))
    return value


def _typical(key: str, linear: LinearMap) -> Tensor | float:
    """Return the norm of random weights of the same energy; of a map without weights its bound."""
    bank = linear.filter_bank()
    return linear.norm_bound() if bank is None else typical_norm(*bank[:4])


def _certify(key: str, linear: LinearMap) -> Tensor | float:
    bank = linear.filter_bank()
    return linear.norm_bound() if bank is None else conv_norm_bound(*bank[:4])


def _certify_on_image(key: str, linear: LinearMap) -> Tensor | float:
    bank = linear.bank_on_image()
    return linear.norm_bound() if bank is None else conv_norm_bound(*bank[:4], reaches=bank.reaches)


def lipschitz(
    dictionary: StructuredDictionary, norms: Norms, layered: bool = False
) -> list[Tensor]:
    """Return L_j >= ||B_j^T B_j + sum_j' B_j'j B_j'j^T|| per latent.

    In float64: squares of norms leave the range of float32 long before the weights do.

    Args:
        dictionary: The bound dictionary.
        norms: Norm bounds.
        layered: Count the row's own operator alone, as Algorithm 1 needs.
    """
    like = dictionary.inputs[0]
    samples = dictionary.samples
    norm_of, wide = _widened(norms.recall(dictionary), like.device)
    totals: list[Tensor | float] = []
    for row, readers in zip(dictionary.rows, dictionary.readers, strict=True):
        own: Tensor | float = 1.0
        if row.diagonal is not None:
            own = chain_norm(norm_of, f"{row.name}.diagonal", row.diagonal.maps, samples)
        total = own * own
        for i, s, paths in () if layered else readers:
            reader = dictionary.rows[i]
            norm: Tensor | float = 0.0
            for p in paths:
                key = f"{reader.name}.{s}.{p}"
                norm = norm + chain_norm(norm_of, key, reader.slots[s][p].maps, samples)
            total = total + norm * norm
        totals.append(total)
    numbers = [total for total in totals if not isinstance(total, Tensor)]
    made = iter(norms.vector(numbers, wide, like.device).unbind())
    constants = [t.to(wide) if isinstance(t, Tensor) else next(made) for t in totals]
    return [fit(c, shape) for c, shape in zip(constants, dictionary.shapes, strict=True)]


def chain_norm(
    norm_of: NormOf, key: str, maps: Iterable[LinearMap], samples: int | None
) -> Tensor | float:
    """Return the product of the maps' bounds: a number, or a vector (samples,).

    Args:
        norm_of: Bound of a map.
        key: The chain's place in the dictionary.
        maps: The chain.
        samples: ``StructuredDictionary.samples``; None for bounds that hold for the whole batch.
    """
    bound: Tensor | float = 1.0
    for position, item in enumerate(maps):
        factor = norm_of(f"{key}.{position}", item)
        if isinstance(factor, Tensor) and factor.dim() > 0:
            factor = factor.amax() if samples is None else factor.reshape(samples, -1).amax(1)
        bound = bound * factor
    return bound


def fit(constant: Tensor, shape: torch.Size) -> Tensor:
    """Let a bound per sample broadcast against a latent, whose samples lie along dimension 0."""
    if constant.dim() == 0:
        return constant
    repeated = constant
    if constant.shape[0] != shape[0]:
        repeated = constant.repeat_interleave(shape[0] // constant.shape[0])
    return repeated.reshape(-1, *[1] * (len(shape) - 1))


def _widened(norm_of: NormOf, device: torch.device) -> tuple[NormOf, torch.dtype]:
    """Return the bounds in float64, where a device has that, and the precision."""
    wide = torch.float32 if device.type == "mps" else torch.float64

    def widened(key: str, linear: LinearMap) -> Tensor | float:
        value = norm_of(key, linear)
        return value.to(wide) if isinstance(value, Tensor) else value

    return widened, wide
