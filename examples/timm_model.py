"""Convert a timm model: explain, convert, compare, and choose how far pursuit may go.

python examples/timm_model.py --model resnet18 --size 160
"""

from __future__ import annotations

import argparse
import sys

import torch
from rich.console import Console

from pursuitify import calibrate, explain, pursuitify

console = Console()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--pretrained", action="store_true", help="downloads weights")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--sweeps", type=int, default=5)
    options = parser.parse_args(argv)
    try:
        import timm
    except ImportError:
        console.print("timm is not installed: pip install 'pursuitify[timm]'", markup=False)
        return 1

    torch.manual_seed(0)
    model = timm.create_model(options.model, pretrained=options.pretrained).eval()
    report = explain(model)
    if not report.ok:
        console.print(f"{options.model} cannot be converted:")
        for problem in report.problems:
            console.print(f"  {problem}", markup=False)
        return 1
    console.print(f"{options.model}: {report.latents} latents, {report.edges} edges")

    net = pursuitify(model, iterations=0)
    x = torch.rand(4, 3, options.size, options.size)
    with torch.no_grad():
        same = torch.equal(net(x), model(x))
    console.print(f"without sweeps the outputs are {'the same' if same else 'NOT the same'}")
    net.iterations = options.sweeps
    # Random images for the sake of the example: give a loader of your own, labels are not read.
    console.print(calibrate(net, [x], agreement=0.75, apply=True))
    console.print(net.diagnose(x), highlight=False)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
