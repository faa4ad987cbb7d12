"""The picture of a pixel query: the photo with the place, and for each layer two bar charts with a row per token."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
from PIL import Image

from vtviz.drawing import Colour, Figure, Part, Picture, Shape, Words, box, to_png
from vtviz.explain.query import LayerQuery, PixelQuery
from vtviz.export import publish, staged
from vtviz.thumbnails import shrink, thumbnails
from vtviz.tokens import TokenMaps

READ_BY: Colour = (37, 99, 235)
READS: Colour = (217, 119, 6)
MARGIN, PHOTO, ROW, BAR = 18, 300, 24, 130
"""Pixels around everything; the photo's longer side; from row to row; the longest bar."""
TOP, CHART_GAP, SIDE = 66, 34, 40
"""Height of a chart's headings; between two charts; between the bars and their tokens' names."""


def query_png(maps: TokenMaps, result: PixelQuery) -> np.ndarray:
    """Draw a query, as (height, width, 3) uint8 RGB on white, two pixels for each of the figure's.

    Bars to the left: how much each token reads the place. Bars to the right: how much the place reads each token. Both
    are the heads' mean in x uniform on one scale, with a line at 1.

    Args:
        maps: with their image.
        result: of these maps.

    Raises:
        ConfigError: for maps without their image.
    """
    return to_png(query_figure(maps, result))


def query_figure(maps: TokenMaps, result: PixelQuery) -> Figure:
    """What :func:`query_png` draws."""
    small = shrink(maps, 2 * PHOTO)
    pixels = small.image
    assert pixels is not None  # noqa: S101 - shrink has checked
    height, width = (side / 2 for side in pixels.shape[:2])
    parts: list[Part] = [
        Words(MARGIN, MARGIN + 6, _title(result), 15),
        Picture(MARGIN, TOP - 20, width, height, pixels),
    ]
    note = "1×: a token that looks everywhere alike,", "a place that reads all tokens alike. Heads' mean."
    parts += [Words(MARGIN, TOP + height + 18 * i, line, 12, muted=True) for i, line in enumerate(note)]
    parts += _mark(result.box, maps.geometry.original, (MARGIN, TOP - 20, width, height))
    shown = [_columns(layer) for layer in result.layers]
    top_value = max(2.0, *(float(np.nanmax(v)) for pair in shown for v in pair if v is not None))
    pictures = thumbnails(maps, 64).pictures
    names = result.names
    lefts, right, bottom = MARGIN + PHOTO + 2 * MARGIN, 0.0, TOP + height + 30
    y = float(MARGIN)
    across = min(len(result.layers), 2)
    for index, layer in enumerate(result.layers):
        column = index % across
        if index and column == 0:
            y += TOP + ROW * max(len(_rows(each)) for each in result.layers) + CHART_GAP
        x = lefts + column * (2 * (BAR + SIDE) + CHART_GAP + 60)
        parts += _chart(layer, shown[index], pictures[index], names[index], (x, y), top_value)
        right, bottom = x + 2 * (BAR + SIDE) + 60, max(bottom, y + TOP + ROW * len(_rows(layer)))
    return Figure(right + MARGIN, bottom + MARGIN, parts)


def _title(result: PixelQuery) -> str:
    x0, y0, x1, y1 = result.box
    return f"pixel {x0}, {y0}" if (x1 - x0, y1 - y0) == (1, 1) else f"box {x0}, {y0} to {x1}, {y1}"


def _rows(layer: LayerQuery) -> list[int]:
    """Slots that have a row: where no projector reads them, kept tokens have nothing to show."""
    count = layer.kept + layer.read_by.shape[1]
    return list(range(layer.kept if layer.reads is None else 0, count))


def _columns(layer: LayerQuery) -> tuple[np.ndarray, np.ndarray | None]:
    """Both answers by slot, the heads' mean in x uniform; NaN for kept tokens, which read nothing here."""
    read_by = np.concatenate([np.full(layer.kept, np.nan, np.float32), layer.read_by.mean(axis=0)])
    return read_by, None if layer.reads is None else layer.reads.mean(axis=0) * layer.reads.shape[1]


