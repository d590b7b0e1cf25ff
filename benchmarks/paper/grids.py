"""The cells of every figure and of the question, most important first."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from benchmarks.paper.configuration import EPS, METHODS, Configuration, Evaluation, Training, paper


@dataclass(frozen=True)
class Cell:
    """A configuration under the label that tables and pictures give it; seeds share a label."""

    label: str
    configuration: Configuration

    @property
    def training(self) -> Training:
        return self.configuration.training


@dataclass(frozen=True)
class Size:
    """The part of a grid that is run.

    Attributes:
        seeds: How many, for the main comparisons and figures.
        training: Fields of every ``Training``.
        evaluation: Fields of every ``Evaluation``.
        depths: Depths of figure 5.
        widths: Its widths.
        sweeps: Sweeps of figure 6.
    """

    seeds: int
    training: dict[str, Any]
    evaluation: dict[str, Any]
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    sweeps: tuple[int, ...]


SIZES = {
    # Minutes on one core: to see that everything runs. Its numbers mean little.
    "quick": Size(1, {"images": 2000, "epochs": 4}, {"images": 60}, (1, 2), (4,), (1, 3)),
    # Hours on two cores: what docs/paper.md reports.
    "desk": Size(3, {}, {}, (1, 2, 3, 4, 5), (4, 8), (1, 3, 8)),
    # For a GPU: the paper's scale, where CIFAR-10 is at hand use --data cifar10.
    "full": Size(
        5,
        {"images": 50000, "epochs": 60, "data": "fashion28"},
        {"images": 2000},
        (1, 2, 3, 4, 5),
        (4, 8),
        (1, 2, 3, 5, 8, 10, 15),
    ),
}


def _cell(label: str, size: Size, training: Training, **evaluation: Any) -> Cell:
    chosen = Evaluation(**{**size.evaluation, **evaluation})
    return Cell(label, Configuration(replace(training, **size.training), chosen))


FEEDFORWARD = Training(solver="feedforward", iterations=0)
PURSUIT = Training()
NATURAL, DEEP, EXPLAINED = (
    "natural, T = 0",
    "natural, DP-res T = 5",
    "reconstruction 1, DP-res T = 5",
)

#: The question's main comparison, over all seeds.
MAIN: dict[str, Training] = {
    NATURAL: FEEDFORWARD,
    EXPLAINED: replace(PURSUIT, reconstruction=1.0),
    "reconstruction 1, T = 0": replace(FEEDFORWARD, reconstruction=1.0),
    "noise 0.1, T = 0": replace(FEEDFORWARD, noise=0.1),
    DEEP: PURSUIT,
    "adversarial, T = 0": replace(FEEDFORWARD, adversarial=EPS),
    "noise 0.1, DP-res T = 5": replace(PURSUIT, noise=0.1),
    "adversarial, DP-res T = 5": replace(PURSUIT, adversarial=EPS),
}
#: One factor at a time, over one seed where it is dear; each against ``PURSUIT`` or its twin at
#: T = 0.
FACTORS: dict[str, Training] = {
    "reconstruction 1 of rows that read x, DP-res T = 5": replace(
        PURSUIT, reconstruction=1.0, rows="input"
    ),
    "reconstruction 3, T = 0": replace(FEEDFORWARD, reconstruction=3.0),
    "reconstruction 0.3, T = 0": replace(FEEDFORWARD, reconstruction=0.3),
    "thresholds >= 0, T = 0": replace(FEEDFORWARD, nonnegative=True),
    "natural, T = 0, equal time (80 epochs)": replace(FEEDFORWARD, epochs=80),
    "reconstruction 3, DP-res T = 5": replace(PURSUIT, reconstruction=3.0),
    "reconstruction 0.3, DP-res T = 5": replace(PURSUIT, reconstruction=0.3),
    "thresholds >= 0, DP-res T = 5": replace(PURSUIT, nonnegative=True),
    "from zero (synchronous), T = 5": replace(PURSUIT, solver="synchronous"),
    "steps fixed, DP-res T = 5": replace(PURSUIT, learn_steps=False),
    "frame potential 10, DP-res T = 5": replace(PURSUIT, frame_potential=10.0),
    "noise 0.1 and reconstruction 1, T = 0": replace(FEEDFORWARD, noise=0.1, reconstruction=1.0),
    "noise 0.1 and reconstruction 1, DP-res T = 5": replace(PURSUIT, noise=0.1, reconstruction=1.0),
    "reconstruction 1, DP-res T = 10": replace(PURSUIT, reconstruction=1.0, iterations=10),
    "unit-norm filters, DP-res T = 5": replace(PURSUIT, unit_atoms=True),
    "implicit derivatives, DP-res T = 5": replace(PURSUIT, memory="implicit"),
    "natural, DP-res T = 15": replace(PURSUIT, iterations=15),
    "adversarial, T = 0, equal time (80 epochs)": replace(FEEDFORWARD, adversarial=EPS, epochs=80),
    "adversarial and reconstruction 1, DP-res T = 5": replace(
        PURSUIT, adversarial=EPS, reconstruction=1.0
    ),
}
#: Dear factors whose gain is large enough to ask whether it is there at every seed.
SEEDED = {
    "reconstruction 1 of rows that read x, DP-res T = 5",
    "reconstruction 3, DP-res T = 5",
}
#: The trained network at other settings of the pursuit: nothing is trained for these.
AT_TEST: dict[str, tuple[Training, dict[str, Any]]] = {
    "natural, DP-res T = 5, at T = 0": (PURSUIT, {"iterations": 0}),
    "natural, DP-res T = 5, at T = 20": (PURSUIT, {"iterations": 20}),
    "natural, DP-res T = 5, thresholds x 3": (PURSUIT, {"threshold_scale": 3.0}),
    "natural, T = 0, at T = 5": (FEEDFORWARD, {"iterations": 5}),
    "reconstruction 1, DP-res T = 5, at T = 0": (MAIN[EXPLAINED], {"iterations": 0}),
    "reconstruction 3, DP-res T = 5, at T = 0": (
        replace(PURSUIT, reconstruction=3.0),
        {"iterations": 0},
    ),
    "reconstruction 1 of rows that read x, DP-res T = 5, at T = 0": (
        replace(PURSUIT, reconstruction=1.0, rows="input"),
        {"iterations": 0},
    ),
    "adversarial, DP-res T = 5, at T = 0": (
        replace(PURSUIT, adversarial=EPS),
        {"iterations": 0},
    ),
}


def question(size: Size) -> list[Cell]:
    """The main comparison over all seeds, then one factor at a time, over one where it is dear."""
    cells = [
        _cell(label, size, replace(t, seed=seed))
        for seed in range(size.seeds)
        for label, t in MAIN.items()
    ]
    cells += [
        _cell(label, size, replace(t, seed=seed), **options)
        for label, (t, options) in AT_TEST.items()
        for seed in range(size.seeds)
    ]
    return cells + [
        _cell(label, size, replace(t, seed=seed))
        for label, t in FACTORS.items()
        for seed in range(size.seeds if _cheap(t) or label in SEEDED else 1)
    ]


def _cheap(training: Training) -> bool:
    """Whether a factor costs so little that every seed is run."""
    return training.iterations == 0 and training.epochs == Training().epochs


def figure5(size: Size) -> list[Cell]:
    """Feed-forward networks under the paper's rules: depth, width, skips (5, 13, 14; 11, 12)."""
    return [
        _cell(f"{method}, width {width}", size, paper(method, width=width, depth=depth, seed=seed))
        for seed in range(size.seeds)
        for width in size.widths
        for depth in size.depths
        for method in ("L-TP", "L-TP-res", "L-TP-dense")
        if not (method == "L-TP-dense" and depth == 1)  # it would be the chain
    ]


