"""PursuitNetwork: the source network with its activations inferred by deep pursuit."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import networkx as nx
import torch
from torch import Tensor, fx, nn

from pursuitify import checks, diagnosis, dictionary, pursuit, steps
from pursuitify.classify import Value, classify, problems
from pursuitify.diagnosis import PursuitTrace
from pursuitify.dictionary import StructuredDictionary
from pursuitify.errors import ConversionError, InputError
from pursuitify.graph import Layout, build, check_complete, to_networkx
from pursuitify.lower import lower
from pursuitify.program import Pass, Program
from pursuitify.rules import Key, Registry, Rule, default
from pursuitify.trace import LeafModule, Traced, same_graph, trace

_RESERVED = ("iterations", "solver", "pursuit")
_SAFE_BETA = (0.501, 1.0)
_PAPER_BETA = (1e-3, 1.0)


class PursuitNetwork(nn.Module):
    """A network whose latents are inferred together by T sweeps of pursuit.

    Takes what its source takes and returns what it returns. Parameters and buffers keep the names
    they have in the source; what pursuit adds is named ``pursuit.*``. At ``iterations = 0`` it is
    the source, operation for operation.

    Made by :func:`pursuitify`.
    """

    pursuit: steps.Schedule

    def __init__(
        self,
        model: nn.Module,
        programs: Mapping[bool, Program],
        constants: Mapping[str, Tensor],
        *,
        iterations: int,
        solver: str,
        beta_range: tuple[float, float],
    ) -> None:
        """Take over the model's children; see :func:`pursuitify`."""
        super().__init__()
        for name, child in model.named_children():
            setattr(self, name, child)
        for name, parameter in model.named_parameters(recurse=False):
            setattr(self, name, parameter)
        persistent = model.state_dict().keys()
        for name, buffer in model.named_buffers(recurse=False):
            self.register_buffer(name, buffer, persistent=name in persistent)
        for name, value in constants.items():
            self.register_buffer(name, value, persistent=False)
        self.training = model.training
        self._programs = dict(programs)
        self._norms = steps.Norms()
        like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
        count = max(len(p.rows) for p in programs.values())
        self.pursuit = steps.Schedule(count, beta_range, like.dtype).to(like.device)
        self.iterations = iterations
        self.solver = solver

    # -- options ------------------------------------------------------------------------------

    @property
    def iterations(self) -> int:
        """T, the number of sweeps; 0 is the source network."""
        return self._iterations

    @iterations.setter
    def iterations(self, value: int) -> None:
        self._iterations = checks.count("iterations", value)

    @property
    def solver(self) -> str:
        """``global``, ``layered`` or ``feedforward``."""
        return self._solver

    @solver.setter
    def solver(self, value: str) -> None:
        self._solver = checks.one_of("solver", value, checks.SOLVERS)

    def extra_repr(self) -> str:
        """Return the options for ``repr``."""
        count = len(self._program.rows)
        return f"solver={self.solver!r}, iterations={self.iterations}, latents={count}"

    # -- structure ----------------------------------------------------------------------------

    @property
    def _program(self) -> Program:
        return self._programs[self.training]

    @property
    def graph(self) -> nx.DiGraph[str]:
        """The dependency graph in topological order, of the current mode.

        Nodes are ``input`` and the latents' names, with attributes index, activation, layout
        (``decoder`` or ``encoder``) and source (module path); edges have kind and paths.
        """
        return to_networkx(self._program.rows, self._program.sites, self)

    @property
    def source(self) -> fx.GraphModule:
        """The source network as a GraphModule that shares every parameter: the way back."""
        module = fx.GraphModule(self, copy.deepcopy(self._program.graph), "Source")
        module.training = self.training
        return module

    # -- inference ----------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the source returns, from the pursued latents."""
        program = self._program
        values = self._arguments(program, args, kwargs)
        if self.iterations == 0 or self.solver == "feedforward":
            with _input_errors():
                return program.plain(self, *args, **kwargs)
        first, bound = self._bind(program, values)
        latents = tuple(self._last(bound, first))
        return program.head(self, latents, first, values)

    def latents(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Return the latents after pursuit by name, in graph order."""
        with self._untouched():
            first, bound = self._bound(args, kwargs)
            w = self._last(bound, first) if self.iterations else list(first.latents)
        return dict(zip(bound.names, w, strict=True))

    def dictionary(self, *args: Any, **kwargs: Any) -> StructuredDictionary:
        """Return the structured dictionary bound to this batch, frozen values included."""
        with self._untouched():
            return self._bound(args, kwargs)[1]

    def step_sizes(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Return gamma_j by latent for this batch and the current solver."""
        with self._untouched():
            bound = self._bound(args, kwargs)[1]
            return dict(zip(bound.names, self._steps(bound), strict=True))

    def objective(self, x: Any, latents: Mapping[str, Tensor]) -> Tensor:
        """Return F of the given latents per sample, shape (batch,) (11)."""
        with self._untouched():
            return self._bound((x,), {})[1].objective(latents)

    @torch.no_grad()
    def diagnose(self, *args: Any, **kwargs: Any) -> PursuitTrace:
        """Run the pursuit and return what every sweep did."""
        with self._untouched():
            first, bound = self._bound(args, kwargs)
            gammas = self._steps(bound)
            return diagnosis.record(
                bound, first.latents, self._states(bound, first, gammas), gammas
            )

    def _bound(
        self, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[Pass, StructuredDictionary]:
        program = self._program
        return self._bind(program, self._arguments(program, args, kwargs))

    def _bind(self, program: Program, values: Sequence[Any]) -> tuple[Pass, StructuredDictionary]:
        with _input_errors():
            first = program.forward(self, *values)
        return first, dictionary.bind(program, first, values)

    def _steps(self, bound: StructuredDictionary) -> list[Tensor]:
        tensors = [*self.parameters(), *self.buffers()]
        self._norms.refresh(tensors, self.training)
        layered = self.solver == "layered"
        constants = steps.lipschitz(bound, self._norms, layered)
        return steps.step_sizes(constants, self.pursuit.betas())

    def _states(
        self, bound: StructuredDictionary, first: Pass, gammas: Sequence[Tensor]
    ) -> Iterator[list[Tensor]]:
        if self.solver == "layered":
            return pursuit.layered(bound, first.latents, gammas, self.iterations)
        if self.solver == "feedforward":
            return iter(())
        alphas = self._alphas()
        return pursuit.global_pursuit(bound, first.latents, gammas, alphas, self.iterations)

    def _last(self, bound: StructuredDictionary, first: Pass) -> list[Tensor]:
        *_, last = [list(first.latents), *self._states(bound, first, self._steps(bound))]
        return last

    def _alphas(self) -> list[Tensor] | None:
        """Extrapolation weights, or None where all are zero and nothing trains them."""
        alpha = self.pursuit.alpha
        trained = torch.is_grad_enabled() and alpha.requires_grad and self.training
        if not trained and not torch.compiler.is_compiling() and not bool(alpha.any()):
            return None
        return list(self.pursuit.alphas())

    # -- plumbing -----------------------------------------------------------------------------

    def _arguments(
        self, program: Program, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[Any, ...]:
        """Return the call's values in the order of the placeholders, checked."""
        names = [str(node.target) for node in program.inputs]
        if len(args) > len(names):
            raise InputError(f"the network takes {len(names)} arguments ({names}), not {len(args)}")
        given = dict(zip(names, args, strict=False))
        for name, value in kwargs.items():
            matching = [n for n in names if n == name or n.rsplit("_", 1)[0] == name]
            if not matching or matching[0] in given:
                raise InputError(f"unexpected argument {name!r}; the network takes {names}")
            given[matching[0]] = value
        values = []
        for node, name in zip(program.inputs, names, strict=True):
            if name in given:
                values.append(given[name])
            elif node.args:
                values.append(node.args[0])
            else:
                raise InputError(f"the network needs the argument {name!r}")
        checks.inputs(program, values, self)
        return tuple(values)

    @contextlib.contextmanager
    def _untouched(self) -> Iterator[None]:
        """Leave running statistics and counters as they are."""
        if not self.training:
            yield
            return
        saved = [(b, b.clone()) for b in self.buffers()]
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in saved:
                    buffer.copy_(value)


@contextlib.contextmanager
def _input_errors() -> Iterator[None]:
    """Say that a shape error of an operation comes from the input."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise InputError(f"the network cannot run on this input: {error}") from error


def pursuitify(
    model: nn.Module,
    iterations: int = 10,
    solver: str = "global",
    layout: Layout = "auto",
    *,
    copy: bool = True,
    paper: bool = False,
    rules: Mapping[Key, Rule] | None = None,
    leaf_modules: Sequence[LeafModule] = (),
    **unknown: Any,
) -> PursuitNetwork:
    """Turn a network of convolutions, dense layers and ReLUs into a deep pursuit network.

    Args:
        model: Any module torch.fx can trace; never changed.
        iterations: T, the number of sweeps; settable later, 0 is the source network.
        solver: ``global`` (Algorithm 2), ``layered`` (Algorithm 1) or ``feedforward``.
        layout: ``auto`` (decoder rows where possible), ``encoder`` (every row but those that
            read the input) or ``decoder`` (an error where a row has no decoder form).
        copy: Deep-copy the weights; with False the network shares the model's modules.
        paper: Let beta_j range over the paper's (0, 1] instead of (1/2, 1], where descent of the
            objective is guaranteed.
        rules: Rules for the user's own modules and functions, before the built-in ones.
        leaf_modules: Module types or paths not to trace into.
        **unknown: Refused by name.

    Returns:
        The pursuit network, in the model's own mode.

    Raises:
        OptionError: If an argument is unknown or invalid.
        TraceError: If torch.fx cannot follow the model.
        ConversionError: If operations cannot be converted; lists all of them.
    """
    valid = ("iterations", "solver", "layout", "copy", "paper", "rules", "leaf_modules")
    checks.unknown_options(unknown, valid)
    checks.model(model)
    checks.count("iterations", iterations)
    checks.one_of("solver", solver, checks.SOLVERS)
    checks.one_of("layout", layout, checks.LAYOUTS)
    taken = [n for n, _ in model.named_children() if n in _RESERVED]
    if taken:
        raise ConversionError(f"the model has submodules with names pursuit needs: {taken}; rename")
    registry = default().extended(rules or {})
    traces = {
        mode: trace(model, training=mode, leaf_modules=leaf_modules) for mode in (False, True)
    }
    programs = {False: compile_program(model, traces[False], registry, layout)}
    if same_graph(traces[False].graph, traces[True].graph):
        programs[True] = programs[False]
    else:
        programs[True] = compile_program(model, traces[True], registry, layout)
    return PursuitNetwork(
        _copied(model) if copy else model,
        programs,
        {**traces[False].constants, **traces[True].constants},
        iterations=iterations,
        solver=solver,
        beta_range=_PAPER_BETA if paper else _SAFE_BETA,
    )


def _copied(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model)


def compile_program(
    model: nn.Module, traced: Traced, registry: Registry, layout: Layout
) -> Program:
    """Compile one traced graph.

    Raises:
        ConversionError: If it cannot be converted.
    """
    sites = classify(traced.graph, model, registry)
    found = problems(traced.graph, model, sites)
    if not any(site.value is Value.LATENT for site in sites.values()):
        raise ConversionError(
            f"{type(model).__name__} has no activation of the ReLU family on its way from input "
            "to output, so there is nothing to pursue",
            found,
        )
    if found:
        raise ConversionError(
            f"{type(model).__name__} cannot be converted: {len(found)} operation(s) are neither "
            "linear nor proximal and lie before an activation",
            found,
        )
    rows = build(traced.graph, model, sites, layout)
    check_complete(traced.graph, sites, rows)
    return lower(traced.graph, model, sites, rows)
