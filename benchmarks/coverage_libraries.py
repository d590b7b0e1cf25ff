"""The coverage table of other libraries: what a conversion makes of the networks they construct.

python benchmarks/coverage_libraries.py --results runs.jsonl     # all; hours; goes on where it was
python benchmarks/coverage_libraries.py --results runs.jsonl --relu  # the ReLU family: two hours
python benchmarks/coverage_libraries.py --results runs.jsonl --each 2 --library monai
python benchmarks/coverage_libraries.py --results runs.jsonl --page  # writes the page from them

Every network is examined in a child process by ``tests/support/libraries.py``, as in the slow test.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.support.libraries import COUNTED, FAULTS, LIBRARIES, Network, Result, networks, sweep  # noqa: E402

PAGE = ROOT / "docs" / "coverage-other-libraries.md"
#: What a network of the ReLU family can become.
_OURS = ("converted", "explained", "refused", "too large", "does not run")
COLUMNS = ("family", "examined", "ReLU family", *_OURS, "faults", "why not")


def read(path: Path) -> list[Result]:
    """Return the results of a file of JSON lines, the last one of every network."""
    found: dict[Network, Result] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        entry = json.loads(line)
        network = Network(**entry.pop("network"))
        found[network] = Result(network, **entry)
    return list(found.values())


def chosen(library: str, each: int | None) -> list[Network]:
    """Return the networks of a library, or the first few of every family by name."""
    families: dict[str, list[Network]] = defaultdict(list)
    for network in networks(library):
        families[network.family].append(network)
    return [network for family in families.values() for network in family[:each]]


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


def page(results: Sequence[Result]) -> str:
    """Return the page: one table per library, one row per family."""
    lines = [
        "# Coverage of other libraries",
        "",
        "What `explain` and `pursuitify` make of networks that other libraries construct.",
        "",
        "*Converted* networks were run through `net.verify` and compared with their source at",
        "T = 0, in evaluation and in training mode (with `example_inputs` where a branch on",
        "sizes was guessed wrong without them, and said so); *explained* ones would convert,",
        "which was not run. *Faults* are deaths of the process, errors that are not of",
        "pursuitify's own family, conversions that are not their source, and refusals after the",
        "conversion; there must be none. Networks that are refused for GELU, SiLU, the softmax of",
        "an attention and the like count as examined, but not as ReLU family. Larger ones than",
        "150 million parameters are explained alone. *Why not* says by what the refused ones are",
        "refused. The networks are those measured so far, over several revisions, not all that the",
        "libraries have. Written by `benchmarks/coverage_libraries.py`; the slow test",
        "`tests/conversion/test_other_libraries.py` runs the same over all networks.",
        "",
    ]
    versions = [f"torch {torch.__version__}"]
    by_library: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        by_library[result.network.library].append(result)
    header = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    lines += ["| library " + header[0][8:], header[1]]
    lines += [_row(library, by_library[library]) for library in LIBRARIES if by_library[library]]
    for library in LIBRARIES:
        if not by_library[library]:
            continue
        versions.append(f"{library} {importlib.metadata.version(library)}")
        families: dict[str, list[Result]] = defaultdict(list)
        for result in by_library[library]:
            families[result.network.family].append(result)
        lines += ["", f"## {library}", "", *header]
        lines += [_row(family, families[family]) for family in sorted(families)]
    return "\n".join([*lines, "", f"Measured with {', '.join(versions)}.", ""])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, required=True, help="file of JSON lines")
    parser.add_argument("--library", choices=LIBRARIES, nargs="*", default=LIBRARIES)
    parser.add_argument("--each", type=int, help="the first networks of every family only")
    parser.add_argument("--explain", action="store_true", help="explain, convert nothing")
    parser.add_argument(
        "--relu",
        action="store_true",
        help="count networks with GELU and the like, explain the first of each family alone",
    )
    parser.add_argument("--page", action="store_true", help="write the page, examine nothing")
    options = parser.parse_args(arguments)
    if options.page:
        PAGE.write_text(page(read(options.results)))
        return 0
    for library in options.library:
        if importlib.util.find_spec(library) is None:
            print(f"{library} is not installed")
            continue
        known = {result.network: result.outcome for result in read(options.results)}
        passes = [(chosen(library, options.each), not options.relu)]
        if options.relu and options.each is None:
            passes.append((chosen(library, 1), True))
        for listed, others in passes:
            left = [n for n in listed if n not in known or (others and known[n] == COUNTED)]
            with options.results.open("a") as file:
                for result in sweep(left, prove=not options.explain, others=others):
                    known[result.network] = result.outcome
                    print(json.dumps(dataclasses.asdict(result)), file=file, flush=True)
                    print(f"{library} {result.network.name}: {result.outcome} {result.detail}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
