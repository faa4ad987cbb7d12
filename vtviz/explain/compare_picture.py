"""Matched tokens one above the other, on one colour scale."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
from PIL import Image

from vtviz import render
from vtviz.errors import ConfigError
from vtviz.explain.compare import Comparison, Side
from vtviz.geometry import upsample
from vtviz.panels import panel
from vtviz.tokens import check_index


def check_scale(scale: render.Scale) -> None:
    """Raise ConfigError for a scale that two maps cannot share."""
    if scale == "map":
        raise ConfigError("a comparison needs one scale for both: shared, or two numbers")


def draw_comparison(
    comparison: Comparison,
    first: Side,
    second: Side,
    layer: int = 0,
    *,
    side: int = 120,
    cmap: str = "jet",
    scale: render.Scale = "shared",
) -> Image.Image:
    """Draw a column for each pair of a layer's tokens, the best first, then one for each token that is left over.

    Above each column stand the two tokens and the share of their mass that they have in common, below each map its
    peak.

    Args:
        comparison: of the two sides.
        first: drawn above.
        second: drawn below.
        layer: index into ``comparison.layers``, negative from the end.
        side: width of a picture in pixels.
        cmap: a key of :data:`vtviz.render.COLORMAPS`.
        scale: "shared" or (low, high), for both sides; see :data:`vtviz.render.Scale`.

    Raises:
        ConfigError: for a layer that is not there, an unknown colour map, or another scale.
    """
    index = check_index("layer", layer, len(comparison.layers)) % len(comparison.layers)
    match = comparison.layers[index]
    columns: list[tuple[int | None, int | None, str]] = [
        (p.first, p.second, f"{p.first} & {p.second}: {p.overlap:.0%}") for p in match.pairs
    ]
    columns += [(token, None, f"{token} & none") for token in match.unmatched[0]]
    columns += [(None, token, f"none & {token}") for token in match.unmatched[1]]
    sides = (first, second)
    peaks = np.concatenate([s.layers[index].values.max(axis=(1, 2)) for s in sides])
    check_scale(scale)
    limits = render.value_range(peaks, scale)
    rows, captions = [], []
    for number, one in enumerate(sides):
        photo = _shrink(one.image, side)
        where, found = replace(one.geometry, original=photo.shape[:2]), one.layers[index]
        row, below = [photo], [one.label]
        for tokens in columns:
            token = tokens[number]
            if token is None:
                row.append(np.full_like(photo, 255))
                below.append("")
                continue
            drawn = upsample(found.values[token], where, stride=found.stride)
            row.append(render.blend(photo, drawn, limits, cmap=cmap))
            below.append(f"{found.values[token].max():.1f}×")
        rows.append(row)
        captions.append(below)
    name = match.names[0] if len(set(match.names)) == 1 else " & ".join(match.names)
    headings = [name, *(heading for *_, heading in columns)]
    return panel(rows, headings, captions=captions, scale=limits, cmap=cmap, width=side)


def _shrink(photo: np.ndarray, width: int) -> np.ndarray:
    """The photo at this width; a sliver at least a quarter and at most four times as high."""
    height = round(min(max(width * photo.shape[0] / photo.shape[1], width / 4), width * 4))
    how = cv2.INTER_AREA if photo.shape[1] > width else cv2.INTER_LINEAR
    return cv2.resize(photo, (width, height), interpolation=how)
