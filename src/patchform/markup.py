"""Pieces of HTML that stand anywhere: in the page of a run and in the cell of a notebook.

Nothing in them is fetched, no script runs, and every name of a file or a class is escaped. Lines and letters take the
colour of the text around them, so that they are legible on light and on dark.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from PIL import Image

from patchform.errors import printable

COLORS = ("#3b82c4", "#d9772b", "#4c9f50", "#b0559c", "#98803a", "#5a6ad0", "#c9504f", "#3a9a9a", "#8a8a8a", "#a5673f")
"""Of lines and bars, legible on white and on black."""
WIDTH, HEIGHT = 320, 180
"""Of a chart, in its own units, of which a page shows about one a pixel."""
WIDEST = 420
"""Pixels that a chart takes at most."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 8, 34
_TICKS = 4


class Curve(NamedTuple):
    """A line of a chart."""

    name: str
    points: Sequence[tuple[float, float]]
    """(x, y), finite, x rising."""


def escape(text: str) -> str:
    """Plain text as HTML; what would not be seen, or turn the direction of writing, is spelt out."""
    return html.escape(printable(text, keep="\n\t"))


def table(rows: Iterable[tuple[str, Iterable[str]]], columns: Iterable[str] = (), *, kind: str = "numbers") -> str:
    """Rows of a name and cells, plain text, below the names of the columns if there are any; `kind` is its style."""
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join(
        f"<tr><th>{escape(name)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
        for name, cells in rows
    )
    return f'<table class="{kind}">' + f"{f'<tr><th></th>{head}</tr>' if head else ''}{body}</table>"


def terms(meanings: Mapping[str, str]) -> str:
    """Words, each with what it means, plain text; "" without any."""
    lines = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in meanings.items())
    return f"<dl>{lines}</dl>" if lines else ""


def image(data: bytes, alt: str, *, kind: str, density: int = 1) -> str:
    """The content of a picture's file, inside the page.

    Args:
        data: PNG, JPEG or WebP.
        alt: what it shows, for those who do not see it.
        kind: its class in the style of the page.
        density: pixels of the picture for one of the page.
    """
    picture = Image.open(io.BytesIO(data))
    width, height = (max(1, round(side / density)) for side in picture.size)
    mime = Image.MIME[picture.format or "PNG"]
    text = base64.b64encode(data).decode()
    return (
        f'<img class="{escape(kind)}" alt="{escape(alt)}" width="{width}" height="{height}"'
        f' src="data:{mime};base64,{text}">'
    )


def webp(picture: Image.Image, *, quality: int = 82) -> bytes:
    """A picture as the content of a WebP file, a third of what a PNG of a photograph takes."""
    stream = io.BytesIO()
    picture.convert("RGB").save(stream, "WebP", quality=quality)
    return stream.getvalue()


def bars(shares: Iterable[tuple[str, float]]) -> str:
    """Names with their shares in 0..1, and a bar for each."""
    lines = "".join(
        f'<li><meter min="0" max="1" value="{share:.4f}"></meter> {escape(name)} {share:.1%}</li>'
        for name, share in shares
    )
    return f'<ol style="list-style: none; margin: 0; padding: 0">{lines}</ol>'


def matrix(values: Sequence[Sequence[float | None]], names: Sequence[str]) -> str:
    """Counts (rows: the truth, columns: what is predicted), shaded by the share of their row."""
    rows = []
    for name, counts in zip(names, values):
        whole = sum(count or 0 for count in counts)
        cells = "".join(f"<td{_shade(count or 0, whole)}>{count or 0:g}</td>" for count in counts)
        rows.append(f"<tr><th>{escape(name)}</th>{cells}</tr>")
    head = "".join(f"<th><span>{escape(name)}</span></th>" for name in names)
    return f'<table class="matrix"><tr><th>true \\ predicted</th>{head}</tr>{"".join(rows)}</table>'


def _shade(count: float, whole: float) -> str:
    return f' style="background: rgba(59, 130, 196, {0.75 * count / whole:.2f})"' if count else ""


