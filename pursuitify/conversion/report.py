"""The report of explain(), and its forms on a terminal, as text and as Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.table import Table
from rich.text import Text

from pursuitify.errors import Problem
from pursuitify.utils.terminal import Shown, as_text


@dataclass(frozen=True)
class Entry:
    """The role of one node in the conversion.

    Attributes:
        node: The fx node's name.
        op: What it does.
        module: Path of the module it belongs to.
        role: ``latent``, ``identity latent``, ``diagonal operator``, ``edge``, ``head``,
            ``frozen``, ``frozen gate``, ``constant``, ``input``, ``signal``, ``output``,
            ``unused``, ``refused``, or ``unknown`` for what only refused nodes read.
        note: What more there is to say; of what is refused the reason.
    """

    node: str
    op: str
    module: str
    role: str
    note: str = ""


#: Said of the roles in a model that does not convert.
_AS_IF = (
    "Roles are those with what is refused taken as an activation, or as an input where it reads "
    "several values."
)
#: Columns from which on a table of nodes has the column of modules.
_WIDE = 110
#: Names of nodes that a group of problems lists.
_LISTED = 6


def grouped(problems: Sequence[Problem]) -> dict[str, list[Problem]]:
    """Group problems that are the same but for their place.

    Returns:
        The problems by a text on each group: what stands in the way, why, what to do, and where.
    """
    groups: dict[tuple[str, str, str], list[Problem]] = {}
    for problem in problems:
        groups.setdefault((problem.op, problem.reason, problem.hint), []).append(problem)
    found = {}
    for (op, reason, hint), group in groups.items():
        text = str(group[0])
        if len(group) > 1:
            names = ", ".join(p.node for p in group[:_LISTED])
            more = f" and {len(group) - _LISTED} more" if len(group) > _LISTED else ""
            said = f"{op}, {len(group)} times: {reason}. {hint}".rstrip().removesuffix(".")
            text = f"{said}. It is {names}{more}"
        found[text] = group
    return found


def shortened(names: Sequence[str], width: int) -> list[str]:
    """Return names of at most ``width`` characters, what is longer cut in the middle.

    Names that differ stay different. Where no cut at one place keeps all of them so, those that
    would look alike end in their number in the list.

    Args:
        names: The names.
        width: The most characters, at least 8.
    """

    def cut(name: str, tail: int) -> str:
        fits = len(name) <= width
        return name if fits else f"{name[: width - 1 - tail]}…{name[len(name) - tail :]}"

    first = 2 * width // 3
    for tail in (first, *range(width - 2, 0, -1)):
        found = {name: cut(name, tail) for name in names}
        if len(set(found.values())) == len(found):
            return [found[name] for name in names]
    number = {name: f"…#{i}" for i, name in enumerate(names, start=1)}
    counts = Counter(cut(name, first) for name in found)
    return [
        cut(name, first)
        if counts[cut(name, first)] == 1
        else name[: width - len(number[name])] + number[name]
        for name in names
    ]


@dataclass(frozen=True)
class _Nodes:
    """The table of entries, made for the width of the terminal.

    Attributes:
        entries: The entries.
        numbers: The number of the group that a problem's node is in, by the node's name.
    """

    entries: tuple[Entry, ...]
    numbers: Mapping[str, int]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        wide = options.max_width >= _WIDE
        columns = {
            "node": shortened([e.node for e in self.entries], 3 * options.max_width // 10),
            "op": shortened([e.op for e in self.entries], options.max_width // 7),
        }
        if wide:
            modules = [e.module for e in self.entries]
            columns["module"] = shortened(modules, options.max_width // 4)
        columns["role"] = [e.role for e in self.entries]
        table = Table()
        left = options.max_width - 3 * (len(columns) + 1) - 1
        for title, cells in columns.items():
            width = max(len(cell) for cell in (title, *cells))
            table.add_column(title, overflow="fold", width=width)
            left -= width
        table.add_column("note", overflow="fold", width=max(left, len("see 10.")))
        for *cells, entry in zip(*columns.values(), self.entries, strict=True):
            number = self.numbers.get(entry.node)
            table.add_row(*cells, entry.note if number is None else f"see {number}.")
        yield table


@dataclass(frozen=True)
class Report(Shown):
    """The dry run of a conversion.

    Attributes:
        model: Name of the model's class.
        ok: Whether it converts.
        problems: Why not, all at once.
        entries: Every node of the traced graph, in order. Of a model that does not convert, with
            the roles they would have if what is refused were activations, or inputs where it reads
            several values.
        latents: Number of latents that are activations.
        identity_latents: Number of identity latents.
        edges: Number of paths between latents, the input's included.
        decoder_rows: Rows with the weighted operator on the diagonal.
        encoder_rows: Rows with the identity on the diagonal.
        gates: Multiplicative gates frozen at the feed-forward pass.
        weighted_per_sweep: Applications of weighted operators per sweep, forward and adjoint.
        latent_bytes: Memory of all latents for one sample, if an input shape was given.
        warnings: What a reader should know, for example a latent that may run away.
        picture: The block structure of the dictionary, in text.
    """

    model: str
    ok: bool
    problems: tuple[Problem, ...]
    entries: tuple[Entry, ...] = ()
    latents: int = 0
    identity_latents: int = 0
    edges: int = 0
    decoder_rows: int = 0
    encoder_rows: int = 0
    gates: int = 0
    weighted_per_sweep: int = 0
    latent_bytes: int | None = None
    warnings: tuple[str, ...] = ()
    picture: str = field(default="", repr=False)

    def _facts(self) -> list[tuple[str, str]]:
        facts = [
            ("latents", f"{self.latents} + {self.identity_latents} identity"),
            ("edges", str(self.edges)),
            ("rows", f"{self.decoder_rows} decoder, {self.encoder_rows} encoder"),
            ("frozen gates", str(self.gates)),
            ("weighted operators per sweep", str(self.weighted_per_sweep)),
        ]
        if self.latent_bytes is not None:
            facts.append(("latents of one sample", f"{self.latent_bytes / 2**20:.2f} MiB"))
        return facts

    def __rich__(self) -> RenderableType:
        """Render for a terminal."""
        parts: list[RenderableType] = [Text(self._headline(), style="bold")]
        if self.entries:
            parts.append(_Nodes(self.entries, self._numbers()))
            if not self.ok:
                parts.append(Text(_AS_IF))
        if self.ok:
            facts = Table(show_header=False)
            for name, value in self._facts():
                facts.add_row(name, value)
            parts += [facts, Text(self.picture)]
        parts += [Text(f"warning: {w}", style="yellow") for w in self.warnings]
        said = enumerate(grouped(self.problems), start=1)
        parts += [Text(f"{number}. {text}", style="red") for number, text in said]
        return Group(*parts)

    def _numbers(self) -> dict[str, int]:
        groups = enumerate(grouped(self.problems).values(), start=1)
        return {problem.node: number for number, group in groups for problem in group}

    def _headline(self) -> str:
        if self.ok:
            return f"{self.model} converts"
        return f"{self.model} does not convert: {len(self.problems)} problem(s)"

    def __str__(self) -> str:
        """Return the report as text."""
        return as_text(self, width=140)

    def markdown(self) -> str:
        """Return the report as Markdown."""
        lines = [f"## {self._headline()}", ""]
        if self.ok:
            lines += ["| what | value |", "| --- | --- |"]
            lines += [f"| {name} | {value} |" for name, value in self._facts()]
            lines += ["", "```", self.picture, "```", ""]
        lines += [f"- warning: {w}" for w in self.warnings]
        said = enumerate(grouped(self.problems), start=1)
        lines += [f"{number}. {text}" for number, text in said]
        if self.entries:
            lines += ["", _AS_IF] if not self.ok else []
            lines += ["", "| node | op | module | role | note |", "| --- | --- | --- | --- | --- |"]
            lines += [
                f"| {e.node} | {e.op} | {e.module} | {e.role} | {e.note} |" for e in self.entries
            ]
        return "\n".join(lines) + "\n"
