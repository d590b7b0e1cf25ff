"""The documentation site: what it lists, and (marked slow, with the extra docs) its build.

The quick tests need no Sphinx.
"""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import pursuitify

HOME = Path(__file__).resolve().parents[2]
DOCS = HOME / "docs"
SCRIPTS = sorted((DOCS / "gallery").glob("*.py"))
TUTORIALS = sorted((DOCS / "tutorials").glob("*.md"))
#: Modules whose public names the reference has -> the names, of those without ``__all__``.
#: Errors are added to them.
MODULES: dict[str, tuple[str, ...]] = {
    "pursuitify": (),
    "pursuitify.analysis": (),
    "pursuitify.data": (),
    "pursuitify.robust": (),
    "pursuitify.rules": (),
    "pursuitify.training": (),
    "pursuitify.backends": ("inplace",),
    "pursuitify.export": ("export_onnx", "export_program"),
    "pursuitify.models": ("ChainNet", "DenselyConnectedNet", "ResidualNet"),
    "pursuitify.plots": ("plot_objective", "plot_structure"),
    "pursuitify.testing": ("Case", "MapTests"),
}
DIRECTIVE = re.compile(r"^\.\. (?:auto(?:class|exception|function)|py:data):: (\S+)$", re.MULTILINE)


@pytest.fixture(scope="module")
def site_pages() -> ModuleType:
    """Return docs/site_pages.py as a module; docs is no package."""
    spec = importlib.util.spec_from_file_location("site_pages", DOCS / "site_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def named(path: str) -> Any:
    """Return the object that a directive of the reference names."""
    module, name = path.rsplit(".", 1)
    return getattr(importlib.import_module(module), name)


def public() -> dict[str, Any]:
    """Return the public objects by their names, each once."""
    found: dict[int, tuple[str, Any]] = {}
    for module, given in MODULES.items():
        home = importlib.import_module(module)
        names = given or home.__all__
        for name in names:
            found.setdefault(id(getattr(home, name)), (f"{module}.{name}", getattr(home, name)))
    for name, value in vars(pursuitify.errors).items():
        if isinstance(value, type) and issubclass(value, Exception):
            found.setdefault(id(value), (f"pursuitify.errors.{name}", value))
    return dict(found.values())


def test_the_reference_has_every_public_name_once() -> None:
    listed = [
        n for page in DOCS.glob("reference/*.rst") for n in DIRECTIVE.findall(page.read_text())
    ]
    objects = [id(named(name)) for name in listed]
    assert sorted(set(listed)) == sorted(listed)
    assert {name for name in listed if objects.count(id(named(name))) > 1} == set()
    missing = {name for name, value in public().items() if id(value) not in objects}
    assert missing == set()


def test_every_page_is_in_one_toctree(site_pages: ModuleType) -> None:
    text = site_pages.toctrees((DOCS / "index.md").read_text())
    listed = re.findall(r"^(?:docs|build|examples|pursuitify|[A-Z]+$)\S*$", text, re.MULTILINE)
    pages = [
        path.resolve().relative_to(HOME).with_suffix("").as_posix()
        for kind in ("**/*.md", "reference/*.rst")
        for path in DOCS.glob(kind)
    ]
    others = ["CHANGELOG", "CONTRIBUTING", "build/gallery/index", "examples/README"]
    assert sorted(listed) == sorted([*pages, *others])


def test_links_of_the_shipped_mathematics_lead_from_its_place(site_pages: ModuleType) -> None:
    """The page is a link to a file of the package, where Sphinx reads it."""
    name = "pursuitify/dictionary/mathematics"
    text = site_pages.for_the_site(name, (DOCS / "mathematics.md").read_text())
    targets = re.findall(r"\]\(([^):#]+\.md)", text)
    assert targets
    assert all((HOME / "pursuitify" / "dictionary" / target).exists() for target in targets)


def test_tables_without_a_heading_get_one(site_pages: ModuleType) -> None:
    for page in (DOCS / "paper").glob("*.md"):
        text = site_pages.for_the_site(f"docs/paper/{page.stem}", page.read_text())
        assert text.startswith(f"# paper/{page.stem}: "), page.name


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_gallery_script_is_short_and_has_a_title_and_one_picture(path: Path) -> None:
    text = path.read_text()
    assert re.match(r'"""\n(.+)\n(=+)\n\n', text), "a title, for sphinx-gallery"
    assert len(text.splitlines()) < 60
    assert len(re.findall(r'"[\w-]+\.png"', text)) == 1


def test_a_tutorial_is_a_notebook(site_pages: ModuleType) -> None:
    """Its cells are its blocks of Python, and what they print is left to the notebook."""
    page = "# Title\n\nWords.\n\n```python\nprint(1)\n```\n\n```text\n1\n```\n\nMore.\n"
    text = site_pages.as_myst_notebook(page, "page.ipynb")
    assert "```{code-cell} ipython3\nprint(1)\n```\n" in text
    assert "```text" not in text
    assert '<a href="page.ipynb" download>' in text
    pytest.importorskip("nbformat")
    cells = site_pages.notebook_of(page).cells
    assert [cell.cell_type for cell in cells] == ["markdown", "code", "markdown"]
    assert [cell.source for cell in cells] == ["# Title\n\nWords.", "print(1)", "More."]


#: Public names whose docstrings hold examples.
SHOWN = sorted(name for name, value in public().items() if ">>> " in (value.__doc__ or ""))


@pytest.mark.parametrize("name", SHOWN)
def test_examples_of_docstrings_are_true(name: str) -> None:
    tests = doctest.DocTestFinder(recurse=False).find(named(name), name)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert sum(runner.run(test).attempted for test in tests) > 0
    assert runner.failures == 0


@pytest.mark.slow
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_gallery_script_runs(path: Path, tmp_path: Path) -> None:
    environment = {"PYTHONPATH": str(HOME), "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(path)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("*.png"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_runs_as_a_notebook(
    page: Path, site_pages: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", str(HOME))
    notebook = site_pages.notebook_of(page.read_text())
    ran = client.NotebookClient(notebook, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert any(cell.get("outputs") for cell in ran.cells)


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    for library in ("sphinx", "furo", "myst_nb", "sphinx_copybutton", "sphinx_gallery"):
        pytest.importorskip(library)
    command = ["-m", "sphinx", "-W", "--keep-going", "-q", "-c", str(DOCS), "-b", "html"]
    folders = ["-d", str(tmp_path / "doctrees"), str(HOME), str(tmp_path / "site")]
    done = subprocess.run(
        [sys.executable, *command, *folders], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for name in ("index", "README", "docs/reference/conversion", "build/gallery/5_calibrate"):
        assert (tmp_path / "site" / f"{name}.html").is_file(), name
    shown = (tmp_path / "site" / "docs" / "reference" / "conversion.html").read_text()
    assert f'id="pursuitify.{pursuitify.PursuitNetwork.__name__}"' in shown
