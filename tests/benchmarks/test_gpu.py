"""The benchmark for GPUs runs, on the CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torchvision")
import torch

from benchmarks import gpu


def test_every_way_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    threads = str(torch.get_num_threads())
    given = ["--device", "cpu", "--quick", "--json", str(path), "--threads", threads]
    assert gpu.main(given) == 0
    rows = json.loads(path.read_text())["rows"]
    ways = ["eager", "compiled", "eager, bf16", "compiled, bf16", "training step"]
    assert [row["way"] for row in rows] == ways
    for row in rows:
        assert row["floors"] == pytest.approx(row["sources"] / 5)
        assert row["seconds"] > 0


def test_without_a_device_nothing_is_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 0
    assert "nothing was run" in capsys.readouterr().out


def test_a_way_that_fails_is_a_row_and_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails(*_: object) -> object:
        raise RuntimeError("no kernel")

    monkeypatch.setattr(gpu, "inference", lambda *_: fails)
    path = tmp_path / "gpu.json"
    assert gpu.main(["--device", "cpu", "--quick", "--json", str(path)]) == 1
    rows = json.loads(path.read_text())["rows"]
    assert rows[0]["failed"] == "RuntimeError: no kernel"
    assert "failed" not in rows[-1]
