"""Runs that one process and two must agree on: ``accelerate launch distributed.py FILE``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from pursuitify import pursuitify
from pursuitify.training import finetune
from tests.support.toy import model, rows

#: Name -> (BatchNorm, settings of the network, options of the run).
RUNS: dict[str, tuple[bool, dict[str, Any], dict[str, Any]]] = {
    "global": (False, {"iterations": 2}, {}),
    "no sweeps": (False, {"iterations": 0}, {"optimizer": "adamw", "lr": 1e-3}),
    "feedforward": (False, {"iterations": 2, "solver": "feedforward"}, {}),
    "layered": (False, {"iterations": 2, "solver": "layered"}, {"ema": 0.5}),
    "ramps": (False, {"iterations": 2}, {"step_ramp": 0.5, "first_sweeps": 0}),
    "recompute": (False, {"iterations": 2, "memory": "recompute"}, {}),
    "losses": (False, {"iterations": 1}, {"reconstruction": 0.1, "frame_potential": 0.1}),
    "norm": (True, {"iterations": 2}, {}),
    "norm, no sweeps": (True, {"iterations": 0}, {}),
    "norm, trades": (True, {"iterations": 1}, {"objective": "trades", "attack_steps": 1}),
}


def outcome(name: str) -> dict[str, Any]:
    """Do a run and return its losses and weights."""
    norm, settings, options = RUNS[name]
    net = pursuitify(model(norm), **settings)
    # Plain gradient descent: Adam divides by the size of a derivative, rounding errors and all.
    config = {"batch_size": 8, "epochs": 2, "optimizer": "sgd", "lr": 0.05, "progress": False}
    result = finetune(net, rows(16), rows(15, seed=1), keep="last", **{**config, **options})
    weights = {k: v.detach().flatten().tolist() for k, v in net.state_dict().items()}
    return {"history": result.history, "weights": weights}


#: How a network is wrapped by hand, with its number of sweeps.
WRAPPED = [("ddp", 1), ("ddp", 3), ("fsdp", 1), ("fsdp", 3)]


def wrapped(way: str, sweeps: int, rank: int, world: int) -> dict[str, Any]:
    """Take two steps of gradient descent by a plain loop and return weights and outputs.

    Args:
        way: ``ddp`` for DistributedDataParallel, ``fsdp`` for ``fully_shard``, or ``alone``.
        sweeps: T.
        rank: This process.
        world: The number of processes; each takes its share of every batch.
    """
    net = pursuitify(model(False), iterations=sweeps).double()
    trained: Any = net
    if way == "ddp":
        trained = nn.parallel.DistributedDataParallel(net)
    elif way == "fsdp":
        from torch.distributed.fsdp import fully_shard

        trained = fully_shard(net)
    x, y = (part.split(8 // world)[rank] for part in rows(8))
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.05)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(trained(x.double()), y).backward()
        optimizer.step()
    state = {k: getattr(v, "full_tensor", lambda v=v: v)() for k, v in net.state_dict().items()}
    with torch.no_grad():
        output = trained.eval()(rows(4, seed=1)[0].double())
    return {
        "weights": {k: v.detach().flatten().tolist() for k, v in state.items()},
        "output": output.flatten().tolist(),
    }


def main() -> None:
    from accelerate import PartialState

    torch.set_num_threads(1)
    found = {name: outcome(name) for name in RUNS}
    state = PartialState()
    for way, sweeps in WRAPPED:
        found[f"{way} {sweeps}"] = wrapped(way, sweeps, state.process_index, state.num_processes)
    found["processes"] = {"count": state.num_processes}
    if state.is_main_process:
        Path(sys.argv[1]).write_text(json.dumps(found))
    state.destroy_process_group()


if __name__ == "__main__":
    main()
