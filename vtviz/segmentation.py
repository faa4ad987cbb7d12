"""Segmentations: the frozen result of a segmentation model for one image, data and arithmetic only.

Shapes: C classes, (h, w) pixels of the model's input, (H, W) pixels of the original image. The model answers with
logits at its input's size; labels are their argmax after bilinear resampling to the image's pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vtviz.errors import ConfigError
from vtviz.geometry import Geometry
from vtviz.tokens import TokenMaps

UNSEEN = 255
"""The label of pixels that a centre crop cut off."""
BAND = 64
"""Rows that are resampled at once: large images never cost C times their size in memory."""


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The class of every pixel of one image.

    Attributes:
        labels: (H, W) uint8 at the image's own size: index into ``classes``, or :data:`UNSEEN`.
        logits: (C, h, w) float32 at the model's input size.
        classes: C names.
        palette: C colours (r, g, b) of 0-255.
        geometry: how the image became the model's input.
        model: name of the checkpoint.
        weights: sha256 of the checkpoint's weights; empty for a model that came from none.
        source: where the image came from, if from a file.
        image: (H, W, 3) uint8 RGB, the original; None where it was not kept.
        versions: of the software that made the labels.
    """

    labels: np.ndarray
    logits: np.ndarray
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    geometry: Geometry
    model: str
    weights: str = ""
    source: str | None = None
    image: np.ndarray | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    def pixels(self) -> np.ndarray:
        """How many pixels of the image each class has, (C,) int64."""
        return np.bincount(self.labels.ravel(), minlength=UNSEEN + 1)[: len(self.classes)]

    def areas(self) -> np.ndarray:
        """Each class's share of the pixels that the model saw, (C,) float64 summing to 1 (to 0 if it saw none)."""
        pixels = self.pixels()
        return pixels / max(1, int(pixels.sum()))

    def probabilities(self) -> np.ndarray:
        """Every class's probability at every pixel, (C, H, W) float32; NaN where a crop cut off.

        This is the softmax at the input's size, resampled. At the border of two classes its argmax may therefore
        differ from ``labels``, whose logits were resampled. It takes 4 C H W bytes: of a 12-megapixel photo and 54
        classes 2.6 GB; :meth:`confidence` needs a C-th.
        """
        drawn = np.full((len(self.classes), *self.geometry.original), np.nan, np.float32)
        for place, planes in _bands(_softmax(self.logits), self.geometry):
            for index, values in enumerate(planes):
                drawn[(index, *place)] = values
        return drawn

    def confidence(self) -> np.ndarray:
        """The probability of each pixel's own class, (H, W) float32; NaN where a crop cut off."""
        drawn = np.full(self.geometry.original, np.nan, np.float32)
        for place, planes in _bands(_softmax(self.logits), self.geometry):
            here, labels = drawn[place], self.labels[place]
            for index, values in enumerate(planes):
                np.copyto(here, values, where=labels == index)
        return drawn

    def to_dict(self) -> dict[str, Any]:
        """What was found, as plain JSON data: each class's colour, pixels and share of those that the model saw."""
        pixels, areas = self.pixels().tolist(), self.areas().tolist()
        return {
            "image": self.source,
            "model": self.model,
            "weights": self.weights,
            "size": list(self.geometry.original),
            "input": list(self.geometry.input),
            "unseen": self.labels.size - sum(pixels),
            "classes": [
                {"index": i, "name": name, "colour": list(colour), "pixels": pixels[i], "area": areas[i]}
                for i, (name, colour) in enumerate(zip(self.classes, self.palette, strict=True))
            ],
            "versions": dict(self.versions),
        }


def from_maps(maps: TokenMaps, palette: Sequence[tuple[int, int, int]]) -> Segmentation:
    """The segmentation that came with token maps: one run of the model gives both.

    Args:
        maps: of a segmentation model.
        palette: a colour for each of its classes.

    Raises:
        ConfigError: for maps of a classifier, or another number of colours than classes.
    """
    return Segmentation(
        labels=label_map(maps.logits, maps.geometry),
        logits=maps.logits,
        classes=maps.classes,
        palette=check_palette(palette, maps.classes),
        geometry=maps.geometry,
        model=maps.model,
        weights=maps.weights,
        source=maps.source,
        image=maps.image,
        versions=maps.versions,
    )


