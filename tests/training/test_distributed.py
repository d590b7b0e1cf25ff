"""Two processes do what one does, and no mode of the network upsets them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("accelerate")

from tests.support.distributed import RUNS, WRAPPED, outcome, wrapped

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tests" / "support" / "distributed.py"


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Launch both, each with its rank in the environment, as mpirun does for accelerate on CPU."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes=2"]
    command += ["--num_machines=1", "--mixed_precision=no", f"--main_process_port={port}"]
    command += [str(SCRIPT), str(folder / "found.json")]
    common = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
    started = []
    for rank in ("0", "1"):
        own = {"RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": "2"}
        with (folder / rank).open("w") as log:
            environment = {**os.environ, **common, **own}
            started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
    try:
        codes = [process.wait(600) for process in started]
    finally:
        for process in started:
            process.kill()
    assert codes == [0, 0], "".join((folder / rank).read_text()[-3000:] for rank in ("0", "1"))
    return json.loads((folder / "found.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_two_processes_do_what_one_does(name: str, two: Any) -> None:
    assert two["processes"]["count"] == 2
    norm, _, _ = RUNS[name]
    alone = json.loads(json.dumps(outcome(name)))
    if norm:  # each process has the batch statistics of its own rows; here: no error, and learning
        losses = [entry["loss"] for entry in two[name]["history"]]
        assert len(losses) == 2
        assert all(0 < loss < 10 for loss in losses)
        steps = two[name]["history"][-1]["step"]
        passes = 2 if "trades" in name else 1  # frozen: however many sweeps, once per pass
        assert two[name]["weights"]["blocks.0.0.norm1.num_batches_tracked"] == [steps * passes]
        return
    for one, other in zip(alone["history"], two[name]["history"], strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert other[key] == pytest.approx(value, rel=1e-4, abs=1e-4), key
    for key, value in alone["weights"].items():
        other = torch.tensor(two[name]["weights"][key])
        assert torch.allclose(torch.tensor(value), other, rtol=0, atol=1e-5), key


@pytest.mark.slow
@pytest.mark.parametrize(("way", "sweeps"), WRAPPED)
def test_a_network_wrapped_by_hand_does_what_one_process_does(
    way: str, sweeps: int, two: Any
) -> None:
    alone, found = wrapped("alone", sweeps, 0, 1), two[f"{way} {sweeps}"]
    assert found["output"] == pytest.approx(alone["output"], rel=1e-9)
    assert found["weights"].keys() == alone["weights"].keys()
    for key, value in alone["weights"].items():
        assert found["weights"][key] == pytest.approx(value, rel=1e-9, abs=1e-12), key
