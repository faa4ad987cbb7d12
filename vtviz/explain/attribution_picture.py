"""The picture of attributions: every method's map over the same photo, and how far the methods agree."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from vtviz.drawing import Colour, Figure, Part, Picture, Words, box, to_png
from vtviz.explain.attribution import Attribution, Attributions
from vtviz.explain.explainer import METHODS
from vtviz.export import publish, staged
from vtviz.render import DIMMED

FOR: Colour = (200, 16, 32)
AGAINST: Colour = (20, 80, 190)
"""What speaks for the class, and what against it."""
BEYOND = 1.0
"""So many percent of a map's values lie beyond the ends of its scale: one wild pixel would leave all others pale."""
MARGIN, TILE, ACROSS = 18, 250, 3
"""Pixels around everything; a tile's longer side; tiles in a row."""
BAR, NAMES, CELL, ROW = 250, 200, 46, 24
"""Length of the colour bar; room for the names beside the matrix; width and height of its cells."""


def scale_end(item: Attribution) -> float:
    """The end of a map's colour scale, which reaches as far below 0 as above: its 99th percentile without sign."""
    values = np.abs(item.map[~np.isnan(item.map)])
    if not values.size:  # a crop left no pixel's centre
        return 1.0
    return float(np.percentile(values, 100 - BEYOND)) or float(values.max()) or 1.0


def attribution_overlay(photo: np.ndarray, values: np.ndarray, end: float) -> np.ndarray:
    """A map over its photo in grey: the stronger, the less of the photo is left; 0 is the photo alone.

    Args:
        photo: (H, W, 3) uint8 RGB.
        values: (H, W) float32; NaN where a crop cut the photo off, which is dimmed there.
        end: the value of the full colours, red above 0 and blue below; values beyond take them too. Above 0.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    grey = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)[..., None].astype(np.float32)
    grey = 255 - (255 - grey) * 0.6  # lighter, so that colours are seen on dark photos
    strength = np.clip(np.nan_to_num(values) / end, -1, 1)[..., None].astype(np.float32)
    colour = np.where(strength > 0, np.array(FOR, np.float32), np.array(AGAINST, np.float32))
    picture = (grey + (colour - grey) * np.abs(strength)).astype(np.uint8)
    outside = np.isnan(values)
    picture[outside] = (photo[outside] * DIMMED).astype(np.uint8)
    return picture


def attribution_png(found: Attributions) -> np.ndarray:
    """Draw attributions, as (height, width, 3) uint8 RGB on white, two pixels for each of the figure's."""
    return to_png(attribution_figure(found))


def save_attributions(found: Attributions, folder: str | os.PathLike[str]) -> dict[str, Path]:
    """What :meth:`Attributions.save` writes, and ``attributions.png``.

    Raises:
        DataError: where the disk refuses.
    """
    with staged(folder) as stage:
        Image.fromarray(attribution_png(found)).save(stage / "attributions.png", compress_level=1)
        written = publish(stage, folder, ["attributions.png"], images=[found.source])
    return written | found.save(folder)


def attribution_figure(found: Attributions) -> Figure:
    """What :func:`attribution_png` draws."""
    photo = found.image
    factor = 2 * TILE / max(photo.shape[:2])
    size = (max(16, round(photo.shape[1] * factor)), max(16, round(photo.shape[0] * factor)))  # (width, height)
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    small = cv2.resize(photo, size, interpolation=how)
    tiles = [(small, "The image", "")]
    for item in found.items:
        end = scale_end(item)
        drawn = attribution_overlay(small, cv2.resize(item.map, size, interpolation=how), end)
        tiles.append((drawn, METHODS[item.method].title, f"{_short(-end if item.signed else 0)} to {_short(end)}"))
    parts: list[Part] = [
        Words(MARGIN, MARGIN + 8, f"What speaks for {found.label} ({found.probability:.1%}), and what against it", 16),
        Words(MARGIN, MARGIN + 32, f"{found.model}; every map has a scale of its own, given below it", 12, muted=True),
    ]
    width, height = size[0] / 2, size[1] / 2
    top, across, down = MARGIN + 54, max(width, 150) + MARGIN, height + 52
    for index, (pixels, title, about) in enumerate(tiles):
        row, column = divmod(index, ACROSS)
        x, y = MARGIN + column * across, top + row * down
        parts += [Picture(x, y, width, height, pixels), Words(x, y + height + 12, title, 13)]
        parts += [Words(x, y + height + 29, about, 12, muted=True)]
    bottom = top + -(-len(tiles) // ACROSS) * down + 10
    parts += [*_bar(MARGIN, bottom), *_matrix(found, MARGIN + NAMES, bottom + 70)]
    right = max(MARGIN + ACROSS * across, MARGIN + NAMES + CELL * len(found.items) + MARGIN, 520)
    return Figure(right, bottom + 70 + 26 + ROW * len(found.items) + MARGIN, parts)


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2g}"


def _bar(x: float, y: float) -> list[Part]:
    """The colours, over a grey that stands for the photo."""
    ramp = np.linspace(-1, 1, 2 * BAR, dtype=np.float32)[None].repeat(2, axis=0)
    colours = attribution_overlay(np.full((*ramp.shape, 3), 128, np.uint8), ramp, 1.0)
    words = ((0, "start", "against it"), (BAR / 2, "middle", "0"), (BAR, "end", "for it"))
    return [
        Picture(x, y, BAR, 14, colours, cells=True),
        *(Words(x + at, y + 26, text, 12, anchor, muted=True) for at, anchor, text in words),
    ]


def _matrix(found: Attributions, x: float, y: float) -> list[Part]:
    """Rank correlations, with the methods' names at the left and their numbers above."""
    parts: list[Part] = [Words(MARGIN, y, "Do they agree? Rank correlation of the maps, from -1 to 1", 13)]
    for row, item in enumerate(found.items):
        middle = y + 26 + (row + 0.5) * ROW
        parts.append(Words(x - 8, middle, f"{METHODS[item.method].title}  {row + 1}", 12, "end"))
        for column, value in enumerate(found.agreement[row].tolist()):
            left = x + column * CELL
            colour = FOR if value > 0 else AGAINST
            parts.append(box(left, middle - ROW / 2, CELL - 1, ROW - 1, colour, min(1, abs(value)) * 0.6))
            parts.append(Words(left + CELL / 2, middle, f"{value:.2f}", 11, "middle"))
    parts += [
        Words(x + (i + 0.5) * CELL, y + 20, str(i + 1), 11, "middle", muted=True) for i in range(len(found.items))
    ]
    return parts
