"""Checks of a model, its rules and its options before it is traced."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from pursuitify.errors import ConversionError, OptionError
from pursuitify.rules import Registry, Rule, default
from pursuitify.utils import torch_internals
from pursuitify.utils.option_checks import wraps


def registry(rules: object) -> Registry:
    """Return the built-in rules with the user's own before them.

    Raises:
        OptionError: If ``rules`` is not a mapping to rules.
    """
    if rules is None:
        return default()
    if not isinstance(rules, Mapping):
        raise OptionError(f"rules={rules!r} is not a mapping from types or functions to Rule")
    wrong = [key for key, rule in rules.items() if not isinstance(rule, Rule)]
    if wrong:
        raise OptionError(f"rules: the values of {wrong} are not of type Rule")
    return default().extended(rules)


def leaves(leaf_modules: object, root: nn.Module) -> None:
    """Check that the leaf modules are types, or paths in the model.

    Raises:
        OptionError: Otherwise.
    """
    if isinstance(leaf_modules, str) or not isinstance(leaf_modules, Iterable):
        raise OptionError(f"leaf_modules={leaf_modules!r} is not a sequence of types and paths")
    paths = {name for name, _ in root.named_modules(remove_duplicate=False)}
    for leaf in leaf_modules:
        known = leaf in paths if isinstance(leaf, str) else isinstance(leaf, type)
        if not known:
            raise OptionError(f"leaf_modules: {leaf!r} is neither a type nor a path in the model")


def names(root: nn.Module, reserved: Iterable[str]) -> None:
    """Check that the model's own names leave room for those of PursuitNetwork.

    Raises:
        ConversionError: Otherwise.
    """
    own = {**root._modules, **root._parameters, **root._buffers}
    taken = sorted(set(own) & set(reserved))
    if taken:
        raise ConversionError(
            f"{type(root).__name__} has submodules, parameters or buffers with names that "
            f"PursuitNetwork needs: {taken}. Rename them, or wrap the model in another module"
        )


def gradient_hooks(root: nn.Module) -> None:
    """Check that no parameter has a hook on its derivative: a copy of it would have none.

    Raises:
        ConversionError: Otherwise; names the parameters.
    """
    found = [p for p in root.named_parameters() if torch_internals.has_gradient_hooks(p[1])]
    if found:
        names = ", ".join(repr(name) for name, _ in found)
        raise ConversionError(
            f"parameters {names} of {type(root).__name__} have hooks on their derivatives "
            "(register_hook, register_post_accumulate_grad_hook), which the network's own copies "
            "would lose. Remove the hooks and register them on the network's parameters, which "
            "have the same names (net.get_parameter(name)), or share them: "
            "pursuitify(model, copy=False)"
        )


def model(candidate: object) -> nn.Module:
    """Return ``candidate`` if it is a module that can be converted at all.

    Raises:
        OptionError: Otherwise.
    """
    if not isinstance(candidate, nn.Module):
        kind = f"a {type(candidate).__name__}"
        advice = ""
        if isinstance(candidate, type):
            kind = f"the class {candidate.__name__}"
        elif isinstance(getattr(candidate, "model", None), nn.Module):
            advice = ": give its .model"
        raise OptionError(f"pursuitify takes a torch.nn.Module instance, not {kind}{advice}")
    if isinstance(candidate, torch.jit.ScriptModule):
        raise OptionError(
            "a scripted module holds no Python code to trace: pass the Python module it was made of"
        )
    wrapped = wraps(candidate)
    if wrapped:
        raise OptionError(
            f"pass the wrapped model, which this {type(candidate).__name__} holds as {wrapped}"
        )
    if type(candidate).forward is nn.Module.forward and "forward" not in vars(candidate):
        raise OptionError(
            f"a {type(candidate).__name__} has no forward: put what it holds into "
            "torch.nn.Sequential(...), or into a module whose forward calls it"
        )
    lazy = [n for n, p in candidate.named_parameters() if isinstance(p, nn.UninitializedParameter)]
    if lazy:
        raise OptionError(f"lazy parameters have no shape yet; run the model once first: {lazy}")
    return candidate
