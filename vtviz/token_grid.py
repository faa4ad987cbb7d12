"""A panel as in the paper's Figures 5 and 6: a photo, and every token map of every layer over it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from vtviz import geometry as geo
from vtviz import images
from vtviz.errors import ConfigError
from vtviz.lettering import lettering, shorten, write
from vtviz.render import INK, MUTED, Scale, blend, colorbar, of_head, peaks, photo_of, value_range
from vtviz.tokens import LayerMaps, TokenMaps


def grid(
    maps: TokenMaps | Sequence[TokenMaps],
    *,
    layers: Sequence[int] | None = None,
    head: int | None = None,
    columns: int = 8,
    cell: int = 160,
    opacity: float = 0.5,
    cmap: str = "jet",
    scale: Scale = "shared",
    align: str = "receptive_field",
    image: images.ImageSource | None = None,
) -> np.ndarray:
    """A panel as in Figures 5 and 6: the photo, and every token map of every layer over it, with one colour bar.

    Args:
        maps: of one image, or of several, which are drawn one below the other on one colour scale.
        layers: indices of the layers to draw, negative from the end; None for all.
        head: of the tokenizers; None for the heads' mean. A static tokenizer has one head, which is always drawn.
        columns: maps side by side; a layer with more takes several lines.
        cell: longer side of a drawn map, in pixels, 64 or more; text and margins grow with it.
        opacity: of the colours over the photo, 0 to 1.
        cmap: a key of :data:`vtviz.render.COLORMAPS`.
        scale: what the ends of the colours mean; see :data:`vtviz.render.Scale`. "shared" is shared by all that
            is drawn.
        align: "receptive_field" (where the network looked) or "resize" (as other tools draw it).
        image: the photo, where ``maps`` (of one image) do not hold it.

    Returns:
        (height, width, 3) uint8 RGB on white. Below each map stand its token's index and its peak in x uniform (its
        range where ``scale`` is "map"), below each photo the most probable classes.

    Raises:
        ConfigError: for an index, option or image that does not fit the maps.
    """
    items = [maps] if isinstance(maps, TokenMaps) else list(maps)
    if not items or (image is not None and len(items) > 1):
        raise ConfigError(f"cannot draw {len(items)} images" + (" over the one given as image=" if items else ""))
    if columns < 1 or cell < 64:
        raise ConfigError(f"columns must be at least 1 and cell at least 64, got {columns} and {cell}")
    chosen = [item.layers if layers is None else [item.layer(i) for i in layers] for item in items]
    if not all(chosen):
        raise ConfigError("there are no layers to draw")
    limits = None if scale == "map" else value_range(peaks([x for some in chosen for x in some], head), scale)
    style = _Style(cell, columns, predictions=3 if len(items) == 1 else 1)

    def drawn(photo: np.ndarray, geometry: geo.Geometry, layer: LayerMaps) -> _Row:
        values = of_head(layer, head)
        ranges = [limits or value_range(map_, "map") for map_ in values]
        large = geo.upsample(values, geometry, stride=layer.stride, align=align)
        pictures = [blend(photo, map_, r, opacity=opacity, cmap=cmap) for map_, r in zip(large, ranges, strict=True)]
        labels = [
            f"{v.max():.1f}×" if limits else f"{r[0]:.1f} - {r[1]:.1f}×" for v, r in zip(values, ranges, strict=True)
        ]
        heads = f"mean of {layer.num_heads} heads" if head is None else f"head {head} of {layer.num_heads}"
        heading = f"{layer.name}: {layer.num_tokens} tokens" + (f", {heads}" if layer.num_heads > 1 else "")
        return _Row(heading, pictures, labels)

    blocks = []
    for item, some in zip(items, chosen, strict=True):
        photo = _thumbnail(photo_of(item, image), cell)
        geometry = replace(item.geometry, original=photo.shape[:2])
        blocks.append(_block(item, photo, [drawn(photo, geometry, layer) for layer in some], style))
    return np.array(_panel(blocks, cmap, limits, style))


@dataclass(frozen=True)
class _Style:
    """The panel's sizes in pixels, all from the longer side of a drawn map."""

    cell: int
    columns: int
    predictions: int

    @property
    def text(self) -> int:
        return max(9, round(self.cell * 0.085))

    @property
    def small(self) -> int:
        return max(9, round(self.cell * 0.075))

    @property
    def line(self) -> int:
        return round(self.text * 1.4)

    @property
    def gap(self) -> int:
        return max(3, round(self.cell * 0.05))

    @property
    def margin(self) -> int:
        return max(8, round(self.cell * 0.11))


