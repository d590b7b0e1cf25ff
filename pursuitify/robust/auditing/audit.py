"""The audit: every attack a protocol names, what they tell together, and the red flags."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike

import torch
from torch import Tensor, nn

from pursuitify.errors import InputError, OptionError
from pursuitify.robust.attacks.input_checks import check_choice, check_inputs, check_positive
from pursuitify.robust.attacks.threat_model import BALLS
from pursuitify.robust.auditing.attack_registry import Attack
from pursuitify.robust.auditing.audit_report import AuditReport
from pursuitify.robust.auditing.protocols import PROTOCOLS, Protocol
from pursuitify.robust.auditing.results_record import Record, fingerprint
from pursuitify.robust.auditing.run_protocol import TWIN, Auditor
from pursuitify.robust.surrogates.sweep_counts import AtIterations, exact_derivatives, find_pursuit

Data = tuple[Tensor, Tensor] | Iterable[tuple[Tensor, Tensor]]


def audit(
    net: nn.Module,
    data: Data,
    *,
    eps: float,
    protocol: str | Protocol = "quick",
    norm: str = "linf",
    seed: int = 0,
    twins: Mapping[str, nn.Module] | None = None,
    attacks: Mapping[str, Attack] | None = None,
    batch_size: int | None = 256,
    resume: str | PathLike[str] | None = None,
    progress: bool = True,
) -> AuditReport:
    """Attack a network by a named protocol and look for signs that the attacks are deceived.

    A pursuit network is attacked through every sweep, and past the pursuit: at other numbers of
    sweeps, through its latents, through smoothed derivatives. Its twin at T = 0 is attacked alike.
    One that sits inside another module, say behind a normalisation, is found there.

    For many networks, as in a benchmark: ``protocol="quick"`` on a few hundred images. On two
    small networks, one of them adversarially trained, its ``worst()`` came within three points of
    AutoAttack's standard version. It took 100 passes forward and back and 80 forward per image,
    170 and 160 where most images withstood. Report ``worst()`` with ``interval()``, and the flags.
    For the last word on one network: ``"standard"``, six to eight times as much.

    Args:
        net: Returns logits for inputs in [0, 1]; audited in evaluation mode.
        data: Inputs and labels, or an iterable of such batches; all of it is used.
        eps: Radius of the ball.
        protocol: ``"quick"``, ``"standard"``, ``"full"``, or a :class:`Protocol` of your own.
        norm: ``"linf"`` or ``"l2"``.
        seed: Makes the audit repeat; the global random state is left alone.
        twins: Other networks by name, for instance the source before fine-tuning or an
            adversarially trained one: attacked like the net, and their gradients used against it.
        attacks: Attacks of your own by name, called as ``attack(model, x, y, eps=eps)``.
        batch_size: How many inputs to attack at a time.
        resume: File that keeps the results of finished attacks; an interrupted audit goes on
            from it.
        progress: Show a progress bar.

    Returns:
        The report. ``print(report)`` shows it, ``report.verdict`` sums it up.
    """
    if not isinstance(protocol, Protocol):
        protocol = check_choice("protocol", protocol, PROTOCOLS)
    check_choice("norm", norm, BALLS)
    check_positive("eps", eps)
    x, y = gather(data)
    check_inputs(net, x, y, eps)
    if net.training:
        warnings.warn("the model is in training mode; audited in evaluation mode", stacklevel=2)
    subjects = _subjects(net, dict(twins or {}))
    setting = {
        "protocol": protocol.name,
        "norm": norm,
        "eps": float(eps),
        "seed": seed,
        "images": len(x),
    }
    pursuit = find_pursuit(net)
    if pursuit is not None:
        setting |= pursuit.settings()
    identity = {
        **setting,
        "network": fingerprint(net),
        "data": fingerprint(x, y),
        "steps": fingerprint(repr(protocol)),
    }
    run = Auditor(
        net=net,
        subjects=subjects,
        protocol=protocol,
        x=x,
        y=y,
        eps=float(eps),
        norm=norm,
        seed=seed,
        batch_size=batch_size,
        record=Record(resume, identity),
    )
    with _chance(x.device), exact_derivatives(net):
        return run.report(setting, dict(attacks or {}), progress=progress)


def gather(data: Data) -> tuple[Tensor, Tensor]:
    """Return all inputs and labels of tensors or of an iterable of batches."""
    if isinstance(data, tuple | list) and len(data) == 2 and isinstance(data[0], Tensor):
        x, y = data
        if not isinstance(y, Tensor):
            raise InputError(f"labels must be a tensor, not {type(y).__name__}")
        return x.detach(), y
    try:
        parts = [(x, y) for x, y in data]
    except (TypeError, ValueError) as error:
        raise InputError("data must be (x, y) tensors or an iterable of (x, y) batches") from error
    if not parts:
        raise InputError("there is nothing to attack: data is empty")
    if not all(isinstance(part, Tensor) for pair in parts for part in pair):
        raise InputError("data must be (x, y) tensors or an iterable of (x, y) batches")
    return torch.cat([x.detach() for x, _ in parts]), torch.cat([y for _, y in parts])


def _subjects(net: nn.Module, twins: dict[str, nn.Module]) -> dict[str, nn.Module]:
    subjects = {"network": net}
    pursuit = find_pursuit(net)
    if pursuit is not None and pursuit.iterations and pursuit.pursuit_solver.pursues:
        subjects[TWIN] = AtIterations(net, 0)
    for name, twin in twins.items():
        if name in subjects or not isinstance(twin, nn.Module):
            raise OptionError(f"twin {name!r} must be an nn.Module with a name of its own")
        subjects[name] = twin
    return subjects


@contextmanager
def _chance(device: torch.device) -> Iterator[None]:
    """Leave the global random state as it is."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
