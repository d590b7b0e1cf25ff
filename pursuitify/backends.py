"""Switches between ways of computing the same thing.

``inplace`` chooses how sweeps are computed where no derivative is recorded: by the fast path of
``solvers/inplace``, which does elementwise work in place and packs kernels for oneDNN, or by the
plain path, which is the reference. Both give the same latents, to rounding.
"""

from __future__ import annotations

from types import TracebackType

_inplace = True


class inplace:  # noqa: N801 - it reads as a function: backends.inplace(False)
    """Switch the fast path on or off, for the whole process.

    The switch acts at once, as ``torch.set_grad_enabled`` does; in a ``with`` block the earlier
    setting comes back at its end::

        pursuitify.backends.inplace(False)

        with pursuitify.backends.inplace(False):
            y = net(x)
    """

    def __init__(self, enabled: bool) -> None:
        global _inplace
        self._before = _inplace
        _inplace = bool(enabled)

    def __enter__(self) -> None:
        """Keep the setting until the block ends."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Bring the earlier setting back."""
        global _inplace
        _inplace = self._before


def inplace_enabled() -> bool:
    """Return whether sweeps may take the fast path."""
    return _inplace