class _Row(NamedTuple):
    """One layer over one photo, painted."""

    heading: str
    pictures: list[np.ndarray]
    labels: list[str]


def _thumbnail(photo: np.ndarray, cell: int) -> np.ndarray:
    """The photo with a longer side of ``cell``; a sliver is drawn an eighth as thick, so that it can be seen."""
    longer = max(photo.shape[:2])
    h, w = (max(round(side * cell / longer), cell // 8) for side in photo.shape[:2])
    return cv2.resize(photo, (w, h), interpolation=cv2.INTER_AREA if longer > cell else cv2.INTER_LINEAR)


def _block(maps: TokenMaps, photo: np.ndarray, rows: Sequence[_Row], style: _Style) -> Image.Image:
    """One image: its photo with the predictions below on the left, its painted layers on the right."""
    h, w = photo.shape[:2]
    left = style.cell + style.margin  # where the maps begin
    pitch_x, pitch_y = w + style.gap, h + style.line + style.gap // 2
    predictions = maps.topk(style.predictions) if maps.logits.ndim == 1 else []
    heights = [style.line + math.ceil(len(row.pictures) / style.columns) * pitch_y for row in rows]
    height = max(sum(heights) + style.gap * (len(rows) - 1), style.line * (1 + len(predictions)) + h + style.gap)
    shown = min(style.columns, max(len(row.pictures) for row in rows))
    headings = max(lettering(row.heading, style.text).width for row in rows)  # a portrait's maps may be narrower
    picture = Image.new("RGB", (left + max(shown * pitch_x - style.gap, headings), height), "white")

    picture.paste(Image.fromarray(photo), (0, style.line))
    for number, prediction in enumerate(predictions):
        y = style.line + h + 3 + number * style.line
        share = f" {prediction.probability:.0%}"
        label = shorten(prediction.label, style.small, style.cell - lettering(share, style.small).width)
        write(picture, (0, y), label, style.small, INK)
        write(picture, (style.cell, y), share, style.small, MUTED, right=True)

    top = 0
    for row, row_height in zip(rows, heights, strict=True):
        write(picture, (left, top), row.heading, style.text, INK)
        for token, (painted, label) in enumerate(zip(row.pictures, row.labels, strict=True)):
            line, column = divmod(token, style.columns)
            x, y = left + column * pitch_x, top + style.line + line * pitch_y
            picture.paste(Image.fromarray(painted), (x, y))
            write(picture, (x, y + h + 3), str(token), style.small, INK)
            write(picture, (x + w, y + h + 3), label, style.small, MUTED, right=True)
        top += row_height + style.gap
    return picture


def _panel(blocks: Sequence[Image.Image], cmap: str, limits: tuple[float, float] | None, style: _Style) -> Image.Image:
    """The blocks below one another, and the colour bar beside the uppermost maps."""
    width = max(block.width for block in blocks)
    height = sum(block.height for block in blocks) + style.margin * (len(blocks) - 1)
    bar_height = min(max(height - 2 * style.line - style.gap // 2, 5 * style.text), 3 * style.cell)
    bar = Image.fromarray(colorbar(cmap, limits, height=bar_height, text=style.text))
    top = style.margin + style.line - style.text  # the bar begins where the first maps do
    size = (3 * style.margin + width + bar.width, max(2 * style.margin + height, top + bar.height + style.gap))
    panel = Image.new("RGB", size, "white")
    panel.paste(bar, (2 * style.margin + width, top))
    y = style.margin
    for block in blocks:
        panel.paste(block, (style.margin, y))
        y += block.height + style.margin
    return panel
