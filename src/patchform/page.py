"""What an HTML page is made of: sections, tables, pictures inside it. No link leads out of a page."""

from __future__ import annotations

import io
from collections.abc import Iterable
from string import Template
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from patchform import drawing
from patchform.markup import bars as bars
from patchform.markup import escape as escape
from patchform.markup import image, webp
from patchform.markup import table as table

LARGEST = 256
"""Pixels of the longer side of a picture in a gallery."""
DRAWN, QUALITY = 720, 75
"""Pixels of the longer side of a picture with something drawn on it, two of which stand beside each other, and how well
it is kept: eight pairs of detailed photographs take 1.6 megabytes."""
DENSITY = 2
"""Pixels of a chart for one of the page, so that letters are sharp on any screen."""


class Section(NamedTuple):
    """A part of a page."""

    title: str
    content: str
    """HTML."""
    meaning: str = ""
    """A sentence below the title, plain text."""


def chart(data: bytes, alt: str) -> str:
    """A PNG of `DENSITY`, as wide as the page at most; as WebP where that is smaller."""
    smaller = webp(Image.open(io.BytesIO(data)), quality=90)
    return image(min(data, smaller, key=len), alt, kind="chart", density=DENSITY)


def picture(pixels: Tensor, alt: str) -> str:
    """A picture of a gallery, (C, H, W), made smaller: PNG of a small one, WebP of a large one."""
    small = drawing.thumbnail(pixels, LARGEST)
    if max(small.size) <= LARGEST // 4:
        return image(drawing.to_png_bytes(small), alt, kind="picture tiny")
    return image(webp(small), alt, kind="picture")


def drawn(sheet: Image.Image, alt: str) -> str:
    """A picture with something drawn on it, no larger than it is shown."""
    sheet = sheet.copy()
    sheet.thumbnail((DRAWN, DRAWN * 3 // 2), Image.Resampling.LANCZOS)
    return image(webp(sheet, quality=QUALITY), alt, kind="picture", density=DENSITY)


def figure(content: str, caption: str = "", *, above: bool = False) -> str:
    """A figure; the caption, below it or `above`, is HTML."""
    words = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f"<figure>{words}{content}</figure>" if above else f"<figure>{content}{words}</figure>"


def gallery(figures: Iterable[str], *, wide: bool = False) -> str:
    """Figures beside each other; "" without any."""
    shown = "".join(figures)
    return f'<div class="gallery{" wide" * wide}">{shown}</div>' if shown else ""


def render(title: str, sections: Iterable[Section]) -> str:
    """The page, without sections that have no content."""
    body = "\n".join(
        f"<section><h2>{escape(section.title)}</h2>"
        f"{f'<p>{escape(section.meaning)}</p>' if section.meaning else ''}{section.content}</section>"
        for section in sections
        if section.content
    )
    return _FRAME.substitute(title=escape(title), sections=body)


_FRAME = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark; --line: #d8d8d8; --quiet: #5f5f5f; --ink: #1a1a1a; --paper: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --line: #444; --quiet: #a8a8a8; --ink: #e6e6e6; --paper: #161616; }
}
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem;
  color: var(--ink); background: var(--paper); overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
h3 { margin: 1.5rem 0 .5rem; font-size: 1rem; }
section { overflow-x: auto; }
table { border-collapse: collapse; overflow-wrap: normal; }
th, td { text-align: left; vertical-align: top; padding: .2rem 1.2rem .2rem 0; border-bottom: 1px solid var(--line); }
th { white-space: nowrap; }
td { font-variant-numeric: tabular-nums; text-align: right; }
table.words td { text-align: left; overflow-wrap: anywhere; }
table.words td:not(:last-child) { white-space: nowrap; }
summary { cursor: pointer; margin: 1rem 0; }
table.words td + td, dd, section > p { color: var(--quiet); }
table.matrix td { text-align: center; padding: .3rem .6rem; }
table.matrix th span { writing-mode: vertical-rl; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem; font-size: .85rem; }
dd { margin: 0; }
code { font-size: .9rem; }
img.chart { max-width: 100%; height: auto; background: #fff; border-radius: 6px; }
img.picture { width: 100%; height: auto; border-radius: 4px; }
img.tiny { image-rendering: pixelated; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: 1rem; }
.gallery.wide { grid-template-columns: 1fr; gap: 2rem; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .5rem; align-items: start; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1rem; }
figure { margin: 0; }
figcaption { font-size: .85rem; }
ol { list-style: none; margin: 0; padding: 0; }
meter { width: 3rem; }
@media (max-width: 40rem) { .pair { grid-template-columns: 1fr; } }
</style>
</head>
<body>
<h1>$title</h1>
$sections
</body>
</html>
""")