def figure6(size: Size) -> list[Cell]:
    """The paper's methods at depth 1 against the number of sweeps (6; 8, 9 and 10 alike).

    DP-dense has depth 2: with one unit per block there is nothing to connect.
    """
    less = {"images": size.training.get("images", 8000) // 2}
    smaller = replace(size, training={**size.training, **less})
    methods = ("DP-res", "DP", "L-BP", "DP-dense")
    cells = [
        _cell(method, smaller, paper(method, depth=1, seed=seed), diagnose=True)
        for seed in range(size.seeds)
        for method in ("L-TP-res", "L-TP")
    ]
    return cells + [
        _cell(
            method,
            smaller,
            paper(method, sweeps, depth=2 if method == "DP-dense" else 1, seed=seed),
            diagnose=True,
        )
        for sweeps in size.sweeps
        for method in methods
        for seed in range(1 if size.seeds == 3 and _dear(method, sweeps) else size.seeds)
    ]


def _dear(method: str, sweeps: int) -> bool:
    """Whether a network of figure 6 is trained for one seed only where hours are counted."""
    return method == "DP-dense" or sweeps > 3


def figure7(size: Size) -> list[Cell]:
    """Training curves, far past convergence."""
    longer = replace(
        size,
        training={
            **size.training,
            "images": size.training.get("images", 8000) // 4,
            "epochs": size.training.get("epochs", 8) * 4,
        },
    )
    return [
        _cell(
            method,
            longer,
            paper(
                method,
                0 if METHODS[method].get("iterations") == 0 else 5,
                history=4 if longer.training["epochs"] > 4 else 2,
            ),
            protocol="pgd",
        )
        for method in ("L-TP-res", "DP-res", "L-BP")
    ]


#: Networks trained fed forward, and how they are pursued afterwards: label to evaluation.
AFTERWARDS: dict[str, dict[str, Any]] = {
    "T = 0": {"iterations": 0},
    "T = 10": {"iterations": 10, "layout": "encoder", "gains": True},
    "T = 5": {"iterations": 5, "layout": "encoder", "gains": True},
    "T = 20": {"iterations": 20, "layout": "encoder", "gains": True},
    "T = 10, no gains": {"iterations": 10, "layout": "encoder"},
    "T = 10, thresholds, no gains": {"iterations": 10, "layout": "encoder", "offsets": "threshold"},
    "T = 10, layout auto": {"iterations": 10, "layout": "auto", "gains": True},
    "T = 50": {"iterations": 50, "layout": "encoder", "gains": True},
}


def afterwards(size: Size) -> list[Cell]:
    """Networks trained fed forward without any defence, pursued at test time; five seeds."""
    chosen = {"images": 1000, "protocol": "long menu"} if size.seeds == 3 else {"protocol": "menu"}
    seeds = 5 if size.seeds == 3 else size.seeds
    trained = {
        "chain": replace(FEEDFORWARD, network="chain"),
        "residual": FEEDFORWARD,
        "dense": replace(FEEDFORWARD, network="dense", depth=2),
    }
    labels = list(AFTERWARDS)
    return [
        _cell(f"{name}, {label}", size, replace(training, seed=seed), **chosen, **AFTERWARDS[label])
        for part in (labels[:2], labels[2:])
        for name, training in trained.items()
        for seed in range(seeds)
        for label in part
    ]


GRIDS = {
    "figure5": figure5,
    "figure6": figure6,
    "figure7": figure7,
    "question": question,
    "afterwards": afterwards,
}

#: What each table of cells compares with: the label of the baseline by the beginning of labels.
BASES = {
    "question": {"": NATURAL},
    "afterwards": {f"{name}, ": f"{name}, T = 0" for name in ("chain", "residual", "dense")},
}
