"""Pictures in rows under headings, as in the paper's Figures 5 and 6."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from vtviz.errors import ConfigError
from vtviz.lettering import lettering, line_height, shorten, write
from vtviz.render import INK, colorbar

GAP = 5
"""Pixels between two pictures."""


def panel(
    rows: Sequence[Sequence[np.ndarray]],
    headings: Sequence[str],
    *,
    captions: Sequence[Sequence[str]] | None = None,
    scale: tuple[float, float] | None = None,
    cmap: str = "jet",
    key: np.ndarray | None = None,
    apart: int = 1,
    width: int = 108,
    text: int = 13,
) -> Image.Image:
    """Put pictures into rows and columns on white.

    Args:
        rows: of (H, W, 3) uint8 RGB pictures, as many a row as there are headings; those of a row have one size.
        headings: above the columns.
        captions: one line below each picture; None for none.
        scale: ends of the maps' colour scale, in x uniform, for a colour bar at the right; None for no bar.
        cmap: a key of :data:`vtviz.render.COLORMAPS`.
        key: below everything, e.g. :func:`vtviz.render_labels.legend`.
        apart: this many columns at the left stand a little apart from the others.
        width: of a drawn picture in pixels; heights follow.
        text: font size in pixels.

    Raises:
        ConfigError: where there are no rows, or one that has not a picture and caption for each heading.
    """
    captions = captions or [[""] * len(headings)] * len(rows)
    if not rows or any(len(line) != len(headings) for line in (*rows, *captions)) or len(rows) != len(captions):
        raise ConfigError(f"a panel needs rows of {len(headings)} pictures and captions, one for each heading")
    pitch, head, below = width + GAP, 2 * text, line_height(text) if any(map(any, captions)) else 0
    heights = [round(width * row[0].shape[0] / row[0].shape[1]) for row in rows]
    right, bottom = GAP + len(headings) * pitch + GAP, head + sum(heights) + len(rows) * (below + GAP)
    bar = None
    if scale is not None:
        bar = colorbar(cmap, scale, height=max(5 * text, min(3 * width, bottom - head - below - GAP)), text=text)
        right, bottom = right + GAP + bar.shape[1] + GAP, max(bottom, bar.shape[0] + GAP)
    figure = Image.new("RGB", (right, bottom + (0 if key is None else key.shape[0] + 2 * GAP)), "white")

    def centre(line: str, x: int, y: int) -> None:
        line = shorten(line, text, pitch)
        write(figure, (x + (width - lettering(line, text).width) // 2, y), line, text, INK, middle=True)

    for column, heading in enumerate(headings):
        x, y = GAP + column * pitch + (column >= apart) * GAP, head
        centre(heading, x, head // 2)
        for row, captioned, height in zip(rows, captions, heights, strict=True):
            picture = Image.fromarray(row[column]).resize((width, height), Image.Resampling.LANCZOS)
            figure.paste(picture, (x, y))
            centre(captioned[column], x, y + height + below // 2)
            y += height + below + GAP
    if bar is not None:
        figure.paste(Image.fromarray(bar), (right - bar.shape[1] - GAP, head - text))
    if key is not None:
        figure.paste(Image.fromarray(key), (GAP, bottom + GAP))
    return figure
