"""Crisp small text for pictures, with the font that Pillow brings along."""

from __future__ import annotations

import functools
import math
import re
import unicodedata

from PIL import Image, ImageDraw, ImageFont

_FINE = 4
"""Text is drawn this many times larger and averaged down: even spacing, which hinted small sizes lack."""
_CROSS = 0.62
"""Width of "×", which the font lacks, in font sizes."""


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _latin(text: str) -> str:
    """The text in the letters that the font has: accents dropped, other scripts as "?"."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return "".join(c if " " <= c <= "~" or c == "×" else "?" for c in plain)


def _length(text: str, size: int) -> float:
    font = _font(size * _FINE)
    crosses = text.count("×") * _CROSS * size
    return sum(font.getlength(part) for part in text.split("×")) / _FINE + crosses


def shorten(text: str, size: int, width: float) -> str:
    """The text, with its end replaced by "..." where it is wider than ``width`` pixels."""
    text = _latin(text)
    if _length(text, size) <= width:
        return text
    while text and _length(text + "...", size) > width:
        text = text[:-1].rstrip(" ,")
    return text + "..."


def line_height(size: int) -> int:
    """Height in pixels of the masks of :func:`lettering`."""
    return math.ceil(size * 1.3)


def lettering(text: str, size: int) -> Image.Image:
    """One line of text as a mask (mode "L"), ``line_height(size)`` high and as wide as the text.

    Args:
        text: of ASCII and "×"; accents are dropped, and other scripts become "?".
        size: font size in pixels.
    """
    text = _latin(text)
    height, baseline = line_height(size), size
    mask = Image.new("L", (_FINE * (math.ceil(_length(text, size)) + 1), _FINE * height))
    draw, font, em = ImageDraw.Draw(mask), _font(size * _FINE), size * _FINE
    x = 0.0
    for part in re.split("(×)", text):
        if part == "×":
            centre, arm = (x + _CROSS * em / 2, baseline * _FINE - 0.27 * em), 0.18 * em
            for slope in (-1, 1):
                ends = [(centre[0] + side * arm, centre[1] + side * slope * arm) for side in (-1, 1)]
                draw.line(ends, 255, max(1, round(em * 0.075)))
            x += _CROSS * em
        else:
            draw.text((x, baseline * _FINE), part, 255, font, anchor="ls")
            x += font.getlength(part)
    return mask.resize((mask.width // _FINE, height), Image.Resampling.BOX)


def write(
    picture: Image.Image,
    xy: tuple[int, int],
    text: str,
    size: int,
    colour: tuple[int, int, int],
    *,
    right: bool = False,
    middle: bool = False,
) -> None:
    """Write one line of text into a picture.

    Args:
        picture: mode "RGB", changed in place.
        xy: the left (or right) end of the text, and its top (or the middle of its digits' height).
        text: see :func:`lettering`.
        size: font size in pixels.
        colour: RGB.
        right: ``xy`` is the right end.
        middle: ``xy`` is at the middle of the digits' height.
    """
    mask = lettering(text, size)
    x = xy[0] - mask.width if right else xy[0]
    y = xy[1] - round(size * 0.65) if middle else xy[1]
    picture.paste(colour, (x, y), mask)
