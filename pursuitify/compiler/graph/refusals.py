"""Inputs that the forward reads as lists, tuples, dicts or objects, not as tensors."""

from __future__ import annotations

import operator

from torch import Tensor, fx

from pursuitify.classify import Sites, Value
from pursuitify.errors import Problem
from pursuitify.normalise import module_path


def problems(sites: Sites) -> list[Problem]:
    """Return a problem for every input that is read as a container, in graph order.

    A network's inputs are tensors whose first dimension is the batch: picking one entry of it, or
    one by name, is either the item of a container or one sample out of the batch.
    """
    found = []
    for node, site in sites.items():
        if site.value is not Value.INPUT:
            continue
        reads = [(user, read) for user in node.users if (read := _container_read(user))]
        if reads:
            user, read = reads[0]
            found.append(
                Problem(
                    node.name,
                    "argument",
                    module_path(user),
                    f"it is no tensor of samples, for the forward reads {read.format(node.target)}",
                    "Convert a wrapper that takes one tensor for each item, and builds the list, "
                    "tuple or dict itself",
                )
            )
    return found


def _container_read(user: fx.Node) -> str:
    """How a node reads an input as a container; empty where it does not."""
    if user.op == "call_function" and user.target in {operator.getitem, getattr}:
        key = user.args[1]
        if user.target is getattr:
            return "" if hasattr(Tensor, str(key)) else f"{{}}.{key}"
        return f"{{}}[{key!r}]" if isinstance(key, (int, str)) else ""
    if user.op == "call_method" and not hasattr(Tensor, str(user.target)):
        return f"{{}}.{user.target}()"
    return ""
