"""coherence(): measure a whole network's dictionary."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from pursuitify.analysis.gram.dictionary_blocks import blocks_of
from pursuitify.analysis.gram.normalised_gram import Gram
from pursuitify.analysis.gram.symbol import UnsupportedError
from pursuitify.analysis.gram.worst_case_gram import WorstGram
from pursuitify.analysis.measures import block_measures, dense_gram, welch_bounds
from pursuitify.analysis.measures.bind_network import (
    bind,
    evaluating,
    gated,
    holds,
    layouts,
    touched,
)
from pursuitify.analysis.measures.block_measures import Block, ColumnNorms
from pursuitify.analysis.measures.coherence_report import CoherenceReport
from pursuitify.dictionary.structured import StructuredDictionary
from pursuitify.errors import InputError, OptionError
from pursuitify.network.pursuit_network import PursuitNetwork
from pursuitify.operators import Select
from pursuitify.utils import option_checks
from pursuitify.utils.terminal import bar_console

BOUNDARIES = ("interior", "exact")
SWITCHES = ("centre", "worst", "batch")


def coherence(
    net: PursuitNetwork,
    input_shape: Sequence[int] | None = None,
    boundary: str = "interior",
    *,
    x: Tensor | None = None,
    switches: str | None = None,
    progress: bool | Callable[[int, int], None] = False,
) -> CoherenceReport:
    """Measure the coherence of a network's whole dictionary, from its weights.

    The network is taken in evaluation mode. Nothing of the dictionary is materialised; in interior
    mode the cost does not depend on the size of the image.

    Args:
        net: What ``pursuitify()`` returns; its layout counts.
        input_shape: Shape of one input, without the batch; (3, 224, 224) if neither it nor ``x``
            is given.
        boundary: ``interior`` or ``exact``.
        x: An input (batch of one) to bind the dictionary to; a seeded standard normal one if not
            given. It matters where frozen values enter: max-pool switches, gates.
        switches: What max-pool windows select: ``centre`` assumes each window's centre; ``worst``
            bounds every entry over all choices, so that no input has a larger one; ``batch`` takes
            what ``x`` selects, entry by entry, which is for small networks and needs
            ``boundary="exact"``. Default: ``batch`` in exact mode, ``centre`` in interior mode.
        progress: Whether to show a progress bar, or a function to call with (done, all).

    Returns:
        The report, ``print``-able: numbers, and their rules (mathematics.md, section 6).

    Raises:
        OptionError: If ``net`` is no pursuit network, an option has no such value, or ``x`` and
            ``input_shape`` disagree.
        InputError: If the input does not fit or is a batch, the network is too large for what was
            asked, or a map has no kernel form.

    Examples:
        >>> from pursuitify import pursuitify
        >>> from pursuitify.models import ChainNet
        >>> report = coherence(pursuitify(ChainNet(3, 10).eval()), input_shape=(3, 8, 8))
        >>> 0 < report.frame_potential < report.mutual_coherence < 1
        True
    """
    option_checks.one_of("boundary", boundary, BOUNDARIES)
    if switches is None:
        switches = "batch" if boundary == "exact" else "centre"
    option_checks.one_of("switches", switches, SWITCHES)
    if switches == "batch" and boundary == "interior":
        raise OptionError("switches='batch' needs boundary='exact': switches differ by position")
    with torch.no_grad(), evaluating(net):
        dictionary = bind(net, input_shape, x)
        start = time.perf_counter()
        with _progress(progress) as advance:
            found, norms, excess, notes = _measured(dictionary, boundary, switches, advance)
        gates = gated(net, dictionary)
    if holds(dictionary, Select):
        notes.insert(0, _SWITCH_NOTES[switches])
    if gates:
        given = "the given input" if x is not None else "a seeded standard normal input"
        notes.append(f"gates and masks as frozen by {given}")
    columns = [shape.numel() for shape in dictionary.shapes]
    heights = [sum(part.numel() for part in row.u) for row in dictionary.rows]
    return CoherenceReport(
        model=net.source_name,
        layout=layouts(dictionary),
        boundary=boundary,
        input_shape=tuple(dictionary.inputs[0].shape[1:]),
        assumptions=tuple(notes),
        blocks=found,
        column_norms=norms,
        columns=sum(columns),
        rows=sum(heights),
        excess=excess,
        seconds=time.perf_counter() - start,
        _network=net,
    )


_SWITCH_NOTES = {
    "centre": "max pooling: every window selects its centre",
    "worst": "max pooling: worst case over switches; the numbers are of upper bounds of |entry| "
    "over all choices (entry by entry attained where a pooled latent is read in decoder rows "
    "alone, not by one input at once), entries are those that some choice makes non-zero, column "
    "norms the least over the choices",
    "batch": "max pooling: switches as frozen by the input",
}


def _measured(
    dictionary: StructuredDictionary,
    boundary: str,
    switches: str,
    advance: Callable[[int, int], None] | None,
) -> tuple[tuple[Block, ...], tuple[ColumnNorms, ...], float, list[str]]:
    notes: list[str] = []
    rows_of = touched(dictionary)
    if not (switches == "batch" and holds(dictionary, Select)):
        try:
            worst = switches == "worst"
            blocks = blocks_of(dictionary, boundary == "exact", worst)
            gram = WorstGram(blocks) if worst else Gram(blocks)
            norms = block_measures.norms(gram)
            columns = _alive(gram.positions.columns, norms)
            excess = welch_bounds.excess_of_frames(gram.positions.frames(), columns, rows_of)
            return block_measures.blocks(gram, advance), norms, excess, notes
        except UnsupportedError as error:
            if boundary == "exact" and holds(dictionary, Select):
                raise InputError(
                    f"no kernel form: {error}; so switches={switches!r} cannot be assumed. "
                    "switches='batch' can treat it on small inputs"
                ) from error
            if boundary == "interior":
                raise InputError(
                    f"no interior form: {error}. boundary='exact' can treat it on small inputs"
                ) from error
            notes.append(f"entry by entry, as {error}")
    found, norms = dense_gram.measure(dictionary, advance)
    columns = _alive([float(shape.numel()) for shape in dictionary.shapes], norms)
    heights = {
        i: float(sum(part.numel() for part in row.u)) for i, row in enumerate(dictionary.rows)
    }
    return found, norms, welch_bounds.frame_excess(columns, rows_of, heights), notes


def _alive(columns: Sequence[float], norms: Sequence[ColumnNorms]) -> list[float]:
    """Return the numbers of columns that are not zero: Welch's bound is about unit vectors."""
    return [max(n - stats.zero, 0.0) for n, stats in zip(columns, norms, strict=True)]


@contextlib.contextmanager
def _progress(
    wanted: bool | Callable[[int, int], None],
) -> Iterator[Callable[[int, int], None] | None]:
    if callable(wanted) or not wanted:
        yield wanted if callable(wanted) else None
        return
    from rich.progress import Progress

    with Progress(console=bar_console(), transient=True) as bar:
        task = bar.add_task("Gram blocks")
        yield lambda done, count: bar.update(task, completed=done, total=count)
