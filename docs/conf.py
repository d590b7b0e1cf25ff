"""Sphinx's configuration of the documentation site: ``make docs`` builds it in build/site.

The source folder is the root of the repository, so that README.md and the pages link to each other,
and to files, by the same relative paths on the site as on a code-hosting site. Markdown pages hold
nothing that only Sphinx understands: what the site adds to them is made in ``site_pages.py``.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

HOME = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(HOME), str(HOME / "docs")]
# It asks for ipywidgets, which progress bars that nobody sees do not need.
os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"
# The notebooks' kernels import this very package too, whatever folder they run in.
os.environ["PYTHONPATH"] = os.pathsep.join([str(HOME), os.environ.get("PYTHONPATH", "")])

import site_pages  # noqa: E402 (it stands beside this file, in a folder that is no package)

import pursuitify  # noqa: E402 (this very one, see the path above)

project = "pursuitify"
author = copyright = "The pursuitify authors"
version = release = pursuitify.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]
root_doc = "README"
include_patterns = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "examples/README.md",
    "docs/**",
    "pursuitify/dictionary/mathematics.md",
    "build/gallery/**",
]
# The gallery's sources are read by sphinx-gallery, which writes the pages that Sphinx reads.
exclude_patterns = [
    "docs/gallery/**",
    "docs/mathematics.md",
    "**/*.ipynb",
    "**/*.py",
    ".venv",
    "build/site",
    "build/check",
]

html_theme = "furo"
html_title = f"pursuitify {release}"
html_show_sphinx = False
html_copy_source = False
templates_path: list[str] = []

# Every reference must lead somewhere; libraries that are not documented here are left out, since
# a build must not need a network to look them up.
nitpicky = True
nitpick_ignore_regex = [("py:.*", names) for names in site_pages.ELSEWHERE]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
maximum_signature_line_length = 88
python_use_unqualified_type_names = True
napoleon_use_rtype = False

myst_heading_anchors = 4
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_merge_streams = True

sphinx_gallery_conf = {
    "examples_dirs": str(HOME / "docs" / "gallery"),
    "gallery_dirs": str(HOME / "build" / "gallery"),
    "filename_pattern": r".*\.py",
    "within_subsection_order": "FileNameSortKey",
    "image_scrapers": "site_pages.scrape_pictures",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "remove_config_comments": True,
    "min_reported_time": 10_000,
    "show_memory": False,
    "write_computation_times": False,
    "copyfile_regex": "",
}


def setup(app: Any) -> None:
    """Connect what the site adds to the pages."""
    app.connect("source-read", read)
    app.connect("build-finished", finish)


def read(_app: Any, document: str, source: list[str]) -> None:
    """Give a page what the site needs."""
    source[0] = site_pages.for_the_site(document, source[0])


def finish(app: Any, error: Exception | None) -> None:
    """Write the notebooks for download, and show README under the address of the site's folder."""
    if error is None and app.builder.format == "html":
        site = Path(app.outdir)
        for path in site_pages.tutorials():
            site_pages.write_notebook(path, site / "docs" / "tutorials" / f"{path.stem}.ipynb")
        shutil.copy(site / f"{root_doc}.html", site / "index.html")
