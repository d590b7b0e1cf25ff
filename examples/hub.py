"""Save, load and share a network as the Hugging Face Hub keeps models.

The folder holds config.json (how the network was converted), model.safetensors (weights, and what
identifies the network) and README.md (the model card). Nothing in it is code. Everything but
``--push`` works without huggingface_hub and without the network:

    python examples/hub.py --output digits-pursuit
    python examples/hub.py --output digits-pursuit --push NAME/digits-pursuit
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from common import accuracy, digits, fit
from rich.console import Console

from pursuitify import PursuitNetwork, load, pursuitify, save_pretrained
from pursuitify.models import ResidualNet

console = Console()


def source() -> ResidualNet:
    """Return the plain model, as who loads the folder has to make it."""
    return ResidualNet(in_channels=1, num_classes=10, width=6)


def write(net: PursuitNetwork, folder: Path) -> None:
    """Write the folder and its model card."""
    save_pretrained(net, folder)
    (folder / "README.md").write_text(
        f"---\nlibrary_name: pursuitify\n---\n\nA small residual network for images of "
        f"digits, pursued with the {net.solver} solver and T = {net.iterations}.\n"
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="the folder to write; a temporary one if none")
    parser.add_argument("--images", type=int, default=1400, help="how many to train on")
    parser.add_argument("--push", metavar="NAME/REPO", help="upload it to the Hub, too")
    options = parser.parse_args(argv)
    torch.manual_seed(0)
    x, y, x_test, y_test = digits(options.images)
    model = source()
    fit(model, x, y, epochs=5)
    net = pursuitify(model, iterations=5, step_scale=0.5)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.output or Path(temporary)
        write(net, folder)
        if options.push is not None:
            from huggingface_hub import HfApi, snapshot_download

            HfApi().create_repo(options.push, exist_ok=True)
            HfApi().upload_folder(repo_id=options.push, folder_path=folder)
            folder = Path(snapshot_download(options.push))
        again = load(folder, source()).eval()
        console.print(sorted(p.name for p in folder.iterdir() if not p.name.startswith(".")))
    with torch.no_grad():
        same = torch.equal(net(x_test), again(x_test))
    console.print(f"accuracy {accuracy(again, x_test, y_test):.1%}, the same as saved: {same}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
