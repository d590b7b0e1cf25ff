"""Write the generated parts of docs/architecture.md: one small residual network at every stage.

    python docs/make_architecture.py          # write
    python docs/make_architecture.py --check  # fail if the page is not what this writes

The parts stand between ``<!-- NAME -->`` and ``<!-- end -->``; the rest of the page is text.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from pursuitify import PursuitNetwork, pursuitify

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "architecture.md"


class Tiny(nn.Module):
    """A residual network with three weighted operators."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 2, 3, padding=1)
        self.conv2 = nn.Conv2d(2, 2, 3, padding=1)
        self.fc = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return three logits of images of one channel."""
        a = F.relu(self.conv1(x))
        b = F.relu(self.conv2(a) + a)
        return self.fc(b.mean((2, 3)))


def order() -> str:
    """Return the folders from errors to the command line, with the first line of each docstring."""
    lines = ["| folder | contents |", "| --- | --- |"]
    text = (ROOT / "pyproject.toml").read_text()
    layers = re.search(r'containers = \["pursuitify"\].*?layers = \[(.*?)\]', text, re.S)
    assert layers is not None
    names = [n for line in re.findall(r'"([^"]+)"', layers[1]) for n in line.split(" | ")]
    for name in reversed(names):
        folder = ROOT / "pursuitify" / name
        inside = sorted(p for p in folder.glob("*/__init__.py")) if folder.is_dir() else []
        for path in (folder / "__init__.py" if inside or folder.is_dir() else None, *inside):
            file = path or folder.with_suffix(".py")
            shown = file.parent.relative_to(ROOT / "pursuitify") if path else Path(f"{name}.py")
            first = (ast.get_docstring(ast.parse(file.read_text())) or "").split("\n")[0]
            lines.append(f"| `{shown.as_posix()}` | {first} |")
    return "\n".join(lines)


def block(text: str, language: str = "text") -> str:
    """Return text as a code block."""
    return f"```{language}\n{text.rstrip()}\n```"


def source(_net: PursuitNetwork) -> str:
    """Return the model's code."""
    return block(textwrap.dedent(inspect.getsource(Tiny.forward)), "python")


def traced(net: PursuitNetwork) -> str:
    """Return the functional graph, a line per node."""
    return block("\n".join(node.format_node() or f"return {node.args}" for node in _nodes(net)))


def _nodes(net: PursuitNetwork) -> list[fx.Node]:
    return list(net._program.graph.nodes)


def classified(net: PursuitNetwork) -> str:
    """Return what every node is."""
    lines = ["| node | value | rule | kind | affine operands |", "| --- | --- | --- | --- | --- |"]
    for node, site in net._program.sites.items():
        rule = ("", "") if site.rule is None else (f"`{site.rule.name}`", site.rule.kind)
        operands = ", ".join(f"`{o}`" for o in site.operands if o is not None)
        lines.append(f"| `{node}` | {site.value.value} | {rule[0]} | {rule[1]} | {operands} |")
    return "\n".join(lines)


def rows(net: PursuitNetwork) -> str:
    """Return the rows as compile time describes them."""
    names = {-1: "input"} | {row.index: row.name for row in net._program.rows}
    lines = []
    for row in net._program.rows:
        lines.append(f"row {row.index} {row.name}: {row.layout}, from {row.preactivation}")
        lines.append(f"    B_j: {row.diagonal or 'identity'}")
        for slot in row.slots:
            for path in slot.paths:
                through = " then ".join(name for name, _ in path.uses) or "identity"
                lines.append(f"    u_j reads {names[path.leaf]} through {through}")
    return block("\n".join(lines))


def program(net: PursuitNetwork) -> str:
    """Return the generated code of the feed-forward pass and of the head."""
    codes = (net._program._forward, net._program._head)
    return "\n\n".join(block(inspect.getsource(code).strip(), "python") for code in codes)


def dictionary(net: PursuitNetwork) -> str:
    """Return the bound rows."""
    with torch.no_grad():
        d = net.dictionary(image())
        dense, signal, thresholds = d.materialize()
    lines = []
    for row, shape in zip(d.rows, d.shapes, strict=True):
        diagonal = [type(m).__name__ for m in row.diagonal.maps] if row.diagonal else "identity"
        lam = None if row.threshold is None else tuple(row.threshold.shape)
        lines.append(f"{row.name}: latent {tuple(shape)}, B_j {diagonal}, lam {lam}")
        for paths in row.slots:
            for path in paths:
                maps = [type(m).__name__ for m in path.maps] or "identity"
                lines.append(
                    f"    reads {'x' if path.leaf < 0 else d.rows[path.leaf].name}: {maps}"
                )
    sizes = [tuple(value.shape) for value in (dense, signal, thresholds)]
    lines.append(f"materialize(): B {sizes[0]}, y {sizes[1]}, lam {sizes[2]}")
    return block("\n".join(lines))


def sweep(net: PursuitNetwork) -> str:
    """Return what two sweeps did."""
    net.iterations = 2
    trace = net.diagnose(image())
    lines = ["| sweep | objective | steps | change |", "| --- | --- | --- | --- |"]
    for t, record in enumerate(trace.sweeps):
        steps = ", ".join(f"{value:.3f}" for value in record.step)
        change = ", ".join(f"{value:.3f}" for value in record.change)
        lines.append(f"| {t} | {record.objective:.4f} | {steps} | {change} |")
    return "\n".join(lines)


def image() -> Tensor:
    """Return one image of 4 by 4 pixels."""
    return torch.linspace(0, 1, 16).reshape(1, 1, 4, 4)


PARTS: dict[str, Callable[[Any], str]] = {
    "order": lambda _: order(),
    "source": source,
    "traced": traced,
    "classified": classified,
    "rows": rows,
    "program": program,
    "dictionary": dictionary,
    "sweep": sweep,
}


def page(text: str) -> str:
    """Return the page with every part made anew."""
    torch.manual_seed(1)
    net = pursuitify(Tiny().eval(), iterations=1)
    for name, part in PARTS.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.S)
        made = part(net)
        text, count = pattern.subn(lambda m, made=made: f"{m[1]}\n{made}\n\n{m[2]}", text)
        if count != 1:
            raise SystemExit(f"the page has {count} places for {name!r}")
    return text


def main() -> None:
    """Write or check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    old = PAGE.read_text()
    new = page(old)
    if check and new != old:
        sys.exit("docs/architecture.md is not up to date: run python docs/make_architecture.py")
    PAGE.write_text(new)


if __name__ == "__main__":
    main()
