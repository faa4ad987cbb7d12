"""The token atlas of a model: what each token stood for over a data set, as numbers and file names.

It holds no pixel: who has the data has the photos. :mod:`vtviz.explain.dissection` makes one, and
:mod:`vtviz.explain.atlas_file` keeps it beside the checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from vtviz.statistics import DEAD_PEAK

FORMAT = "vtviz atlas 1"
"""What the JSON calls its layout."""
DIGITS = 4
"""Decimals that are written."""
MARGIN = 0.05
"""A token is named by a class if its IoU with it exceeds that with the masks of other photos by more than this."""


@dataclass(frozen=True)
class Peak:
    """One of the photos that a token peaks on most.

    Attributes:
        file: path relative to the data folder, with forward slashes.
        peak: largest value of the token's map, in x uniform.
        y: centre of the cell with it, as a share of the photo's height, 0 at the top.
        x: likewise of the width, 0 at the left.
    """

    file: str
    peak: float
    y: float
    x: float


@dataclass(frozen=True, eq=False)
class TokenMeans:
    """The tokens of one layer, means over photos; of several heads their mean map.

    Attributes:
        peak: (L,) float64, largest value of the map, in x uniform.
        entropy: (L,) float64 in [0, 1], over that of a uniform map.
        overlap: (L, L) float64 in [0, 1], the share of their mass that two maps of one photo have in common; see
            :func:`vtviz.statistics.map_overlaps`.
    """

    peak: np.ndarray
    entropy: np.ndarray
    overlap: np.ndarray

    @property
    def dead(self) -> tuple[int, ...]:
        """Tokens that look everywhere alike: those whose mean peak is below 1.5 x uniform."""
        return tuple(np.flatnonzero(self.peak < DEAD_PEAK).tolist())

    @property
    def redundancy(self) -> float:
        """Mean overlap of two different tokens; 0 where there is but one."""
        return mean_of_pairs(self.overlap)


def mean_of_pairs(overlap: np.ndarray) -> float:
    """Mean of a square matrix (L, L) without its diagonal; 0 for a single token."""
    count = len(overlap)
    return float((overlap.sum() - np.trace(overlap)) / (count * (count - 1))) if count > 1 else 0.0


@dataclass(frozen=True, eq=False)
class ClassOverlap:
    """Intersection over union of each token's map above the threshold with each class, over all pixels of all photos.

    All arrays are (L, C) float64 in [0, 1]; a class without pixels has 0.

    Attributes:
        iou: of the model.
        untrained: of the same model with random weights.
        shuffled: of the model's maps with the mask of another photo: what a token's place in the picture gives it.
    """

    iou: np.ndarray
    untrained: np.ndarray
    shuffled: np.ndarray


@dataclass(frozen=True, eq=False)
class LayerAtlas:
    """The tokens of one layer.

    Attributes:
        name: of the layer.
        trained: statistics of the model's maps.
        untrained: of the same model with random weights.
        shuffled_overlap: (L, L) float64, the overlap of a token's map (row) with another's of another photo (column).
        photos: for each token those that it peaks on most, the highest peak first.
        classes: how well the tokens cover the classes of the masks; None where there were no masks.
    """

    name: str
    trained: TokenMeans
    untrained: TokenMeans
    shuffled_overlap: np.ndarray
    photos: tuple[tuple[Peak, ...], ...]
    classes: ClassOverlap | None


@dataclass(frozen=True)
class Seen:
    """What was looked at.

    Attributes:
        name: of the data folder.
        split: its part.
        n: photos.
        classes: of masks, their names.
        share: of masks, each class's share of the pixels that count, summing to 1.
    """

    name: str
    split: str
    n: int
    classes: tuple[str, ...] = ()
    share: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class Atlas:
    """What each token of a model stood for over a data set.

    Attributes:
        model: name of the checkpoint.
        weights: sha256 of its weights; empty for a model that came from none.
        data: the photos of the statistics, and those that the tokens peak on.
        masks: those with masks, which may be others; None without.
        skipped: photos that could not be read.
        size: the model's input was about size x size pixels.
        threshold: in x uniform; a pixel belongs to a token's region where its map is larger.
        seed: of the choice and the order of the photos and of the random weights.
        layers: in the order of the forward pass.
    """

    model: str
    weights: str
    data: Seen
    masks: Seen | None
    skipped: int
    size: int
    threshold: float
    seed: int
    layers: tuple[LayerAtlas, ...]

    def token_names(self, layer: int, margin: float = MARGIN) -> tuple[str | None, ...]:
        """Each token's class: the one whose IoU lies most above that with shuffled masks.

        Args:
            layer: by index, negative from the end.
            margin: None stands for a token where the difference is no larger than this, and where there were no masks.
        """
        chosen = self.layers[layer]
        if self.masks is None or chosen.classes is None:
            return (None,) * len(chosen.photos)
        excess = chosen.classes.iou - chosen.classes.shuffled
        return tuple(
            self.masks.classes[best] if values[best] > margin else None
            for values, best in zip(excess, excess.argmax(axis=1), strict=True)
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data, numbers rounded to 4 decimals."""
        return {
            "format": FORMAT,
            "model": self.model,
            "weights": self.weights,
            "data": _seen_to_dict(self.data),
            "masks": self.masks and _seen_to_dict(self.masks),
            "skipped": self.skipped,
            "size": self.size,
            "threshold": self.threshold,
            "seed": self.seed,
            "layers": [_layer_to_dict(layer) for layer in self.layers],
        }


def _rounded(array: np.ndarray) -> list[Any]:
    return np.round(array, DIGITS).tolist()


def _seen_to_dict(seen: Seen) -> dict[str, Any]:
    share = _rounded(np.array(seen.share))
    return {"folder": seen.name, "split": seen.split, "n": seen.n, "classes": list(seen.classes), "share": share}


def _layer_to_dict(layer: LayerAtlas) -> dict[str, Any]:
    def means(tokens: TokenMeans) -> dict[str, Any]:
        return {name: _rounded(getattr(tokens, name)) for name in ("peak", "entropy", "overlap")}

    classes = layer.classes
    return {
        "name": layer.name,
        "trained": means(layer.trained),
        "untrained": means(layer.untrained),
        "shuffled_overlap": _rounded(layer.shuffled_overlap),
        "photos": [
            [[p.file, *np.round((p.peak, p.y, p.x), DIGITS).tolist()] for p in token]  # no names: there are many
            for token in layer.photos
        ],
        "classes": classes and {name: _rounded(getattr(classes, name)) for name in ("iou", "untrained", "shuffled")},
    }
