"""Time and memory of whole networks, each measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks" / "coherence.py"


def measured(name: str, size: int) -> dict[str, float]:
    command = [sys.executable, str(SCRIPT), "--one", name, str(size), "interior", "centre"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet50", "densenet121", "vgg16"])
def test_time_memory_and_values_at_two_sizes(name):
    """Within 60 s of one thread; the kernels' work does not grow with the image."""
    pytest.importorskip("torchvision")
    small, large = measured(name, 224), measured(name, 448)
    assert small["cpu_seconds"] <= 60
    if name == "resnet50":
        assert small["peak_mib"] <= 2048
    assert large["cpu_seconds"] <= 2 * small["cpu_seconds"] + 1
    assert large["mutual_coherence"] == pytest.approx(small["mutual_coherence"], rel=1e-5)
    if name != "vgg16":  # the share of its dense layers, which do not grow, falls
        assert large["frame_potential"] == pytest.approx(small["frame_potential"], rel=1e-5)
    assert large["columns"] > 3 * small["columns"]
