"""What a student is trained on beside its labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def soft_divergence(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """T² KL(teacher || student) of softened logits (N, k), in nats (Hinton et al. 2015, Sec. 2)."""
    own = F.log_softmax(logits / temperature, dim=1)
    wanted = F.log_softmax(target / temperature, dim=1)
    return F.kl_div(own, wanted, reduction="batchmean", log_target=True) * temperature**2


def relative_error(own: Tensor, target: Tensor) -> Tensor:
    """Squared error of a feature map (N, C, h, w) over the target's variance about its channels' means.

    1 is what the means alone would reach, 0 is equality.
    """
    own, target = own.float(), target.float()
    spread = (target - target.mean(dim=(0, 2, 3), keepdim=True)).square().mean()
    return (own - target).square().mean() / spread.clamp_min(1e-6)


def coefficient_divergence(own: list[Tensor], target: list[Tensor]) -> Tensor:
    """Mean KL(teacher's A || student's A) over maps and blocks, in nats; each block's (N, heads, tokens, h, w).

    Blocks whose shapes differ are left out; 0 where that leaves none.
    """
    losses = [
        (t * (t.clamp_min(1e-12).log() - o.clamp_min(1e-12).log())).flatten(3).sum(dim=-1).mean()
        for o, t in zip(own, target, strict=False)
        if o.shape == t.shape
    ]
    return torch.stack(losses).mean() if losses else own[0].new_zeros(())


REDUNDANT = 0.3
"""Correlation of two token maps from which on they count as looking at the same thing."""


def map_redundancy(coefficients: Tensor) -> Tensor:
    """Mean squared excess over 0.3 of the correlation between a block's token maps, (N, heads, tokens, h, w) -> scalar.

    Pairs that differ enough cost nothing: pushed further apart, tokens flee to the picture's corners, where they mean
    nothing. 0 for a single token; 0.49 for equal maps.
    """
    maps = coefficients.mean(dim=1).flatten(2)
    directions = F.normalize(maps - maps.mean(dim=-1, keepdim=True), dim=-1)
    excess = (directions @ directions.transpose(1, 2) - REDUNDANT).clamp_min(0).triu(diagonal=1)
    tokens = maps.shape[1]
    return excess.square().sum(dim=(1, 2)).mean() / max(1, tokens * (tokens - 1) / 2)
