"""The call of a custom ``torch.autograd.Function`` as one operation of a graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.autograd import Function


@dataclass(frozen=True)
class Applied:
    """Applies a Function.

    ``Function.apply`` itself is another object at every access, and generated code would look for
    it in torch by its name.

    Attributes:
        function: The Function.
    """

    function: type[Function]

    @property
    def __name__(self) -> str:
        """Name of the Function."""
        return self.function.__name__

    def __call__(self, *args: Any) -> Any:
        """Return what the Function returns."""
        return self.function.apply(*args)


def applied(key: Any) -> Any:
    """Return the operation that a key of rules stands for.

    A Function and its ``apply`` both stand for ``Applied``; any other key is returned as it is.
    """
    owner = getattr(key, "__self__", None)
    if isinstance(owner, type) and issubclass(owner, Function) and key == owner.apply:
        return Applied(owner)
    return Applied(key) if isinstance(key, type) and issubclass(key, Function) else key
