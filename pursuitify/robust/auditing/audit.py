"""The audit: every attack a protocol names, what they tell together, and the red flags."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from pursuitify.data.forms import whole
from pursuitify.data.samples import recordable
from pursuitify.errors import AuditError, InputError, OptionError
from pursuitify.robust.attacks.input_checks import (
    check_inputs,
)
from pursuitify.robust.attacks.threat_model import BALLS
from pursuitify.robust.auditing.attack_registry import Attack
from pursuitify.robust.auditing.audit_report import AuditReport
from pursuitify.robust.auditing.network_guard import process_state_kept
from pursuitify.robust.auditing.protocols import PROTOCOLS, Protocol
from pursuitify.robust.auditing.results_record import (
    AuditRecord,
    subject_identity,
    weights_identity,
)
from pursuitify.robust.auditing.run_protocol import TWIN, Auditor
from pursuitify.robust.surrogates.sweep_counts import AtIterations, exact_derivatives, find_pursuit
from pursuitify.utils import option_checks
from pursuitify.utils.fingerprint import of_tensors, of_values
from pursuitify.version import VERSION

Data = tuple[Tensor, Tensor] | Iterable[tuple[Tensor, Tensor | int]] | Dataset[Any]


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
        data: Inputs and labels, an iterable of such batches, or a Dataset or list of samples
            ``(x, label)``; all of it is used.
        eps: Radius of the ball.
        protocol: ``"quick"``, ``"standard"``, ``"full"``, or a :class:`Protocol` of your own.
        norm: ``"linf"`` or ``"l2"``.
        seed: Makes the audit repeat; the global random state is left alone.
        twins: Other networks by name, for instance the source before fine-tuning or an
            adversarially trained one: attacked like the net, and their gradients used against it.
        attacks: Attacks of your own by name, called as ``attack(model, x, y, eps=eps)``. One that
            raises, or leaves the ball, is reported as failed and raises a flag. One that changes
            the network or a twin (weights, buffers, modes, attributes, hooks) raises a flag too;
            these are put right before its points are judged, and so are ``requires_grad``,
            ``.grad`` and the global random states of torch, NumPy and Python.
        batch_size: How many inputs to attack at a time.
        resume: File that keeps the results of finished attacks; an interrupted audit goes on
            from it. It is refused where anything it depends on is another: inputs, labels,
            options, the network's weights, plain attributes or answers, versions. An attack of
            your own that was changed runs again.
        progress: Show a progress bar, on standard error.

    Returns:
        The report. ``print(report)`` shows it, ``report.verdict`` sums it up.

    Raises:
        OptionError: If an option is wrong, the data has none of these forms, or ``resume`` holds
            another audit.
        InputError: If the data cannot be attacked, or the network or a twin returns anything but
            finite logits of all its labels' classes.
        AuditError: If an attack of your own changed the network in a way that cannot be undone.
        KeyboardInterrupt: If interrupted; its text says where the finished results are.
    """
    if not isinstance(protocol, Protocol):
        protocol = option_checks.chosen("protocol", protocol, PROTOCOLS)
    option_checks.chosen("norm", norm, BALLS)
    option_checks.number("eps", eps, above=0)
    if batch_size is not None:
        option_checks.positive("batch_size", batch_size)
    seed = option_checks.seed("seed", seed)
    if resume is not None:
        resume = option_checks.path("resume", resume)
    _check_own(attacks)
    x, y = whole(data)
    check_inputs(net, x, y, eps, name="data")
    option_checks.radius("eps", eps, x.shape[1:], norm)
    x, y = recordable(x), recordable(y)
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
    with process_state_kept(), exact_derivatives(net):
        identity = {
            **setting,
            "batch_size": batch_size,
            "network": weights_identity(net, x, y, batch_size, seed),
            "data": of_tensors(x, y),
            "device": x.device.type,
            "attacks": of_values(repr(protocol)),
            "version of pursuitify": VERSION,
            "version of torch": str(torch.__version__),
        }
        record = AuditRecord(resume, identity | _beyond_weights(subjects, x, y, batch_size, seed))
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
            record=record,
        )
        try:
            return run.report(setting, dict(attacks or {}), progress=progress)
        except (KeyboardInterrupt, AuditError) as stop:
            path = record.rescue()
            if path is None:
                raise
            what = str(stop) if isinstance(stop, AuditError) else "interrupted"
            raise type(stop)(
                f"{what}; what was finished is in {path}: audit(..., resume={str(path)!r}) goes on "
                "from there"
            ) from stop


def _beyond_weights(
    subjects: Mapping[str, nn.Module], x: Tensor, y: Tensor, batch_size: int | None, seed: int
) -> dict[str, Any]:
    """Return what tells the networks from others of the same weights; the T = 0 twin is the net."""
    found: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the model seems to return probabilities")
        for name, subject in subjects.items():
            if name == TWIN:
                continue
            try:
                # A twin of other weights is another twin, attacked anew; only its own are compared.
                mark = ""
                if name != "network":
                    mark = f" {weights_identity(subject, x, y, batch_size, seed)}"
                found |= subject_identity(name + mark, subject, x, y, batch_size, seed)
            except InputError as error:
                if name == "network":
                    raise
                raise InputError(f"twin {name!r}: {error}") from error
    return found


def _check_own(attacks: object) -> None:
    if attacks is None:
        return
    if not isinstance(attacks, Mapping):
        raise OptionError(
            f"attacks is a {type(attacks).__name__}, not a mapping: give {{'my attack': function}}"
        )
    for name, attack in attacks.items():
        if not isinstance(name, str) or not callable(attack):
            raise OptionError(
                f"attacks[{name!r}] is a {type(attack).__name__}: attacks maps names to functions "
                "called as attack(model, x, y, eps=eps)"
            )


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
