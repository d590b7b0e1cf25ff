"""relu_twin(): a copy of a model in which activations that cannot convert are replaced."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from pursuitify.conversion import model_checks
from pursuitify.errors import OptionError
from pursuitify.utils.terminal import Shown

Made = Callable[[], nn.Module]
#: What stands in for each activation that is no proximal operator.
_KIN: dict[type[nn.Module], Made] = dict.fromkeys(
    (nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.SELU), nn.ReLU
)


@dataclass(frozen=True)
class Replacement:
    """One module of a twin that is another than in the model.

    Attributes:
        module: Its path; empty for the model itself.
        old: Name of the type that the model has there.
        new: Name of the type that the twin has there.
    """

    module: str
    old: str
    new: str


@dataclass(frozen=True)
class Twin(Shown):
    """A copy of a model with other activations.

    Attributes:
        model: The copy, with the model's weights in tensors of its own.
        replaced: What is different, in the order of ``model.named_modules()``.
    """

    model: nn.Module
    replaced: tuple[Replacement, ...]

    def __str__(self) -> str:
        """Return what was replaced, line by line."""
        lines = [f"  {r.module or 'the model'}: {r.old} -> {r.new}" for r in self.replaced]
        count = "1 module" if len(lines) == 1 else f"{len(lines)} modules"
        return "\n".join([f"{count} replaced", *lines])


def relu_twin(model: nn.Module, mapping: Mapping[type[nn.Module], Made] | None = None) -> Twin:
    """Return a copy of a model whose activations convert; the model is not changed.

    GELU, SiLU, Mish, Hardswish and SELU modules become ReLU, weights are kept. The twin is another
    function: fine-tune it. Activations that the code of a forward calls as functions
    (``F.gelu(x)``, ``F.silu(x)``) are no modules and stay as they are.

    Args:
        model: The model.
        mapping: Module types, each with what makes its replacement, called without arguments; they
            come before the usual ones. Subclasses count only where they are named.

    Returns:
        The copy, and the list of what was replaced. A module that stands in several places is
        replaced by one module in all of them, and listed once.

    Raises:
        OptionError: If the mapping holds something else, or makes no module.

    Examples:
        >>> twin = relu_twin(nn.Sequential(nn.Linear(4, 8), nn.GELU()))
        >>> twin.model[1]
        ReLU()
        >>> [(changed.module, changed.old) for changed in twin.replaced]
        [('1', 'GELU')]
    """
    root = model_checks.model(model)
    made = {**_KIN, **_checked(mapping or {})}
    twin = copy.deepcopy(root)
    if type(twin) in made:
        new = _make(made[type(twin)], twin)
        return Twin(new, (Replacement("", type(twin).__name__, type(new).__name__),))
    found: dict[nn.Module, nn.Module] = {}
    replaced: list[Replacement] = []
    for path, module in twin.named_modules():
        inside = any(path.startswith(f"{other.module}.") for other in replaced)
        if type(module) in made and not inside:
            found[module] = _make(made[type(module)], module)
            names = type(module).__name__, type(found[module]).__name__
            replaced.append(Replacement(path, *names))
    for owner in list(twin.modules()):
        for name, child in list(owner._modules.items()):
            if child is not None and child in found:
                setattr(owner, name, found[child])
    return Twin(twin, tuple(replaced))


def _checked(mapping: Mapping[type[nn.Module], Made]) -> dict[type[nn.Module], Made]:
    for key, make in mapping.items():
        if not (isinstance(key, type) and issubclass(key, nn.Module) and callable(make)):
            raise OptionError(
                f"mapping holds {key!r}: {make!r}; it must hold module types, each with a type or "
                "a function that makes its replacement, for example {nn.GELU: nn.ReLU}"
            )
    return dict(mapping)


def _make(make: Made, old: nn.Module) -> nn.Module:
    """Return a replacement in the mode of what it replaces."""
    new = make()
    if not isinstance(new, nn.Module):
        raise OptionError(
            f"mapping makes {new!r} for {type(old).__name__}; it must make a module, for example "
            "nn.ReLU()"
        )
    return new.train(old.training)
