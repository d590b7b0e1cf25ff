"""PursuitNetwork: the source network with its activations inferred by deep pursuit."""

from __future__ import annotations

import copy
import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

import networkx as nx
import torch
from torch import Tensor, fx, nn

from pursuitify.compiler.equalization.equalize import Balance
from pursuitify.compiler.graph.dependency_graph import to_networkx
from pursuitify.compiler.lowering.emit import revive
from pursuitify.compiler.lowering.program import Pass, Program
from pursuitify.dictionary import norm_bounds, structured
from pursuitify.dictionary.norm_bounds import CertifiedNorms
from pursuitify.dictionary.structured import StructuredDictionary
from pursuitify.errors import ConversionError, InputError, OptionError
from pursuitify.network import arguments, diagnosis, slope_checks, verification
from pursuitify.network.block_hooks import HookCallers
from pursuitify.network.diagnosis import PursuitTrace
from pursuitify.network.module_record import Unchanged
from pursuitify.network.verification import Start, Verification
from pursuitify.operators.norms.fingerprint import Versions
from pursuitify.solvers.differentiation.implicit import Solves
from pursuitify.solvers.inplace import kernel_packing
from pursuitify.solvers.line_search import LineSearch
from pursuitify.solvers.proximal_step import may_overwrite
from pursuitify.solvers.settings import HELD, OFF, Settings
from pursuitify.solvers.solver import Pack, SolverInput
from pursuitify.solvers.step_sizes import PursuitParameters, refuse_overflow
from pursuitify.utils import func_transforms, memory_format, option_checks, torch_internals
from pursuitify.utils.autocast import full_precision
from pursuitify.utils.running_statistics import untouched
from pursuitify.utils.training_modes import Modes


def slots(trained: Sequence[str], evaluated: Sequence[str]) -> tuple[list[int], list[int], int]:
    """Place the latents of both modes in one vector, the same latent at the same place.

    Args:
        trained: Names of the latents in training mode, in graph order; they come first.
        evaluated: Names of the latents in evaluation mode.

    Returns:
        The place of every latent in training mode, in evaluation mode, and the vector's length.
    """
    place = {name: i for i, name in enumerate(dict.fromkeys((*trained, *evaluated)))}
    return [place[n] for n in trained], [place[n] for n in evaluated], len(place)


#: Where the atom gains stand in a state_dict: then comes the latent's place.
_LOG_GAINS = "pursuit.log_gains."


class Inference(NamedTuple):
    """The results of one pass of a pursuit network.

    Attributes:
        output: What the network returns.
        latents: The pursued latents by name, in graph order.
        dictionary: The dictionary bound to this batch.
    """

    output: Any
    latents: dict[str, Tensor]
    dictionary: StructuredDictionary


class BoundPass(NamedTuple):
    """One feed-forward pass, bound to its batch, before any sweep.

    Attributes:
        values: The call's values in the order of the placeholders, as the head takes them.
        first: What the pass found: feed-forward latents and what is frozen.
        dictionary: The dictionary bound to this batch.
    """

    values: tuple[Any, ...]
    first: Pass
    dictionary: StructuredDictionary


