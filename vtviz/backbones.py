"""New models, and pretrained weights for their backbones."""

from __future__ import annotations

import os
import pickle
from typing import Any

from torch import Tensor, nn

from vtviz import checkpoints
from vtviz.errors import CheckpointError, did_you_mean
from vtviz.models.registry import build_model
from vtviz.models.resnet import ResNetBackbone


def load_backbone(model: nn.Module, source: str | os.PathLike[str]) -> None:
    """Copy a ResNet's weights into ``model.backbone``, in place.

    Args:
        model: with a ResNet ``backbone``.
        source: a file with torchvision's names (``.safetensors``, ``.pt``, ``.pth``) or of a vtviz model, or the
            name of torchvision weights such as ``"IMAGENET1K_V1"``, which are downloaded. ``fc`` and stages that the
            backbone does not have are ignored.

    Raises:
        CheckpointError: where a tensor is missing, unknown or of another shape, or the download fails.
    """
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, ResNetBackbone):
        raise CheckpointError(f"{type(model).__name__} has no ResNet backbone to load {source} into")
    path = checkpoints.at_home(source)
    if path.suffix:
        tensors = checkpoints.load_tensors(path)
    elif backbone.stride_in_1x1:
        raise CheckpointError(
            f"torchvision's {source} needs a backbone with stride_in_1x1=False: it would fit, and fail"
        )
    else:
        tensors = _torchvision_weights(f"resnet{backbone.depth}", str(source))
    if own := {k.removeprefix("backbone."): v for k, v in tensors.items() if k.startswith("backbone.")}:
        tensors = own
    expected = backbone.state_dict()
    stages = {name.split(".")[0] for name in expected}
    absent = {"fc", "layer4"} - stages
    tensors = {k: v for k, v in tensors.items() if k.split(".")[0] not in absent}
    for name, value in expected.items():  # files of folded or converted weights do not count batches
        if name.endswith("num_batches_tracked"):
            tensors.setdefault(name, value)
    checkpoints.check_names(path, expected, tensors)
    backbone.load_state_dict(checkpoints.converted(path, expected, tensors))


def _torchvision_weights(model: str, name: str) -> dict[str, Tensor]:
    from torchvision.models import get_model_weights  # noqa: PLC0415 — building its registry takes a while

    choices = {w.name: w for w in get_model_weights(model)}
    if name not in choices:
        raise CheckpointError(f"torchvision has no weights {name!r} for {model}{did_you_mean(name, choices)}")
    try:
        return dict(choices[name].get_state_dict(progress=False, check_hash=True, weights_only=True))
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"cannot download torchvision's {model} {name} ({checkpoints.one_line(error)}); "
            f"give the path of a file with these weights instead: {choices[name].url}"
        ) from None


def create_model(
    name: str, preset: str | None = None, *, weights: str | os.PathLike[str] | None = None, **overrides: Any
) -> nn.Module:
    """A new model, optionally on a pretrained backbone, e.g. ``create_model("vt_resnet18", num_classes=10)``.

    Args:
        name: a key of the model registry.
        preset: a named configuration of that model; see :func:`~vtviz.models.registry.build_model`.
        weights: for the backbone; see :func:`load_backbone`.
        **overrides: configuration fields by name.

    Raises:
        ConfigError: for an unknown name or field, or a value that cannot work.
        CheckpointError: where the weights do not fit or cannot be had.
    """
    model = build_model(name, preset, **overrides)
    if weights is not None:
        load_backbone(model, weights)
    return model
