"""What an HTML page is made of: sections, tables, pictures inside it. No link leads out of a page."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable
from string import Template
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from patchform import drawing
from patchform.errors import printable

LARGEST = 256
"""Pixels of the longer side of a picture in a gallery."""
NOTHING = "<p>None.</p>"


class Section(NamedTuple):
    """A part of a page."""

    title: str
    content: str
    """HTML."""
    meaning: str = ""
    """A sentence below the title, plain text."""


def escape(text: str) -> str:
    """Plain text as HTML; what would not be seen, or turn the direction of writing, is spelt out."""
    return html.escape(printable(text, keep="\n\t"))


def table(rows: Iterable[tuple[str, Iterable[str]]], columns: Iterable[str] = ()) -> str:
    """Rows of a name and cells, plain text, below the names of the columns if there are any."""
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join(
        f"<tr><th>{escape(name)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
        for name, cells in rows
    )
    return f"<table>{f'<tr><th></th>{head}</tr>' if head else ''}{body}</table>"


def chart(data: bytes, alt: str) -> str:
    """A PNG, as wide as the page at most."""
    return _image(data, alt, kind="chart")


def picture(image: Tensor, alt: str) -> str:
    """A picture of a gallery, (C, H, W), made smaller: PNG of a small one, JPEG of a large one."""
    small = drawing.thumbnail(image, LARGEST)
    if max(small.size) <= LARGEST // 4:
        return _image(drawing.to_png_bytes(small), alt, kind="picture")
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=85)
    return _image(stream.getvalue(), alt, kind="picture")


def figure(content: str, caption: str = "") -> str:
    """A figure; the caption is HTML."""
    return f"<figure>{content}{f'<figcaption>{caption}</figcaption>' if caption else ''}</figure>"


def gallery(figures: Iterable[str], *, wide: bool = False) -> str:
    """Figures beside each other."""
    shown = "".join(figures)
    return f'<div class="gallery{" wide" * wide}">{shown}</div>' if shown else NOTHING


def render(title: str, sections: Iterable[Section]) -> str:
    """The page."""
    body = "\n".join(
        f"<section><h2>{escape(section.title)}</h2>"
        f"{f'<p>{escape(section.meaning)}</p>' if section.meaning else ''}{section.content}</section>"
        for section in sections
    )
    return _FRAME.substitute(title=escape(title), sections=body)


def _image(data: bytes, alt: str, *, kind: str) -> str:
    size = Image.open(io.BytesIO(data))
    mime = "image/png" if size.format == "PNG" else "image/jpeg"
    text = base64.b64encode(data).decode()
    return (
        f'<img class="{kind}" alt="{escape(alt)}" width="{size.width}" height="{size.height}"'
        f' src="data:{mime};base64,{text}">'
    )


_FRAME = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark; --line: light-dark(#d8d8d8, #444); }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem;
  color: light-dark(#1a1a1a, #e6e6e6); background: light-dark(#fff, #161616); }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
table { border-collapse: collapse; }
th, td { text-align: left; padding: .2rem 1.5rem .2rem 0; border-bottom: 1px solid var(--line); }
td { font-variant-numeric: tabular-nums; text-align: right; }
img.chart { max-width: 100%; height: auto; background: #fff; border-radius: 6px; }
img.picture { width: 100%; height: auto; image-rendering: pixelated; border-radius: 4px; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: 1rem; }
.gallery.wide { grid-template-columns: repeat(auto-fill, minmax(16rem, 1fr)); }
figure { margin: 0; }
figcaption { font-size: .85rem; overflow-wrap: anywhere; }
ol { list-style: none; margin: 0; padding: 0; }
meter { width: 3rem; }
</style>
</head>
<body>
<h1>$title</h1>
$sections
</body>
</html>
""")