def check_palette(palette: Sequence[tuple[int, int, int]], classes: Sequence[str]) -> tuple[tuple[int, int, int], ...]:
    """``palette``, if it has a colour for each class. Raises ConfigError where it has not."""
    if len(palette) != len(classes):
        raise ConfigError(f"{len(classes)} classes need as many colours, got {len(palette)}")
    return tuple((r, g, b) for r, g, b in palette)


def label_map(logits: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The most probable class of every pixel of the original image.

    Args:
        logits: (C, h, w) float32 at the model's input size; C below :data:`UNSEEN`.
        geometry: how the image became that input.

    Returns:
        (H, W) uint8: the argmax of the logits, resampled bilinearly; the first class of equal ones; :data:`UNSEEN`
        where a crop cut off. The work goes by bands of rows: beside the labels it needs a few MB, whatever C.

    Raises:
        ConfigError: for logits of a classifier, of another input size, or of too many classes.
    """
    if logits.ndim != 3:
        raise ConfigError(f"labels need a segmentation model's logits (C, h, w), got shape {logits.shape}")
    if logits.shape[1:] != geometry.input:
        raise ConfigError(f"logits of {logits.shape[1:]} pixels do not fit a model input of {geometry.input}")
    if not 1 <= len(logits) <= UNSEEN:
        raise ConfigError(f"labels hold 1 to {UNSEEN} classes, got {len(logits)}")
    labels = np.full(geometry.original, UNSEEN, np.uint8)
    for place, planes in _bands(logits, geometry):
        best = next(planes)
        winner = np.zeros(best.shape, np.uint8)
        for index, values in enumerate(planes, start=1):
            winner[values > best] = index
            np.maximum(best, values, out=best)
        labels[place] = winner
    return labels


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=0))
    return powers / powers.sum(axis=0)


def _bands(planes: np.ndarray, geometry: Geometry) -> Iterator[tuple[tuple[slice, slice], Iterator[np.ndarray]]]:
    """Planes (C, h, w) of the input at the pixels of the image, a band of the rows that the model saw at a time.

    Yields:
        The band's place in the image, and plane by plane its values, (rows, columns) float32, fresh arrays.
    """
    height, width = geometry.original
    y, x = geometry.to_input(np.arange(height), np.arange(width))
    (top, bottom), (left, right) = _seen(y, geometry.input[0]), _seen(x, geometry.input[1])
    columns = _taps(x[left:right], geometry.input[1])
    for start in range(top, bottom, BAND) if right > left else ():
        band = slice(start, min(start + BAND, bottom))
        rows = _taps(y[band], geometry.input[0])
        yield (band, slice(left, right)), (_sample(plane, rows, columns) for plane in planes)


def _seen(positions: np.ndarray, size: int) -> tuple[int, int]:
    """First and end of the pixels whose centres lie in the input; ``positions`` rise."""
    return int(np.searchsorted(positions, -0.5)), int(np.searchsorted(positions, size - 0.5, side="right"))


_Taps = tuple[np.ndarray, np.ndarray, np.ndarray]


def _taps(positions: np.ndarray, size: int) -> _Taps:
    """The two pixels around each position, clamped to the outermost centres, and the second one's weight."""
    positions = np.clip(positions, 0, size - 1)
    first = positions.astype(np.intp)
    return first, np.minimum(first + 1, size - 1), (positions - first).astype(np.float32)


def _sample(plane: np.ndarray, rows: _Taps, columns: _Taps) -> np.ndarray:
    # in float32 with exact positions: OpenCV's warps round them to 1/32 pixel, and its resize knows no crop
    upper, lower, down = rows
    between = plane[upper]
    between += (plane[lower] - between) * down[:, None]
    left, right, across = columns
    values = between[:, left]
    values += (between[:, right] - values) * across
    return values