def chart(title: str, curves: Sequence[Curve], *, x: str = "epoch", most: float | None = None) -> str:
    """Lines over one axis, as SVG; single points are dots. "" without a point.

    Args:
        title: what is drawn, plain text.
        curves: in the order of their colours; more than there are colours repeat them.
        x: what lies along.
        most: both axes go from 0 to it; default: as far as the points do.
    """
    drawn = [curve for curve in curves if curve.points]
    if not drawn:
        return ""
    across, up = (_Axis.over([point[side] for curve in drawn for point in curve.points], most) for side in (0, 1))
    parts = [*_grid(across, up), _text(WIDTH - _RIGHT, HEIGHT - 6, "end", x)]
    for curve, color in zip(drawn, _cycle(len(drawn))):
        places = [(_x(across.share(one)), _y(up.share(other))) for one, other in curve.points]
        line = " ".join(f"{left:.1f},{top:.1f}" for left, top in places)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2"/>')
        if len(places) <= 12:
            parts += [f'<circle cx="{left:.1f}" cy="{top:.1f}" r="3" fill="{color}"/>' for left, top in places]
    last = ", ".join(f"{curve.name} {curve.points[-1][1]:.4g}" for curve in drawn)
    keys = "".join(
        f' <span style="color: {color}">&#9632;</span>&nbsp;{escape(curve.name)}'
        for curve, color in zip(drawn, _cycle(len(drawn)))
    )
    caption = f"<b>{escape(title)}</b>{keys if len(drawn) > 1 else f' {escape(_number(drawn[0].points[-1][1]))}'}"
    drawing = "".join(parts)
    return (
        f'<figure class="curves"><figcaption>{caption}</figcaption><svg role="img" aria-label="{escape(title)}: at the'
        f' end {escape(last)}" viewBox="0 0 {WIDTH} {HEIGHT}" style="max-width: {WIDEST}px; font: 11px sans-serif">'
        f"{drawing}</svg></figure>"
    )


class _Axis(NamedTuple):
    """What numbers an axis is for."""

    low: float
    high: float
    ticks: tuple[float, ...]

    @classmethod
    def over(cls, values: Sequence[float], most: float | None) -> _Axis:
        """From the least to the largest, with round numbers on the way."""
        low, high = (min(values), max(values)) if most is None else (0.0, most)
        if high - low < 1e-9 * max(abs(high), 1e-12):  # one value: it lies in the middle
            spread = abs(high) / 2 or 0.5
            low, high = low - spread, high + spread
            if all(float(value).is_integer() for value in values):
                return cls(low, high, tuple(values[:1]))
        rough = (high - low) / _TICKS
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
        if all(float(value).is_integer() for value in values):
            step = max(step, 1.0)
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        return cls(low, high, tuple(number * step for number in range(first, last + 1)))

    def share(self, value: float) -> float:
        """Where it lies, in 0..1."""
        return (value - self.low) / (self.high - self.low)


def _grid(across: _Axis, up: _Axis) -> Iterable[str]:
    line = '<line x1="{}" y1="{}" x2="{}" y2="{}" stroke="currentColor" stroke-opacity="{}"/>'
    for tick in up.ticks:
        top = f"{_y(up.share(tick)):.1f}"
        yield line.format(_LEFT, top, WIDTH - _RIGHT, top, 0.15)
        yield _text(_LEFT - 5, float(top) + 4, "end", _number(tick))
    for tick in across.ticks:
        left = f"{_x(across.share(tick)):.1f}"
        yield line.format(left, HEIGHT - _BOTTOM, left, HEIGHT - _BOTTOM + 4, 0.6)
        yield _text(float(left), HEIGHT - _BOTTOM + 16, "middle", _number(tick))
    yield line.format(_LEFT, HEIGHT - _BOTTOM, WIDTH - _RIGHT, HEIGHT - _BOTTOM, 0.6)


def _text(left: float, top: float, anchor: str, text: str) -> str:
    return f'<text x="{left:.1f}" y="{top:.1f}" text-anchor="{anchor}" fill="currentColor">{escape(text)}</text>'


def _x(share: float) -> float:
    return _LEFT + share * (WIDTH - _LEFT - _RIGHT)


def _y(share: float) -> float:
    return HEIGHT - _BOTTOM - share * (HEIGHT - _BOTTOM - _TOP)


def _number(value: float) -> str:
    return f"{value:.4g}"


def _cycle(number: int) -> Iterable[str]:
    return (COLORS[index % len(COLORS)] for index in range(number))
