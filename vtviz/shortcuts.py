"""Tokens or classes in one call: the model is given by name, and stays loaded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch

from vtviz import checkpoints
from vtviz.engines import default_device
from vtviz.predictor import DEFAULT_MODEL, DEFAULT_SEGMENTER, Images, Predictor, load_model


@lru_cache(maxsize=4)
def _cached(name: str, device: str, changed: int) -> Predictor:  # noqa: ARG001
    """``changed`` makes a checkpoint that was written anew another key."""
    return load_model(name, device)


def extract_tokens(
    img: Images,
    model: str | os.PathLike[str] | Predictor = DEFAULT_MODEL,
    *,
    layers: Sequence[int] | None = None,
    device: str | torch.device | None = None,
    size: int | None = None,
    crop: str | None = None,
) -> Any:
    """What each visual token of a model looks at in an image.

    Args:
        img: one image (path, bytes, PIL image, array, tensor), or a list or tuple of them, of any sizes.
        model: what :func:`load_model` takes, or a :class:`Predictor`. The last few models stay loaded.
        layers: which ones, by index; None for all.
        device: where the model runs; CUDA where there is one by default. A Predictor stays where it is.
        size: the model input's area is about size x size pixels; None for the model's own.
        crop: None for the whole image, "center" for the paper's central square.

    Returns:
        A :class:`~vtviz.tokens.TokenMaps`; for a list, a list in its order.

    Raises:
        ImageError, CheckpointError, ConfigError: in one line, for what cannot be read or cannot work.
    """
    return _predictor(model, device).extract(img, layers=layers, size=size, crop=crop)


def segment(
    img: Images,
    model: str | os.PathLike[str] | Predictor = DEFAULT_SEGMENTER,
    *,
    device: str | torch.device | None = None,
    size: int | None = None,
    crop: str | None = None,
) -> Any:
    """The class of every pixel of an image.

    Args:
        img: as for :func:`extract_tokens`.
        model: a segmentation model, as for :func:`extract_tokens`.
        device: likewise.
        size: likewise.
        crop: likewise.

    Returns:
        A :class:`~vtviz.segmentation.Segmentation`; for a list, a list in its order.

    Raises:
        ImageError, CheckpointError, ConfigError: in one line, for what cannot be read or cannot work.
    """
    return _predictor(model, device).segment(img, size=size, crop=crop)


def _predictor(model: str | os.PathLike[str] | Predictor, device: str | torch.device | None) -> Predictor:
    """The model itself, or a checkpoint's, which stays loaded."""
    if isinstance(model, Predictor):
        return model
    name, changed = checkpoints.stamp(model)
    return _cached(name, str(device or default_device()), changed)
