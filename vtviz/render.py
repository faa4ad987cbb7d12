"""Overlays and panels of token maps, as (H, W, 3) uint8 RGB pictures.

Every picture states its value range: one colour scale serves all maps unless the caller asks for another, and none is
ever stretched silently. Values are in x uniform: 1 is a token that looks everywhere alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw

from vtviz import geometry as geo
from vtviz import images
from vtviz.errors import ConfigError, did_you_mean
from vtviz.lettering import lettering, shorten, write
from vtviz.tokens import LayerMaps, TokenMaps


def _table(code: int) -> np.ndarray:
    levels = np.arange(256, dtype=np.uint8)[:, None]  # 2-D: OpenCV 5 reads a 1-D array as another shape
    return np.ascontiguousarray(cv2.applyColorMap(levels, code)[:, 0, ::-1])


COLORMAPS: dict[str, np.ndarray] = {
    "jet": _table(cv2.COLORMAP_JET),  # red high, blue low, as the paper's figures
    "turbo": _table(cv2.COLORMAP_TURBO),
    "viridis": _table(cv2.COLORMAP_VIRIDIS),
    "magma": _table(cv2.COLORMAP_MAGMA),
    "inferno": _table(cv2.COLORMAP_INFERNO),
    "plasma": _table(cv2.COLORMAP_PLASMA),
    "cividis": _table(cv2.COLORMAP_CIVIDIS),
}
"""Name -> (256, 3) uint8 RGB, low to high. All but jet and turbo are perceptually uniform."""

Scale = str | tuple[float, float]
"""What the ends of the colour scale mean, in x uniform.

