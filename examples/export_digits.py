"""Train a small network on digits, convert it and export it; inference_only.py runs the files.

python examples/export_digits.py --output exported
python examples/inference_only.py exported/net.onnx exported/images.npz
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from common import accuracy, digits, fit
from rich.console import Console

from pursuitify import pursuitify
from pursuitify.export import export_onnx, export_program
from pursuitify.models import ResidualNet

console = Console()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("exported"))
    parser.add_argument("--images", type=int, default=1400, help="how many to train on")
    options = parser.parse_args(argv)
    options.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    x, y, x_test, y_test = digits(options.images)
    source = ResidualNet(1, 10, width=6)
    fit(source, x, y, epochs=5)
    net = pursuitify(source, iterations=3)
    console.print(f"accuracy at T = 3: {accuracy(net, x_test, y_test):.2%}")
    difference = export_onnx(net, x_test[:2], options.output / "net.onnx")
    console.print(f"net.onnx: onnxruntime differs by {difference:.1e} of the largest logit")
    torch.export.save(export_program(net, x_test[:2]), options.output / "net.pt2")
    np.savez(options.output / "images.npz", images=x_test.numpy(), labels=y_test.numpy())
    return 0


if __name__ == "__main__":
    sys.exit(main())
