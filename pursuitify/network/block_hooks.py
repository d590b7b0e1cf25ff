"""Forward hooks of blocks, and the functions of a network that call them where there are any.

A block is a module whose forward was traced, such as ``net.layer4``: its operations run in
generated code, and nothing calls the block itself. What its forward hooks get is said here:

* At T = 0 they get what the source's block returns, and derivatives with respect to it are the
  source's.
* At T > 0 they get the latent after the last sweep, or what the head computes of latents. The head
  reads what the hooks got, so that derivatives of the output with respect to it are those of the
  head, all other latents held. A latent that the head does not read has none: the sweeps infer all
  latents together, and the output is no function of one of them alone.

A hook may return another value where no row reads the block's; elsewhere only the same values, for
the sweeps would not follow it.

The hooks of one call run after the last sweep, in the order of the source, once per call of the
block; they get an empty tuple for the block's inputs.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from pursuitify.compiler.lowering.emit import Hooked, hooked
from pursuitify.compiler.lowering.program import Program


class HookCallers:
    """The functions that call hooks, by program and by the blocks that have some."""

    def __init__(self) -> None:
        self._made: dict[tuple[int, tuple[str, ...]], tuple[Program, Hooked]] = {}

    def __deepcopy__(self, memo: Any) -> HookCallers:
        """Return none: a copy makes its own."""
        return HookCallers()

    def __reduce__(self) -> tuple[type[HookCallers], tuple[()]]:
        """Pickle none of them."""
        return HookCallers, ()

    def of(self, network: nn.Module, program: Program, paths: tuple[str, ...]) -> Hooked:
        """Return the functions that call the hooks of the blocks at ``paths``.

        Args:
            network: The network.
            program: The program of its mode.
            paths: Blocks of ``Program.blocks``.
        """
        key = id(program), paths
        if key not in self._made:
            self._made[key] = program, hooked(program, network, paths)
        return self._made[key][1]
