"""The one place that says what inputs, labels and logits may be.

Training, evaluation, attacks and audits ask here. A label is a class number (any integer type),
``IGNORED`` for a sample that no loss counts, or a row of probabilities, one per class (soft
labels). Nothing is rounded, cut off or shifted here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pursuitify.errors import InputError, OutputError

#: The class number that says: this sample has no label (``ignore_index`` of torch's cross entropy).
IGNORED = -100
_INTEGERS = (
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint16,
    torch.uint32,
    torch.uint64,
)
#: The types in which an attack can move inputs: half precision cannot hold a small ball.
_ATTACKED = (torch.float32, torch.float64)
#: How far the probabilities of a soft label may be from 1 in sum: half precision rounds to 1e-3.
_SUM = 1e-2


def check_labels(
    y: object,
    count: int,
    classes: int | None = None,
    *,
    name: str = "data",
    soft: bool = True,
    ignored: bool = True,
) -> Tensor:
    """Return labels as a loss takes them: class numbers as int64, probabilities as they are.

    Args:
        y: The labels of a batch, or of a whole data set.
        count: How many samples they belong to.
        classes: How many classes the network knows; None where that is not known yet.
        name: Of the data, for the error.
        soft: Whether probabilities will do.
        ignored: Whether ``IGNORED`` will do.

    Raises:
        InputError: If they are no labels of so many samples and classes.
    """
    if not isinstance(y, Tensor):
        raise InputError(f"the labels of {name} are a {type(y).__name__}, not a tensor")
    if y.dtype in _INTEGERS:
        return _class_numbers(y, count, classes, name, ignored)
    if not y.is_floating_point():
        raise InputError(f"the labels of {name} are of type {y.dtype}, not class numbers")
    if y.dim() != 2:
        raise InputError(
            f"the labels of {name} are of type {y.dtype} and shape {tuple(y.shape)}. Class numbers "
            "are integers: give y.long() if these are whole numbers; probabilities have the shape "
            "(samples, classes)"
        )
    if not soft:
        raise InputError(
            f"the labels of {name} are probabilities, and class numbers are needed here: give "
            "y.argmax(1)"
        )
    _probabilities(y, count, classes, name)
    return y


def _class_numbers(y: Tensor, count: int, classes: int | None, name: str, ignored: bool) -> Tensor:
    if y.shape != (count,):
        hint = ""
        if y.dim() == 2 and y.shape[0] == count:
            hint = ": give y.squeeze(1)" if y.shape[1] == 1 else ": one-hot rows as y.argmax(1)"
        raise InputError(
            f"the labels of {name} have the shape {tuple(y.shape)}, not ({count},), one class "
            f"number per sample{hint}"
        )
    numbers = y.long()
    valid = numbers[numbers != IGNORED] if ignored else numbers
    if not len(valid):
        return numbers
    low, high = (int(end) for end in valid.aminmax())
    if low < 0:
        also = f", or {IGNORED} for a sample without one" if ignored else ""
        if low == IGNORED:
            also = f"; {IGNORED} says that a sample has none, and it has to be left out here"
        raise InputError(f"{name} has the label {low}; labels are class numbers from 0 on{also}")
    if classes is not None and high >= classes:
        hint = "; these count from 1: subtract 1" if low == 1 and high == classes else ""
        beyond = int((valid >= classes).sum())
        raise InputError(
            f"{name} has the label {high}, and the network has {classes} classes, numbered 0 to "
            f"{classes - 1}: {beyond} of {count} labels are beyond them{hint}"
        )
    return numbers


def _probabilities(y: Tensor, count: int, classes: int | None, name: str) -> None:
    if len(y) != count or (classes is not None and y.shape[1] != classes):
        wanted = f"({count}, {'classes' if classes is None else classes})"
        raise InputError(
            f"the probabilities that {name} has as labels have the shape {tuple(y.shape)}, not "
            f"{wanted}"
        )
    if not y.numel():
        return
    if not bool((y >= 0).all()):
        raise InputError(f"the soft labels of {name} are not all numbers of at least 0")
    off = float((y.sum(1, dtype=torch.float64) - 1).abs().max())
    if not off <= _SUM:
        raise InputError(
            f"the soft labels of {name} are no probabilities: a row's sum is {off:.3g} away from 1"
        )


def check_inputs(
    x: object, *, name: str = "x", kinds: Collection[torch.dtype] = _ATTACKED
) -> Tensor:
    """Return inputs that an attack or noise can move: a batch of numbers in [0, 1].

    Args:
        x: The inputs.
        name: Of the inputs, for the error.
        kinds: The types that will do.

    Raises:
        InputError: If they are none.
    """
    if not isinstance(x, Tensor):
        raise InputError(f"{name} must be a tensor, not {type(x).__name__}")
    if x.dtype not in kinds:
        listed = " or ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
        raise InputError(f"{name} must be {listed}, not {x.dtype}: scale images to [0, 1]")
    if x.ndim < 2:
        raise InputError(f"{name} must be a batch of inputs, not of shape {tuple(x.shape)}")
    if x.numel() == 0:
        raise InputError(f"there is nothing to attack: {name} is empty")
    if not bool(((x >= 0) & (x <= 1)).all()):
        span = f"{float(x.min()):.4g} to {float(x.max()):.4g}"
        raise InputError(f"{name} must lie in [0, 1], not {span}; normalise inside the model")
    return x


def recordable(x: Tensor) -> Tensor:
    """Return what autograd can keep: a copy of a tensor made in inference mode, else itself."""
    if not x.is_inference():
        return x
    with torch.inference_mode(False):
        return x.clone()


@contextlib.contextmanager
def dtypes_explained(net: nn.Module, x: Tensor) -> Iterator[None]:
    """Say what to do where a network cannot take inputs because their dtypes differ.

    Nothing is checked beforehand: a network may cast its inputs itself.

    Args:
        net: What runs inside.
        x: What it runs on.

    Raises:
        InputError: In place of torch's RuntimeError.
    """
    try:
        yield
    except RuntimeError as error:
        kinds = {p.dtype for p in net.parameters() if p.is_floating_point()}
        if not x.is_floating_point() or not kinds or x.dtype in kinds:
            raise
        listed = ", ".join(sorted(map(str, kinds)))
        raise InputError(
            f"the inputs are {x.dtype} and the network's weights {listed}, which does not cast "
            f"them itself: bring one to the other, for instance net.to({x.dtype})"
        ) from error


def check_logits(logits: object, count: int, *, finite: bool = False) -> Tensor:
    """Return a network's output if it is a row of at least two logits per sample.

    Args:
        logits: The output.
        count: Number of samples.
        finite: Whether NaN and infinity are refused.

    Raises:
        OutputError: If it is none. One logit per sample, of a network with a binary output, is no
            distribution over classes: its cross entropy is 0 whatever it says, and the largest of
            one is always right.
    """
    if not isinstance(logits, Tensor) or logits.dim() not in (1, 2) or len(logits) != count:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise OutputError(
            f"the network must return logits ({count}, classes), not {got}. Where it returns more "
            "(auxiliary heads, dictionaries), wrap it in a module that returns the logits alone"
        )
    if logits.dim() == 1 or logits.shape[1] < 2:
        raise OutputError(
            f"the network returns one logit per sample, of shape {tuple(logits.shape)}, and two or "
            "more classes are needed: with one, every answer is the same. Let it return two, for "
            "instance torch.cat([torch.zeros_like(z), z], 1) for a logit z of shape (samples, 1), "
            "which has the same probabilities, and number the classes 0 and 1"
        )
    if finite and not bool(logits.detach().isfinite().all()):
        raise OutputError("the network returned logits that are not finite")
    return logits


def labelled(y: Tensor) -> Tensor:
    """Return which samples have a label, as booleans; soft labels are always labels."""
    if y.is_floating_point():
        return torch.ones(len(y), dtype=torch.bool, device=y.device)
    return y != IGNORED


def right(logits: Tensor, y: Tensor) -> Tensor:
    """Return which samples a network gets right, as booleans: none without a label, none of NaN.

    argmax takes NaN for the largest, so a network that gives nothing else would be right as often
    as the first class occurs.
    """
    wanted = y.argmax(1) if y.is_floating_point() else y
    return (logits.argmax(1) == wanted) & ~logits.isnan().any(1)


def cross_entropy(logits: Tensor, y: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return the mean cross entropy of the samples that have a label; 0 where none has.

    Args:
        logits: One row per sample.
        y: Labels as ``check_labels`` returns them.
        smoothing: Of the labels.
    """
    if not (y.is_meta or bool(labelled(y).any())):  # torch returns 0 / 0
        return logits.sum() * 0
    soft = y.to(logits.dtype) if y.is_floating_point() else y
    return F.cross_entropy(logits, soft, label_smoothing=smoothing, ignore_index=IGNORED)
