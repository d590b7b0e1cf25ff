"""The coverage table of other libraries: what a conversion makes of the networks they construct.

python benchmarks/coverage_libraries.py                  # the ReLU family; goes on where it was
python benchmarks/coverage_libraries.py --library monai --each 2  # the smallest two of a family
python benchmarks/coverage_libraries.py --again refused  # what was refused, once more
python benchmarks/coverage_libraries.py --page           # writes the page from the results

Every network is examined in a child process by ``tests/support/libraries.py``, as in the slow test.
All networks are listed first (a tenth of a second each). Then the ReLU family is converted and
proven, the smallest network of every family first. Of the families outside it, the smallest is
explained. Results go to ``benchmarks/results/coverage_libraries.jsonl``, one line a network, as
they come: with the revision of the code and the CPU seconds of each.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import itertools
import json
import subprocess
import sys
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.support.libraries import (  # noqa: E402
    COUNTED,
    FAULTS,
    LIBRARIES,
    LISTED,
    MOST_PARAMETERS,
    Network,
    Result,
    networks,
    sweep,
)  # fmt: skip

PAGE = ROOT / "docs" / "coverage-other-libraries.md"
RESULTS = ROOT / "benchmarks" / "results" / "coverage_libraries.jsonl"
#: What a network of the ReLU family can become.
_OURS = ("converted", "explained", "refused", "too large", "does not run", LISTED)
#: How a network is named in a line of results.
_NAMED = ("library", "family", "name")
COLUMNS = ("family", "listed", "ReLU family", *_OURS, "faults", "why not")
#: The words above the tables.
EXPLANATION = f"""
*Converted* (proven) networks were run through `net.verify` and compared with their source at
T = 0, in evaluation and in training mode, and took one sweep; with `example_inputs` where a branch
on sizes was guessed wrong without them, and said so. The sweep of most families' smallest takes
steps by proven bounds of all norms, those of the others adaptive steps. Networks of more than
{MOST_PARAMETERS // 10**6} million parameters are *too large*: `explain` says that they convert,
which was not run. *Does not run*: it would convert, and its source takes no single image that we
tried. *Faults* are deaths of the process, errors that are not of pursuitify's own family,
conversions that are not their source, and refusals after the conversion; there must be none. A
network is outside the ReLU family where a module is GELU, SiLU or the like, and where it is refused
for these or for the softmax of an attention. *Listed* ones can be constructed without a download;
*{LISTED}* ones have no module that puts them outside, and wait. *Why not* says by what the refused
ones are refused. The results, with the revision that each was measured at, are in
`benchmarks/results/coverage_libraries.jsonl`; `benchmarks/coverage_libraries.py` measures them and
writes this page. The slow test `tests/conversion/test_other_libraries.py` runs the same over all
networks.
"""


def revision() -> str:
    """Return the commit that is measured, marked where files of the package differ from it."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def read(path: Path) -> dict[Network, tuple[Result, str]]:
    """Return result and revision of every network in a file; of several lines the last counts."""
    found: dict[Network, tuple[Result, str]] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        entry = json.loads(line)
        network = Network(*(entry.pop(name) for name in _NAMED))
        measured = entry.pop("revision")
        found[network] = (Result(network, **entry), measured)
    return found


def line_of(result: Result, measured: str) -> str:
    """Return a result as one line of the file."""
    entry = dataclasses.asdict(result)
    return json.dumps({**entry.pop("network"), **entry, "revision": measured})


def compact(path: Path) -> None:
    """Write a file of results anew, one line a network, in the order of libraries and families."""
    kept = sorted(read(path).items(), key=lambda item: dataclasses.astuple(item[0]))
    path.write_text("".join(line_of(*value) + "\n" for _, value in kept))


def by_size(found: Iterable[Result]) -> list[list[Network]]:
    """Return the smallest network of every family, then the second smallest of each, and so on."""
    families: dict[str, list[Result]] = defaultdict(list)
    for result in found:
        families[result.network.family].append(result)
    ordered = [sorted(family, key=lambda r: r.parameters) for family in families.values()]
    ranks = itertools.zip_longest(*ordered)
    return [
        [r.network for r in sorted(filter(None, rank), key=lambda r: r.parameters)]
        for rank in ranks
    ]


def _why(results: Sequence[Result]) -> str:
    """Return the operations that are refused, most frequent first."""
    counts: Counter[str] = Counter()
    for result in results:
        if result.outcome == "refused":
            counts.update({reason.split(":")[0] for reason in result.detail.split("; ")})
    return ", ".join(op for op, _ in counts.most_common(3)).replace("|", "/")


def _row(name: str, results: Sequence[Result]) -> str:
    counts = Counter(result.outcome for result in results)
    faults = sum(counts[fault] for fault in FAULTS)
    ours = sum(counts[outcome] for outcome in _OURS) + faults
    cells = [len(results) - counts["not built"], ours, *(counts[o] for o in _OURS), faults]
    return f"| {name} | {' | '.join(map(str, cells))} | {_why(results)} |"


def _is_ours(result: Result) -> bool:
    return result.outcome in _OURS or result.outcome in FAULTS


def _refusals(results: Sequence[Result]) -> list[str]:
    """Return the rows of the table of refusals: operation, its networks, the first reason."""
    reasons: dict[str, str] = {}
    networks: dict[str, list[str]] = defaultdict(list)
    for result in results:
        if result.outcome == "refused":
            operation, _, reason = result.detail.split("; ")[0].partition(": ")
            reasons.setdefault(operation, reason)
            networks[operation].append(result.network.name)
    rows = []
    for operation, names in sorted(networks.items(), key=lambda item: -len(item[1])):
        shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
        why = textwrap.shorten(reasons[operation], 160, placeholder=" ...")
        cells = (operation, str(len(names)), shown, why)
        rows.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    return rows


def _library(library: str, results: Sequence[Result]) -> list[str]:
    families: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        families[result.network.family].append(result)
    ours = sorted(name for name, family in families.items() if any(map(_is_ours, family)))
    others = sorted(name for name, family in families.items() if name not in ours)
    lines = [
        "",
        f"## {library}",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + " --- |" * len(COLUMNS),
    ]
    lines += [_row(family, families[family]) for family in ours]
    if others:
        lines += [
            "",
            "No network of these families is of the ReLU family:",
            *textwrap.wrap(", ".join(others) + ".", 96),
        ]
    refusals = _refusals(results)
    if refusals:
        lines += [
            "",
            f"What is refused of the ReLU family of {library}:",
            "",
            "| operation or module | networks | which | why |",
            "| --- | --- | --- | --- |",
            *refusals,
        ]
    return lines


EARLIER = ", of an earlier measurement"


def _earlier(text: str, present: Sequence[str]) -> list[str]:
    """Return the sections of a page on libraries that the results do not hold.

    Their results were lost, and they stay until they are measured again.
    """
    lines = []
    for section in text.split("\n## ")[1:]:
        heading, _, body = section.partition("\n")
        if heading.removesuffix(EARLIER) not in present:
            body = body.partition("\nMeasured with ")[0].rstrip()
            lines += ["", f"## {heading.removesuffix(EARLIER)}{EARLIER}", *body.split("\n")]
    return lines


def page(found: Mapping[Network, tuple[Result, str]], before: str = "") -> str:
    """Return the page: counts, then one table per library with one row per family.

    Args:
        found: Result and revision of every network.
        before: The page as it stands, for the libraries of which there are no results.
    """
    by_library: dict[str, list[Result]] = defaultdict(list)
    for result, _ in found.values():
        by_library[result.network.library].append(result)
    present = [library for library in LIBRARIES if by_library[library]]
    lines = [
        "# Coverage of other libraries",
        "",
        "What `explain` and `pursuitify` make of networks that other libraries construct.",
        "",
        "| library | listed | ReLU family | examined | convert | of these proven | share |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for library in present:
        counts = Counter(result.outcome for result in by_library[library])
        ours = sum(map(_is_ours, by_library[library]))
        examined = ours - counts[LISTED]
        convert = sum(
            counts[outcome] for outcome in ("converted", "explained", "too large", "does not run")
        )
        share = f"{100 * convert / examined:.1f} %" if examined else ""
        listed = len(by_library[library]) - counts["not built"]
        cells = (library, listed, ours, examined, convert, counts["converted"], share)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += [
        "",
        *textwrap.wrap(EXPLANATION.strip(), 99, break_on_hyphens=False),
    ]
    for library in present:
        lines += _library(library, by_library[library])
    lines += _earlier(before, present)
    versions = [f"{library} {importlib.metadata.version(library)}" for library in present]
    return "\n".join(
        [*lines, "", f"Measured with torch {torch.__version__}, {', '.join(versions)}.", ""]
    )


def _examine(listed: Sequence[Network], path: Path, measured: str, **options: bool) -> None:
    with path.open("a") as file:
        for result in sweep(listed, **options):
            print(line_of(result, measured), file=file, flush=True)
            print(f"{result.network.name}: {result.outcome} {result.detail}", flush=True)


def measure(library: str, options: argparse.Namespace, measured: str) -> None:
    """List the networks of a library, then examine those that are not yet, smallest first."""
    path, each, again = options.results, options.each, tuple(options.again)
    unknown = [n for n in networks(library) if n not in read(path)]
    _examine(unknown, path, measured, others=False, listed_only=True)
    known = [r for r, _ in read(path).values() if r.network.library == library]
    outcomes = {result.network: result.outcome for result in known}
    others = by_size(r for r in known if not _is_ours(r) and r.outcome != "not built")[:1]
    ranks = by_size(r for r in known if _is_ours(r))[:each]
    plain = {"prove": not options.explain}
    smallest, rest = ([], ranks) if options.cheap else (ranks[:1], ranks[1:])
    if options.cheap:
        sizes = {result.network: result.parameters for result in known}
        twins = {n: "+" in n.name for rank in rest for n in rank}  # the same with checkpointing
        rest = [sorted(twins, key=lambda n: (twins[n], sizes[n]))]
    for chosen, wanted, bounds in (
        (smallest, {LISTED, *again}, True),
        (rest, {LISTED, *again}, False),
        (others, {COUNTED, *again}, True),
    ):
        left = [n for rank in chosen for n in rank if outcomes[n] in wanted]
        _examine(left, path, measured, bounds=bounds, **plain)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of JSON lines")
    parser.add_argument("--library", choices=LIBRARIES, nargs="*", default=LIBRARIES)
    parser.add_argument("--each", type=int, help="the smallest networks of every family only")
    parser.add_argument("--explain", action="store_true", help="explain, convert nothing")
    parser.add_argument(
        "--cheap", action="store_true", help="adaptive steps alone, smallest of all first"
    )
    parser.add_argument("--again", nargs="*", default=(), help="outcomes to examine once more")
    parser.add_argument("--page", action="store_true", help="write the page, examine nothing")
    options = parser.parse_args(arguments)
    if options.page:
        compact(options.results)
        PAGE.write_text(page(read(options.results), PAGE.read_text()))
        return 0
    measured = revision()
    for library in options.library:
        if importlib.util.find_spec(library) is None:
            print(f"{library} is not installed")
            continue
        measure(library, options, measured)
        compact(options.results)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
