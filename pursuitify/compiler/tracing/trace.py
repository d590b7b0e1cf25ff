"""From a module to a normalised torch.fx graph; knows nothing about dictionaries.

The model is traced on a *skeleton*: a deep copy that shares the Parameters and owns its buffers
and Python attributes, so that code which counts batches or calls while it is traced can change
nothing of the user's. What tracing would fix silently (branches on sizes, the mode of a module,
random numbers, Python state) is either guarded in the graph or refused.
"""

from __future__ import annotations

import collections.abc
import contextlib
import copy
import dis
import functools
import inspect
import io
import operator
import os
import re
import sys
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, fx, nn

from pursuitify import errors
from pursuitify.compiler.tracing import (
    contexts,
    guards,
    hidden_state,
    size_branches,
    sizes,
    type_questions,
)
from pursuitify.compiler.tracing.comparisons import Rerun, align, same_graph, same_on
from pursuitify.compiler.tracing.contexts import Watch
from pursuitify.compiler.tracing.functionalise import (
    functionalise,
    spell_out,
    split_pieces,
    written_activations,
)
from pursuitify.compiler.tracing.nodes import (
    describe,
    is_shape,
    keep_returns,
    module_path,
    returned_by,
)
from pursuitify.compiler.tracing.size_branches import EXAMPLE, Choices, usual_inputs
from pursuitify.compiler.tracing.sizes import Answers, trials
from pursuitify.compiler.tracing.tracer import TRANSFORMED, Leaf, LeafModule, Tracer
from pursuitify.rules import hints
from pursuitify.utils import patched_methods, training_modes

_TORCH, _HERE = (
    str(Path(str(sys.modules[name].__file__)).parent) + os.sep  # torchvision stands beside torch
    for name in ("torch", __name__.split(".")[0])
)
_TRANSFORMS = Path(_TORCH, "_functorch")
_CHECKPOINT = Path(str(torch.utils.checkpoint.__file__))
#: A TypeError of torch's argument parser starts with the function's name.
_CALLED = re.compile(r"(\w+)\(\)")
_INFOS = ("torch.finfo()", "torch.iinfo()", "finfo()", "iinfo()")
_FACTORIES = {
    "zeros", "ones", "empty", "full", "rand", "randn", "randint", "arange", "eye", "linspace",
}  # fmt: skip
_SIZED = {"expand", "repeat", "view", "reshape", "tile"}
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass
class Printed:
    """This record lets the first of many runs of a model's forward print, and captures the others.

    Attributes:
        shown: Whether there was a first run.
    """

    shown: bool = False

    @contextlib.contextmanager
    def run(self) -> Iterator[None]:
        """Let a run print; capture what it prints on standard output unless it is the first."""
        before, self.shown = self.shown, True
        with contextlib.redirect_stdout(io.StringIO()) if before else contextlib.nullcontext():
            yield


@dataclass(frozen=True)
class Traced:
    """The result of tracing a model in one mode.

    Attributes:
        graph: The normalised graph; targets are paths in the model.
        constants: Tensors the forward made while it was traced, by the name the graph reads.
        training: The mode the model was traced in.
        modes: The mode of the modules whose mode the traced code asked for, by path.
        problems: What the forward does around its operations that no graph can hold.
    """

    graph: fx.Graph
    constants: dict[str, Tensor]
    training: bool
    modes: Mapping[str, bool] = field(default_factory=dict)
    problems: tuple[errors.Problem, ...] = ()


def skeleton(model: nn.Module) -> nn.Module:
    """Return a deep copy that shares the model's Parameters and nothing else."""
    return _copy_with(model, {id(p): p for p in model.parameters()})


