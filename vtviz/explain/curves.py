"""Deletion and insertion curves (Petsiuk et al. 2018), and intervals over images.

A map ranks the pixels. Deletion blurs them away, the highest first: the class's probability should fall at once.
Insertion brings them back into the blurred image, the highest first: it should rise at once. The area under a curve is
its score, lower is better for deletion and higher for insertion.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from vtviz.explain.explainer import CELL
from vtviz.geometry import Geometry, upsample

STEPS = 20
"""Equal shares that the pixels go or come in."""
BLUR = 0.08
"""Standard deviation of the blur that stands for nothing, as a share of the square root of the input's area."""
ROUNDS = 2000
"""Drawings of a bootstrap."""


class Curves(NamedTuple):
    """The class's probability after 0, 1, ... ``STEPS`` shares of the pixels, each (STEPS + 1,) float64."""

    deletion: np.ndarray
    insertion: np.ndarray


class Interval(NamedTuple):
    """A mean over n images and its 95 % interval; of a single image None."""

    mean: float
    low: float | None
    high: float | None
    n: int


def blurred(x: Tensor) -> Tensor:
    """An image without its content: (3, h, w) in [0, 1] -> the same shape."""
    sigma = BLUR * float(np.sqrt(x.shape[1] * x.shape[2]))
    picture = np.ascontiguousarray(x.permute(1, 2, 0).cpu().numpy())
    return torch.from_numpy(cv2.GaussianBlur(picture, (0, 0), sigma)).permute(2, 0, 1).to(x)


def order(cells: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The share in which each pixel goes, 0 to ``STEPS`` - 1: (h, w) int64, as many pixels in each.

    Pixels of one value, such as the zeros of a Grad-CAM, go in a random order, the same for every map: in that of their
    rows they would go as a map does that begins at the top.

    Args:
        cells: a map in cells of :data:`~vtviz.explain.explainer.CELL` pixels. All maps are drawn from such cells by
            the same bilinear interpolation, so that none wins or loses by its grain.
        size: (h, w) of the model's input.
    """
    whole = Geometry(size, size, (0, 0), size)
    drawn = upsample(cells, whole, stride=CELL).ravel()
    ranks = np.empty(drawn.size, np.int64)
    mixed = np.random.default_rng(0).permutation(drawn.size)
    ranks[mixed[np.argsort(-drawn[mixed], kind="stable")]] = np.arange(drawn.size)
    return (ranks * STEPS // drawn.size).reshape(size)


def curves(
    cells: np.ndarray, x: Tensor, nothing: Tensor, ends: tuple[float, float], probability: Callable[[Tensor], Tensor]
) -> Curves:
    """Both curves of one map.

    Args:
        cells: the map, (h / CELL, w / CELL).
        x: the image, (3, h, w) in [0, 1].
        nothing: the image without its content, from :func:`blurred`.
        ends: the class's probability in ``x`` and in ``nothing``.
        probability: images (N, 3, h, w) -> (N,).
    """
    share = torch.from_numpy(order(cells, (x.shape[1], x.shape[2]))).to(x.device)
    moved = share[None] < torch.arange(1, STEPS, device=x.device)[:, None, None]  # (STEPS - 1, h, w)
    found = [
        probability(torch.where(moved[:, None], *pair)).double().cpu().numpy() for pair in ((nothing, x), (x, nothing))
    ]
    full, empty = ends
    return Curves(np.array([full, *found[0], empty]), np.array([empty, *found[1], full]))


def area(curve: np.ndarray) -> np.ndarray:
    """Area under curves (..., STEPS + 1) over shares from 0 to 1, by trapezoids: (...) in [0, 1]."""
    return np.trapezoid(curve, dx=1 / (curve.shape[-1] - 1), axis=-1)


def bootstrap(values: np.ndarray, seed: int = 0) -> Interval:
    """The mean of one value an image, (n,), and the 2.5 % and 97.5 % quantiles of means of n images drawn anew.

    The same seed draws the same images, so that differences between methods are of pairs.
    """
    if len(values) == 1:
        return Interval(float(values[0]), None, None, 1)
    drawn = np.random.default_rng(seed).integers(len(values), size=(ROUNDS, len(values)))
    low, high = np.quantile(np.asarray(values, np.float64)[drawn].mean(axis=1), (0.025, 0.975))
    return Interval(float(np.mean(values)), float(low), float(high), len(values))
