"""The names that a user meets at the top."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import pursuitify as package

#: What scripts outside the project import (the public interface).
PUBLIC = {
    "pursuitify": [
        "pursuitify",
        "explain",
        "coherence",
        "calibrate",
        "save",
        "load",
        "relu_twin",
        "save_pretrained",
    ],
    "pursuitify.rules": ["linear", "activation", "frozen", "LinearMap", "Activation", "dottest"],
    "pursuitify.analysis": ["compare", "minimum_frame_potential"],
    "pursuitify.robust": ["fgsm", "pgd", "apgd", "audit", "certified_radius"],
    "pursuitify.training": ["finetune", "evaluate", "recipe"],
    "pursuitify.data": ["load_data"],
    "pursuitify.models": ["ChainNet", "ResidualNet", "DenselyConnectedNet"],
    "pursuitify.export": ["export_program", "export_onnx"],
    "pursuitify.plots": ["plot_structure", "plot_objective"],
    "pursuitify.testing": ["MapTests", "Case"],
    "pursuitify.backends": ["inplace"],
}


def test_dir_shows_public_names_and_no_modules() -> None:
    assert set(dir(package)) == {*package.__all__, "__version__"}
    for name in dir(package):
        assert not isinstance(getattr(package, name), ModuleType), name


@pytest.mark.parametrize("module", PUBLIC)
def test_the_public_interface_is_where_it_was(module: str) -> None:
    """In a process of its own: nothing else has imported the module before."""
    read = "".join(f"; m.{name}" for name in PUBLIC[module])
    code = f"import pursuitify; m = {module}{read}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'sweeps'"):
        _ = package.sweeps


def test_the_old_name_of_a_radius_certificate() -> None:
    from pursuitify import robust

    assert robust.Certificate is robust.RadiusCertificate


def test_class_names_are_unique() -> None:
    """One name, one thing: no two classes share a name, be they private or inside a function."""
    seen: dict[str, list[str]] = {}
    home = Path(package.__file__).parent
    for path in sorted(home.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                place = f"{path.relative_to(home)}: {node.name}"
                seen.setdefault(node.name.lstrip("_"), []).append(place)
    assert len(seen) > 100, "the package was found"
    assert {name: places for name, places in seen.items() if len(places) > 1} == {}
