"""Captum's attributions of a class's score to the pixels of a model's input.

Each takes ``score``, images (N, 3, h, w) normalised -> (N,), and one image (1, 3, h, w). The model behind it must
be the caller's own: Captum is not thread-safe on a shared one.
"""

# ruff: noqa: PLC0415 - Captum is optional

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from vtviz.errors import ConfigError
from vtviz.explain.target import images_at_once

WINDOWS = 7
"""Places of the occluding window along each side: it covers a quarter of the side and moves by an eighth."""
Score = Callable[[Tensor], Tensor]


def require_captum() -> None:
    """Raise ConfigError where Captum is not installed."""
    if importlib.util.find_spec("captum") is None:
        raise ConfigError("this attribution needs Captum, which is not installed: pip install captum")


def integrated_gradients(score: Score, x: Tensor, steps: int) -> tuple[np.ndarray, float]:
    """Integrated gradients (Sundararajan et al. 2017) from an image of the mean colour, by Gauss-Legendre quadrature.

    Returns:
        (h, w) float32, each pixel's three channels summed; and score(image) - score(mean colour), their sum's aim.
    """
    from captum.attr import IntegratedGradients

    found = IntegratedGradients(score).attribute(x, n_steps=steps, internal_batch_size=images_at_once(x))
    with torch.no_grad():
        ends = score(torch.cat((x, torch.zeros_like(x))))
    return _plane(found.sum(dim=1)), float(ends[0] - ends[1])


def grad_cam(score: Score, x: Tensor, stage: nn.Module) -> np.ndarray:
    """Grad-CAM (Selvaraju et al. 2017) at a stage's output: (h, w) float32 in its cells, not negative."""
    from captum.attr import LayerGradCam

    return _plane(LayerGradCam(score, stage).attribute(x, relu_attributions=True)[:, 0])


def occlusion(score: Score, x: Tensor) -> np.ndarray:
    """How much the score falls when a window of the mean colour hides a pixel (Zeiler and Fergus 2014).

    Returns:
        (h, w) float32: the mean over the windows that hide the pixel.
    """
    from captum.attr import Occlusion

    height, width = x.shape[-2:]
    window, step = ((3, height // part, width // part) for part in (4, 8))
    with torch.no_grad():
        found = Occlusion(score).attribute(
            x, sliding_window_shapes=window, strides=step, perturbations_per_eval=images_at_once(x)
        )
    return _plane(found.sum(dim=1) / 3)  # Captum gives each of the three channels the whole fall


def _plane(values: Tensor) -> np.ndarray:
    return np.ascontiguousarray(values[0].detach().float().cpu().numpy())