class PursuitNetwork(Settings):
    """A network whose latents are inferred together by T sweeps of pursuit.

    Takes what its source takes and returns what it returns. Parameters and buffers keep the names
    they have in the source; what pursuit adds is named ``pursuit.*``. At ``iterations = 0`` it is
    the source, operation for operation.

    Made by :func:`pursuitify.pursuitify`.
    """

    pursuit: PursuitParameters
    #: What ``balance=True`` did at conversion, or None.
    balanced: Balance | None = None
    #: The :class:`pursuitify.conversion.calibration.Calibration` of ``calibrate=`` at conversion,
    #: or None.
    calibration: Any = None
    #: What the source's own train() does in either mode, where it has one; else empty.
    _modes: Mapping[bool, Modes] = MappingProxyType({})

    def __init__(
        self,
        model: nn.Module,
        programs: Mapping[bool, Program],
        constants: Mapping[str, Tensor],
        *,
        beta_range: tuple[float, float],
        modes: Mapping[bool, Modes] | None = None,
        **settings: Any,
    ) -> None:
        """Take over the model's children; see :func:`pursuitify.pursuitify`."""
        super().__init__(**settings)
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
        self._source_name = type(model).__name__
        self._norms = norm_bounds.Norms()
        self._kernels = kernel_packing.Kernels()
        self._proofs = verification.Proofs()
        self._hook_callers = HookCallers()
        self.register_load_state_dict_post_hook(_start_cold)  # type: ignore[no-untyped-call]
        like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
        names = {mode: [row.name for row in p.rows] for mode, p in programs.items()}
        trained, evaluated, count = slots(names[True], names[False])
        self._places = {True: trained, False: evaluated}
        self.pursuit = PursuitParameters(count, beta_range, like.dtype).to(like.device)
        self.pursuit.train(model.training)
        self._still, self._met_alpha = True, (self.pursuit.alpha,)
        self._slopes_read: Versions | None = None
        self._unchanged = Unchanged.of(self, programs, model)
        if modes:
            self._modes = modes

    def extra_repr(self) -> str:
        """Return the options for ``repr``."""
        program = self._program
        return (
            f"solver={self.solver!r}, steps={self.steps!r}, iterations={self.iterations}, "
            f"layout={program.layout!r}, offsets={self.offsets!r}, latents={len(program.rows)}"
        )

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Copy parameters and buffers from a checkpoint of this network, or of its source.

        Args:
            state_dict: The tensors by name. One of the source has no ``pursuit.*``: a strict load
                gives those their defaults; one that is not strict reports them as missing and
                leaves them as they are, as torch does with whatever is missing. A strict load gives
                the network the atom gains that the checkpoint has, or none where it has none.
            strict: As for ``nn.Module.load_state_dict``, and so is the next.
            assign: Take the tensors themselves.
        """
        if strict and isinstance(state_dict, Mapping):
            self.make_room_for_gains(state_dict)
        own = {f"pursuit.{name}": value for name, value in self.pursuit.defaults().items()}
        if strict and isinstance(state_dict, Mapping) and state_dict.keys().isdisjoint(own):
            state_dict = {**state_dict, **own}
        return super().load_state_dict(state_dict, strict, assign)

    def make_room_for_gains(self, state_dict: Mapping[str, Any]) -> None:
        """Have parameters for exactly the atom gains that a checkpoint holds, in its shapes.

        Their values are 1 until the checkpoint is loaded; gains of the same shape stay as they are.
        Names that no decoder row of this network has are left to the load, which refuses them.

        Args:
            state_dict: The checkpoint's tensors by name.
        """
        own = {f"{_LOG_GAINS}{place}": place for place in self._gainable.values()}
        held = self._own_gains()
        wanted: dict[int, Tensor] = {}
        for name, place in own.items():
            value = state_dict.get(name)
            if isinstance(value, Tensor):
                now = held.get(place)
                same = now is not None and now.shape == value.shape
                wanted[place] = now if same and now is not None else torch.ones(value.shape)
        if wanted or held:
            self._take_gains(wanted)

    @property
    def _gainable(self) -> dict[str, int]:
        """The places of the latents that may have gains, decoder rows in either mode, by name."""
        return {
            row.name: place
            for mode, program in self._programs.items()
            for row, place in zip(program.rows, self._places[mode], strict=True)
            if not row.encoder
        }

    def _own_gains(self) -> dict[int, Tensor]:
        """Return the gains by place."""
        found = {place: self.pursuit.gains(place) for place in self._gainable.values()}
        return {place: value for place, value in found.items() if value is not None}

    def _take_gains(self, gains: Mapping[int, Tensor]) -> None:
        self.pursuit.set_gains(gains)
        self._forget_gains()

    def restore_gains(self, log_gains: nn.ParameterDict | None) -> None:
        """Put back the parameters that ``pursuit.log_gains`` was, None for no gains."""
        self.pursuit.log_gains = log_gains
        self._forget_gains()

    def _forget_gains(self) -> None:
        self._proofs.forget()
        self._norms.look_again()

    # -- structure ----------------------------------------------------------------------------

    @property
    def _program(self) -> Program:
        return self._programs[self.training]

    # What other parts of the package read of the network; the names are ones that no model's child
    # is likely to have, for they are reserved.

    @property
    def compiled_program(self) -> Program:
        """The rows, classified nodes and generated code of the current mode."""
        return self._program

    @property
    def compiled_programs(self) -> Mapping[bool, Program]:
        """The programs by mode, True in training; both are one where the modes do not differ."""
        return MappingProxyType(self._programs)

    @property
    def atom_gains(self) -> dict[str, Tensor]:
        """The atom gains c_j by latent, those of decoder rows that have some; empty without.

        A row with gains has B_j = W^T C, thresholds C lam_j and penalty c f_j, C = diag(c_j), so
        that T = 0 is the source whatever they are (mathematics.md, section 1). Each broadcasts
        against its latent without the batch, such as (channels, 1, 1). ``calibrate(net, batches,
        gains=True, apply=True)`` fits them. They are set by assigning such a mapping, where
        latents that are left out have none. They are kept as the logarithms
        ``pursuit.log_gains.*``, which are trained only where ``requires_grad`` is set on them.
        """
        gains = {name: self.pursuit.gains(place) for name, place in self._gainable.items()}
        return {name: value.detach() for name, value in gains.items() if value is not None}

    @atom_gains.setter
    def atom_gains(self, value: Mapping[str, Tensor]) -> None:
        arguments.tensors("atom_gains", value)
        places = self._gainable
        wrong = [name for name in value if name not in places]
        if wrong:
            raise OptionError(
                f"atom_gains names {', '.join(map(repr, wrong))}: only decoder rows have gains. "
                f"Those of this network are {', '.join(places) or 'none'}"
            )
        lost = [n for n, c in value.items() if not bool((c.isfinite() & (c > 0)).all())]
        if lost:
            raise OptionError(
                f"the atom gains of {', '.join(map(repr, lost))} are not all positive and finite: "
                "a gain of zero or less has no penalty with the same feed-forward pass. Leave a "
                "latent out for no gains"
            )
        self._take_gains({places[name]: c.detach() for name, c in value.items()})

    @property
    def writes_always(self) -> bool:
        """Whether the forward writes into buffers in the current mode, as a counter does."""
        return self._program.writes_buffers

    def bind_batch(self, *args: Any, **kwargs: Any) -> BoundPass:
        """Run the feed-forward pass and bind the dictionary, as ``forward`` begins.

        A pass like any other: in training mode running statistics move. Raises what ``forward``
        does.
        """
        values = self._values(self._program, args, kwargs)
        return BoundPass(values, *self._bind(self._program, values))

    def norm_state(self) -> dict[str, Tensor]:
        """Return the states of the power iterations, by place: training's next step reads them."""
        return self._norms.state()

    def restore_norm_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from states that ``norm_state`` returned.

        Args:
            state: The tensors by name, on any device.
        """
        like = next(self.parameters())
        self._norms.restore({name: value.to(like.device) for name, value in state.items()})

    def certified_norms(self) -> CertifiedNorms:
        """Return the certified norm bounds that calls on the CPU have found, empty before any."""
        return self._norms.certified()

    def restore_certified_norms(self, known: CertifiedNorms) -> None:
        """Spare the next call the bounds that ``certified_norms`` returned.

        They count only as long as the kernels are those they were found for.

        Args:
            known: The bounds.
        """
        self._norms.restore_certified(known)

    @property
    def graph(self) -> nx.DiGraph[str]:
        """The dependency graph in topological order, of the current mode.

        Nodes are ``input`` and the latents' names, with attributes index, activation, layout
        (``decoder`` or ``encoder``) and source (module path); edges have kind and paths.
        """
        return to_networkx(self._program.rows, self._program.sites, self)

    @property
    def source(self) -> fx.GraphModule:
        """The way back, which is the source as a GraphModule that shares every parameter."""
        return fx.GraphModule(self, copy.deepcopy(self._program.graph), "Source")

    @property
    def source_name(self) -> str:
        """Class name of the source model."""
        return self._source_name

    # -- inference ----------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the source returns, from the pursued latents.

        Forward hooks of blocks that end in an activation get the latent after the last sweep, which
        the head reads; at T = 0 they get what the source's block returns. See
        :mod:`pursuitify.network.block_hooks`.

        Raises:
            InputError: If an argument is missing, unknown or does not fit the network.
            ConversionError: If modules were changed in a way that only a new conversion can follow,
                or a block's forward hook changes what later latents read.
        """
        program = self._program
        if torch.compiler.is_compiling() and not kwargs:
            self._compared()
            values = (*args, *program.defaults[len(args) :])
        else:
            values = self._values(program, args, kwargs)
        if not self.pursues and not program.nonnegative:
            return self._run_source(values)
        return self._inferred(values)[0]

    def _run_source(self, values: Sequence[Any]) -> Any:
        """Return what the source returns; forward hooks of blocks are called."""
        blocks, plain = self._hooked_blocks(), self._program.plain
        if blocks:
            plain = self._hook_callers.of(self, self._program, blocks).plain
        with arguments.input_errors():
            return plain(self, *values)

    def _hooked_blocks(self) -> tuple[str, ...]:
        """Return the paths of the blocks whose forward hooks are to be called; after the checks."""
        if torch.compiler.is_compiling():
            self._without_hooks()
            return ()
        return self._unchanged.hooked(self.training)

    @torch_internals.constant_when_compiled
    def _without_hooks(self) -> bool:
        """Return True if no block has forward hooks; a compiler asks once a trace.

        Raises:
            ConversionError: If one has.
        """
        blocks = self._unchanged.hooked(self.training)
        if blocks:
            raise ConversionError(
                f"{', '.join(map(repr, blocks))} have forward hooks, which compiled code does not "
                "call: remove them before the network is compiled or exported, or call the network "
                "itself"
            )
        return True

    def infer(self, *args: Any, **kwargs: Any) -> Inference:
        """Return output, latents and dictionary of one pass, for losses that read all three.

        A pass like any other: in training mode running statistics move, once. Raises what
        ``forward`` does.
        """
        output, latents, bound = self._inferred(self._values(self._program, args, kwargs))
        return Inference(output, dict(zip(bound.names, latents, strict=True)), bound)

    def _inferred(
        self, values: Sequence[Any]
    ) -> tuple[Any, tuple[Tensor, ...], StructuredDictionary]:
        began = self._begin_proof(values, self._packs) if self.pursues else None
        first, bound = self._bind(self._program, values, self._recording(began, values))
        latents = tuple(self._last(bound, first, began)) if self.pursues else first.latents
        output = self.run_head(latents, first, values)
        if self._chooses_format:
            output = memory_format.returned(output, values)
        return output, latents, bound

    def outputs_at(self, counts: Collection[int], *args: Any, **kwargs: Any) -> dict[int, Any]:
        """Return the outputs after each of these numbers of sweeps, from one pursuit.

        Args:
            counts: Numbers of sweeps, in any order; ``iterations`` is not looked at.
            args: What ``forward`` takes.
            kwargs: Likewise.

        Raises:
            OptionError: If a count is no whole number >= 0, the solver does not pass through
                smaller numbers of sweeps on the way to a larger one, or the memory mode keeps too
                little of them for derivatives.
            InputError: As ``forward``.
        """
        wanted = {option_checks.count("counts", count) for count in counts}
        solver, program = self.pursuit_solver, self._program
        if not (solver.passes_through and self.derivative_mode.records_sweeps):
            raise OptionError(
                f"solver={self.solver!r} with memory={self.memory!r} does not give the outputs of "
                "several numbers of sweeps in one pass: run it once for each"
            )
        values = self._values(program, args, kwargs)
        moves = solver.pursues and self.step_scale > 0 and any(wanted)
        began = self._begin_proof(values, packs=False) if moves else None
        first, bound = self._bind(program, values, self._recording(began, values))
        reached: dict[int, Sequence[Tensor]] = dict.fromkeys(wanted, first.latents)
        if moves:
            gammas = self._gammas(bound)
            if began is not None:
                self._self_prove(began, first, bound, bound)
            given = replace(self._given(bound, first, gammas), count=max(wanted))
            swept = enumerate(solver.sweeps(given), start=1)
            reached |= {count: latents for count, latents in swept if count in wanted}
            for latents in reached.values():
                refuse_overflow(latents, first.latents, gammas, bound.names)
        return {
            count: self.run_head(tuple(latents), first, values)
            for count, latents in sorted(reached.items())
        }

    def run_head(self, latents: tuple[Tensor, ...], first: Pass, values: Sequence[Any]) -> Any:
        """Return the output that the head computes of latents; blocks' forward hooks are called.

        Args:
            latents: The latents, in graph order.
            first: The feed-forward pass that they come from.
            values: The arguments of that pass.
        """
        blocks, head = self._hooked_blocks(), self._program.head
        if blocks:
            head = self._hook_callers.of(self, self._program, blocks).head
        with arguments.input_errors():
            return head(self, latents, first, values)

    def _begin_proof(self, values: Sequence[Any], packs: bool) -> Start | None:
        """Return what the coming sweeps start from if they have to be proven, None otherwise."""
        if torch.compiler.is_compiling() or self._self_check == OFF:
            return None
        version = self._unchanged.version(self.training)
        return self._proofs.begin(self, self._program, values, version, packs)

    @property
    def _packs(self) -> bool:
        """Whether sweeps that begin now would run on packed kernels."""
        wanted = self.pursues and self.pursuit_solver.packs_kernels and not self.training
        return wanted and may_overwrite()

    def _self_prove(
        self, began: Start, first: Pass, bound: StructuredDictionary, used: StructuredDictionary
    ) -> None:
        """Prove a pass on two of its samples where they are more, and note that it is proven.

        Raises:
            VerificationError: If something does not hold.
        """
        few = None
        if bound.samples is not None and bound.samples > 2 * verification.SAMPLES:
            few = [v[: verification.SAMPLES] if isinstance(v, Tensor) else v for v in began.values]
        if few is None:
            report = self._prove(began, first, bound, used, every=False)
        else:
            with verification.aside(self, few, began.numbers is not None) as again:
                start, rows = self._bind(self._program, few, self._recording(again, few))
                # Without derivatives a detached branch is bound otherwise than in the call itself:
                # where nothing is packed, the operators that are proven are those bound here.
                report = self._prove(
                    again, start, rows, rows if used is bound else used, every=False
                )
        report.demand()
        self._proofs.passed(began)

    def _recording(self, began: Start | None, values: Sequence[Any]) -> Start | None:
        """Return the start of a pass whose products are kept for its proof, or None."""
        if began is None or self._program.nonnegative:
            return None
        few = all(len(v) <= 2 * verification.SAMPLES for v in values if _is_batch(v))
        return began if few else None

    def _prove(
        self,
        began: Start,
        first: Pass,
        bound: StructuredDictionary,
        used: StructuredDictionary,
        every: bool = True,
    ) -> Verification:
        """Prove a pass, with the operators its sweeps use.

        Raises:
            InputError: If the head cannot run on what the pass gives it.
        """
        plain = bound
        if self.threshold_scale != 1:  # the feed-forward pass knows nothing of it
            plain = structured.bind(
                self._program,
                first,
                bound.inputs,
                offsets_in_signal=self.offsets_in_signal,
                gains=self._row_gains(self._program),
                share=self.start_share,
            )
        thresholds = [row.threshold for row in plain.rows]
        rest = first, bound, used, thresholds
        with arguments.input_errors():
            return verification.prove(self, self._source_name, self._program, began, *rest, every)

    def source_output(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the source's own operations give, whatever ``iterations`` is.

        Raises:
            InputError: As ``forward``.
        """
        return self._run_source(self._values(self._program, args, kwargs))

    def verify(self, *args: Any, **kwargs: Any) -> Verification:
        """Prove on this input, in the current mode, that the network is its source.

        For every row: the source's operations give the recorded latent, the dictionary's operators
        give u_j and (17) at the feed-forward latents, and they pass the dot test
        <A x, y> = <x, A^T y>; and the head gives the source's output. The original model is not at
        hand here: ``pursuitify(model, example_inputs=...)`` compares with it. About three forward
        passes; no running statistics move, no random number is drawn, nothing is recorded.

        Returns:
            The report, with the errors of every row.

        Raises:
            VerificationError: If something does not hold; names row, module and error.
            InputError: As ``forward``.
        """
        values, packs = self._values(self._program, args, kwargs), self._packs
        draws = self._program.may_draw(self)
        with verification.aside(self, values, draws) as began:
            recording = None if self._program.nonnegative else began
            first, bound = self._bind(self._program, values, recording)
            used = bound
            if packs:
                given = self._given(bound, first, self._gammas(bound), self._pack())
                used = given.packed().dictionary
            return self._prove(began, first, bound, used).demand()

    def latents(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Return the latents w_j after T sweeps by name, in graph order, shape (batch, ...).

        No running statistics move, here and below. Raises what ``forward`` does.
        """
        with untouched(self):
            first, bound = self._bound(args, kwargs)
            w = self._last(bound, first) if self.pursues else list(first.latents)
        return dict(zip(bound.names, w, strict=True))

    def dictionary(self, *args: Any, **kwargs: Any) -> StructuredDictionary:
        """Return B, y and lam (11), (16) bound to this batch, frozen values included.

        ``apply`` takes latents as ``latents(x)`` gives them. Raises what ``forward`` does.
        """
        with untouched(self):
            return self._bound(args, kwargs)[1]

    def step_sizes(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Return gamma_j (18) by latent for this batch and solver, ``step_scale`` included.

        With adaptive steps these are the estimates of 1 / (beta_j L_j) that the steps start from.
        One number each, or shape (batch, 1, ...) where frozen values differ between samples; of
        ``feedforward`` those of ``global``. Raises what ``forward`` does.
        """
        with untouched(self):
            bound = self._bound(args, kwargs)[1]
            return dict(zip(bound.names, self._gammas(bound), strict=True))

    def objective(self, x: Any, latents: Mapping[str, Tensor]) -> Tensor:
        """Return F of the given latents per sample, shape (batch,) (11).

        Args:
            x: The input; a tuple of them where the network takes several.
            latents: A tensor per latent, as ``latents(x)`` gives them.

        Raises:
            InputError: If the input does not fit, a latent is missing or has another shape, or
                dimension 0 of the latents does not hold sample after sample.
        """
        args = x if isinstance(x, tuple) else (x,)
        arguments.tensors("latents", latents)
        with untouched(self):
            return self._bound(args, {})[1].objective(latents)

    @torch.no_grad()
    def diagnose(self, *args: Any, **kwargs: Any) -> PursuitTrace:
        """Run the pursuit and return what every sweep did (18), in means per sample.

        Record 0 is the start (the feed-forward pass; zero if synchronous), then one per sweep, of
        ``layered`` the end alone. Raises what ``forward`` does.
        """
        with untouched(self):
            first, bound = self._bound(args, kwargs)
            gammas = self._gammas(bound)
            solver, given = self.pursuit_solver, self._given(bound, first, gammas)
            return diagnosis.record(bound, solver.start(given), solver.sweeps(given), gammas)

    def _bound(
        self, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[Pass, StructuredDictionary]:
        program = self._program
        return self._bind(program, self._values(program, args, kwargs))

    def _values(
        self, program: Program, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[Any, ...]:
        """Return a call's values in the order of the placeholders; network and values checked."""
        self._compared()
        return arguments.arguments(program, args, kwargs, self)

    @torch_internals.constant_when_compiled
    def _compared(self) -> bool:
        """Return True if the modules are those that were converted; a compiler asks once a trace.

        Raises:
            ConversionError: If they are not.
        """
        self._unchanged.check(self, self.training, self._program)
        return True

    def _bind(
        self, program: Program, values: Sequence[Any], recording: Start | None = None
    ) -> tuple[Pass, StructuredDictionary]:
        """Run the feed-forward pass and bind the rows to it.

        Args:
            program: The program of the current mode.
            values: The arguments, in the order of the placeholders.
            recording: The start of the pass, where its products are kept; without derivatives of
                their own they are the source's values, for ``verification.prove``.
        """
        if self._chooses_format:
            values = [memory_format.preferred(value) for value in values]
        with arguments.input_errors():
            if recording is None:
                first = program.forward(self, *values)
            else:
                first = self._proofs.recorded_pass(self, program, recording, values)
        alpha, apart = self.pursuit.alpha, torch.compiler.is_compiling() or func_transforms.active()
        accelerated = not (apart or torch.is_grad_enabled() or alpha.device.type in ("cpu", "meta"))
        read = [alpha, *slope_checks.slopes(first)] if accelerated else []
        if apart or (accelerated and self._slopes_read and self._slopes_read.still(read)):
            first = slope_checks.poison(first)
        else:
            moving = slope_checks.checked_and_moving(program, first, alpha)
            self._still = not moving
            self._meet_alpha()
            self._slopes_read = Versions.of(read) if accelerated else None
        signals = program.signals(first)
        leaves = arguments.floating([*values, *signals], first.latents[0].dtype)
        options = self.threshold_scale, self.offsets_in_signal, self._row_gains(program)
        bound = structured.bind(program, first, leaves, *options, self.start_share)
        return first, bound

    def _row_gains(self, program: Program) -> list[Tensor | None] | None:
        """Return the atom gains by row of the current mode's program; None where none has any."""
        if self.pursuit.log_gains is None:
            return None
        return [
            None if row.encoder else self.pursuit.gains(place)
            for row, place in zip(program.rows, self._places[self.training], strict=True)
        ]

    @property
    def _chooses_format(self) -> bool:
        """Whether images may be turned to the memory format that is fastest for the sweeps."""
        return self.pursues and not self.training and self._program.any_format

    def _gammas(self, bound: StructuredDictionary) -> list[Tensor]:
        self._norms.training, self._norms.typical = self.training, self.adapts_steps
        self._norms.on_image = self.bounds_on_image
        if bound.inputs[0].device.type not in ("cpu", "meta"):
            self._norms.made_of = [*self.parameters(), *self.buffers()]
        betas = self._of_mode(self.pursuit.betas())
        with full_precision(bound.inputs[0].device):
            gammas = self.pursuit_solver.step_sizes(bound, self._norms, betas)
        scale = self.step_scale
        gammas = gammas if scale == 1 else [gamma * scale for gamma in gammas]
        return self._guarded(gammas, bound.inputs)

    def _guarded(self, gammas: list[Tensor], values: Sequence[Tensor]) -> list[Tensor]:
        """Return the steps; on accelerators NaN where something is wrong that was not read."""
        device = gammas[0].device.type
        if device in ("cpu", "meta") or torch.compiler.is_compiling() or func_transforms.active():
            return gammas
        lost = slope_checks.unseen_lost(values, self.pursuit.alpha, self._still)
        if self._norms.lost is not None:
            lost = lost + self._norms.lost
        if any(gamma.dim() for gamma in gammas):
            return [gamma + lost.to(gamma.dtype) for gamma in gammas]
        return list((torch.stack(gammas) + lost.to(gammas[0].dtype)).unbind())

    def _given(
        self,
        bound: StructuredDictionary,
        first: Pass,
        gammas: Sequence[Tensor],
        pack: Pack | None = None,
    ) -> SolverInput:
        alphas, search = self._alphas(), None
        if self.adapts_steps:
            alphas, search = None, LineSearch(bound.samples or 1, self.step_scale)
        return SolverInput(bound, first.latents, gammas, alphas, self.iterations, pack, search)

    def _last(
        self, bound: StructuredDictionary, first: Pass, began: Start | None = None
    ) -> list[Tensor]:
        """Return the latents after the last sweep, with the derivatives of the memory mode.

        Raises:
            InputError: If torch.func would have to see through a mode that works with autograd
                alone.
        """
        gammas = self._gammas(bound)
        given = self._given(bound, first, gammas, self._pack())
        if began is not None:
            if self._packs:
                given = replace(given.packed(), pack=None)  # packed once, for proof and sweeps
            self._self_prove(began, first, bound, given.dictionary)
        latents = self._solved(given)
        refuse_overflow(latents, first.latents, gammas, bound.names)
        return latents

    def _solved(self, given: SolverInput) -> list[Tensor]:
        still = given.extrapolation is None and self.pursuit_solver.extrapolates
        if still and given.search is None and torch.compiler.is_compiling():
            steps = slope_checks.still_steps(given.steps, self.pursuit.alpha)
            given = replace(given, steps=steps)
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self.pursuit_solver.last(given)
        mode = self.derivative_mode
        if mode.records_sweeps:
            return self.pursuit_solver.last(given)
        if func_transforms.active():
            raise InputError(
                f"memory={self.memory!r} works with autograd alone, not under torch.func or "
                "forward-mode derivatives: set net.memory = 'store'"
            )

        def report(outcome: Solves) -> None:
            self.solves = outcome

        return mode.solve(self.pursuit_solver, given, report)

    def _pack(self) -> Pack:
        """Return how kernels are packed; once the steps, and with them the norms, are there."""
        return functools.partial(self._kernels.pack, contents=self._norms.contents)

    def _alphas(self) -> list[Tensor] | None:
        """Extrapolation weights, or None where all are zero and no derivative is asked for."""
        recorded = torch.is_grad_enabled() and self.pursuit.alpha.requires_grad
        derived = recorded or func_transforms.active()
        still = self._still  # a branch on it makes compiled code anew when it changes
        if still and torch.compiler.is_compiling():
            still = self._is_still()
        return None if still and not derived else self._of_mode(self.pursuit.alphas())

    @torch_internals.constant_when_compiled
    def _is_still(self) -> bool:
        """Return whether all extrapolation weights are zero now; a compiler asks once a trace.

        torch.export puts tensors without values into the place of parameters, under modes that
        record what is done with any: the weights that were met last are asked, past those modes.
        """
        alpha: Tensor = self.pursuit.alpha
        alpha = alpha if type(alpha) in {Tensor, nn.Parameter} else self._met_alpha[0]
        with torch_internals.without_dispatch_modes():
            return not slope_checks.moving(alpha)

    def _of_mode(self, values: Tensor) -> list[Tensor]:
        """Pick the entries of the current mode's latents: they are shared by name."""
        return [values[i] for i in self._places[self.training]]

    def train(self, mode: bool = True) -> PursuitNetwork:
        """Set training mode, and with it what the source's own ``train`` or ``eval`` sets."""
        super().train(mode)
        if self._modes:
            self._modes[mode].apply(self)
        self._look_again()
        return self

    def _look_again(self) -> None:
        """Read what compiled code cannot: whether an extrapolation weight is not zero."""
        self._still = not slope_checks.moving(self.pursuit.alpha)
        self._slopes_read = None
        self._norms.look_again()
        self._meet_alpha()

    def _meet_alpha(self) -> None:
        """Hold the extrapolation weights beside the parameters, for ``_is_still``."""
        if type(self.pursuit.alpha) is nn.Parameter:
            self._met_alpha = (self.pursuit.alpha,)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Generate the code again where the network comes out of a pickle."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._programs = revive(self._programs, self)


def _is_batch(value: object) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0


def _start_cold(network: nn.Module, _keys: Any) -> None:
    """Other weights were loaded: what was read of the old ones is forgotten, or read again."""
    assert isinstance(network, PursuitNetwork)
    network._norms.clear()
    network._look_again()


#: Names a model's own children, parameters and buffers must not have.
RESERVED = frozenset(vars(PursuitNetwork) | vars(Settings)) | {
    *HELD,
    "pursuit",
    "_programs",
    "_norms",
    "_kernels",
    "_proofs",
    "_hook_callers",
    "_places",
    "_source_name",
    "_slopes_read",
    "_still",
    "_met_alpha",
    "_unchanged",
}
