"""The coverage table: every model of torchvision's registry, converted or refused with the reason.

python benchmarks/coverage.py            # writes docs/coverage.md (about ten minutes)
python benchmarks/coverage.py --quick    # a subset, printed only
python benchmarks/coverage.py --check    # compares with docs/coverage.md; 1 if it got worse
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import inspect
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn
from torchvision import models

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pursuitify import PursuitNetwork, explain, pursuitify  # noqa: E402
from tests.support.agreement import bound_pass, compare, error  # noqa: E402

PAGE = ROOT / "docs" / "coverage.md"
TOLERANCE = 1e-5
QUICK = (
    "googlenet", "mobilenet_v2", "regnet_y_400mf", "resnet18", "shufflenet_v2_x0_5",
    "squeezenet1_1", "efficientnet_b0", "mobilenet_v3_small",
)  # fmt: skip
#: Built once, at the end; they are large.
LARGE = ("regnet_y_128gf",)
SHAPES: dict[str, tuple[int, ...]] = {
    "s3d": (3, 14, 224, 224),
    "r3d": (3, 4, 32, 32),
    "mc3": (3, 4, 32, 32),
    "r2plus1d": (3, 4, 32, 32),
    "inception": (3, 299, 299),
    "quantized_inception": (3, 299, 299),
    "vgg": (3, 32, 32),
}
COLUMNS = (
    "model", "converts", "latents", "identity", "edges", "decoder rows", "encoder rows", "gates",
    "T = 0, eval", "T = 0, train", "why not",
)  # fmt: skip
#: What ``--check`` compares; the wording of reasons may change.
COMPARED = slice(1, 8)


@dataclasses.dataclass(frozen=True)
class Line:
    """One model of the table."""

    model: str
    converts: bool
    latents: int = 0
    identity: int = 0
    edges: int = 0
    decoder: int = 0
    encoder: int = 0
    gates: int = 0
    evaluated: float = 0.0
    trained: float = 0.0
    reason: str = ""

    def cells(self) -> list[str]:
        if not self.converts:
            return [self.model, "no", *[""] * 8, self.reason]
        counts = (self.latents, self.identity, self.edges, self.decoder, self.encoder, self.gates)
        errors = (f"{self.evaluated:.0e}", f"{self.trained:.0e}")
        return [self.model, "yes", *map(str, counts), *errors, ""]


def shape_of(name: str) -> tuple[int, ...]:
    return next((s for prefix, s in SHAPES.items() if name.startswith(prefix)), (3, 64, 64))


def build(name: str) -> nn.Module:
    """Build a model without weights; segmentation models with their auxiliary head."""
    options: dict[str, Any] = {"weights": None}
    known = inspect.signature(models.get_model_builder(name)).parameters
    if "weights_backbone" in known:
        options["weights_backbone"] = None
    if "aux_loss" in known and name.startswith(("fcn", "deeplabv3_resnet")):
        options["aux_loss"] = True
    if name.endswith(("googlenet", "inception_v3")):
        options["init_weights"] = False
    torch.manual_seed(0)
    return models.get_model(name, **options)


def dry_run(name: str) -> Any:
    """Explain a model, without memory for its weights where it can be built on meta."""
    if not name.startswith("regnet"):
        try:
            with torch.device("meta"):
                return explain(build(name).eval())
        except (NotImplementedError, RuntimeError):
            pass
    return None


def reasons(report: Any) -> str:
    """Return the operations that are refused, the most frequent first."""
    counts = Counter(p.op if p.node != "-" else p.reason for p in report.problems)
    said = [f"{op} x{n}" if n > 1 else op for op, n in counts.most_common(4)]
    text = ", ".join(said) + (", ..." if len(counts) > 4 else "")
    return text.replace("|", "/")[:160]


@torch.no_grad()
def shared_errors(net: PursuitNetwork, model: nn.Module, x: torch.Tensor) -> list[float]:
    """The same error without copies of the weights: outputs of network and model that share."""
    found = []
    for training in (False, True):
        model.train(training)
        net.train(training)
        expected = model(x)
        net.iterations = 0
        found.append(max(error(net(x), expected), error(bound_pass(net, (x,))[0], expected)))
    return found


def measure(name: str) -> Line:
    report = dry_run(name)
    if report is not None and not report.ok:
        return Line(name, False, reason=reasons(report))
    model = build(name).eval()
    report = explain(model)
    if not report.ok:
        return Line(name, False, reason=reasons(report))
    x = torch.rand(2, *shape_of(name), generator=torch.Generator().manual_seed(0))
    if name in LARGE:
        worst = shared_errors(pursuitify(model, copy=False), model, x)
    else:
        worst = []
        for training in (False, True):
            same = {"training": training, "tolerance": float("inf"), "check_rows": False}
            worst.append(compare(pursuitify, model, x, **same)[1])
    return Line(
        name,
        True,
        report.latents,
        report.identity_latents,
        report.edges,
        report.decoder_rows,
        report.encoder_rows,
        report.gates,
        *worst,
    )


def page(lines: Sequence[Line]) -> str:
    yes = sum(line.converts for line in lines)
    rows = [line.cells() for line in lines]
    return "\n".join(
        [
            "# Coverage",
            "",
            f"{yes} of the {len(lines)} models of torchvision's registry convert; the rest are",
            "refused, and the last column says by what. Written by `benchmarks/coverage.py`;",
            "`benchmarks/coverage.py --check` fails when the table got worse.",
            "",
            "*Latents* are activations, *identity* latents are linear values that several rows",
            "read (see mathematics.md, section 1); *edges* count paths between latents, the",
            "input's included; *gates* are multiplicative branches frozen at the feed-forward",
            "pass; *T = 0* is the largest difference from the source network's output,",
            "relative, float32. Conversion times are in performance.md.",
            f"torch {torch.__version__}, torchvision {torchvision.__version__}.",
            "",
            "| " + " | ".join(COLUMNS) + " |",
            "|" + " --- |" * len(COLUMNS),
            *("| " + " | ".join(row) + " |" for row in rows),
            "",
        ]
    )


def committed() -> dict[str, list[str]]:
    """The rows of the committed table by model."""
    rows = {}
    for text in PAGE.read_text().splitlines():
        cells = [c.strip() for c in text.strip("|").split("|")]
        if len(cells) == len(COLUMNS) and cells[0] not in {"model", "---"}:
            rows[cells[0]] = cells
    return rows


def worse(lines: Sequence[Line], old: dict[str, list[str]]) -> list[str]:
    """Return what is worse than in the committed table, or has changed without a word."""
    found = []
    for line in lines:
        cells = line.cells()
        before = old.get(line.model)
        if line.converts and max(line.evaluated, line.trained) > TOLERANCE:
            found.append(f"{line.model}: T = 0 error {cells[8]} (eval), {cells[9]} (train)")
        if before is None:
            found.append(f"{line.model}: not in the committed table")
        elif before[COMPARED] != cells[COMPARED] and not (line.converts and before[1] == "no"):
            found.append(f"{line.model}: was {before[COMPARED]}, is {cells[COMPARED]}")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a subset of the models")
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    parser.add_argument("--models", nargs="*", help="these models only, printed")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    names = options.models or (QUICK if options.quick else models.list_models())
    ordered = sorted(names, key=lambda n: (n in LARGE, n))
    lines = []
    for name in ordered:
        try:
            lines.append(measure(name))
        except Exception as failure:  # one broken model must not cost the table
            reason = str(failure).splitlines()[0][:100]
            lines.append(Line(name, False, reason=f"{type(failure).__name__}: {reason}"))
        print(" | ".join(lines[-1].cells()), flush=True)
        gc.collect()
    lines.sort(key=lambda line: line.model)
    if options.check:
        found = worse(lines, committed())
        print("\n".join(found) or "the table holds")
        return 1 if found else 0
    if not (options.quick or options.models):
        PAGE.write_text(page(lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
