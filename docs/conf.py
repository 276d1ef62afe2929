"""Sphinx configuration."""

import re
from pathlib import Path

from sphinx.application import Sphinx

project = "sb3_varshare"
author = "The sb3_varshare developers"
copyright = f"2026, {author}"
release = (Path(__file__).parent.parent / "sb3_varshare" / "version.txt").read_text(encoding="utf-8").strip()
version = release

# No intersphinx: the build must pass without a network.
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
# An override without a docstring of its own is documented where it is declared, not by the text of another library.
autodoc_inherit_docstrings = False
autodoc_default_options = {"members": True, "show-inheritance": True}

html_theme = "furo"
html_title = f"sb3_varshare {release}"


def escape_leading_axes(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Docstrings write leading axes as ``(*K, T, B, I)``; reST would read a bare star as the start of emphasis."""
    lines[:] = [re.sub(r"(``.*?``)|\*(?=K\b)", lambda match: match[1] or r"\*", line) for line in lines]


def setup(app: Sphinx) -> None:
    """Connect the hook."""
    app.connect("autodoc-process-docstring", escape_leading_axes)
