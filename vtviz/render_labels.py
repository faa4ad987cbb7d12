"""Pictures of segmentations: the labels over their photo, as a palette image, and a legend of their colours.

Colours are exactly the palette's, so that pictures, legends and the page agree.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image

from vtviz.errors import ConfigError, did_you_mean
from vtviz.lettering import lettering, line_height, write
from vtviz.render import DIMMED, INK
from vtviz.segmentation import UNSEEN, Segmentation
from vtviz.tokens import check_index

OUTLINE = 1000
"""An outline is a pixel thick, on either side of a border, for every so many pixels of the photo's longer side."""


def check_opacity(opacity: float) -> None:
    """Raise ConfigError unless it lies from 0 to 1."""
    if not 0 <= opacity <= 1:
        raise ConfigError(f"opacity must be from 0 to 1, got {opacity}")


def label_overlay(
    segmentation: Segmentation,
    *,
    opacity: float = 0.6,
    outlines: bool = True,
    classes: Sequence[int | str] | None = None,
) -> np.ndarray:
    """The labels in their colours over the photo, at the photo's size.

    Args:
        segmentation: with its image.
        opacity: of the colours over the photo, 0 to 1.
        outlines: draw each region's border within it, in its full colour.
        classes: those to draw, by index (negative from the end) or name; elsewhere the photo stands as it is. None for
            all.

    Returns:
        (H, W, 3) uint8 RGB; what a crop cut off is dimmed.

    Raises:
        ConfigError: for an unknown class, an opacity out of range, or a segmentation without its image.
    """
    photo, labels = segmentation.image, segmentation.labels
    if photo is None:
        raise ConfigError("this segmentation does not hold its image")
    check_opacity(opacity)
    drawn = np.zeros(UNSEEN + 1, bool)
    drawn[range(len(segmentation.classes)) if classes is None else _find(classes, segmentation.classes)] = True
    colours = _table(segmentation)[labels]
    picture = cv2.addWeighted(photo, 1 - opacity, colours, opacity, 0)
    if outlines:
        np.copyto(picture, colours, where=_borders(labels)[..., None])
    np.copyto(picture, photo, where=~drawn[labels][..., None])
    outside = labels == UNSEEN
    if outside.any():
        picture[outside] = (photo[outside] * DIMMED).astype(np.uint8)
    return picture


def _find(wanted: Sequence[int | str], classes: Sequence[str]) -> list[int]:
    """Indices of classes that are given by index or name."""
    found = []
    for name in wanted:
        if not isinstance(name, str):
            found.append(check_index("class", name, len(classes)) % len(classes))
        elif name in classes:
            found.append(classes.index(name))
        else:
            raise ConfigError(f"unknown class {name!r}{did_you_mean(name, classes)}")
    return found


def _table(segmentation: Segmentation) -> np.ndarray:
    """The colour of each label, (256, 3) uint8: black where there is no class."""
    table = np.zeros((UNSEEN + 1, 3), np.uint8)
    table[: len(segmentation.palette)] = segmentation.palette
    return table


def _borders(labels: np.ndarray) -> np.ndarray:
    """(H, W) bool: pixels close to one of another class. Where a crop ends is no border."""
    reach = max(1, round(max(labels.shape) / OUTLINE))
    around = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    highest, lowest = cv2.dilate(labels, around), cv2.erode(labels, around)
    return (highest != lowest) & (highest != UNSEEN)


def palette_image(segmentation: Segmentation) -> Image.Image:
    """The labels as an image of mode "P", of the photo's size: pixel values are class indices, colours the palette's.

    What a crop cut off has the value :data:`~vtviz.segmentation.UNSEEN` and, saved as PNG, is transparent.
    """
    image = Image.fromarray(segmentation.labels)
    image.putpalette(_table(segmentation).tobytes())
    if (segmentation.labels == UNSEEN).any():
        image.info["transparency"] = UNSEEN
    return image


def legend(
    classes: Sequence[str], palette: Sequence[tuple[int, int, int]], *, width: int, text: int = 13
) -> np.ndarray:
    """Colours and names of classes, side by side in as many lines as it takes.

    Args:
        classes: names; at least one.
        palette: a colour for each.
        width: of the picture, in pixels; a longer name makes it wider.
        text: font size in pixels.

    Returns:
        (height, width, 3) uint8 RGB on white.
    """
    box, gap, line = text, text // 2, line_height(text) + text // 4
    widths = [box + gap + lettering(name, text).width + 2 * gap for name in classes]
    places: list[tuple[int, int]] = []
    x = y = 0
    for wide in widths:
        if x and x + wide > width:
            x, y = 0, y + line
        places.append((x, y))
        x += wide
    picture = Image.new("RGB", (max(width, *widths), y + line), "white")
    for name, colour, (left, top) in zip(classes, palette, places, strict=True):
        picture.paste(INK, (left, top + gap // 2, left + box, top + gap // 2 + box))  # a rim: white classes exist
        picture.paste(tuple(colour), (left + 1, top + gap // 2 + 1, left + box - 1, top + gap // 2 + box - 1))
        write(picture, (left + box + gap, top + gap // 2 + box // 2), name, text, INK, middle=True)
    return np.array(picture)