def _copy_with(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Return a deep copy in which other objects stand in for some, by the ``id`` of these."""
    copied = copy.deepcopy(model, memo)
    patched_methods.rebind(copied, memo)
    return copied


def _defaults(model: nn.Module) -> dict[str, Any]:
    """Arguments of forward that have a default; they are traced at it."""
    return {
        name: parameter.default
        for name, parameter in inspect.signature(model.forward).parameters.items()
        if parameter.default is not inspect.Parameter.empty and parameter.kind not in _VARIADIC
    }


def trace(
    model: nn.Module,
    *,
    training: bool,
    leaf_modules: Iterable[Leaf] = (),
    example: tuple[Any, ...] = (),
    printed: Printed | None = None,
) -> Traced:
    """Trace ``model`` in the given mode and normalise the graph.

    Args:
        model: The module; left exactly as it was.
        training: Whether to trace what the model does in training mode.
        leaf_modules: Module types, paths of modules, or functions, to keep as one node each.
        example: Inputs by position, whose sizes decide branches; empty for none.
        printed: What the forward's output has been shown of; by default nothing.

    Raises:
        TraceError: If torch.fx cannot follow the forward.
    """
    leaves = tuple(leaf_modules)
    printed = Printed() if printed is None else printed
    _refuse_patches(model, leaves)
    choices: Choices | None = Choices()
    first: errors.TraceError | None = None
    for _ in range(size_branches.ATTEMPTS):
        assert choices is not None
        try:
            traced = _trace(model, training, leaves, choices, example, printed)
            if not choices.impossible:
                return traced
            raise errors.TraceError(_impossible(model, choices))
        except errors.TraceError as error:
            if first is None or (_declined(first.__cause__) and _untraceable(error.__cause__)):
                first = error
            choices = choices.turned()
            if choices is None:
                break
    assert first is not None
    raise first


def _declined(error: BaseException | None) -> bool:
    """Whether the model's own code raised an error, as it does for sizes that it does not take.

    Branches that lead there are those of no real input, so what fails on other branches says more.
    """
    last = error.__traceback__ if error is not None else None
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None or last.tb_frame.f_code.co_filename.startswith((_TORCH, _HERE)):
        return False
    steps = dis.get_instructions(last.tb_frame.f_code)
    return any(s.opname == "RAISE_VARARGS" for s in steps if s.offset == last.tb_lasti)


def _untraceable(error: BaseException | None) -> bool:
    """Whether a trace ended at something that cannot be traced."""
    return error is not None and not _declined(error)


def _refuse_patches(model: nn.Module, leaves: tuple[Leaf, ...]) -> None:
    """Refuse what hangs on the root, and hooks on gradients of modules that are traced through.

    Raises:
        TraceError: If there is any; names every module.
    """
    reason = patched_methods.root_reason(model)
    if reason:
        raise errors.TraceError(reason)
    tracer = Tracer(leaves, Choices())
    inside: tuple[str, ...] = ()
    hooked = []
    for path, module in model.named_modules():
        if path.startswith(inside):
            continue
        if path and tracer.is_leaf_module(module, path):
            inside = (*inside, f"{path}.")
        elif patched_methods.has_backward_hooks(module):
            hooked.append(path)
    if hooked:
        raise errors.TraceError(
            f"modules {', '.join(map(repr, hooked))} have backward hooks, which the conversion "
            "would leave out: remove them first"
        )


def trace_modes(
    model: nn.Module, leaf_modules: Iterable[Leaf] = (), example: tuple[Any, ...] = ()
) -> dict[bool, Traced]:
    """Trace both modes; one and the same result for both where the model does the same.

    Where they differ, what both do has the same name in both, and modules whose mode the code
    asked for are guarded: at run time they must be in the network's mode.
    """
    printed = Printed()
    traces = {
        mode: trace(
            model, training=mode, leaf_modules=leaf_modules, example=example, printed=printed
        )
        for mode in (True, False)
    }
    constants = (traces[False].constants, traces[True].constants)
    same = same_graph(traces[False].graph, traces[True].graph, constants)
    if same and traces[False].problems == traces[True].problems:
        returned = [[returned_by(n) for n in t.graph.nodes] for t in traces.values()]
        if returned[0] != returned[1]:  # other blocks run, which do the same
            keep_returns(traces[False].graph, Counter())
        return {True: traces[False], False: traces[False]}
    for traced in traces.values():
        _guard_modes(traced)
    align(traces[False].graph, traces[True].graph)
    return traces


def _guard_modes(traced: Traced) -> None:
    graph = traced.graph
    last = [n for n in graph.nodes if n.op == "placeholder"][-1]
    for path, mode in traced.modes.items():
        with graph.inserting_after(last):
            module = graph.get_attr(path)
        with graph.inserting_after(module):
            graph.call_function(guards.same_mode, (module, mode, path))


def _trace(
    model: nn.Module,
    training: bool,
    leaves: tuple[Leaf, ...],
    choices: Choices,
    example: tuple[Any, ...],
    printed: Printed,
) -> Traced:
    """Trace a model once, on the branches that are chosen; see ``trace``.

    Where the model depends on hashes or texts of sizes, these are what they are in the example, or
    what the model fixes, and are guarded.
    """
    answers = Answers()
    found: Traced | None = None
    failed: errors.TraceError | None = None
    try:
        found = _traced(model, training, leaves, choices, example, answers, printed)
    except errors.TraceError as error:
        if not answers.asked or _declined(error.__cause__):
            raise
        failed = error
    if found is None:
        before = replace(choices)
        choices.restart()
        try:
            fixed = Answers(fixed=True)
            found = _traced(model, training, leaves, choices, example, fixed, printed)
        except errors.TraceError:
            vars(choices).update(vars(before))
            # What found no entry may have looked for a size; else the text was for a message.
            if failed is None or isinstance(failed.__cause__, (LookupError, AttributeError)):
                raise
            raise failed from failed.__cause__
    assert found is not None
    return found


def _traced(
    model: nn.Module,
    training: bool,
    leaves: tuple[Leaf, ...],
    choices: Choices,
    example: tuple[Any, ...],
    answers: Answers,
    printed: Printed,
    evaluated: type_questions.Evaluated | None = None,
    rounds: int = 0,
) -> Traced | None:
    """Trace a model once; return None if it depends on what ``answers`` has no true values for.

    ``evaluated`` is the code that the forward is known to run by ``eval`` or ``exec``, and
    ``rounds`` how many traces have found more of it.
    """
    evaluated = [] if evaluated is None else evaluated
    known = len(evaluated)
    if rounds > _ROUNDS:
        raise errors.TraceError(
            f"{type(model).__name__}.forward evaluates other code (eval, exec) each time that it "
            "runs, which cannot be traced: write it out"
        )
    root = _skeleton(model)
    patched_methods.settle_forward(root)
    training_modes.put(root, training)
    before = hidden_state.held(root)
    tensors = _tensors(root)
    with type_questions.answered(root, evaluated) as reached:
        generators = reached.generators
        run = functools.partial(
            _run, root, model, leaves, example=example, generators=generators, printed=printed
        )
        try:
            graph, modes, watch = run(choices=choices, answers=answers)
        except errors.TraceError:
            if not reached.is_outdated() and len(evaluated) == known:
                raise
        if reached.is_outdated() or len(evaluated) > known:  # more code is known now
            choices.restart()
            vars(answers).update(vars(Answers(fixed=answers.fixed)))
            given = model, training, leaves, choices, example, answers, printed
            return _traced(*given, evaluated, rounds + 1)
        # What sizes are looked up among is not all tried: it may be computed, or be arithmetic.
        if answers.among_numbers or answers.among_unseen:
            return None
        hidden_state.check_buffers(root, model)
        count = len(graph.nodes)
        names = [str(n.target) for n in graph.nodes if n.op == "get_attr"]
        constants = _constants(graph, root, model, before)
        hidden_state.rewind(root, before, [name for name in names if name in constants])
        repeated = choices.again()
        reason = ""
        # A constant may be what a custom Function made of a traced value: who made it is seen where
        # every call is watched, which is slow. Few forwards have a constant of their own.
        every_call = bool(constants) and contexts.any_of_a_user()
        try:
            again, _, watched = run(
                choices=repeated, answers=replace(answers), seed=1, every_call=every_call
            )
            others = _constants(again, root, model, before)
        except errors.TraceError as error:
            reason = f" ({error})"
        if reason or len(graph.nodes) > count or not same_graph(graph, again, (constants, others)):
            raise errors.TraceError(
                f"{type(model).__name__}.forward does something else when it is called again: it "
                "depends on Python state that it changes (an attribute, a list, a counter, what it "
                "kept of its last input), on the clock or on random numbers, which the conversion "
                "would fix for good. Keep such state in buffers, and draw from a tensor of the "
                f"model (torch.rand_like(x)){reason}"
            )
        judge = size_branches.Judge(root, example)
        held = [name for name in names if name in constants]
        if answers.written:
            hidden_state.rewind(root, before, held)
            written = replace(answers, text=sizes.TEXT)
            reason = ""
            try:
                other, _, _ = run(choices=repeated.again(), answers=written, seed=1)
                others = _constants(other, root, model, before)
            except errors.TraceError as error:
                reason = f" ({error})"
            if reason or not same_graph(graph, other, (constants, others)):
                raise errors.TraceError(_depends_on_text(model, reason))
        tried_at = trials(reached.numbers, reached.computed)
        for trial in tried_at if answers.asked and not answers.fixed else ():
            hidden_state.rewind(root, before, held)
            tried = Answers(trial, compared=answers.compared)
            try:
                other, _, _ = run(choices=repeated.again(), answers=tried, seed=1)
                others = _constants(other, root, model, before)
            except errors.TraceError:
                return None
            value = functools.partial(_on_trial, trial, judge)
            if tried.met or not same_on(value, (graph, other), (constants, others)):
                return None
        if _asks_python(reached):
            with printed.run():
                _compare(model, root, tensors, graph, example, reached)
    vars(root).update({name: value for name, value in constants.items() if "." not in name})
    lost = [*watch.problems(graph, root), *watched.lost_constants()]
    split_pieces(graph, root)
    spell_out(graph)
    functionalise(graph, root)
    written_activations(graph, constants)
    contexts.keep(graph, root)
    keep_returns(graph, watch.calls)
    graph.lint()
    return Traced(graph, constants, training, modes, tuple(lost))


def _depends_on_text(model: nn.Module, reason: str) -> str:
    return (
        f"{type(model).__name__}.forward depends on the text of a tensor (str(x), an f-string), in "
        "which its numbers stand, its dtype, and whether it has a derivative: none of them is "
        "known when it is traced. Ask for these themselves (x.dtype == torch.float32), which is "
        f"guarded, or leave the branch out{reason}"
    )


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of a model by path, each under all of its paths."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


#: Names by which Python code asks for what no operation shows.
_ASKING = {
    "hasattr", "getattr", "callable", "builtins", "dir", "vars", "id", "__dict__", "Proxy",
    "is_fx_tracing", "is_fx_symbolic_tracing", "is_grad_enabled",
    "has_torch_function", "has_torch_function_unary", "has_torch_function_variadic",
}  # fmt: skip
#: Classes by which ``isinstance`` asks what a value can do, not what it is.
_ABILITIES = {*collections.abc.__all__, "SupportsFloat", "SupportsIndex", "SupportsInt"}
#: Names of what depends on whether derivatives are recorded.
_MODES = {"is_grad_enabled", "requires_grad"}


def _asks_python(reached: type_questions.Reached) -> bool:
    """Whether the code of a forward may ask what a traced value answers otherwise than a tensor."""
    names = reached.names
    abilities = "isinstance" in names and names & _ABILITIES
    return reached.compares or bool(names & _ASKING or abilities)


def _compare(
    model: nn.Module,
    root: nn.Module,
    tensors: Mapping[str, Tensor],
    graph: fx.Graph,
    example: tuple[Any, ...],
    reached: type_questions.Reached,
) -> None:
    """Refuse a model that does something else than what was traced, see ``comparisons.Rerun``.

    Args:
        model: The model.
        root: Its skeleton, after it was traced.
        tensors: The parameters and buffers of that, as they were before.
        graph: The trace.
        example: Inputs by position; empty for none.
        reached: What the forward may reach.

    Raises:
        TraceError: If it does.
    """

    def build(held: dict[str, Any]) -> nn.Module:
        memo = {id(tensor): held[path] for path, tensor in _tensors(model).items()}
        for module in model.modules():
            loose = [value for value in vars(module).values() if isinstance(value, Tensor)]
            memo |= {id(value): sizes.bare(value) for value in loose if id(value) not in memo}
        built = _copy_with(model, memo)
        patched_methods.settle_forward(built)
        training_modes.put(built, root.training)
        return built

    needed = [n for n in graph.nodes if n.op == "placeholder" and not n.args]
    inputs = [example] if example else [[x] * len(needed) for x in usual_inputs(root)]
    compare = functools.partial(Rerun, root, tensors, build, given=bool(example))
    first = compare(inputs=inputs)
    sized = [compare(inputs=[[_resized(x, n) for x in inputs[0]]]) for n in reached.identical]
    dtypes = [None, *_DTYPES] if "dtype" in reached.names else [None]
    derivatives = [True, False] if reached.names & _MODES else [True]
    drawn = hidden_state.random_state()
    states = list(map(hidden_state.state_of, reached.generators))
    try:
        # What is compared with a size by `is` depends on neither dtypes nor derivatives.
        differences = (rerun.difference(graph, [None]) for rerun in sized)
        found = first.difference(graph, dtypes, derivatives) or next(filter(None, differences), "")
    except ImportError:  # torch cannot show its operations, see watch_operations: nothing is told
        found = ""
    finally:
        hidden_state.restore_random_state(drawn)
        for generator, state in zip(reached.generators, states, strict=True):
            hidden_state.put_state(generator, state)
    if found:
        raise errors.TraceError(
            f"{type(model).__name__}.forward does something else than what can be traced of it: "
            f"{found}. Python decides there by what leaves no operation, as `is`, hasattr, "
            "isinstance, the mode of autograd or torch.fx's own flags do. Ask by == "
            "(x.dtype == torch.float32), which is guarded, or mark the module with "
            "leaf_modules=[...] and give it a rule"
        )


def _resized(value: Any, size: int) -> Any:
    """Return a tensor without content, all of whose sizes but that of channels are ``size``."""
    if not isinstance(value, Tensor):
        return value
    shape = [n if d == 1 else size for d, n in enumerate(value.shape)]
    return torch.empty(shape, dtype=value.dtype, device="meta")


#: A forward that evaluates new code in more traces than that evaluates other code each time.
_ROUNDS = 12


#: The dtypes that a network may be given after its conversion.
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _on_trial(trial: sizes.TrialAnswers, judge: size_branches.Judge, node: fx.Node) -> Any:
    """Return the value of a node that is a size in a trial."""
    tensors = [n for n in sizes.reads(node) if not is_shape(n)]
    return trial.value(node, judge.rank(tensors[0]) if tensors else None)


def _skeleton(model: nn.Module) -> nn.Module:
    try:
        return skeleton(model)
    except NotImplementedError as error:
        raise errors.TraceError(
            f"{type(model).__name__} cannot be copied: {_uncopied(model, error)}"
        ) from error
    except RuntimeError as error:
        raise errors.TraceError(
            f"{type(model).__name__} cannot be copied: {_computed(model)}"
        ) from error
    except Exception as error:  # Python copies no lock, and a __deepcopy__ raises what it likes
        raise errors.TraceError(
            f"{type(model).__name__} cannot be copied: {error}. Make what cannot be copied outside "
            "the model (a scripted function: put the Python function it was made of in its place), "
            "or give the class that holds it a __deepcopy__"
        ) from error


def _uncopied(model: nn.Module, error: Exception) -> str:
    """Say which tensors torch has no copy of, and what to do."""
    for name, tensor in _tensors(model).items():
        if tensor.layout not in (torch.strided, torch.sparse_coo):
            return (
                f"torch copies no tensor of the layout {tensor.layout}, which '{name}' has: keep "
                "it as tensor.to_sparse_coo(), which converts"
            )
    return f"{error}. Make what cannot be copied outside the model"


def _computed(model: nn.Module) -> str:
    """Say which modules keep a computed tensor, which torch cannot copy, and what to do."""
    said = []
    for path, module in model.named_modules():
        where = f"module '{path}'" if path else "the model"
        kept = [k for k, v in vars(module).items() if isinstance(v, Tensor) and not v.is_leaf]
        known = hints.utility(module)
        if known is not None:
            said.append(f"{where} has hooks of {known[0]}: {known[1]}")
        elif kept:
            said.append(
                f"{where} keeps a computed tensor as {', '.join(kept)}: keep it detached, or "
                "compute it in the forward"
            )
    return ". ".join(said) or "a tensor that it keeps is computed from others: keep it detached"


def _run(
    root: nn.Module,
    model: nn.Module,
    leaves: tuple[Leaf, ...],
    *,
    choices: Choices,
    example: tuple[Any, ...],
    generators: Sequence[Any],
    answers: Answers,
    printed: Printed,
    seed: int | None = None,
    every_call: bool = False,
) -> tuple[fx.Graph, dict[str, bool], Watch]:
    """Trace the skeleton once; return also the modes that the code asked for, and what it met.

    Args:
        root: The skeleton.
        model: What it is a copy of.
        leaves: What is not traced into.
        choices: The branches to take.
        example: Inputs by position; empty for none.
        generators: Generators of random numbers that the forward may reach.
        answers: What stands for sizes where Python asks for their hash or their text.
        printed: What of the forward's output is shown.
        seed: What the global generators are seeded with; None for what they are now.
        every_call: Whether to watch every call of Python, for constants of custom Functions.
    """
    asked: set[str] = set()
    drawn = hidden_state.random_state()
    if seed is not None:
        hidden_state.restore_random_state(hidden_state.seeded(seed))
    began, states = hidden_state.random_state(), list(map(hidden_state.state_of, generators))
    trainable = {p: p.requires_grad for p in root.parameters()}
    tracer = Tracer(leaves, choices, example, every_call, answers)
    try:
        with hidden_state.watch_modes(root, asked), printed.run():
            graph = tracer.trace(root, concrete_args=_defaults(model) or None)
    except Exception as error:
        with contextlib.suppress(errors.TraceError):
            hidden_state.check_trainable(root, trainable)
        raise errors.TraceError(_explain(error, model, tracer, example)) from error
    finally:
        unchanged = hidden_state.same_random_state(began)
        hidden_state.restore_random_state(drawn)
        changed = [
            generator
            for generator, state in zip(generators, states, strict=True)
            if hidden_state.put_state(generator, state)
        ]
    hidden_state.check_trainable(root, trainable)
    tracer.watch.fold(graph, tracer.functions)
    if not unchanged:
        raise errors.TraceError(
            f"{type(model).__name__}.forward draws random numbers that depend on no input; the "
            "conversion would fix them for good. Draw them from a tensor of the model "
            "(torch.rand_like(x), x.new_empty(...).bernoulli_(p), F.dropout), or mark the module "
            "with leaf_modules=[...] and give it a rule"
        )
    if changed:
        raise errors.TraceError(
            f"{type(model).__name__}.forward draws random numbers from a generator that it holds "
            f"(a {type(changed[0]).__name__}), which the conversion would fix for good. Draw them "
            "from the global generator and a tensor of the model (torch.rand_like(x), "
            "x.new_empty(...).bernoulli_(p)), or mark the module with leaf_modules=[...] and give "
            "it a rule"
        )
    modes = {path: root.get_submodule(path).training for path in sorted(asked - {""})}
    return graph, modes, tracer.watch


def _constants(
    graph: fx.Graph, root: nn.Module, model: nn.Module, before: hidden_state.HeldState
) -> dict[str, Tensor]:
    """Return copies of the tensors that a graph reads and that no module holds as its own."""
    known = {name for name, _ in model.named_buffers()} | {n for n, _ in model.named_parameters()}
    constants = {}
    for node in graph.nodes:
        if node.op == "get_attr" and node.target not in known:
            path, _, name = node.target.rpartition(".")
            value = operator.attrgetter(node.target)(root)
            if isinstance(value, fx.Proxy):  # the forward has put another one there
                value = before.attributes[root.get_submodule(path)].get(name)
            if isinstance(value, Tensor):
                if any(value is buffer for buffer in model.buffers()):
                    raise errors.TraceError(
                        f"{type(model).__name__} reaches one of its own buffers by a way outside "
                        f"its modules (a replaced method, a function, a list), as {node.name}: its "
                        "value would be fixed for good. Call the module that holds it instead"
                    )
                constants[node.target] = value.detach().clone()
    return constants


def _impossible(model: nn.Module, choices: Choices) -> str:
    text = choices.impossible
    return (
        f"{type(model).__name__}.forward branches on sizes, and the branches that can be traced "
        f"exclude each other: no input has `{text}` {choices.taken[text][0]} beside those before. "
        f"{EXAMPLE}"
    )


def _explain(error: Exception, model: nn.Module, tracer: Tracer, example: tuple[Any, ...]) -> str:
    """Return what torch.fx could not follow, where, and what to do about it."""
    path = "".join(f" in module '{p}'" for p in list(tracer.module_stack)[-1:] if p)
    function = contexts.function_of(error.__traceback__)
    if function is not None:
        path += f", in the torch.autograd.Function {function.__name__}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith((_TORCH, _HERE, "<"))]
    line = f" ({Path(own[-1].filename).name}, line {own[-1].lineno}: {own[-1].line})" if own else ""
    where = f"torch.fx cannot follow {type(model).__name__}.forward{path}{line}: "
    if isinstance(error, errors.PursuitifyError):
        return f"{where}{error}"
    kind = "TraceError" if tracer.unseen else type(error).__name__
    if any(Path(f.filename).is_relative_to(_TRANSFORMS) for f in frames):
        return f"{where}{TRANSFORMED}"
    reason = ((tracer.unseen or str(error)).strip().splitlines() or ["no message"])[0].rstrip(".")
    if function is not None:
        return f"{where}{kind}: {reason}. {contexts.MODULE_OF_ITS_OWN}"
    if _declined(error):
        return f"{where}{kind}: {reason}. {_declined_advice(tracer, example)}"
    return f"{where}{kind}: {reason}. {_advice(error, model, frames)}"


def _declined_advice(tracer: Tracer, example: tuple[Any, ...]) -> str:
    """Return what to do where the model's own code raises an error while it is traced."""
    guessed = [text for text in tracer.choices.taken if text not in tracer.choices.certain]
    if guessed and not example:
        return (
            "The forward raises this itself. It branches on sizes "
            f"(`{guessed[-1]}`), which were guessed. {EXAMPLE}"
        )
    return (
        "The forward raises this itself, on the way that it takes while it is traced: see that the "
        "model runs on its inputs, and that what it needs is there without them"
    )


def _advice(error: Exception, model: nn.Module, frames: traceback.StackSummary) -> str:
    """Return what to do, by where and how the trace failed."""
    if any(Path(f.filename) == _CHECKPOINT for f in frames):
        return (
            "Activation checkpointing decides by the tensors themselves what to keep. It changes "
            "no value: turn it off for the conversion"
        )
    if any(f.name.startswith("_check") and f.filename == torch.__file__ for f in frames):
        return (
            "torch._check and its kin take no traced condition: write assert condition, text, "
            "which is guarded where the condition is on sizes, or torch._assert(condition, text), "
            "which is kept for values as well"
        )
    own = [f.line or "" for f in frames if not f.filename.startswith((_TORCH, _HERE, "<"))]
    if isinstance(error, fx.proxy.TraceError) and own and own[-1].startswith("assert "):
        return "Write torch._assert(condition, text), which is kept"
    named = _CALLED.match(str(error))
    if isinstance(error, TypeError) and str(error).startswith(_INFOS):
        return (
            "torch.finfo and torch.iinfo take no traced dtype: name the dtype, as in "
            "torch.finfo(torch.float32), whose numbers the network then keeps in every dtype"
        )
    if isinstance(error, TypeError) and named and named[1] in _FACTORIES:
        name = named[1]
        return (
            f"torch.{name} is given what is read from a tensor, in a way that cannot be traced: "
            "zeros, ones, full, empty, rand and randn may take sizes, and dtype= and device= may "
            "be x.dtype and x.device, or names that only such calls read. Otherwise make the "
            "new tensor from one that is there: x.new_zeros(x.size(0), ...), x.new_ones, "
            "x.new_full, torch.zeros_like(x); for random numbers torch.rand_like(x) or "
            "x.new_empty(x.size(0), ...).bernoulli_(p)"
        )
    if isinstance(error, TypeError) and named and named[1] in _SIZED:
        return (
            f"{named[1]} of a tensor that the forward makes takes no sizes that are read from "
            "another tensor while it is traced: hold that tensor as a buffer "
            "(self.register_buffer(name, tensor) in __init__), whose operations are recorded"
        )
    variadic = [
        p for p in inspect.signature(model.forward).parameters.values() if p.kind in _VARIADIC
    ]
    start = "Control"
    if variadic:
        held = [n for n, m in model.named_children() if n in {"module", "model"}]
        inner = f"If it only wraps a model, pass model.{held[0]}. " if held else ""
        start = (
            f"It is traced with {' and '.join(map(str, variadic))} empty: what it needs from there "
            f"takes a wrapper that names each argument. {inner}Otherwise, control"
        )
    return (
        f"{start} flow or Python code that depends on tensor values or sizes cannot be traced: "
        "rewrite it, mark the module with leaf_modules=[...] and give it a rule with "
        "rules={...}, or wrap the function with torch.fx.wrap"
    )


__all__ = [
    "Leaf",
    "LeafModule",
    "Traced",
    "describe",
    "module_path",
    "same_graph",
    "skeleton",
    "trace",
    "trace_modes",
]
