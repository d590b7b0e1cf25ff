"""Tests mirror the package: file for file, with the exceptions that are listed here."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

HOME = Path(__file__).resolve().parents[1]
PACKAGE, TESTS = HOME / "pursuitify", HOME / "tests"
#: Most .py files at the root of the package, and in any other folder of it.
AT_ROOT, IN_FOLDER = 10, 14

#: Test files that are about more than one file of the package, or about none -> why.
EXCEPTIONS = {
    "analysis/certificates/test_certificates_hold.py": "all certificates, against attacks",
    "analysis/gram/test_partial_groups.py": "one kind of block, through the whole Gram algebra",
    "analysis/measures/test_limits.py": "time and memory of whole networks",
    "analysis/measures/test_range.py": "all measures, on weights of any size and NaN",
    "benchmarks/test_baselines.py": "benchmarks stand outside the package",
    "conversion/test_other_libraries.py": "models of other libraries, each in a process of its own",
    "conversion/test_python_idioms.py": "a grammar of forwards, through all of tracing",
    "rules/test_einops.py": "functions of another library, which become operations of torch's",
    "network/test_mutations.py": "a grammar of changes to converted networks",
    "cli/test_every_option.py": "every option of every command",
    "benchmarks/test_coverage.py": "benchmarks stand outside the package",
    "benchmarks/test_gpu.py": "benchmarks stand outside the package",
    "benchmarks/test_paper.py": "benchmarks stand outside the package",
    "benchmarks/test_pictures.py": "benchmarks stand outside the package",
    "benchmarks/test_render.py": "benchmarks stand outside the package",
    "conversion/test_clear_errors.py": "arguments of the wrong kind, in every public function",
    "conversion/test_generality.py": "one network per operation, through the whole conversion",
    "conversion/test_integers.py": "integer inputs, from tracing to the call",
    "conversion/test_messages.py": "refusals of tracing, graph and call, and whether advice works",
    "conversion/test_shapes.py": "compositions of operations, through the whole conversion",
    "conversion/test_timm.py": "models of timm",
    "conversion/test_zoo.py": "models of torchvision",
    "dictionary/test_moving_weights.py": "norms and step sizes while weights move",
    "docs/test_architecture.py": "pages stand outside the package",
    "docs/test_pages.py": "pages stand outside the package",
    "docs/test_site.py": "pages stand outside the package",
    "docs/test_snippets.py": "pages stand outside the package",
    "network/test_compile.py": "torch.compile and torch.export of whole networks",
    "network/test_no_waiting.py": "a call on an accelerator, through the whole network",
    "network/test_stability.py": "long runs of whole networks",
    "network/test_verification_cost.py": "what the self-check computes, by counting",
    "network/test_threads.py": "one network in several threads",
    "operators/test_compile.py": "all operators under torch.compile and torch.export",
    "operators/test_smooth_activations.py": "one family of activations, up to whole networks",
    "operators/test_resampling.py": "separable and block means, against torch's own kernels",
    "robust/auditing/test_interrupted.py": "audits that go on after an interruption",
    "robust/auditing/test_weak_attacks.py": "a broken attack of our own, which the audit catches",
    "solvers/differentiation/test_memory_kept.py": "what all derivative modes keep",
    "compiler/tracing/test_size_arithmetic.py": "int and float may only be called in its file",
    "solvers/test_against_oracle.py": "all solvers, against a dense reference",
    "solvers/test_cost.py": "operations that a sweep counts, in all of the solvers' code",
    "solvers/test_gains.py": "atom gains, in all solvers and derivative modes",
    "solvers/test_offsets.py": "where offsets stand, in all solvers and derivative modes",
    "solvers/test_oracle.py": "the dense reference itself",
    "test_examples.py": "examples stand outside the package",
    "test_extension.py": "adding an op, a solver, a derivative mode, an attack",
    "test_gpu.py": "everything, on a GPU",
    "test_layout.py": "the tree itself",
    "test_not_finite.py": "NaN, in every function that could lose it",
    "test_options.py": "every public option",
    "test_public_names.py": "the public names of all modules",
    "training/test_distributed.py": "training in two processes",
    "training/test_loaders.py": "data of every kind, through the whole training",
    "training/test_options.py": "every option of training and evaluation",
    "training/test_resume.py": "runs that go on after an interruption",
    "utils/test_whole_files.py": "files that other libraries write",
}


#: The test files, relative to their folder.
TEST_FILES = [path.relative_to(TESTS) for path in sorted(TESTS.rglob("test_*.py"))]


def twin(path: Path) -> Path:
    """Return the module that a test file is named after."""
    return PACKAGE / path.parent / path.name.removeprefix("test_")


def has_twin(path: Path) -> bool:
    return twin(path).is_file() or twin(path).with_suffix("").is_dir()


def test_every_test_file_has_a_twin_or_a_reason() -> None:
    alone = {str(path) for path in TEST_FILES if not has_twin(path)}
    assert alone - EXCEPTIONS.keys() == set(), "name it after its module, or say why it has none"
    assert EXCEPTIONS.keys() - alone == set(), "these have a twin, or are gone"
    assert all(EXCEPTIONS.values())


def test_what_is_no_test_file_is_support_or_a_conftest() -> None:
    for path in TESTS.rglob("*.py"):
        name = path.relative_to(TESTS)
        assert name in TEST_FILES or name.parts[0] == "support" or path.name == "conftest.py", name


def imports(path: Path) -> set[str]:
    """Return the modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize(
    "path", sorted(TESTS.rglob("*.py")), ids=lambda p: str(p.relative_to(TESTS))
)
def test_tests_share_by_support_modules(path: Path) -> None:
    """What two test files use stands in tests/support: no test file imports another one."""
    from_tests = [name for name in imports(path) if name.startswith("tests.")]
    assert [n for n in from_tests if any(p.startswith("test_") for p in n.split("."))] == []


def test_there_is_one_import_root() -> None:
    """Under two roots, ``tests.support.nets`` and ``support.nets`` would be two modules."""
    assert 'pythonpath = ["."]' in (HOME / "pyproject.toml").read_text()


def folders() -> Iterator[tuple[Path, int]]:
    """Yield every folder of the package with its number of .py files."""
    for folder in [PACKAGE, *sorted(p for p in PACKAGE.rglob("*") if p.is_dir())]:
        count = len(list(folder.glob("*.py")))
        if count:
            yield folder, count


@pytest.mark.parametrize(("folder", "count"), [pytest.param(*f, id=f[0].name) for f in folders()])
def test_folders_stay_small(folder: Path, count: int) -> None:
    """A folder with more files than that is two folders, or has splinters."""
    assert count <= (AT_ROOT if folder == PACKAGE else IN_FOLDER)
