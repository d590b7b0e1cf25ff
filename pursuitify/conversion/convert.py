"""pursuitify(): from a module to a PursuitNetwork."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from pursuitify.compiler.equalization.equalize import balance as rescale
from pursuitify.compiler.graph import refusals
from pursuitify.compiler.graph.build_rows import build
from pursuitify.compiler.graph.classify import Value, classify
from pursuitify.compiler.graph.completeness import check_complete
from pursuitify.compiler.graph.refusals import unknown_values
from pursuitify.compiler.graph.rows import Layout
from pursuitify.compiler.lowering.emit import lower
from pursuitify.compiler.lowering.program import Program
from pursuitify.compiler.tracing.trace import Traced, skeleton, trace_modes
from pursuitify.compiler.tracing.tracer import LeafModule
from pursuitify.conversion import model_checks
from pursuitify.conversion.calibration import keep_outputs
from pursuitify.conversion.compare_with_source import compare_with_source
from pursuitify.errors import ConversionError, OptionError
from pursuitify.network.pursuit_network import RESERVED, PursuitNetwork
from pursuitify.rules import Key, Registry, Rule, leaves_of
from pursuitify.solvers.settings import FIRST, OFF, OPTIONS, THRESHOLD, NetworkOptions, Settings
from pursuitify.solvers.step_sizes import PAPER_BETA, SAFE_BETA
from pursuitify.utils import option_checks, training_modes

if TYPE_CHECKING:
    from typing_extensions import Unpack

_CONVERSION = (
    "layout",
    "calibrate",
    "progress",
    "copy",
    "balance",
    "paper",
    "nonnegative_thresholds",
    "rules",
    "leaf_modules",
    "example_inputs",
    "verify",
)


def pursuitify(
    model: nn.Module,
    iterations: int = 10,
    solver: str = "global",
    layout: Layout | None = None,
    *,
    calibrate: Iterable[Any] | None = None,
    progress: bool = False,
    copy: bool = True,
    balance: bool = False,
    paper: bool = False,
    nonnegative_thresholds: bool = False,
    rules: Mapping[Key, Rule] | None = None,
    leaf_modules: Sequence[LeafModule] = (),
    example_inputs: Tensor | tuple[Any, ...] | None = None,
    verify: str = FIRST,
    **settings: Unpack[NetworkOptions],
) -> PursuitNetwork:
    """Turn a network of convolutions, dense layers and ReLUs into a deep pursuit network.

    By default latents start at the feed-forward pass (17) and take T sweeps of (18) on the
    objective (11) of the dictionary whose rows are (16); see mathematics.md
    in the folder of :mod:`pursuitify.dictionary`.

    Args:
        model: Any module torch.fx can trace; never changed.
        iterations: T, the number of sweeps; settable later, 0 is the source network.
        solver: ``global`` (Algorithm 2), ``layered`` (Algorithm 1, each row alone),
            ``synchronous`` (from zero, all latents at once with one step; see
            :mod:`pursuitify.solvers.synchronous`) or ``feedforward``.
        layout: ``auto`` (decoder rows where possible), ``encoder`` (every row but those that
            read the input) or ``decoder`` (an error where a row has no decoder form). By default
            ``auto``, and ``encoder`` with ``calibrate``.
        calibrate: Unlabelled batches on which a trained network is made to keep what it knows, as
            ``pursuitify.calibrate`` takes them. The default layout becomes ``encoder``, atom gains
            are fitted, and ``step_scale`` is lowered only where the outputs would not agree with
            the source's otherwise (on 99 % of the predictions). There ``offsets="stationary"``
            without gains is tried as well, unless ``offsets`` is given, and taken if the latents
            move farther. The report is the network's ``calibration``: what is kept at each T, and
            how far the latents move. The model has to be in evaluation mode.
        progress: Whether to show how far ``calibrate`` is; for it alone.
        copy: Deep-copy the weights; with False the network shares the model's modules.
        balance: Rescale latents of the copied weights, as far as ReLU's positive homogeneity
            allows, so that the rows' gains are alike; outputs at T = 0 stay what they are, to
            rounding. What was done is in the network's ``balanced``; see
            :mod:`pursuitify.compiler.equalization.equalize`.
        paper: Let beta_j range over the paper's (0, 1] instead of (1/2, 1], where descent of the
            objective is guaranteed, and keep the offsets of all rows in the thresholds, as the
            paper does: ``offsets="signal"`` is refused beside it.
        nonnegative_thresholds: Hold thresholds (negated biases) of sparse latents to >= 0, the
            paper's constraint for training from scratch. It changes the network where a bias is
            positive, at T = 0 too.
        rules: Rules for the user's own modules and functions, before the built-in ones.
        leaf_modules: Module types or paths not to trace into.
        example_inputs: A tensor, or a tuple of the forward's arguments. Branches on sizes go as
            theirs say, and are guarded: an input that would go another way is refused. The model
            itself and the network at T = 0 are run on them in both modes, outputs and buffers
            compared, and the dictionary is proven on them; a difference is an error.
        verify: ``first``: the network proves itself at its first call with each program, dtype
            and input size (a few forward passes); ``off``: only when ``net.verify(x)`` is called.
            Settable later as ``net.self_check``.
        **settings: Further settings of the network by name; see
            :class:`pursuitify.solvers.settings.Settings`. An unknown name is refused.

    Returns:
        The pursuit network, in the model's own mode.

    Raises:
        OptionError: If an argument is unknown or invalid.
        TraceError: If torch.fx cannot follow the model.
        ConversionError: If operations cannot be converted; lists all of them.
        VerificationError: If the network differs from the model on ``example_inputs``.
        RangeError: If its sweeps leave the range of their precision on them.
        InputError: If there is no batch in ``calibrate``, one does not fit, or the output holds no
            class scores.

    Examples:
        >>> import torch
        >>> from pursuitify.models import ResidualNet
        >>> net = pursuitify(ResidualNet(3, 10).eval(), iterations=2)
        >>> net(torch.rand(4, 3, 8, 8)).shape
        torch.Size([4, 10])
    """
    chosen: dict[str, Any] = {**OPTIONS, "iterations": iterations, "solver": solver, **settings}
    if paper and "offsets" not in settings:
        chosen["offsets"] = THRESHOLD
    if layout is None:
        layout = "auto" if calibrate is None else "encoder"
    option_checks.unknown_options(chosen.keys() - OPTIONS.keys(), (*OPTIONS, *_CONVERSION))
    model_checks.model(model)
    Settings(**chosen)
    option_checks.one_of("layout", layout, option_checks.LAYOUTS)
    option_checks.one_of("verify", verify, (FIRST, OFF))
    option_checks.switch("copy", copy)
    option_checks.switch("progress", progress)
    if progress and calibrate is None:
        raise OptionError(
            "progress=True shows how far calibrate= is: give batches, or leave it out"
        )
    option_checks.switch("balance", balance)
    if balance and not copy:
        raise OptionError(
            "balance=True changes weights, and with copy=False they are the model's own: leave "
            "copy=True"
        )
    option_checks.switch("paper", paper)
    option_checks.switch("nonnegative_thresholds", nonnegative_thresholds)
    if paper and chosen["offsets"] != THRESHOLD:
        raise OptionError(
            f"paper=True has offsets={THRESHOLD!r}, not {chosen['offsets']!r}: leave one of the "
            "two out"
        )
    if calibrate is not None and model.training:
        raise OptionError(
            "calibrate= compares outputs in evaluation mode, and the model is in training mode: "
            "call model.eval() first"
        )
    example = option_checks.example(example_inputs, model)
    if copy:
        model_checks.gradient_hooks(model)
    programs, constants = compile_model(
        model, layout, rules, leaf_modules, nonnegative_thresholds, example
    )
    own = _copied(model) if copy else model
    balanced = rescale(own, programs) if balance else None
    beta_range = PAPER_BETA if paper else SAFE_BETA
    modes = None
    if training_modes.overridden(model):
        modes = {mode: training_modes.put(skeleton(model), mode) for mode in (True, False)}
    net = PursuitNetwork(own, programs, constants, beta_range=beta_range, modes=modes, **chosen)
    net.balanced, net.self_check = balanced, verify
    if example:
        compare_with_source(net, model, example)
    if calibrate is not None:
        free = "offsets" not in settings and not paper
        net.calibration = keep_outputs(net, calibrate, progress, stationary=free)
    return net


def _copied(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model)


def compile_model(
    model: nn.Module,
    layout: Layout,
    rules: Mapping[Key, Rule] | None = None,
    leaf_modules: Sequence[LeafModule] = (),
    nonnegative: bool = False,
    example: tuple[Any, ...] = (),
) -> tuple[dict[bool, Program], dict[str, Tensor]]:
    """Compile a model for both modes.

    Returns:
        The programs by mode (True in training), and the tensors the forward made while it was
        traced, by the names under which the programs read them.

    Raises:
        OptionError: If a rule or a leaf module is none.
        TraceError: If torch.fx cannot follow the model.
        ConversionError: If it cannot be converted.
    """
    registry = model_checks.registry(rules)
    model_checks.leaves(leaf_modules, model)
    model_checks.names(model, RESERVED)
    traces = trace_modes(model, (*leaf_modules, *leaves_of(rules)), example)
    evaluated, trained = traces[False], traces[True]
    same = evaluated is trained
    if not same:
        trained = _renamed(trained)
    constants = {
        name: value
        for name, value in {**evaluated.constants, **trained.constants}.items()
        if "." not in name
    }
    root = _with(constants, model)

    def compiled(traced: Traced) -> Program:
        return compile_program(root, traced, registry, layout, nonnegative)

    programs = {False: compiled(evaluated)}
    programs[True] = programs[False] if same else compiled(trained)
    return programs, constants


def _renamed(traced: Traced) -> Traced:
    """Name the constants of the trace in training mode apart from those in evaluation mode."""
    names = {name: f"{name}_training" for name in traced.constants if "." not in name}
    for node in traced.graph.nodes:
        if node.op == "get_attr":
            node.target = names.get(node.target, node.target)
    constants = {names.get(name, name): value for name, value in traced.constants.items()}
    return replace(traced, constants=constants)


def _with(constants: Mapping[str, Tensor], model: nn.Module) -> nn.Module:
    """Return the model, or where there are constants a skeleton of it that holds them."""
    if not constants:
        return model
    root = skeleton(model)
    for name, value in constants.items():
        root.__dict__.pop(name, None)
        root.register_buffer(name, value, persistent=False)
    return root


def compile_program(
    model: nn.Module,
    traced: Traced,
    registry: Registry,
    layout: Layout,
    nonnegative: bool = False,
) -> Program:
    """Compile one traced graph.

    Raises:
        ConversionError: If it cannot be converted.
    """
    sites = classify(traced.graph, model, registry)
    found = [
        *traced.problems,
        *refusals.container_inputs(sites),
        *unknown_values(traced.graph, model, sites),
    ]
    if not any(site.value is Value.LATENT for site in sites.values()):
        cuts = refusals.cutting_freezes(model, sites)
        if cuts:
            raise ConversionError(
                f"{type(model).__name__} has no activation left to pursue, for frozen values cut "
                "the way from input to output",
                [*cuts, *found],
            )
        active = any(
            s.rule is not None and s.rule.kind == "activation" and s.value is Value.OTHER
            for s in sites.values()
        )
        if not (found and active):
            raise ConversionError(
                f"{type(model).__name__} has no activation of the ReLU family on its way from "
                "input to output, so there is nothing to pursue",
                found,
            )
    if found:
        raise ConversionError(
            f"{type(model).__name__} cannot be converted: {len(found)} problem(s) with what it "
            "takes, or with operations before an activation that are neither linear nor proximal",
            found,
        )
    rows = build(traced.graph, model, sites, layout)
    check_complete(traced.graph, sites, rows)
    return lower(traced.graph, model, sites, rows, layout, nonnegative)
