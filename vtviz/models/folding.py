"""Models for inference alone: norms folded into the convolutions before them, weights in bfloat16."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from vtviz.models.layers import Pointwise, folds
from vtviz.models.resnet import BasicBlock, Bottleneck, ResNetBackbone


def fold(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode that computes the same, every batch norm behind a convolution folded into it.

    What somebody has put in the place of either, or hooked, stays as it is: see :func:`~vtviz.models.layers.folds`.
    """
    folded = copy.deepcopy(model).eval()
    for module in list(folded.modules()):
        for owner, conv, norm in _pairs(module):
            if folds(getattr(owner, norm), getattr(owner, conv)):  # and is not folded already
                setattr(owner, conv, fuse_conv_bn_eval(getattr(owner, conv), getattr(owner, norm)))
                setattr(owner, norm, nn.Identity())
    return folded


def to_bfloat16(model: nn.Module) -> nn.Module:
    """A copy for bfloat16 autocast without gradients: :func:`fold`, then weights of convolutions and linear layers.

    Autocast alone converts every weight at every call, which takes longer than a small batch gains.
    """
    folded = fold(model)
    for module in list(folded.modules()):
        if isinstance(module, Pointwise) and isinstance(module.conv, nn.Conv1d) and module.conv.groups == 1:
            module.conv = _Tokenwise(module.conv)  # type: ignore[assignment]
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
            module.to(torch.bfloat16)
    return folded.to(memory_format=torch.channels_last)


class _Tokenwise(nn.Linear):
    """A 1x1 convolution of tokens as a linear layer: of a few tokens, in bfloat16, a CPU does that twice as fast."""

    def __init__(self, conv: nn.Conv1d) -> None:
        super().__init__(conv.in_channels, conv.out_channels, device="meta")
        self.weight, self.bias = nn.Parameter(conv.weight[:, :, 0].detach()), conv.bias  # type: ignore[assignment]
        self.to(torch.bfloat16)

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, C_in, L) -> (N, C_out, L)."""
        return super().forward(tokens.transpose(1, 2).contiguous()).transpose(1, 2)


def _pairs(module: nn.Module) -> Iterator[tuple[Any, str, str]]:
    """Convolutions of a module with the norms right behind them: (where they are, the one's name, the other's)."""
    if isinstance(module, Pointwise):
        yield module, "conv", "norm"
    elif isinstance(module, ResNetBackbone | BasicBlock | Bottleneck):
        yield from ((module, f"conv{i}", f"bn{i}") for i in (1, 2, 3) if hasattr(module, f"bn{i}"))
        if (shortcut := getattr(module, "downsample", None)) is not None:
            yield shortcut, "0", "1"
