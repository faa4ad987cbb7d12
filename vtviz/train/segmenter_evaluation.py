"""Scoring a segmentation model on images with masks, which it sees exactly as ``vtviz.segment`` shows them to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vtviz import geometry, scores
from vtviz.data.classes import mirror_pairs
from vtviz.data.segmentation import open_segmentation
from vtviz.errors import ConfigError
from vtviz.predictor import Predictor, load_model
from vtviz.segmentation import from_maps
from vtviz.statistics import LayerStatistics, summarize
from vtviz.train.evaluation import pick_device


@dataclass(frozen=True)
class ClassIoU:
    """One class: its share of the labelled pixels, and its intersection over union (None where it is nowhere)."""

    name: str
    share: float
    iou: float | None


@dataclass(frozen=True)
class SegmentationEvaluation:
    """What a segmentation model scores on a split, at the masks' own size.

    Attributes:
        model: checkpoint name.
        data: folder name.
        split: its part.
        size: input size; the input's area is about size x size pixels.
        flip: whether each image was also seen mirrored, and the probabilities averaged.
        scales: of the input size; over several, probabilities are averaged.
        n: images scored.
        miou: mean IoU over the classes, a share, from one confusion matrix of all pixels.
        interval: 95 % of it, by drawing the images anew.
        pixel_accuracy: share of the labelled pixels that are right.
        mean_accuracy: mean over the classes of the share of their pixels that are found.
        boundary_f: boundary F score, the mean over images; see :func:`vtviz.scores.boundary_f`.
        tokens: per level: mean peak (× uniform), mean pairwise correlation of the maps, dead tokens (mean peak below
            1.5); empty for a model without tokens, and where several views were averaged.
        per_class: in the model's order.
    """

    model: str
    data: str
    split: str
    size: int
    flip: bool
    scales: tuple[float, ...]
    n: int
    miou: float
    interval: tuple[float, float]
    pixel_accuracy: float
    mean_accuracy: float
    boundary_f: float
    tokens: dict[str, dict[str, float]]
    per_class: tuple[ClassIoU, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return asdict(self)

    def table(self) -> str:
        """For people: the totals, the token statistics, the classes from worst to best."""
        low, high = self.interval
        where = f"{self.model} on {self.data}/{self.split}, {self.n} images at {self.size} px"
        if self.scales != (1.0,):
            where += f", scales {', '.join(f'{scale:g}' for scale in self.scales)}"
        others = {"pixel accuracy": self.pixel_accuracy, "mean accuracy": self.mean_accuracy}
        others["boundary F"] = self.boundary_f
        lines = [
            where + (", mirrored too" if self.flip else ""),
            f"mIoU {100 * self.miou:.2f} % (95 % interval {100 * low:.2f} to {100 * high:.2f})",
            "   ".join(f"{name} {100 * value:.2f} %" for name, value in others.items()),
        ]
        lines += [
            f"{name}: peak {s['peak']:.2f} × uniform, correlation {s['correlation']:.2f}, dead tokens {s['dead']}"
            for name, s in self.tokens.items()
        ]
        found = sorted((c for c in self.per_class if c.iou is not None), key=lambda c: c.iou or 0.0)
        lines += [f"{100 * (c.iou or 0):6.1f} %  {c.share:6.1%} of the pixels  {c.name}" for c in found]
        return "\n".join(lines)


def evaluate_segmenter(
    model: str | Predictor,
    data: str | Path,
    *,
    split: str = "val",
    size: int | None = None,
    flip: bool = False,
    scales: Sequence[float] = (1.0,),
    limit: int | None = None,
    batch_size: int = 8,
    device: str | None = None,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> SegmentationEvaluation:
    """Score ``model`` on ``data/split``, whose classes reach the model's by name, through its card's groups if any.

    Args:
        model: a checkpoint's name or path, a run folder, or a loaded predictor.
        data: images and masks; see :mod:`vtviz.data.segmentation`.
        split: its part.
        size: model input size; None for the model's own.
        flip: also look at each image mirrored, and average the probabilities.
        scales: of the input size; average the probabilities over them.
        limit: score a random subset of at most this many images.
        batch_size: images at once.
        device: "cpu", "cuda", "cuda:1", "mps"; None or "auto" for a GPU if there is one.
        progress: called with (what is done, images done, images in all).

    Raises:
        CheckpointError, DataError, ConfigError: in one line.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
    if not scales or not all(0.1 <= scale <= 10 for scale in scales):
        raise ConfigError(f"scales must be numbers from 0.1 to 10, got {list(scales)}")
    predictor = model if isinstance(model, Predictor) else load_model(model, pick_device(device))
    if predictor.palette is None:
        raise ConfigError(f"{predictor.name} is a classification model; mIoU is for segmentation models")
    groups = predictor.card.groups if predictor.card else None
    images = open_segmentation(data, split).relabel(predictor.classes, groups, predictor.palette).limit(limit)
    size = predictor.preprocessing.size if size is None else size
    geometry.fit((1, 1), size=size)  # raises for a size that is none
    for scale in scales:
        if not geometry.MIN_SIDE <= (scaled := round(scale * size)) <= geometry.MAX_SIDE:
            raise ConfigError(
                f"scale {scale:g} of {size} pixels is {scaled}; a size must be from {geometry.MIN_SIDE} to "
                f"{geometry.MAX_SIDE}"
            )
    views = [(round(scale * size), mirrored) for scale in scales for mirrored in ((False, True) if flip else (False,))]
    counts, boundaries = [], []
    statistics: list[list[LayerStatistics]] = [[] for _ in predictor.strides]
    for start in range(0, len(images), batch_size):
        pairs = [images[i] for i in range(start, min(start + batch_size, len(images)))]
        photos = [image.permute(1, 2, 0).contiguous().numpy() for image, _ in pairs]
        if len(views) == 1:
            found = _segment(predictor, photos, statistics, views[0][0])
        else:
            found = _average(predictor, photos, views)
        for labels, (_, right) in zip(found, pairs, strict=True):
            truth = right.numpy()
            counts.append(scores.confusion(labels, truth, len(predictor.classes)))
            boundaries.append(scores.boundary_f(labels, truth, len(predictor.classes)))
        progress("scoring", len(counts), len(images))
    total = np.sum(counts, axis=0)
    share = total.sum(axis=1) / max(1, total.sum())
    return SegmentationEvaluation(
        model=predictor.name,
        data=Path(data).resolve().name,
        split=split,
        size=size,
        flip=flip,
        scales=tuple(float(scale) for scale in scales),
        n=len(images),
        miou=float(scores.mean_iou(total)),
        interval=scores.bootstrap_interval(np.stack(counts)),
        pixel_accuracy=scores.pixel_accuracy(total),
        mean_accuracy=scores.mean_accuracy(total),
        boundary_f=float(np.nanmean(boundaries)) if not np.all(np.isnan(boundaries)) else 0.0,
        tokens={name: summarize(each) for name, each in zip(predictor.layer_names, statistics, strict=False) if each},
        per_class=tuple(
            ClassIoU(name, float(s), None if np.isnan(value) else float(value))
            for name, s, value in zip(predictor.classes, share, scores.iou(total), strict=True)
        ),
    )


