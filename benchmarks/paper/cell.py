"""Runs one cell, or finds its result; weights are kept so that another evaluation needs no more."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import environment
from benchmarks.paper.configuration import Configuration, Evaluation, Training, digest, spelled
from benchmarks.paper.evaluate import evaluate
from benchmarks.paper.train import build, train
from pursuitify import PursuitNetwork
from pursuitify.version import VERSION

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "cells"
WEIGHTS = HERE.parent.parent / "build" / "paper"


def run(
    c: Configuration, results: Path = RESULTS, weights: Path = WEIGHTS, device: str = "cpu"
) -> dict[str, Any]:
    """Return the cell's result, from ``results`` if it is there."""
    path = results / f"{c.name}.json"
    if path.exists():
        return json.loads(path.read_text())
    net, record = trained(c.training, weights, device)
    start = time.process_time()
    found = evaluate(net, c.training, c.evaluation, device)
    result = {
        "name": c.name,
        "configuration": c.to_dict(),
        "training": record,
        "found": found,
        "evaluation_cpu_seconds": time.process_time() - start,
        "environment": {"pursuitify": VERSION, **environment(device)},
    }
    write(path, result)
    return result


def trained(
    c: Training, weights: Path = WEIGHTS, device: str = "cpu"
) -> tuple[PursuitNetwork, Any]:
    """Return the trained network and the record of its training, from ``weights`` if there."""
    path = weights / f"{digest(spelled(c))}.pt"
    if path.exists():
        net = build(c).to(device)
        kept = torch.load(path, map_location=device, weights_only=True)
        net.load_state_dict(kept["state"])
        return net.eval(), kept["record"]

    def watch(net: PursuitNetwork, epoch: int) -> dict[str, Any]:
        found = evaluate(net, c, Evaluation(images=500, protocol="pgd"), device)
        return {key: found[key] for key in ("clean", "fgsm", "pgd")}

    net, record = train(c, watch, device)
    weights.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}")
    torch.save({"state": net.state_dict(), "record": record}, part)
    part.replace(path)
    return net, record


def cached(c: Configuration, results: Path = RESULTS) -> dict[str, Any] | None:
    """Return the cell's result if it is there."""
    path = results / f"{c.name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def write(path: Path, value: Any) -> None:
    """Write JSON so that no reader ever finds half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(value, indent=1) + "\n")
    part.replace(path)
