"""Everything that wants a CUDA device, in one command: the tests marked gpu, then the benchmarks.

python benchmarks/gpu.py --output gpu-results

Does nothing, and says so, where there is no device.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
#: Script and what it is given beside the device and the file.
RUNS = (
    ("inference", ["--batch", "64", "--size", "224"]),
    ("inference", ["--batch", "64", "--size", "224", "--compile"]),
    ("training", ["--batch", "32", "--size", "224"]),
    ("compile", ["--batch", "32", "--size", "224", "--bf16"]),
    ("baselines", ["--batch", "32", "--size", "224"]),
)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("gpu-results"))
    given = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("no CUDA device: nothing was run")
        return 0
    commands = [["-m", "pytest", "-m", "gpu", "-q", str(ROOT / "tests" / "test_gpu.py")]]
    commands += [
        [
            str(ROOT / "benchmarks" / f"{script}.py"),
            *("--device", "cuda", "--json", str(given.output.resolve() / f"{script}.json")),
            *arguments,
        ]
        for script, arguments in RUNS
    ]
    failed = [c for c in commands if subprocess.run([sys.executable, *c], cwd=ROOT).returncode]
    for command in failed:
        print("failed:", *command)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
