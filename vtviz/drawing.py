"""Figures of pictures, words and shapes, laid out once and drawn as PNG or as SVG.

Lengths are in CSS pixels; (x, y) runs from the upper left corner, x to the right.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from PIL import Image, ImageDraw

from vtviz.lettering import lettering, write
from vtviz.render import INK, MUTED

Colour = tuple[int, int, int]
FONT = "system-ui, 'Source Sans Pro', 'Helvetica Neue', Arial, sans-serif"
_FINE = 4
"""Shapes are painted this many times larger and averaged down: smooth edges, which Pillow does not draw."""


@dataclass(frozen=True)
class Picture:
    """An image, stretched to ``width`` x ``height``.

    Attributes:
        pixels: (h, w, 3) uint8 RGB.
        cells: its pixels are values of a matrix: they stay sharp squares, and no compression changes them.
    """

    x: float
    y: float
    width: float
    height: float
    pixels: np.ndarray
    cells: bool = False


@dataclass(frozen=True)
class Words:
    """One line of text: its ``anchor`` (start, middle or end) is at ``x``, the middle of its digits at ``y``."""

    x: float
    y: float
    text: str
    size: int = 13
    anchor: str = "start"
    muted: bool = False


@dataclass(frozen=True)
class Shape:
    """A filled polygon.

    Attributes:
        points: (x, y) of its corners.
        fill: RGB; None for the colour of the text.
        opacity: 0 to 1.
    """

    points: Sequence[tuple[float, float]]
    fill: Colour | None = None
    opacity: float = 1.0


@dataclass(frozen=True)
class Group:
    """Parts that belong together.

    Attributes:
        parts: from back to front.
        classes: for style sheets, separated by spaces.
        title: what the group is, shown in an SVG under the pointer and read out; where there is one, the group can be
            reached by the Tab key.
    """

    parts: Sequence[Part]
    classes: str = ""
    title: str = ""


Part = Picture | Words | Shape | Group


@dataclass(frozen=True)
class Figure:
    """What there is to draw, from back to front."""

    width: float
    height: float
    parts: Sequence[Part]


def box(x: float, y: float, width: float, height: float, fill: Colour | None = None, opacity: float = 1.0) -> Shape:
    """An upright rectangle."""
    return Shape(((x, y), (x + width, y), (x + width, y + height), (x, y + height)), fill, opacity)


def to_png(figure: Figure, scale: float = 2.0) -> np.ndarray:
    """Paint a figure on white.

    Args:
        figure: text in it should be of ASCII and "×"; see :func:`vtviz.lettering.lettering`.
        scale: pixels of the picture for each of the figure.

    Returns:
        (height, width, 3) uint8 RGB.
    """
    canvas = Image.new("RGB", (round(figure.width * scale), round(figure.height * scale)), "white")
    for part in _flat(figure.parts):
        if isinstance(part, Picture):
            left, top = round(part.x * scale), round(part.y * scale)
            right, bottom = round((part.x + part.width) * scale), round((part.y + part.height) * scale)
            how = Image.Resampling.NEAREST if part.cells else Image.Resampling.LANCZOS
            drawn = Image.fromarray(part.pixels).resize((max(1, right - left), max(1, bottom - top)), how)
            canvas.paste(drawn, (left, top))
        elif isinstance(part, Words):
            size = round(part.size * scale)
            width = lettering(part.text, size).width * {"start": 0.0, "middle": 0.5, "end": 1.0}[part.anchor]
            place = (round(part.x * scale - width), round(part.y * scale))
            write(canvas, place, part.text, size, MUTED if part.muted else INK, middle=True)
        else:
            _paint(canvas, part, scale)
    return np.array(canvas)


def _flat(parts: Sequence[Part]) -> Iterator[Picture | Words | Shape]:
    for part in parts:
        if isinstance(part, Group):
            yield from _flat(part.parts)
        else:
            yield part


def _paint(canvas: Image.Image, shape: Shape, scale: float) -> None:
    points = np.array(shape.points) * scale
    first, last = np.floor(points.min(axis=0)), np.ceil(points.max(axis=0))
    width, height = (max(1, int(side)) for side in last - first)
    mask = Image.new("L", (width * _FINE, height * _FINE))
    # Pillow's polygons reach a pixel beyond their corners at the right and bottom
    corners = [(float(x), float(y)) for x, y in np.clip((points - first) * _FINE - 0.5, 0, None)]
    ImageDraw.Draw(mask).polygon(corners, fill=round(255 * shape.opacity))
    mask = mask.resize((width, height), Image.Resampling.BOX)
    canvas.paste(shape.fill or INK, (int(first[0]), int(first[1])), mask)


def to_svg(figure: Figure, title: str, *, name: str, style: str = "") -> str:
    """A figure as one ``<svg>`` element, which stands alone as a file or within a page.

    It needs nothing else, and has no script and no style attribute, so that a strict Content-Security-Policy lets it
    through. Within a page text takes the colour around it; alone it follows the system's light or dark mode.

    Args:
        figure: as laid out.
        title: what it shows, read out by screen readers.
        name: class of the element.
        style: rules of a style sheet, put in as they are.
    """
    alone = (
        ":root{color:#262626;background:#fff}"
        "@media (prefers-color-scheme:dark){:root{color:#e4e4e7;background:#18181b}}"
    )
    body = "".join(_svg(part) for part in figure.parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="{escape(name)}" role="group" aria-label="{escape(title)}" '
        f'viewBox="0 0 {_number(figure.width)} {_number(figure.height)}" width="{_number(figure.width)}" '
        f'height="{_number(figure.height)}" font-family="{escape(FONT)}" fill="currentColor">'
        f"<style>{alone}{style}</style>{body}</svg>"
    )


def _svg(part: Part) -> str:
    if isinstance(part, Group):
        inner = "".join(_svg(each) for each in part.parts)
        told = f' tabindex="0" role="img" aria-label="{escape(part.title)}"' if part.title else ""
        title = f"<title>{escape(part.title)}</title>" if part.title else ""
        return f'<g class="{escape(part.classes)}"{told}>{title}{inner}</g>'
    if isinstance(part, Words):
        anchor = f' text-anchor="{part.anchor}"' if part.anchor != "start" else ""
        muted = ' opacity="0.68"' if part.muted else ""
        place = f'x="{_number(part.x)}" y="{_number(part.y + 0.35 * part.size)}"'
        return f'<text {place} font-size="{part.size}"{anchor}{muted}>{escape(part.text)}</text>'
    if isinstance(part, Shape):
        points = " ".join(f"{_number(x)},{_number(y)}" for x, y in part.points)
        fill = f' fill="rgb{part.fill}"' if part.fill else ""
        return f'<polygon points="{points}"{fill} opacity="{part.opacity:g}"/>'
    sharp = ' image-rendering="pixelated"' if part.cells else ""
    place = " ".join(f'{name}="{_number(getattr(part, name))}"' for name in ("x", "y", "width", "height"))
    return f'<image {place} preserveAspectRatio="none"{sharp} href="{data_address(part.pixels, part.cells)}"/>'


def data_address(pixels: np.ndarray, lossless: bool = False, quality: int = 88) -> str:
    """(H, W, 3) uint8 RGB, or (H, W) uint8, as a ``data:`` address: a PNG where ``lossless``, otherwise a JPEG."""
    buffer = io.BytesIO()
    options = {"format": "PNG", "optimize": True} if lossless else {"format": "JPEG", "quality": quality}
    Image.fromarray(pixels).save(buffer, **options)  # type: ignore[arg-type]
    kind = "png" if lossless else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
