"""A cell of an experiment is plain data, with a name made of its contents."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

EPS = 8 / 255


@dataclass(frozen=True)
class Training:
    """The construction and training of a network; equal fields give equal weights.

    Attributes:
        network: ``chain``, ``residual`` or ``dense``: the paper's networks and a dense one.
        solver: ``feedforward``, ``layered``, ``global`` or ``synchronous``.
        iterations: T.
        width: Filters of the first block.
        depth: Units per block.
        batch_norm: With BatchNorm, its scale and offset fixed by the feed-forward pass.
        layout: Layout of the dictionary.
        offsets: Where offsets of encoder rows stand: ``threshold``, the paper's, or ``signal``.
        nonnegative: Hold thresholds to >= 0.
        beta: ``safe`` lets beta_j range over (1/2, 1], ``paper`` over (0, 1].
        learn_steps: Train beta_j and alpha_j; otherwise they stay at 1 and 0.
        unit_atoms: Scale every filter to unit length after each step.
        memory: How derivatives are taken: ``store``, or ``implicit`` at the last iterate.
        data: ``fashion16``, ``fashion28``, ``cifar10`` or ``digits``.
        images: How many training images.
        epochs: Passes over them.
        batch: Images per step.
        rate: Peak learning rate.
        reconstruction: Weight of the mean over rows of ||r||^2 / ||u||^2.
        rows: Which rows that loss reads: ``all``, or ``input`` for those that read the input.
        frame_potential: Weight of the squared deep frame potential.
        noise: Standard deviation of Gaussian noise on the training images.
        adversarial: Radius of PGD points trained on, linf; 0 for none.
        adversarial_steps: Steps of that PGD.
        history: Evaluate after every that many epochs, for the training curves; 0 for never.
        seed: Of weights and batches.
    """

    network: str = "residual"
    solver: str = "global"
    iterations: int = 5
    width: int = 8
    depth: int = 1
    batch_norm: bool = True
    layout: str = "auto"
    offsets: str = "threshold"
    nonnegative: bool = False
    beta: str = "safe"
    learn_steps: bool = True
    unit_atoms: bool = False
    memory: str = "store"
    data: str = "fashion16"
    images: int = 8000
    epochs: int = 8
    batch: int = 128
    rate: float = 1e-2
    reconstruction: float = 0.0
    rows: str = "all"
    frame_potential: float = 0.0
    noise: float = 0.0
    adversarial: float = 0.0
    adversarial_steps: int = 3
    history: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Evaluation:
    """The measurements that are made of a trained network.

    Attributes:
        images: How many test images, the first of the test set.
        eps: Radius of the attacks, linf.
        protocol: ``fgsm``, ``pgd``, ``menu`` for the strongest attack over all of the menu, or
            ``long menu`` for more of each attack.
        iterations: T at test time; -1 for the T it was trained with.
        threshold_scale: Factor on the positive thresholds in the sweeps.
        diagnose: Measure reconstruction per sweep and coherence.
        layout: Convert the trained weights again, to this layout of the dictionary; empty for the
            network as it was trained.
        offsets: Where the offsets of its encoder rows stand then.
        gains: Fit atom gains then, on 200 training images without their labels.
    """

    images: int = 500
    eps: float = EPS
    protocol: str = "menu"
    iterations: int = -1
    threshold_scale: float = 1.0
    diagnose: bool = False
    layout: str = ""
    offsets: str = "signal"
    gains: bool = False


@dataclass(frozen=True)
class Configuration:
    """One cell."""

    training: Training = Training()
    evaluation: Evaluation = Evaluation()

    @property
    def name(self) -> str:
        """A hash of everything that differs from the defaults."""
        return digest({"training": spelled(self.training), "evaluation": spelled(self.evaluation)})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def spelled(part: Training | Evaluation) -> dict[str, Any]:
    """Return the fields that differ from their defaults, so that a new field renames nothing."""
    return {f.name: value for f in fields(part) if (value := getattr(part, f.name)) != f.default}


def digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def from_dict(value: dict[str, Any]) -> Configuration:
    """Return the configuration that ``to_dict`` wrote."""
    return Configuration(Training(**value["training"]), Evaluation(**value["evaluation"]))


#: The paper's methods, and one beyond it.
METHODS: dict[str, dict[str, Any]] = {
    "L-TP": {"network": "chain", "solver": "feedforward", "iterations": 0},
    "L-TP-res": {"network": "residual", "solver": "feedforward", "iterations": 0},
    "L-TP-dense": {"network": "dense", "solver": "feedforward", "iterations": 0},
    "L-BP": {"network": "chain", "solver": "layered"},
    "DP": {"network": "chain", "solver": "global"},
    "DP-res": {"network": "residual", "solver": "global"},
    "DP-dense": {"network": "dense", "solver": "global"},
}


def paper(method: str, iterations: int = 0, **fields: Any) -> Training:
    """Return a method under the paper's rules: thresholds >= 0, trained beta and alpha."""
    options: dict[str, Any] = {"iterations": iterations, **METHODS[method], **fields}
    return replace(Training(nonnegative=True), **options)
