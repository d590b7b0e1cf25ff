"""The options of fine-tuning, checked all at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from enum import IntEnum
from typing import TYPE_CHECKING, Any, TypedDict

from pursuitify.errors import OptionError
from pursuitify.solvers.differentiation.modes import MODES
from pursuitify.utils.option_checks import (
    chosen,
    count,
    number,
    one_of,
    positive,
    switch,
    unknown_options,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

OPTIMIZERS = ("adamw", "sgd")


#: What to do where nothing has a label.
UNLABELLED = "Give class numbers, or learn from the inputs alone: finetune(..., reconstruction=1.0)"
OBJECTIVES = ("standard", "pgd", "trades")


KEEP = ("best", "last")


class Draw(IntEnum):
    """This names what random numbers are drawn for.

    Their seed is a function of this, of the option ``seed`` and of where training stands, so that
    resuming needs no generator's state. The numbers are part of what makes a run repeat.
    """

    ORDER, ITEM, STEP, ATTACK, PENALTY, SOURCE, NOISE = range(7)


#: What may differ between an interrupted run and the one that resumes it.
FREE = frozenset({"workers", "save_every", "log_every", "tensorboard", "progress"})


#: What must hold for an option to be read: in words, and as a test of the configuration.
READ_WITH: tuple[tuple[tuple[str, ...], str, Callable[[Config], bool]], ...] = (
    (
        ("eps", "attack_steps", "attack_step_size"),
        "objective='pgd' or 'trades'",
        lambda config: config.objective != "standard",
    ),
    (("trades_weight",), "objective='trades'", lambda config: config.objective == "trades"),
    (("sweeps_ramp",), "first_sweeps", lambda config: config.first_sweeps is not None),
)


@dataclass(frozen=True)
class Config:
    """The options of a fine-tuning. Fractions are of the whole training.

    Attributes:
        epochs: Passes over the training data.
        batch_size: Rows per batch over all processes; the last, incomplete batch of a pass is
            left out.
        optimizer: ``adamw`` or ``sgd`` (with Nesterov momentum 0.9).
        lr: Largest learning rate; a linear warm-up, then a cosine.
        pursuit_lr: The same for ``pursuit.*``: beta, and alpha and atom gains where they are
            trained; ``lr`` by default.
        warmup: Fraction of warm-up.
        final_lr: Learning rate at the end, as a fraction of the largest.
        weight_decay: On kernels and matrices; never on ``pursuit.*``, norms and biases.
        clip: Largest norm of the gradient, or None.
        label_smoothing: Of the cross entropy.
        ema: Decay of an average of the weights, which then is what is validated and kept; or None.
        objective: ``standard``, or adversarial: ``pgd`` (Madry et al. 2018) or ``trades`` (Zhang
            et al. 2019). Inputs in [0, 1]; normalise inside the model.
        eps: Radius of the attack, in the largest change of a pixel.
        attack_steps: Its steps.
        attack_step_size: Length of one; 2.5 eps / steps by default.
        noise: Standard deviation of Gaussian noise on the training inputs, which stay in [0, 1].
        trades_weight: Weight of TRADES' second term, its 1 / lambda.
        reconstruction: Weight of the relative reconstruction error at the pursued latents.
        frame_potential: Weight of the squared deep frame potential, estimated.
        first_sweeps: T at the start, where fewer sweeps come first; or None.
        sweeps_ramp: Fraction over which T then rises to the network's own.
        step_ramp: Fraction over which the network's ``step_scale`` rises from 0, where it equals
            its source, to its own value.
        patience: Stop after so many epochs without a better validation accuracy; or None.
        keep: Which weights the network has at the end: ``best`` by validation, or ``last``.
        save_every: Save the state after so many steps too, not only after each epoch; or None.
        log_every: Steps between two measurements of the objective F, for the log.
        memory: The network's derivative mode during steps, ``store``, ``recompute`` or
            ``implicit``; its own where it is not ``store``, else the first of ``store``,
            ``recompute`` and that with two levels which fits into the free memory. Set it, and
            nothing is chosen.
        micro_batches: Parts that every batch is cut into, one after the other, of which a step
            follows the mean; 1 unless nothing else fits. Set it, and nothing is chosen.
        workers: Processes that read the data, where it is a data set.
        tensorboard: Log for TensorBoard too.
        progress: Show a progress bar.
        seed: Seed of everything random. Rows' order and augmentation do not depend on the number
            of processes.
    """

    epochs: int = 5
    batch_size: int = 128
    optimizer: str = "adamw"
    lr: float = 1e-3
    pursuit_lr: float | None = None
    warmup: float = 0.1
    final_lr: float = 0.0
    weight_decay: float = 0.01
    clip: float | None = 1.0
    label_smoothing: float = 0.0
    ema: float | None = None
    objective: str = "standard"
    eps: float = 8 / 255
    attack_steps: int = 7
    attack_step_size: float | None = None
    noise: float = 0.0
    trades_weight: float = 6.0
    reconstruction: float = 0.0
    frame_potential: float = 0.0
    first_sweeps: int | None = None
    sweeps_ramp: float = 0.5
    step_ramp: float = 0.0
    patience: int | None = None
    keep: str = "best"
    save_every: int | None = None
    log_every: int = 20
    memory: str | None = None
    micro_batches: int | None = None
    workers: int = 0
    tensorboard: bool = False
    progress: bool = True
    seed: int = 0

    @property
    def learns_without_labels(self) -> bool:
        """Whether the loss has a part that reads no label."""
        return bool(self.reconstruction or self.frame_potential)

    def __post_init__(self) -> None:
        """Refuse what cannot be meant; all problems at once."""
        problems = [
            *_tried(self, positive, "epochs", "batch_size", "attack_steps", "log_every"),
            *_tried(self, positive, "patience", "save_every", "micro_batches", optional=True),
            *_tried(self, count, "workers", "seed"),
            *_tried(self, count, "first_sweeps", optional=True),
            *_tried(self, number, "lr", above=0),
            *_tried(self, number, "pursuit_lr", least=0, optional=True),
            *_tried(self, number, "clip", "attack_step_size", above=0, optional=True),
            *_tried(
                self, number, "warmup", "final_lr", "sweeps_ramp", "step_ramp", least=0, most=1
            ),
            *_tried(self, number, "weight_decay", "trades_weight", "noise", least=0),
            *_tried(self, number, "reconstruction", "frame_potential", least=0),
            *_tried(self, number, "label_smoothing", least=0, below=1),
            *_tried(self, number, "ema", least=0, below=1, optional=True),
            *_tried(self, number, "eps", least=0, most=1),
            *_tried(self, one_of, "memory", valid=tuple(MODES), optional=True),
        ]
        for name, valid in {"optimizer": OPTIMIZERS, "objective": OBJECTIVES, "keep": KEEP}.items():
            problems += _tried(self, one_of, name, valid=valid)
        problems += _tried(self, switch, "tensorboard", "progress")
        if problems:
            raise OptionError("\n".join(["the configuration has problems:", *_listed(problems)]))

    def with_options(self, options: Mapping[str, Any]) -> Config:
        """Return a copy with some options changed.

        Raises:
            OptionError: If one is unknown or out of range.
        """
        names = [field.name for field in fields(self)]
        unknown_options(options.keys() - set(names), names)
        return Config(**{**asdict(self), **options})

    def check_read(self) -> None:
        """Refuse options, other than by default, that nothing would read.

        Not done on construction: the options may be meant for another objective, chosen later.

        Raises:
            OptionError: Naming all of them, and what each needs.
        """
        own, problems = Config(), []
        for names, needed, holds in READ_WITH:
            if not holds(self):
                problems += [
                    f"{name}={getattr(self, name)!r} needs {needed}"
                    for name in names
                    if getattr(self, name) != getattr(own, name)
                ]
        if problems:
            raise OptionError(
                "\n".join(["options that would have no effect:", *_listed(problems)])
                + "\nLeave them out, or give what they need."
            )


def _listed(problems: list[str]) -> list[str]:
    return [f"  - {problem}" for problem in problems]


class ConfigOptions(TypedDict, total=False):
    """The types of the fields of ``Config``, which says what each is, for signatures."""

    epochs: int
    batch_size: int
    optimizer: str
    lr: float
    pursuit_lr: float | None
    warmup: float
    final_lr: float
    weight_decay: float
    clip: float | None
    label_smoothing: float
    ema: float | None
    objective: str
    eps: float
    attack_steps: int
    attack_step_size: float | None
    noise: float
    trades_weight: float
    reconstruction: float
    frame_potential: float
    first_sweeps: int | None
    sweeps_ramp: float
    step_ramp: float
    patience: int | None
    keep: str
    save_every: int | None
    log_every: int
    memory: str | None
    micro_batches: int | None
    workers: int
    tensorboard: bool
    progress: bool
    seed: int


def _tried(
    config: Config,
    check: Callable[..., Any],
    *names: str,
    optional: bool = False,
    **limits: Any,
) -> list[str]:
    """Return what a check of ``option_checks`` says of options; those that pass are made plain.

    Args:
        config: The configuration.
        check: The check; what it returns takes the option's place, a plain number for numpy's.
        names: The options.
        optional: Whether None passes, too.
        limits: Passed to the check.
    """
    found = []
    for name in names:
        value = getattr(config, name)
        if value is None and optional:
            continue
        try:
            object.__setattr__(config, name, check(name, value, **limits))
        except OptionError as error:
            found.append(str(error))
    return found


#: Options by name of the recipe.
RECIPES: dict[str, dict[str, Any]] = {
    "adversarial": {"objective": "pgd", "eps": 8 / 255, "attack_steps": 3},
    "noise": {"noise": 0.1},
    "reconstruction": {"reconstruction": 1.0},
}


DEFAULT = "adversarial"


def recipe(name: str = DEFAULT, **options: Unpack[ConfigOptions]) -> Config:
    """Return the configuration of a recipe.

    Args:
        name: ``adversarial``, the default: what gained most; ``noise``: less, at the cost of
            natural training; or ``reconstruction``: rows that explain their signals, for pursuit
            networks alone.
        **options: Fields of the configuration, by name; they go before the recipe's.

    Raises:
        OptionError: If there is no such recipe, an option is unknown or out of range, or one takes
            back what the recipe is.
    """
    own = chosen("recipe", name, RECIPES)
    config = Config().with_options({**own, **options})
    first, plain = next(iter(own)), Config()
    if getattr(config, first) == getattr(plain, first):
        raise OptionError(
            f"{first}={getattr(config, first)!r} takes back what the recipe {name!r} is; "
            "leave one of the two out"
        )
    return config