def _segment(
    predictor: Predictor, photos: list[np.ndarray], statistics: list[list[LayerStatistics]], size: int
) -> list[np.ndarray]:
    """Each photo's labels, as ``vtviz.segment`` gives them; adds to the statistics of each level's maps."""
    if not predictor.strides:
        return [found.labels for found in predictor.segment(photos, size=size, batch_size=len(photos))]
    several = predictor.extract(photos, size=size, batch_size=len(photos))
    for maps in several:
        for layer, collected in zip(maps.layers, statistics, strict=True):
            collected.append(layer.statistics())
    return [from_maps(maps, predictor.palette or ()).labels for maps in several]


def _average(predictor: Predictor, photos: list[np.ndarray], views: Sequence[tuple[int, bool]]) -> list[np.ndarray]:
    """Each photo's most probable classes over several (input size, mirrored) views of it."""
    order = np.arange(len(predictor.classes))
    for left, right in mirror_pairs(predictor.classes):
        order[[left, right]] = right, left
    labels = []
    for photo in photos:
        total = np.zeros((len(order), *photo.shape[:2]), np.float32)
        for size, mirrored in views:
            seen = np.ascontiguousarray(photo[:, ::-1]) if mirrored else photo
            probabilities = predictor.segment(seen, size=size).probabilities()
            total += probabilities[order, :, ::-1] if mirrored else probabilities
        labels.append(total.argmax(axis=0).astype(np.uint8))
    return labels
