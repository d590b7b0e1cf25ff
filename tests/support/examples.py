"""Properties of drawn examples: few of them in the quick tests, many in the slow ones."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings


def examples(few: int, many: int, *strategies: Any, **named: Any) -> Callable[..., Any]:
    """Return a decorator that makes two tests of one check, the second marked slow.

    Args:
        few: Number of examples of the quick test.
        many: Number of examples of the slow test.
        strategies: What the check's last arguments are drawn from, as ``hypothesis.given`` has it.
        named: The same, by the names of arguments.

    The check's other arguments are fixtures or parameters of the tests, as always.
    """

    def decorate(check: Callable[..., None]) -> Callable[..., None]:
        def test(examples: int, **others: Any) -> None:
            # What draws whole networks is slow and large, and no error.
            chosen = settings(
                max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck)
            )
            chosen(given(*strategies, **named)(check))(**others)

        functools.update_wrapper(test, check)
        # pytest reads off the signature which fixtures and parameters a test takes.
        rest = inspect.signature(given(*strategies, **named)(check)).parameters.values()
        own = inspect.Parameter("examples", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        test.__signature__ = inspect.Signature([own, *rest])  # type: ignore[attr-defined]
        slow = pytest.param(many, marks=pytest.mark.slow)
        return pytest.mark.parametrize("examples", [few, slow])(test)

    return decorate
