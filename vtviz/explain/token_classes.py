"""Which class a token looks at: the mass of each token's map inside each class of a segmentation.

And how right that segmentation is, where people have drawn the classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from vtviz import scores
from vtviz.errors import DataError
from vtviz.geometry import upsample
from vtviz.segmentation import UNSEEN
from vtviz.tokens import TokenMaps

MARGIN = 0.1
"""A token is named by a class whose share of its mass exceeds the class's share of the area by more than this."""
MOST_ROWS = 512
"""Labels of more rows or columns are sampled down to so many: the sums stay small whatever the photo's size."""


@dataclass(frozen=True, eq=False)
class TokenClasses:
    """The token x class matrix of one layer.

    Attributes:
        layer: name of the layer.
        classes: C names.
        mass: (tokens, C) float64: the share of each token's map that lies in each class. Rows sum to 1.
        area: (C,) float64, each class's share of the same pixels, summing to 1: what a token that looks everywhere
            alike would have.
        names: for each token the class with the largest mass - area, or None where that is not above the margin.
    """

    layer: str
    classes: tuple[str, ...]
    mass: np.ndarray
    area: np.ndarray
    names: tuple[str | None, ...]


def token_classes(
    maps: TokenMaps,
    labels: np.ndarray,
    classes: Sequence[str] | None = None,
    *,
    layer: int = 0,
    head: int | None = None,
    margin: float = MARGIN,
) -> TokenClasses:
    """Measure how much of each token's map lies in each class.

    The maps are drawn where the network looked (``align="receptive_field"``). Of labels with more than 512 rows or
    columns every n-th pixel is taken, so that no map is ever drawn larger.

    Args:
        maps: of the image.
        labels: (H, W) uint8 at the image's size, predicted or drawn by people: indices into ``classes``. Pixels of
            value 255 (cut off, or of no known class) and those that the model did not see count for nothing.
        classes: names; None for the model's.
        layer: whose tokens, by index, negative from the end.
        head: of the tokenizer; None for the heads' mean.
        margin: a token has a name where mass - area is above this, 0 to 1.

    Returns:
        The matrix. Where no pixel counts, or a token has no mass on those that do, it is 0 and there are no names.

    Raises:
        ConfigError: for a layer or head that is not there.
        DataError: for labels of another size than the image, or beyond the classes.
    """
    names = maps.classes if classes is None else tuple(classes)
    _check_labels(labels, maps.geometry.original, len(names))
    chosen = maps.layer(layer)
    rows, columns = (_spread(side) for side in labels.shape)
    sampled = labels[np.ix_(rows, columns)]
    small = replace(maps.geometry, original=sampled.shape)
    drawn = upsample(chosen.times_uniform(head), small, stride=chosen.stride)
    counted = (sampled != UNSEEN) & ~np.isnan(drawn[0])
    inside = sampled[counted].astype(np.intp)
    pixels = np.bincount(inside, minlength=len(names))
    mass = np.stack([np.bincount(inside, weights=map_[counted], minlength=len(names)) for map_ in drawn])
    mass = mass / np.maximum(mass.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    area = pixels / max(1, int(pixels.sum()))
    excess = mass - area
    best = excess.argmax(axis=1)
    return TokenClasses(
        layer=chosen.name,
        classes=names,
        mass=mass,
        area=area,
        names=tuple(names[c] if excess[token, c] > margin else None for token, c in enumerate(best)),
    )


def _spread(side: int) -> np.ndarray:
    """At most :data:`MOST_ROWS` indices, evenly over 0 ... side - 1."""
    count = min(side, MOST_ROWS)
    return ((np.arange(count) + 0.5) * side / count).astype(np.intp)


def _check_labels(labels: np.ndarray, shape: tuple[int, int], num_classes: int) -> None:
    if labels.shape != shape:
        raise DataError(f"labels for an image of {shape} must have its size, got {labels.shape}")
    wrong = ((labels < 0) | (labels >= num_classes)) & (labels != UNSEEN)
    if wrong.any():
        value = labels[wrong][0]
        raise DataError(f"labels must be 0 to {num_classes - 1}, or {UNSEEN} for pixels that do not count, got {value}")


@dataclass(frozen=True, eq=False)
class SegmentationScores:
    """How right the labels of one image are.

    Attributes:
        iou: (C,) float64, each class's pixels in both over pixels in either; NaN for a class that is in neither.
        miou: their mean, without the NaN.
        pixel_accuracy: share of pixels with the right label.
    """

    iou: np.ndarray
    miou: float
    pixel_accuracy: float


def segmentation_scores(labels: np.ndarray, truth: np.ndarray, num_classes: int) -> SegmentationScores:
    """Compare the labels of one image with the truth.

    Args:
        labels: (H, W) predicted indices.
        truth: (H, W) the right ones. Pixels where either is 255 do not count.
        num_classes: C.

    Raises:
        DataError: for labels of different sizes or beyond the classes, or where no pixel counts.
    """
    _check_labels(labels, labels.shape, num_classes)
    _check_labels(truth, labels.shape, num_classes)
    counts = scores.confusion(labels, truth, num_classes)
    if not counts.any():
        raise DataError("no pixel has both a predicted and a true label: there is nothing to compare")
    return SegmentationScores(scores.iou(counts), float(scores.mean_iou(counts)), scores.pixel_accuracy(counts))