"shared": 0 to the median peak of all maps that are drawn (at least 2, so that maps close to uniform look uniform).
Half of the maps reach the last colour; were it the largest peak, the one token that looks at a single cell would leave
all others blue.
"map": the least to the largest value of each map. Maps do not compare then, and near-uniform ones look strong.
(low, high): as given; values beyond take the colours of the ends.
"""

DIMMED = 0.35
"""Brightness of the photo where a crop kept it from the model."""


def value_range(values: np.ndarray, scale: Scale) -> tuple[float, float]:
    """The ends of the colour scale.

    Args:
        values: in x uniform: the peaks of all maps that share the scale, or the one map of "map".
        scale: see :data:`Scale`.

    Raises:
        ConfigError: for a scale that is none.
    """
    if isinstance(scale, str):
        if scale not in {"shared", "map"}:
            raise ConfigError(f"unknown scale {scale!r}{did_you_mean(scale, ('shared', 'map'))}")
        if scale == "shared":
            return 0.0, max(2.0, float(np.median(values)))
        low, high = float(values.min()), float(values.max())
        return (low, high) if high > low else (0.0, max(2.0, high))
    low, high = scale
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(f"a colour scale needs two finite ends (low, high) with low < high, got ({low}, {high})")
    return float(low), float(high)


def colorize(values: np.ndarray, cmap: str, vmin: float, vmax: float) -> np.ndarray:
    """Colours of values.

    Args:
        values: (H, W) float32 or float64.
        cmap: a key of :data:`COLORMAPS`.
        vmin: the value of the first colour; lower values and NaN take it too.
        vmax: the value of the last colour; higher values take it too. Above ``vmin``.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ConfigError: for an unknown colour map or an empty range.
    """
    _check_cmap(cmap)
    vmin, vmax = value_range(values, (vmin, vmax))
    return _colours(np.clip(values, vmin, vmax), cmap, vmin, vmax)


def check_drawing(*, align: str = "receptive_field", cmap: str = "jet", scale: Scale = "shared") -> None:
    """Raise ConfigError where maps cannot be drawn so; arguments as of :func:`overlay`. Cheap: it draws nothing."""
    if align not in geo.ALIGNMENTS:
        raise ConfigError(f"unknown alignment {align!r}{did_you_mean(align, geo.ALIGNMENTS)}")
    _check_cmap(cmap)
    value_range(np.ones(1), scale)


def _check_cmap(cmap: str) -> None:
    if cmap not in COLORMAPS:
        raise ConfigError(f"unknown colour map {cmap!r}{did_you_mean(cmap, COLORMAPS)}")


def _colours(values: np.ndarray, cmap: str, low: float, high: float) -> np.ndarray:
    """Colours of values within low and high, or NaN; OpenCV saturates from 32-bit integers only."""
    steps = 255 / (high - low)
    # Scales, rounds and takes NaN to 0 in one pass: several times faster than the same in NumPy.
    levels = cv2.addWeighted(values, steps, values, 0, -low * steps, dtype=cv2.CV_8U)
    return cv2.applyColorMap(levels, COLORMAPS[cmap][:, None])


def overlay(
    maps: TokenMaps,
    layer: int = 0,
    token: int = 0,
    *,
    head: int | None = None,
    opacity: float = 0.5,
    cmap: str = "jet",
    scale: Scale = "shared",
    align: str = "receptive_field",
    image: images.ImageSource | None = None,
) -> np.ndarray:
    """One token map over its photo, at the photo's size.

    Args:
        maps: what to draw.
        layer: index into ``maps.layers``, negative from the end.
        token: index of the map within the layer, negative from the end.
        head: of the tokenizer; None for the heads' mean.
        opacity: of the colours over the photo, 0 to 1.
        cmap: a key of :data:`COLORMAPS`.
        scale: what the ends of the colours mean; see :data:`Scale`.
        align: "receptive_field" (where the network looked) or "resize" (as other tools draw it).
        image: the photo, where ``maps`` do not hold it.

    Returns:
        (H, W, 3) uint8 RGB, the size of the photo; what a crop cut off is dimmed.

    Raises:
        ConfigError: for an index, option or image that does not fit the maps.
    """
    photo = _photo(maps, image)
    values = maps.at_image_size(layer, token, head, align)
    if scale == "shared":
        head_shown = head if maps.layer(layer).num_heads > 1 else None
        limits = value_range(_peaks(maps.layers, head_shown), scale)
    else:
        limits = value_range(maps.times_uniform(layer, head)[token], scale)
    return blend(photo, values, limits, opacity=opacity, cmap=cmap)


def _photo(maps: TokenMaps, image: images.ImageSource | None) -> np.ndarray:
    photo = maps.image if image is None else images.load(image)
    if photo is None:
        raise ConfigError("these maps do not hold their image; pass it as image=")
    if photo.shape[:2] != maps.geometry.original:
        raise ConfigError(
            f"the maps are of an image of (H, W) = {maps.geometry.original}, got one of {photo.shape[:2]}"
        )
    return photo


def _of_head(layer: LayerMaps, head: int | None) -> np.ndarray:
    """(tokens, h, w) in x uniform. A static tokenizer has one head, which stands for every head asked for."""
    return layer.times_uniform(head if layer.num_heads > 1 else None)


def _peaks(layers: Sequence[LayerMaps], head: int | None) -> np.ndarray:
    """The largest value of every map of the layers, in x uniform."""
    return np.concatenate([_of_head(layer, head).max(axis=(1, 2)) for layer in layers])


def blend(
    photo: np.ndarray, values: np.ndarray, limits: tuple[float, float], *, opacity: float = 0.5, cmap: str = "jet"
) -> np.ndarray:
    """``values`` (H, W) float32, clipped to the limits in place, in colours over a photo (H, W, 3) uint8 RGB.

    The photo is dimmed where they are NaN. Raises ConfigError for an option that cannot work.
    """
    if not 0 <= opacity <= 1:
        raise ConfigError(f"opacity must be from 0 to 1, got {opacity}")
    _check_cmap(cmap)
    blended = _colours(np.clip(values, *limits, out=values), cmap, *limits)
    cv2.addWeighted(photo, 1 - opacity, blended, opacity, 0, dst=blended)
    outside = np.isnan(values)
    if outside.any():
        blended[outside] = (photo[outside] * DIMMED).astype(np.uint8)
    return blended


# --- the panel

INK, MUTED = (38, 38, 38), (115, 115, 115)
"""Text colours on white."""


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
        cmap: a key of :data:`COLORMAPS`.
        scale: what the ends of the colours mean; see :data:`Scale`. "shared" is shared by all that is drawn.
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
    limits = None if scale == "map" else value_range(_peaks([x for some in chosen for x in some], head), scale)
    style = _Style(cell, columns, predictions=3 if len(items) == 1 else 1)

    def drawn(photo: np.ndarray, geometry: geo.Geometry, layer: LayerMaps) -> _Row:
        values = _of_head(layer, head)
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
        photo = _thumbnail(_photo(item, image), cell)
        geometry = replace(item.geometry, original=photo.shape[:2])
        blocks.append(_block(item, photo, [drawn(photo, geometry, layer) for layer in some], style))
    return np.array(_panel(blocks, cmap, limits, style))


def colorbar(cmap: str, limits: tuple[float, float] | None, *, height: int = 240, text: int = 13) -> np.ndarray:
    """A vertical colour bar with round ticks and its unit.

    Args:
        cmap: a key of :data:`COLORMAPS`.
        limits: the values of its ends, in x uniform; None where each map has its own range.
        height: of the bar itself, in pixels.
        text: font size in pixels.

    Returns:
        (height + 2 ``text``, width, 3) uint8 RGB on white, the bar ``text`` pixels from the top.

    Raises:
        ConfigError: for an unknown colour map or an empty range.
    """
    low, high = limits or (0.0, 1.0)
    ticks = (
        [(v, f"{v:g}") for v in _ticks(low, high, min(6, height // (2 * text))) if high - v > 0.08 * (high - low)]
        + [(high, f"{high:.3g}+")]  # higher values take the last colour too
        if limits
        else [(0.0, "least"), (1.0, "peak")]
    )
    names = (
        ["× uniform (1 = looks everywhere alike)", "× uniform"]
        if limits
        else ["each map on its own range", "own range"]
    )
    masks = [lettering(name, text) for name in names]
    name = next((mask for mask in masks if mask.width <= height), masks[-1]).transpose(Image.Transpose.ROTATE_90)
    bar, tick, gap = round(text * 1.1), round(text * 0.35), round(text * 0.4)
    numbers = max(lettering(label, text).width for _, label in ticks)
    width = bar + tick + gap + numbers + gap + name.width
    picture = Image.new("RGB", (width, height + 2 * text), "white")
    draw = ImageDraw.Draw(picture)
    ramp = np.repeat(np.linspace(high, low, height, dtype=np.float32)[:, None], bar, axis=1)
    picture.paste(Image.fromarray(colorize(ramp, cmap, low, high)), (0, text))
    for value, label in ticks:
        y = text + round((high - value) / (high - low) * (height - 1))
        draw.line((bar, y, bar + tick - 1, y), INK)
        write(picture, (bar + tick + gap, y), label, text, INK, middle=True)
    picture.paste(INK, (width - name.width, (picture.height - name.height) // 2), name)
    return np.array(picture)


def _ticks(low: float, high: float, intervals: int) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten apart) from low to high, with at most so many intervals."""
    least = (high - low) / intervals
    unit = 10.0 ** math.floor(math.log10(least))
    step = next(n * unit for n in (1, 2, 5, 10) if n * unit >= least * 0.999)
    return [round(n * step, 12) for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


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
    picture = Image.new("RGB", (left + shown * pitch_x - style.gap, height), "white")

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
