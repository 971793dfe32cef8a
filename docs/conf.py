"""How the documentation site is built: `make docs` from the top of the repository."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import llr

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
MEASURED = sorted((ROOT / "benchmarks" / "results").glob("*.md"))

project = "llr"
author = "llr contributors"
project_copyright = "llr contributors"
version = release = llr.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["gallery/*.ipynb", "gallery/*.py"]
templates_path = ["_templates"]

# Pages are Markdown as on GitHub, with the same anchors.
myst_enable_extensions = ["colon_fence", "substitution"]
myst_heading_anchors = 4
myst_substitutions = {"version": release}
suppress_warnings = ["myst.header"]  # tables that scripts write have small headings

# The reference. Names of other libraries have no page here: their inventories are on the network.
default_role = "autolink"  # `llr.rank` in docstrings is a link, `x` is not
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(torch|numpy|np|matplotlib|scipy|collections|fractions|os|pathlib|typing)\..*"),
    (r"py:class", r"Tensor|nn\.Module|Axes"),  # the same, as annotations of fields spell them
    (r"py:obj", r"\w+"),  # fields of the class at hand
    (r"py:class", r"\".*\""),  # the words of a Literal
    (r"py:class", r"llr\.recovery\.net\.Net|llr\.inputs\..*\.Probe"),  # internal
]
# Some disks do not tell Check.rst from check.rst.
autosummary_filename_map = {
    f"llr.{name}": f"llr.{name}-class"
    for name in (
        "embedding.Check",
        "landscape.Branches",
        "landscape.Criticality",
        "landscape.Flow",
        "landscape.Rate",
        "neurons.Independence",
        "recovery.sweep.Tally",
        "recovery.train.Condensation",
        "recovery.train.Narrow",
        "theory.relu.Isometry",
        "theory.relu.Patterns",
    )
}
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_member_order = "bysource"
autodoc_default_options = {
    "members": True,
    "inherited-members": "Module, Sequential, Exception, BaseException",  # but for those of these
}
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# The gallery: every file of examples/ runs while the site is built.
sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"\.py$",
    "within_subsection_order": "FileNameSortKey",
    "download_all_examples": False,
    "show_signature": False,
    "backreferences_dir": "gallery/backreferences",
    "doc_module": ("llr",),
    "image_srcset": ["2x"],
    "min_reported_time": 1000,
    "write_computation_times": False,
}

html_theme = "pydata_sphinx_theme"
html_title = f"llr {release}"
html_show_sourcelink = False
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_sidebars = {"start": []}
html_theme_options = {
    "logo": {"text": f"llr {release}"},
    "navbar_end": ["theme-switcher"],
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["release"],
    "footer_end": ["theme-version"],
    "show_toc_level": 2,
}

# Links to other sites: `make docs-links`.
linkcheck_timeout = 20
linkcheck_retries = 2

# Files outside of docs/ that have a page here.
PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "RELEASING.md": "releasing.md",
    "benchmarks/README.md": "benchmarks/index.md",
    **{f"benchmarks/results/{page.name}": f"benchmarks/{page.name}" for page in MEASURED},
}


def relink(text: str, file: Path, docname: str) -> str:
    """The text of a file with its relative links as the page `docname` has to write them."""

    def replaced(match: re.Match[str]) -> str:
        path = (file.parent / match[1]).resolve()
        if not path.is_relative_to(ROOT):
            return match[0]
        page = PAGES.get(path.relative_to(ROOT).as_posix())
        target = path if page is None else DOCS / page
        return f"]({os.path.relpath(target, (DOCS / docname).parent)}"

    return re.sub(r"\]\((?!\w+:|[#/<])([^)#\s]+)", replaced, text)


def setup(app: Any) -> None:
    """Links between files lead to pages: those of pages, and those of files that pages include."""

    def page(_: Any, docname: str, content: list[str]) -> None:
        if (DOCS / f"{docname}.md").exists():
            content[0] = relink(content[0], DOCS / f"{docname}.md", docname)

    def included(_: Any, path: Path, parent: str, content: list[str]) -> None:  # noqa: ARG001
        content[0] = relink(content[0], (DOCS / path).resolve(), app.env.docname)

    app.connect("source-read", page)
    app.connect("include-read", included)
