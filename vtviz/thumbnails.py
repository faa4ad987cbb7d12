"""Every token's map as a small picture over its photo, all on one colour scale."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import cv2
import numpy as np

from vtviz import render
from vtviz.errors import ConfigError
from vtviz.tokens import TokenMaps


class Thumbnails(NamedTuple):
    """Small pictures of all maps."""

    pictures: list[list[np.ndarray]]
    """By layer and map, (h, w, 3) uint8 RGB of one size."""
    limits: tuple[float, float]
    """Ends of their colour scale, in x uniform."""
    cmap: str
    """Its colours, a key of :data:`vtviz.render.COLORMAPS`."""


def thumbnails(maps: TokenMaps, side: int = 96, *, opacity: float = 0.55, cmap: str = "jet") -> Thumbnails:
    """Draw the heads' mean of every map of every layer.

    Args:
        maps: with their image.
        side: longer side of a picture in pixels; the shorter one follows the photo, but is at least a quarter of it.
        opacity: of the colours over the photo, 0 to 1.
        cmap: a key of :data:`vtviz.render.COLORMAPS`.

    Raises:
        ConfigError: for maps without their image, or an option that cannot work.
    """
    small = shrink(maps, side)
    peaks = np.concatenate([layer.times_uniform().max(axis=(1, 2)) for layer in maps.layers])
    limits = render.value_range(peaks, "shared")
    pictures = [
        [render.overlay(small, i, token, opacity=opacity, cmap=cmap, scale=limits) for token in range(layer.num_tokens)]
        for i, layer in enumerate(maps.layers)
    ]
    return Thumbnails(pictures, limits, cmap)


def shrink(maps: TokenMaps, side: int) -> TokenMaps:
    """The same maps of a smaller photo, its longer side ``side`` pixels.

    Raises:
        ConfigError: where there is no photo, or it does not fit the maps.
        ImageError: where somebody put one into the maps that cannot be read.
    """
    if maps.image is None:
        raise ConfigError("these maps do not hold their image; put it in with dataclasses.replace(maps, image=...)")
    original = render.photo_of(maps, None)
    longer = max(original.shape[:2])
    height, width = (max(round(n * side / longer), side // 4) for n in original.shape[:2])
    how = cv2.INTER_AREA if longer > side else cv2.INTER_LINEAR
    photo = cv2.resize(original, (width, height), interpolation=how)
    return replace(maps, image=photo, geometry=replace(maps.geometry, original=(height, width)))
