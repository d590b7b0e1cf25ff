"""Runs that one process and two must agree on: ``accelerate launch distributed.py FILE``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

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


def main() -> None:
    from accelerate import PartialState

    torch.set_num_threads(1)
    found = {name: outcome(name) for name in RUNS}
    state = PartialState()
    found["processes"] = {"count": state.num_processes}
    if state.is_main_process:
        Path(sys.argv[1]).write_text(json.dumps(found))
    state.destroy_process_group()


if __name__ == "__main__":
    main()
