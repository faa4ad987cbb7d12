"""Scores of label maps against the truth. Labels are class indices; truth below 0 or beyond the classes is ignored."""

from __future__ import annotations

import cv2
import numpy as np

BOUNDARY_TOLERANCE = 0.0075
"""How far apart two boundaries may lie and agree, as a share of the image's diagonal (Csurka et al. 2013)."""


def confusion(labels: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """Pixel counts, (classes, classes) int64: rows are right classes, columns predicted ones.

    Pixels whose truth is no class (255, say) do not count, nor do those without a prediction (a label that is none).

    Args:
        labels: predicted, any shape, integers.
        truth: right, of the same shape.
        classes: how many there are.
    """
    counted = (truth >= 0) & (truth < classes) & (labels >= 0) & (labels < classes)
    pairs = truth[counted].astype(np.int64) * classes + labels[counted]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def iou(counts: np.ndarray) -> np.ndarray:
    """Intersection over union of each class, (..., classes) float64 in [0, 1]; NaN where a class is nowhere.

    Args:
        counts: confusions, (..., classes, classes).
    """
    hits = np.diagonal(counts, axis1=-2, axis2=-1).astype(np.float64)
    union = counts.sum(axis=-1) + counts.sum(axis=-2) - hits
    with np.errstate(invalid="ignore"):
        return hits / union


def mean_iou(counts: np.ndarray) -> np.ndarray:
    """Mean of :func:`iou` over the classes that occur in truth or prediction, (...) float64."""
    values = iou(counts)
    there = ~np.isnan(values)
    return np.where(there, values, 0).sum(axis=-1) / np.maximum(1, there.sum(axis=-1))


def pixel_accuracy(counts: np.ndarray) -> float:
    """Share of the pixels whose class is right."""
    return float(np.trace(counts) / max(1, counts.sum()))


def mean_accuracy(counts: np.ndarray) -> float:
    """Mean over the classes that occur of the share of a class's pixels that are found."""
    there = counts.sum(axis=1) > 0
    return float((np.diagonal(counts)[there] / counts.sum(axis=1)[there]).mean()) if there.any() else 0.0


def bootstrap_interval(counts: np.ndarray, *, rounds: int = 1000, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean IoU over images drawn anew with replacement.

    Args:
        counts: one confusion an image, (images, classes, classes).
        rounds: drawings.
        seed: of the drawings.

    Returns:
        (low, high), its 2.5 % and 97.5 % quantiles.
    """
    rng = np.random.default_rng(seed)
    times = rng.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=rounds)
    # in float64 a product tens of times faster than NumPy's of integers, and exact: no count of pixels comes near 2**53
    drawn = times.astype(np.float64) @ counts.reshape(len(counts), -1).astype(np.float64)
    low, high = np.quantile(mean_iou(drawn.reshape(rounds, *counts.shape[1:])), (0.025, 0.975))
    return float(low), float(high)


def boundary_f(labels: np.ndarray, truth: np.ndarray, classes: int) -> float:
    """Boundary F score of one image (Csurka et al. 2013), the mean over the classes that have a boundary in it.

    Of a class: the harmonic mean of the share of its predicted boundary that lies within
    :data:`BOUNDARY_TOLERANCE` of a true one, and the share of its true boundary that lies as near to a predicted one.

    Args:
        labels: (H, W) predicted.
        truth: (H, W) right; ignored pixels are left out of both.
        classes: how many there are.

    Returns:
        A share in [0, 1]; NaN where no class has a boundary.
    """
    counted = (truth >= 0) & (truth < classes)
    radius = max(1, round(BOUNDARY_TOLERANCE * float(np.hypot(*truth.shape))))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    scores = []
    for index in range(classes):
        found, right = (_boundary(each == index, counted) for each in (labels, truth))
        if not found.any() and not right.any():
            continue
        near = [cv2.dilate(each, disc) for each in (right, found)]
        precision, recall = (
            float(each[other > 0].sum() / max(1, each.sum())) for each, other in zip((found, right), near, strict=True)
        )
        scores.append(2 * precision * recall / max(1e-12, precision + recall))
    return float(np.mean(scores)) if scores else float("nan")


def _boundary(inside: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Pixels of a class beside a counted pixel that is not of it, (H, W) uint8 of 0 and 1."""
    outside = (counted & ~inside).astype(np.uint8)
    return cv2.dilate(outside, np.ones((3, 3), np.uint8)) & (inside & counted).astype(np.uint8)
