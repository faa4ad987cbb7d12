"""Overlays of token maps and their colour bar, as (H, W, 3) uint8 RGB pictures.

Every picture states its value range: one colour scale serves all maps unless the caller asks for another, and none is
ever stretched silently. Values are in x uniform: 1 is a token that looks everywhere alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw

from vtviz import geometry as geo
from vtviz import images
from vtviz.errors import ConfigError, did_you_mean
from vtviz.lettering import lettering, write
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
    with np.errstate(over="ignore"):
        first, last = np.float32(low), np.float32(high)  # as the maps are: what lies beyond is infinite
    if not -np.inf < first < last < np.inf:
        raise ConfigError(
            f"a colour scale needs two finite ends (low, high), in float32 with low < high, got ({low}, {high})"
        )
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
    levels = cv2.convertScaleAbs(values, alpha=steps, beta=-low * steps)
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
    photo = photo_of(maps, image)
    values = maps.at_image_size(layer, token, head, align)
    if scale == "shared":
        head_shown = head if maps.layer(layer).num_heads > 1 else None
        limits = value_range(peaks(maps.layers, head_shown), scale)
    else:
        limits = value_range(maps.times_uniform(layer, head)[token], scale)
    return blend(photo, values, limits, opacity=opacity, cmap=cmap)


def photo_of(maps: TokenMaps, image: images.ImageSource | None) -> np.ndarray:
    """The photo that maps are drawn over, (H, W, 3) uint8 RGB: theirs, or the one given where they do not hold it.

    Raises:
        ConfigError: where there is none, or it does not fit the maps.
        ImageError: for one that cannot be read.
    """
    source = maps.image if image is None else image
    if source is None:
        raise ConfigError("these maps do not hold their image; pass it as image=")
    if image is None and isinstance(source, np.ndarray) and source.dtype == np.uint8 and source.shape[2:] == (3,):
        photo = source
    else:  # also what somebody has put into the maps
        photo = images.load(source)
    if photo.shape[:2] != maps.geometry.original:
        raise ConfigError(
            f"the maps are of an image of (H, W) = {maps.geometry.original}, got one of {photo.shape[:2]}"
        )
    return photo


def of_head(layer: LayerMaps, head: int | None) -> np.ndarray:
    """(tokens, h, w) in x uniform. A static tokenizer has one head, which stands for every head asked for."""
    return layer.times_uniform(head if layer.num_heads > 1 else None)


def peaks(layers: Sequence[LayerMaps], head: int | None) -> np.ndarray:
    """The largest value of every map of the layers, in x uniform."""
    return np.concatenate([of_head(layer, head).max(axis=(1, 2)) for layer in layers])


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
    if np.isnan(values.min()):
        outside = np.isnan(values)
        blended[outside] = (photo[outside] * DIMMED).astype(np.uint8)
    return blended


# --- the colour bar

INK, MUTED = (38, 38, 38), (115, 115, 115)
"""Text colours on white."""


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
    intervals = max(1, min(6, height // (2 * text)))
    ticks = (
        [(v, f"{v:g}") for v in _ticks(low, high, intervals) if high - v > 0.08 * (high - low)]
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
