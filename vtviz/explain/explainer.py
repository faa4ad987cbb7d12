"""One place that makes attribution maps: every method under one interface, on a private copy of a model."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vtviz.errors import ConfigError, did_you_mean
from vtviz.explain import captum_methods, token_attribution
from vtviz.explain.target import Target, private_copy
from vtviz.geometry import interpolation
from vtviz.predictor import Predictor

CELL = 16
"""Methods are compared in cells of so many pixels of the model's input: those of a VT-ResNet's tokens."""
STEPS = 20
"""Points of the quadrature of integrated gradients."""


class Method(NamedTuple):
    """What a method is."""

    title: str
    unit: str
    """Of its map's values."""
    signed: bool
    """Whether values below 0 occur, which speak against the class."""
    tokens: bool
    """Whether it goes through tokens; the others go through Captum."""


METHODS = {
    "token_integrated_gradients": Method(
        "Integrated gradients, tokens", "score; the map's mean is what the tokens add", True, True
    ),
    "gradient_x_token": Method("Gradient × token", "score; the map's mean is what the tokens add", True, True),
    "integrated_gradients": Method("Integrated gradients, pixels", "score per pixel of the input", True, False),
    "grad_cam": Method("Grad-CAM", "gradient × activation", False, False),
    "occlusion": Method("Occlusion", "fall of the score", True, False),
}
"""Name -> method, those that go through the tokens first."""


class Made(NamedTuple):
    """A method's map of one image, as it was made."""

    values: np.ndarray
    """(h, w) float32; cell i is centred at pixel ``stride * i`` of the model's input."""
    stride: int
    cells: np.ndarray
    """(h, w) float32, the same in cells of :data:`CELL` pixels."""
    tokens: Mapping[str, np.ndarray] | None
    total: float | None
    difference: float | None
    seconds: float


class Explainer:
    """Makes the maps of one model, for one thread at a time.

    Args:
        predictor: of any model; it is copied, so that others may use it meanwhile.
        steps: points of the quadrature of integrated gradients.

    Attributes:
        model: the copy.
    """

    def __init__(self, predictor: Predictor, *, steps: int = STEPS) -> None:
        if steps < 1:
            raise ConfigError(f"integrated gradients take at least 1 step, got {steps}")
        self.model: Any = private_copy(predictor)
        self.steps = steps
        self._layers = predictor.layer_names
        self._normalize, self._device = predictor.preprocessing.normalize, predictor.device

    def prepare(self, x: Tensor) -> Tensor:
        """Images (N, 3, h, w) in [0, 1] -> the model's input, normalised, on its device."""
        return self._normalize(x.to(self._device))

    def logits(self, x: Tensor) -> Tensor:
        """Logits of prepared images, without gradients."""
        with torch.no_grad(), torch.autocast(self._device.type, enabled=False):
            return self.model(x)

    def cost(self, method: str) -> int:
        """About how many images :meth:`make` sends through the model or its tokens."""
        groups = len(token_attribution.layer_groups(self.model)) if METHODS[method].tokens else 0
        return {
            "token_integrated_gradients": self.steps * groups,
            "gradient_x_token": groups,
            "integrated_gradients": self.steps + 2,
            "grad_cam": 1,
            "occlusion": captum_methods.WINDOWS**2 + 1,
        }[method]

    def make(self, method: str, x: Tensor, target: Target, tick: Callable[[int], None] = lambda _: None) -> Made:
        """Make a map.

        Args:
            method: a key of :data:`METHODS`.
            x: (1, 3, h, w), prepared.
            target: the class.
            tick: called with the number of images, after they went through the model.
        """

        def score(images: Tensor) -> Tensor:
            scores = target.score(self.model(images))
            tick(len(images))
            return scores

        start = time.perf_counter()
        tokens: Mapping[str, np.ndarray] | None = None
        total = difference = None
        stride = 1
        with torch.autocast(self._device.type, enabled=False):
            if METHODS[method].tokens:
                space = token_attribution.TokenSpace(self.model, x, target)
                found = (
                    token_attribution.token_integrated_gradients(space, self.steps, tick)
                    if method == "token_integrated_gradients"
                    else token_attribution.gradient_x_token(space, tick)
                )
                tokens = dict(zip(self._layers, found.tokens, strict=True))
                _, values, stride, total, difference = found
            elif method == "integrated_gradients":
                values, difference = captum_methods.integrated_gradients(score, x, self.steps)
                total = float(values.sum(dtype=np.float64))
            elif method == "grad_cam":
                backbone = self.model.backbone
                values, stride = captum_methods.grad_cam(score, x, backbone.residual_stages()[-1]), backbone.strides[-1]
            else:
                values = captum_methods.occlusion(score, x)
        seconds = time.perf_counter() - start
        size = (x.shape[2], x.shape[3])
        return Made(values, stride, at_cells(values, stride, size), tokens, total, difference, seconds)


def check_methods(predictor: Predictor, methods: Sequence[str] | None) -> list[str]:
    """The methods, or all that the model can do.

    Raises:
        ConfigError: for an unknown method, token methods of a model without tokens, or Captum's without Captum.
    """
    if methods is None:
        chosen = [name for name, method in METHODS.items() if predictor.strides or not method.tokens]
    else:
        chosen = list(dict.fromkeys(methods))
    if not chosen:
        raise ConfigError("attribution needs at least one method, got none")
    for name in chosen:
        if name not in METHODS:
            raise ConfigError(f"unknown method {name!r}{did_you_mean(name, METHODS)}")
        if METHODS[name].tokens and not predictor.strides:
            raise ConfigError(f"{predictor.name} is a model without tokens: {name} has nothing to attribute to")
    if not all(METHODS[name].tokens for name in chosen):
        captum_methods.require_captum()
    return chosen


def at_cells(values: np.ndarray, stride: int, size: tuple[int, int]) -> np.ndarray:
    """A map in cells of :data:`CELL` pixels of the model's input.

    Args:
        values: (h, w); cell i is centred at pixel ``stride * i``.
        stride: pixels per cell.
        size: (h, w) of the input.

    Returns:
        (h / CELL, w / CELL) float32, rounded up: finer maps averaged over the pixels nearest to each cell's centre,
        coarser ones interpolated at it. A map of these cells stays as it is.
    """
    rows, columns = (_to_cells(n, stride, -(-side // CELL)) for n, side in zip(values.shape, size, strict=True))
    return rows @ values @ columns.T


def _to_cells(count: int, stride: int, cells: int) -> np.ndarray:
    """(cells, count) float32, rows summing to 1."""
    if stride >= CELL:
        return interpolation(np.arange(cells) * CELL / stride, count)
    nearest = np.minimum((np.arange(count) * stride + CELL // 2) // CELL, cells - 1)
    members = (nearest == np.arange(cells)[:, None]).astype(np.float32)
    return members / members.sum(axis=1, keepdims=True)


def rank_correlation(maps: Sequence[np.ndarray]) -> np.ndarray:
    """Spearman's rank correlation between all pairs of maps, ties sharing their mean rank.

    Args:
        maps: of one shape.

    Returns:
        (maps, maps) float64 in [-1, 1]; 0 beside a constant map, which ranks nothing.
    """
    ranks = np.stack([_ranks(values.ravel()) for values in maps])
    ranks -= ranks.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(ranks, axis=1, keepdims=True)
    directions = np.divide(ranks, norms, where=norms > 0, out=np.zeros_like(ranks))
    return np.clip(directions @ directions.T, -1, 1)


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]
