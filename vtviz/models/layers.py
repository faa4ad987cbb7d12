"""The layers that visual transformers are made of."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def groups_for(channels: int, *others: int) -> int:
    """Groups of a grouped 1x1 convolution over ``channels`` (256 -> 4, 512 -> 8, 1024 -> 16) that divide all widths."""
    most = max(1, min(16, channels // 64))
    return next(n for n in range(most, 0, -1) if math.gcd(channels, *others) % n == 0)


class _OwnLayout(torch.autograd.Function):
    """Identity whose gradient comes back in the memory format of the tensor itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        last = x.is_contiguous(memory_format=torch.channels_last)
        ctx.memory_format = torch.channels_last if last else torch.contiguous_format
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0].contiguous(memory_format=ctx.memory_format)


class BatchNorm2d(nn.BatchNorm2d):
    """Batch norm beside matrix products, whose gradients do not keep to channels_last.

    On the CPU batch norm's backward is some twenty times slower where its input and its gradient differ in layout.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        x = super().forward(x)
        return _OwnLayout.apply(x) if x.requires_grad and x.device.type == "cpu" else x


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""Where a module keeps its hooks: torch has no other way to ask."""


def folds(norm: nn.Module, conv: nn.Module | None = None) -> bool:
    """Whether this call may take a norm's scale and shift in the place of the norm, and scale ``conv``'s weights by it.

    Not where it normalises by the batch, nor where somebody has hooked one of the two or put another layer in its
    place: what they do is done then.
    """
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, BatchNorm2d, nn.SyncBatchNorm)
    if type(norm) not in kinds or norm.training or norm.running_var is None or norm.weight is None:
        return False
    parts = (norm,) if conv is None else (norm, conv)
    hooked = any(getattr(part, hooks) for part in parts for hooks in _HOOKS)
    return not hooked and (conv is None or type(conv) in (nn.Conv1d, nn.Conv2d))


def scale_and_shift(norm: Any) -> tuple[Tensor, Tensor]:
    """What a batch norm does in evaluation: x -> x * scale + shift, both (C,)."""
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return scale, norm.bias - norm.running_mean * scale


class Pointwise(nn.Module):
    """A bias-free 1x1 convolution and its batch norm, over (N, C, L) or (N, C, H, W)."""

    def __init__(self, dims: int, cin: int, cout: int, groups: int = 1, *, zero_init: bool = False) -> None:
        super().__init__()
        conv, norm = ((nn.Conv1d, nn.BatchNorm1d), (nn.Conv2d, BatchNorm2d))[dims - 1]
        self.conv = conv(cin, cout, 1, groups=groups, bias=False)
        self.norm = norm(cout)
        # unit gain per group: the transformer is normalised, but the first logits should start at a sane scale
        nn.init.normal_(self.conv.weight, std=math.sqrt(groups / cin))
        if zero_init:
            nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, ...) -> (N, C_out, ...)."""
        if self.training or x.dim() == 3 or not folds(self.norm, self.conv):
            return self.norm(self.conv(x))
        # of a map there are more cells than weights: scaling the weights saves a pass over it
        scale, shift = scale_and_shift(self.norm)
        return F.conv2d(x, self.conv.weight * scale[:, None, None, None], shift, groups=self.conv.groups)


def masked_softmax(logits: Tensor, dim: int, absent: Tensor | None = None) -> Tensor:
    """Softmax in float32, in which what is ``absent`` (bool, broadcast to the logits) has no part and gets 0."""
    logits = logits.float()
    if absent is None:
        return logits.softmax(dim)
    return logits.masked_fill(absent, -torch.inf).softmax(dim).masked_fill(absent, 0.0)