def _chart(
    layer: LayerQuery,
    shown: tuple[np.ndarray, np.ndarray | None],
    pictures: list[np.ndarray],
    names: list[str],
    place: tuple[float, float],
    top_value: float,
) -> list[Part]:
    x, y = place
    left, right = x + SIDE + BAR, x + SIDE + BAR + 60  # where the bars begin
    read_by, reads = shown
    rows = _rows(layer)
    high = ROW * len(rows)
    parts: list[Part] = [
        Words((left + right) / 2, y + 6, layer.name, 15, "middle"),
        Words(left, y + 28, "tokens that read it", 12, "end", muted=True),
        Words(right, y + 28, "tokens that it reads", 12, muted=True),
    ]
    unit = BAR / top_value
    sides = [(left, -1.0)] + ([(right, 1.0)] if reads is not None else [])
    for start, way in sides:
        parts += [box(start + way * unit - 0.5, y + TOP - 14, 1, high + 10, opacity=0.35)]
        parts += [Words(start + way * unit, y + TOP - 22, "1×", 10, "middle", muted=True)]
    if reads is None:
        parts += [Words(right, y + 46, "none: the last block", 12), Words(right, y + 62, "has no projector", 12)]
    scale = min((ROW - 4) / pictures[0].shape[0], 30 / pictures[0].shape[1])
    tall, wide = (side * scale for side in pictures[0].shape[:2])
    for row, slot in enumerate(rows):
        middle = y + TOP + (row + 0.5) * ROW
        if slot >= layer.kept:
            parts.append(Picture(left + 6, middle - tall / 2, wide, tall, pictures[slot - layer.kept]))
        parts.append(Words(right - 6, middle, names[slot], 11, "end", muted=slot < layer.kept))
        for (start, way), values, colour in zip(sides, (read_by, reads), (READ_BY, READS), strict=False):
            value = float(np.nan if values is None else values[slot])
            if not np.isnan(value):
                end = start + way * unit * value
                parts.append(box(min(start, end), middle - 6, abs(end - start), 12, colour, 0.75))
                beside = start + way * (unit * max(value, 1) + 5)
                parts.append(Words(beside, middle, f"{value:.1f}×", 10, "start" if way > 0 else "end", muted=True))
    return parts


def _mark(
    place: tuple[int, int, int, int], original: tuple[int, int], frame: tuple[float, float, float, float]
) -> list[Part]:
    """A cross on the pixel, or a frame around the box, dark and light so that it is seen on any photo."""
    left, top, width, height = frame
    across, down = width / original[1], height / original[0]
    x0, y0, x1, y1 = place
    parts: list[Part] = []
    for colour, thick in (((20, 20, 20), 5.0), ((255, 255, 255), 2.0)):
        if (x1 - x0, y1 - y0) == (1, 1):
            x, y, arm = left + (x0 + 0.5) * across, top + (y0 + 0.5) * down, 9 + thick / 2
            lines = [(x - arm, y, x + arm, y), (x, y - arm, x, y + arm)]
        else:
            a, b, c, d = left + x0 * across, top + y0 * down, left + x1 * across, top + y1 * down
            lines = [(a, b, c, b), (a, d, c, d), (a, b, a, d), (c, b, c, d)]
        for xa, ya, xb, yb in lines:
            half = thick / 2
            corners = ((xa - half, ya - half), (xb + half, ya - half), (xb + half, yb + half), (xa - half, yb + half))
            if xa == xb:
                corners = ((xa - half, ya), (xa + half, ya), (xa + half, yb), (xa - half, yb))
            parts.append(Shape(corners, colour))
    return parts


def save_query(maps: TokenMaps, result: PixelQuery, folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Write ``query.png`` and ``query.json`` into ``folder``.

    Returns:
        File name -> path of each file written.

    Raises:
        ConfigError: for maps without their image.
        DataError: where the disk refuses.
    """
    with staged(folder) as stage:
        Image.fromarray(query_png(maps, result)).save(stage / "query.png")
        text = json.dumps(result.to_dict(), indent=1, ensure_ascii=False) + "\n"
        (stage / "query.json").write_text(text, encoding="utf-8", errors="backslashreplace")
        return publish(stage, folder, ("query.png", "query.json"), images=[maps.source])
