"""What a token stands for: how well its map, cut at a threshold, covers something that people have outlined."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np

from vtviz.data.segmentation import SegmentationDataset
from vtviz.errors import ConfigError
from vtviz.predictor import Predictor


@dataclass(frozen=True)
class TokenOverlap:
    """The token of one layer that covers a region best, chosen on one set of images and scored on another.

    Attributes:
        layer: name of the layer.
        token: index of the map in it.
        iou: intersection over union with the region, over all pixels of the scoring images.
        chosen_iou: the same on the images that it was chosen on.
        n: images that it was scored on.
    """

    layer: str
    token: int
    iou: float
    chosen_iou: float
    n: int


def token_iou(
    predictor: Predictor,
    dataset: SegmentationDataset,
    labels: Collection[int],
    *,
    layer: int = 0,
    threshold: float = 1.0,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Intersection over union of each token's map above a threshold with the pixels of some classes.

    Args:
        predictor: of a model with tokens.
        dataset: images with masks; ignored pixels count for nothing.
        labels: indices into ``dataset.classes`` that make up the region.
        layer: whose tokens, by index; of several heads their mean.
        threshold: in x uniform; a pixel belongs to a token's region where its map is larger.
        limit: look at this many images, evenly spread; None for all.
        progress: called with (images done, images in all).

    Returns:
        (tokens,) float64 in [0, 1]: pixels in both over pixels in either, summed over all images.

    Raises:
        ConfigError: where there are no labels, or the model has no such layer.
        DataError, ImageError: for a file that cannot be read.
    """
    if not labels:
        raise ConfigError("a region needs at least one class, got none")
    picked = np.arange(len(dataset)) if limit is None else np.linspace(0, len(dataset) - 1, min(limit, len(dataset)))
    both: np.ndarray | int = 0
    either: np.ndarray | int = 0
    for done, index in enumerate(picked.astype(int), start=1):
        image, mask = dataset[int(index)]
        maps = predictor.extract(image, layers=[layer])
        inside = np.isin(mask.numpy(), list(labels))
        known = mask.numpy() != dataset.ignore_index
        regions = np.stack([maps.at_image_size(0, t) > threshold for t in range(maps.layers[0].num_tokens)]) & known
        both = both + (regions & inside).sum(axis=(1, 2))
        either = either + (regions | (inside & known)).sum(axis=(1, 2))
        if progress is not None:
            progress(done, len(picked))
    return np.asarray(both) / np.maximum(1, either)


def best_token(
    predictor: Predictor,
    choosing: SegmentationDataset,
    scoring: SegmentationDataset,
    labels: Collection[int],
    *,
    layer: int = 0,
    threshold: float = 1.0,
    limit: int | None = None,
) -> TokenOverlap:
    """Choose the token that covers a region best on one set, and score it on the other.

    Choosing and scoring on the same images would flatter a layer of many tokens. Arguments as of :func:`token_iou`;
    ``limit`` holds for the images to choose on.
    """
    chosen = token_iou(predictor, choosing, labels, layer=layer, threshold=threshold, limit=limit)
    token = int(chosen.argmax())
    scored = token_iou(predictor, scoring, labels, layer=layer, threshold=threshold)
    return TokenOverlap(predictor.layer_names[layer], token, float(scored[token]), float(chosen[token]), len(scoring))
