"""Save and load in the layout of a Hugging Face Hub repository, without the network.

A folder with config.json (which model to build), model.safetensors (weights, and how the network
was converted) and README.md (the model card). Nothing in it is code: the folder names a builder
from a list of this program's own. Upload it with `huggingface-cli upload`, if you like.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import accuracy, digits, fit
from rich.console import Console

from pursuitify import PursuitNetwork, load, pursuitify, save
from pursuitify.models import ChainNet, DenselyConnectedNet, ResidualNet

#: What a folder may ask for; a name that is not here is refused.
BUILDERS = {"chain": ChainNet, "residual": ResidualNet, "dense": DenselyConnectedNet}
console = Console()


def save_pretrained(net: PursuitNetwork, folder: Path, builder: str, **arguments: Any) -> None:
    """Write the folder; ``BUILDERS[builder](**arguments)`` must build the source."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"library_name": "pursuitify", "builder": builder, "arguments": arguments}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save(net, folder / "model.safetensors")
    (folder / "README.md").write_text(
        f"---\nlibrary_name: pursuitify\n---\n\nA {builder} network, pursued with {net.solver} "
        f"solver and T = {net.iterations}.\n"
    )


def from_pretrained(folder: Path) -> PursuitNetwork:
    """Read the folder back; the network is in evaluation mode."""
    config = json.loads((folder / "config.json").read_text())
    if config.get("builder") not in BUILDERS:
        raise ValueError(f"{folder} asks for {config.get('builder')!r}, not one of {[*BUILDERS]}")
    model = BUILDERS[config["builder"]](**config["arguments"])
    return load(folder / "model.safetensors", model).eval()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="the folder to write; a temporary one if none")
    parser.add_argument("--images", type=int, default=1400, help="how many to train on")
    options = parser.parse_args(argv)
    torch.manual_seed(0)
    x, y, x_test, y_test = digits(options.images)
    arguments = {"in_channels": 1, "num_classes": 10, "width": 6}
    source = ResidualNet(**arguments)
    fit(source, x, y, epochs=5)
    net = pursuitify(source, iterations=5, step_scale=0.5)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.output or Path(temporary)
        save_pretrained(net, folder, "residual", **arguments)
        again = from_pretrained(folder)
        console.print(sorted(p.name for p in folder.iterdir()))
    with torch.no_grad():
        same = torch.equal(net(x_test), again(x_test))
    console.print(f"accuracy {accuracy(again, x_test, y_test):.1%}, the same as saved: {same}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
