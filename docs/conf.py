"""How Sphinx makes the site of these pages: `make docs`. Nothing is fetched, neither here nor by the pages."""

import re
from typing import Any

from patchform import __version__

project = "patchform"
author = "The patchform developers"
copyright = author
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"patchform {version}"
html_show_sphinx = False
html_copy_source = False
html_static_path: list[str] = []
myst_heading_anchors = 3
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Attributes", "params_style")]
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 90


def as_restructured_text(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text with code in single backticks, which reStructuredText reads otherwise.

    What is returned is a sentence here, which may have a colon; napoleon would take what stands before it for a type.
    """
    for number, line in enumerate(lines):
        parts = re.split(r"(`[^`]+`)", line)
        lines[number] = "".join(
            f"`{part}`" if part.startswith("`") and part.endswith("`") else _escaped(part) for part in parts
        )
    if "Returns:" in lines:
        place = lines.index("Returns:")
        lines[place : place + 2] = [f":returns: {lines[place + 1].strip()}"]


def without_ways_out(app: Any, name: str, text: list[str]) -> None:
    """Links to what is no page, such as ../examples, are names here: the site stands by itself."""
    text[0] = re.sub(r"\[([^\]]+)\]\(\.\./[^)]+\)", r"`\1`", text[0])


def _escaped(text: str) -> str:
    """What is no code; a `*` that begins a line of a list stays."""
    bullet = re.match(r"\s*\* ", text)
    kept = bullet.group() if bullet else ""
    return kept + re.sub(r"([*|]|(?<=\w)_(?!\w))", r"\\\1", text[len(kept) :])


def setup(app: Any) -> None:
    """What is read is changed before it is understood: 400 is before napoleon."""
    app.connect("source-read", without_ways_out)
    app.connect("autodoc-process-docstring", as_restructured_text, priority=400)
