"""Run an exported network where neither pursuitify nor scikit-learn is installed.

python examples/inference_only.py exported/net.onnx exported/images.npz

A .onnx file needs NumPy and onnxruntime, a .pt2 file NumPy and PyTorch; nothing else is imported.
export_digits.py writes all three files.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np


def scores(path: Path, images: np.ndarray) -> np.ndarray:
    """Return the network's class scores."""
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return session.run(None, {session.get_inputs()[0].name: images})[0]
    import torch

    with torch.no_grad():
        return torch.export.load(path).module()(torch.from_numpy(images)).numpy()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", type=Path, help="a .onnx or .pt2 file")
    parser.add_argument("images", type=Path, help="a .npz file with images, and labels if known")
    options = parser.parse_args(argv)
    data = np.load(options.images)
    predictions = scores(options.network, data["images"]).argmax(1)
    print(f"{len(predictions)} images, classes {np.bincount(predictions).tolist()}")
    if "labels" in data:
        print(f"accuracy {(predictions == data['labels']).mean():.2%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
