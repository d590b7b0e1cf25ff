"""What the documentation site makes of the pages, without Sphinx; ``conf.py`` calls it.

A tutorial is a Markdown page whose Python blocks are the cells of a notebook. The block of text
right behind a cell is what it prints: a reader on a code-hosting site sees it, a test compares it
(tests/docs/test_snippets.py), and the site and the notebook show what a run of their own prints.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
#: A block of Python and, if there is one, the block of text behind it: what it prints.
CELL = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n.*?^```\n)?", re.MULTILINE | re.DOTALL)
#: A row of a table of docs/index.md: the name of a page, where it is, and what it says.
ROW = re.compile(r"^\| \[(.*?)\]\((.*?)\) \| (.+) \|$", re.MULTILINE)
#: The gallery, as docs/index.md links to it; sphinx-gallery writes its pages elsewhere.
GALLERY = "gallery/README.rst"
#: What docstrings and signatures name and this site does not document: objects of other libraries
#: (their short names where only type checkers import them), and the inside of the package.
ELSEWHERE = (
    r"(torch|numpy|collections|pathlib|os|rich|nx|nn|_pytest)\..*",
    r"Accelerator|Axes|Figure|LinearOperator|Origin|PathLike|Rows|Tensor",
    r"ConfigOptions|Layout|LeafModule|NetworkOptions",
    r"pursuitify\.(analysis\.gram|checkpoints|compiler|dictionary|operators|solvers|utils)\b.*",
    r"pursuitify\.(network|robust)\.\w+(\.\w+)?",
    r"_\w+",
)

_HEAD = """---
file_format: mystnb
kernelspec:
  name: python3
  language: python
---
"""


def toctrees(index: str) -> str:
    """Return the hidden tables of contents of the first page, which stands in the root.

    Args:
        index: The text of docs/index.md; each of its sections with a table becomes one toctree.
    """
    sections = [section.split("\n", 1) for section in re.split(r"^## ", index, flags=re.M)[1:]]
    trees = [_toctree("", ["docs/index"])]
    for caption, body in sections:
        targets = [_document(target) for _, target, _ in ROW.findall(body)]
        trees += [_toctree(f":caption: {caption}\n", targets)] if targets else []
    return "".join(trees)


def _toctree(options: str, documents: list[str]) -> str:
    lines = "".join(f"{document}\n" for document in documents)
    return f"\n```{{toctree}}\n:hidden:\n{options}\n{lines}```\n"


def _document(target: str) -> str:
    """Return what docs/index.md links to as Sphinx names it: from the root, without suffix.

    docs/mathematics.md is a link to a file of the package, and Sphinx follows links.
    """
    if target == GALLERY:
        return "build/gallery/index"
    path = (DOCS / target).resolve().relative_to(DOCS.parent)
    return path.with_suffix("").as_posix()


def for_the_site(document: str, text: str) -> str:
    """Return the text of a page as the site needs it.

    Args:
        document: Its name, from the root, without suffix.
        text: What stands in its file.
    """
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    if document == "README":
        return text + toctrees(index)
    if document == "docs/index":
        return text.replace(f"]({GALLERY})", "](../build/gallery/index.rst)")
    if document.startswith("docs/tutorials/"):
        return as_myst_notebook(text, f"{document.rsplit('/', 1)[1]}.ipynb")
    if document == "pursuitify/dictionary/mathematics":
        return re.sub(r"\]\((\w+\.md)", r"](../../docs/\1", text)
    for name, _, description in ROW.findall(index):
        # These tables are written by a script, and have no heading.
        if document == f"docs/{name}" and name.startswith("paper/"):
            return f"# {name}: {description.removeprefix('table: ')}\n\n{text}"
    return text


def tutorials() -> list[Path]:
    """Return the tutorials, by name."""
    return sorted((DOCS / "tutorials").glob("*.md"))


def as_myst_notebook(text: str, notebook: str) -> str:
    """Return a tutorial as a MyST notebook, whose cells the site runs.

    Args:
        text: The page.
        notebook: Name of the file beside the page that its readers may download.
    """
    cells = CELL.sub(lambda found: f"```{{code-cell}} ipython3\n{found[1]}```\n", text)
    title, rest = cells.split("\n", 1)
    link = f'<a href="{notebook}" download>Download this page as a notebook.</a>'
    return f"{_HEAD}{title}\n\n{link}\n{rest}"


def notebook_of(text: str) -> Any:
    """Return a tutorial as an nbformat notebook without outputs."""
    from nbformat import v4

    cells, end = [], 0
    for found in CELL.finditer(text):
        cells.append(v4.new_markdown_cell(text[end : found.start()].strip("\n")))
        cells.append(v4.new_code_cell(found[1].strip("\n")))
        end = found.end()
    cells.append(v4.new_markdown_cell(text[end:].strip("\n")))
    filled = [cell for cell in cells if cell.source]
    for number, cell in enumerate(filled):
        cell.id = f"cell-{number}"  # nbformat's own are random: no two builds would agree
    python = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return v4.new_notebook(cells=filled, metadata={"kernelspec": python})


def write_notebook(page: Path, target: Path) -> None:
    """Write a tutorial as a notebook."""
    import nbformat

    nbformat.write(notebook_of(page.read_text(encoding="utf-8")), target)


def scrape_pictures(_block: Any, block_vars: Any, gallery_conf: Any) -> str:
    """Return rst that shows the png files which a gallery script has written; take them away.

    sphinx-gallery calls it after each block of a script, in the script's folder.
    """
    from sphinx_gallery.scrapers import figure_rst

    folder = Path(block_vars["src_file"]).parent
    shown = []
    for path in sorted(folder.glob("*.png")):
        shown.append(block_vars["image_path_iterator"].next())
        shutil.move(path, shown[-1])
    return figure_rst(shown, gallery_conf["src_dir"]) if shown else ""
