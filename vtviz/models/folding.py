"""Models for inference alone: norms folded into the convolutions before them, weights in bfloat16."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from vtviz.models.layers import Pointwise
from vtviz.models.resnet import BasicBlock, Bottleneck, ResNetBackbone


def fold(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode that computes the same, every batch norm behind a convolution folded into it."""
    folded = copy.deepcopy(model).eval()
    for module in list(folded.modules()):
        for owner, conv, norm in _pairs(module):
            setattr(owner, conv, fuse_conv_bn_eval(getattr(owner, conv), getattr(owner, norm)))
            setattr(owner, norm, nn.Identity())
    return folded


def to_bfloat16(model: nn.Module) -> nn.Module:
    """A copy for bfloat16 autocast without gradients: :func:`fold`, then weights of convolutions and linear layers.

    Autocast alone converts every weight at every call, which takes longer than a small batch gains.
    """
    folded = fold(model)
    for module in folded.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
            module.to(torch.bfloat16)
    return folded.to(memory_format=torch.channels_last)


def _pairs(module: nn.Module) -> Iterator[tuple[Any, str, str]]:
    """Convolutions of a module with the norms right behind them: (where they are, the one's name, the other's)."""
    if isinstance(module, Pointwise):
        yield module, "conv", "norm"
    elif isinstance(module, ResNetBackbone | BasicBlock | Bottleneck):
        yield from ((module, f"conv{i}", f"bn{i}") for i in (1, 2, 3) if hasattr(module, f"bn{i}"))
        if (shortcut := getattr(module, "downsample", None)) is not None:
            yield shortcut, "0", "1"
