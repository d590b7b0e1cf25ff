"""One command per figure; finished cells are found again, so an interrupted run goes on."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import torch
import typer
from rich.console import Console

from benchmarks.paper import cell, certified, grids, summary
from benchmarks.paper.figures import FIGURES

DOCS = Path(__file__).parent.parent.parent / "docs" / "paper"
app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)
console = Console(highlight=False, soft_wrap=True)
QUICK = typer.Option(False, "--quick", help="minutes on one core; its numbers mean little")
FULL = typer.Option(False, "--full", help="sized for a GPU")
DATA = typer.Option(None, help="fashion16, fashion28, cifar10 or digits")
DEVICE = typer.Option("cpu", help="cpu or cuda")
UNTIL = typer.Option(None, help="start no cell after this time, HH:MM")
DRAW = typer.Option(False, "--draw", help="run nothing: draw what is finished")


def work(
    name: str, grid: str, quick: bool, full: bool, data: str | None, device: str,
    until: str | None, draw: bool,
) -> None:  # fmt: skip
    """Run the cells of a grid that have no result yet; then write table, picture and JSON."""
    if quick and full:
        raise typer.BadParameter("--quick and --full exclude each other")
    chosen = "quick" if quick else "full" if full else "desk"
    size = grids.SIZES[chosen]
    if data is not None:
        size = replace(size, training={**size.training, "data": data})
    desk = size == grids.SIZES["desk"]
    results = cell.RESULTS if desk else cell.WEIGHTS / "cells"
    output = DOCS if desk else cell.WEIGHTS / chosen
    cells = grids.GRIDS[grid](size)
    if not draw:
        _run(cells, results, device, until)
    pairs = summary.finished(cells, results)
    console.print(f"{len(pairs)} of {len(cells)} cells have a result")
    if name in FIGURES:
        text = FIGURES[name][1](pairs, output / f"{name}.png")
    else:
        text = summary.tables(summary.grouped(pairs), grids.BASES[grid])
    output.mkdir(parents=True, exist_ok=True)
    (output / f"{name}.md").write_text(text)
    listed = [{"label": c.label, "name": r["name"], "found": r["found"]} for c, r in pairs]
    cell.write(output / f"{name}.json", {"size": chosen, "cells": listed})
    console.print(text)
    console.print(f"wrote {output / name}.md, .json" + (", .png" if name in FIGURES else ""))


def _run(cells: list[grids.Cell], results: Path, device: str, until: str | None) -> None:
    if device == "cpu":
        torch.set_num_threads(1)
    for number, one in enumerate(cells, 1):
        if until is not None and time.strftime("%H:%M") >= until:
            console.print(f"it is past {until}: {len(cells) - number + 1} cells are left")
            return
        known = cell.cached(one.configuration, results) is not None
        result = cell.run(one.configuration, results, device=device)
        found = result["found"]
        shown = {k: round(found[k], 3) for k in ("clean", "fgsm", "pgd", "worst") if k in found}
        seconds = result["training"]["cpu_seconds"] + result["evaluation_cpu_seconds"]
        took = "kept" if known else f"{seconds:.0f} s"
        where = f"depth {one.training.depth}, T {one.training.iterations}"
        console.print(
            f"{number}/{len(cells)} {one.label}, {where}, seed {one.training.seed}: "
            f"{shown} ({took})"
        )


def _command(name: str, grid: str, text: str) -> None:
    @app.command(name, help=text)
    def command(
        quick: bool = QUICK, full: bool = FULL, data: str = DATA, device: str = DEVICE,
        until: str = UNTIL, draw: bool = DRAW,
    ) -> None:  # fmt: skip
        work(name, grid, quick, full, data, device, until, draw)


for _name, (_grid, _figure) in FIGURES.items():
    _command(_name, _grid, str(_figure.__doc__))
_command("question", "question", "What makes pursuit more robust? One factor at a time.")
_command("afterwards", "afterwards", str(grids.afterwards.__doc__))


@app.command("certified", help=certified.__doc__)
def _certified(quick: bool = QUICK, full: bool = FULL) -> None:
    torch.set_num_threads(1)
    where = DOCS if not (quick or full) else cell.WEIGHTS / ("quick" if quick else "full")
    console.print(certified.report(where, quick=quick, full=full))


if __name__ == "__main__":
    app()
