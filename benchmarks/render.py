"""Writes the tables of docs/performance.md from the committed JSON, and draws the pictures.

python benchmarks/render.py

A table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``; whatever is there is replaced.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import common, pictures, scaling

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "performance.md"
PICTURES = ROOT / "docs" / "pictures"
MARKED = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
#: Why each fitted exponent is what it is.
WHY = {
    "depth (basic blocks)": "A sweep visits every layer once, so network and source grow alike. "
    "The nominal depth counts stem and head, which do not repeat: time, in the blocks, grows a "
    "little faster than it; memory, of which the stem has a large share, more slowly.",
    "depth (bottlenecks)": "Blocks are added in the second and third stage only, while the fourth "
    "has the largest weights and the stem the largest maps. The weights grow with exponent 0.77, "
    "the multiplications with 0.93; at 64 px the time is nearer to the weights'.",
    "width": "Multiplications grow with the square of the width, elementwise work and the number "
    "of calls do not: the exponent of the time climbs towards 2. Memory holds maps only, hence 1.",
    "T": "Time is a + b T (the feed-forward pass, and what is fixed per call, beside the sweeps), "
    "hence below 1. Inference holds one state, whatever T is. Training keeps every sweep's, "
    "beside copies of the weights, which no sweep adds to.",
    "image side": "Maps grow with the square, and so does the state. Time grows more slowly at "
    "these sizes, in the source as well: what a pass costs however small the maps are is a large "
    "share (reading the weights, most likely; not profiled). Training keeps copies of the weights, "
    "which do not grow.",
    "batch": "State is exactly proportional. Time has a part that the batch does not "
    "change, in the source as well, as for the image side; what training keeps has the copies of "
    "the weights. Both are large beside two images of 64 px.",
}


def cells(values: Iterable[object]) -> str:
    return f"| {' | '.join(common.cell(v) for v in values)} |"


def table(rows: Sequence[common.Row], columns: dict[str, str]) -> list[str]:
    """Return a Markdown table; ``columns`` maps a heading to the field that stands below it."""
    body = [cells(row.get(field, "") for field in columns.values()) for row in rows]
    return [cells(columns), cells("---" for _ in columns), *body]


def setting(rows: Sequence[common.Row], fields: Sequence[str]) -> str:
    """Return what all rows share, in words."""
    words = {"batch": "batch {}", "size": "{} px", "backend": "backend {}", "clock": "{} time"}
    shared = {f: {row[f] for row in rows if f in row} for f in fields}
    return ", ".join(words[f].format(*v) for f, v in shared.items() if len(v) == 1)


def place(environment: common.Row) -> str:
    """Return where it was measured, in words."""
    count = environment["threads"]
    where = environment.get("gpu") or environment["processor"]
    return f"{count} thread{'s' * (count > 1)}, {where}, torch {environment['torch']}"


def inference(rows: Sequence[common.Row]) -> list[str]:
    columns = {"model": "model", "T": "sweeps", "compiled": "compiled", "sources": "sources"}
    return table(rows, columns | {"floors": "floors", "spread": "spread"})


def baselines(rows: Sequence[common.Row]) -> list[str]:
    columns = {"model": "model", "T": "sweeps", "way": "way", "sources": "sources"}
    columns |= {"floors": "floors", "convolutions per floor": "convolutions_per_floor"}
    return table(rows, columns | {"F after / F before": "objective"})


def compiling(rows: Sequence[common.Row]) -> list[str]:
    columns = {"model": "model", "T": "sweeps", "way": "way", "sources": "sources"}
    columns |= {"floors": "floors", "to eager": "to_eager", "difference": "difference"}
    return table(rows, columns | {"CPU s to compile": "compile_cpu_seconds"})


def training(rows: Sequence[common.Row]) -> list[str]:
    columns = {"model": "model", "T": "sweeps", "mode": "mode", "sources": "sources"}
    columns |= {"floors": "floors", "spread": "spread", "saved MiB": "saved_mib"}
    return table(rows, columns | {"saved, sources": "saved_sources"})


def memory(rows: Sequence[common.Row]) -> list[str]:
    """The rows that were timed, each against the source's and store's of its model and size."""
    shown: list[common.Row] = []
    for row in (r for r in rows if "cpu" in r):
        alike = [r for r in rows if all(r[k] == row[k] for k in ("model", "batch", "size"))]
        source = next(r for r in alike if r["mode"] == "source")
        stores = [r for r in alike if r["mode"] == "store" and r["sweeps"] == row["sweeps"]]
        shown.append(
            {
                **row,
                "saved_sources": row["saved"] / source["saved"],
                "resident_sources": row["resident"] / source["resident"],
                "floors": row["cpu"] / (source["cpu"] * common.floor(row["sweeps"])),
                "stores": row["cpu"] / stores[0]["cpu"] if stores else "",
            }
        )
    columns = {"model": "model", "T": "sweeps", "mode": "mode", "saved MiB": "saved"}
    columns |= {
        "saved, sources": "saved_sources",
        "resident MiB": "resident",
        "resident, sources": "resident_sources",
    }
    return table(shown, columns | {"CPU s": "cpu", "floors": "floors", "x store": "stores"})


#: Of what was converted, what the page shows: the whole zoo would be a page of its own.
CONVERTED = ("resnet18", "resnet50", "resnet152", "vgg16", "densenet121", "densenet201")
CONVERTED += ("mobilenet_v2", "googlenet", "inception_v3", "regnet_y_8gf", "squeezenet1_1")


def conversion(rows: Sequence[common.Row]) -> list[str]:
    listed = [r for r in rows if r["model"] in CONVERTED]
    shown = [{**r, "ms": 1000 * r["convert_cpu_seconds"]} for r in listed]
    columns = {"model": "model", "latents": "latents", "edges": "edges", "CPU ms": "ms"}
    return table(shown, columns | {"ms per latent": "ms_per_latent"})


def points(rows: Sequence[common.Row]) -> list[str]:
    shown = [{**r, "ms": 1000 * r["seconds"]} for r in rows]
    columns = {"factor": "factor", "value": "value", "CPU ms": "ms", "sources": "sources"}
    columns |= {"floors": "floors", "state MiB": "state_mib", "saved MiB": "saved_mib"}
    return table(shown, columns | {"saved, sources": "saved_sources"})


def exponents(rows: Sequence[common.Row]) -> list[str]:
    found = [
        {"factor": factor, "why": WHY[factor]}
        | {c: f"{power + 0.0:.2f} ({r2:.3f})".replace("-0.00", "0.00")
           for c, (power, r2) in curves.items()}
        for factor, curves in scaling.fits(rows)
    ]  # fmt: skip
    for row in found:
        last = sorted((r["value"], r["seconds"]) for r in rows if r["factor"] == row["factor"])[-2:]
        row["last"] = f"{scaling.fit(*zip(*last, strict=True))[0]:.2f}"
    columns = {"factor": "factor", **{c: c for c in scaling.CURVES}}
    return table(found, columns | {"time, last two": "last", "why": "why"})


def self_check(rows: Sequence[common.Row]) -> list[str]:
    shown = [{**r, "autograd": bool(r["autograd"])} for r in rows]
    columns = {"model": "model", "px": "size", "batch": "batch", "autograd": "autograd"}
    columns |= {"source ms": "source_ms", "check, sources": "check", "spread": "spread"}
    return table(shown, columns | {"peak MiB": "peak", "of a training step": "step_peak"})


def step_rules(rows: Sequence[common.Row]) -> list[str]:
    shown = [{**r, "reached": r["sweeps"], "needed": r["needed"] or "more"} for r in rows]
    columns = {"model": "model", "F of certified T": "reached", "steps": "rule", "T": "needed"}
    columns |= {"CPU s": "seconds", "to certified": "to_certified", "spread": "spread"}
    return table(shown, columns | {"one sweep, 2 sources": "per_sweep"})


#: The sweeps after which the page shows the objective.
SHOWN = (0, 1, 2, 3, 5, 10)


def step_curves(rows: Sequence[common.Row]) -> list[str]:
    """The objective after some sweeps, as a share of that at the start."""
    last = {(r["model"], r["rule"]): r for r in rows}
    shown = [
        {**r, **{f"F {t}": r["curve"][t] / r["curve"][0] for t in SHOWN if t < len(r["curve"])}}
        for r in last.values()
    ]
    columns = {"model": "model", "steps": "rule"}
    return table(shown, columns | {f"T = {t}": f"F {t}" for t in SHOWN})


#: Per table: the file, the script that makes it, what it is made by.
TABLES: dict[str, tuple[str, Callable[[Sequence[common.Row]], list[str]]]] = {
    "inference": ("inference", inference),
    "baselines": ("baselines", baselines),
    "compile": ("compile", compiling),
    "conversion": ("conversion", conversion),
    "self-check": ("self_check", self_check),
    "step-rules": ("step_rules", step_rules),
    "step-curves": ("step_rules", step_curves),
    "training": ("training", training),
    "memory": ("memory", memory),
    "scaling": ("scaling", points),
    "exponents": ("scaling", exponents),
}


def load(name: str, results: Path) -> dict[str, Any] | None:
    path = results / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def contents(name: str, results: Path) -> str:
    """Return what stands between the markers of a table.

    Raises:
        SystemExit: If there is no table of that name.
    """
    if name not in TABLES:
        raise SystemExit(f"no table is called {name!r}; there are {', '.join(TABLES)}")
    source, make = TABLES[name]
    record = load(source, results)
    if record is None:
        return f"\nNot run. `python benchmarks/{source}.py` measures it.\n\n"
    rows = record["rows"]
    shared = ("clock",) if source == "scaling" else ("batch", "size", "backend", "clock")
    caption = ", ".join(filter(None, (setting(rows, shared), place(record["environment"]))))
    lines = [f"`benchmarks/results/{source}.json`: {caption}.", "", *make(rows)]
    return "\n" + "\n".join(lines) + "\n\n"


def render(text: str, results: Path = common.RESULTS) -> str:
    """Return the page with its tables written afresh from the JSON in ``results``."""
    return MARKED.sub(lambda m: f"{m[1]}{contents(m[2], results)}{m[3]}", text)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--results", type=Path, default=common.RESULTS)
    parser.add_argument("--pictures", type=Path, default=PICTURES)
    given = parser.parse_args(argv)
    given.page.write_text(render(given.page.read_text(), given.results))
    pictures.draw(given.results, given.pictures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
