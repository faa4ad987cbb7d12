"""The position encoder: where a token looked, as numbers (Eq. 2, Listing 2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtviz.models.layers import Pointwise

POSITION_GRID = 14
"""Side of the grid that coefficient maps are resized to before position encoding: the paper's stage-4 map at 224 px."""
POSITION_CHANNELS = 32
"""Length C_P of a position encoding (Eq. 2)."""


def bilinear_weights(side: int, like: Tensor) -> Tensor:
    """The matrix (14, side) that resizes ``side`` values to 14 as bilinear ``F.interpolate`` does.

    Rows @ map @ columns^T is the same resize, without a kernel whose threads share out only the 14 x 14 outputs: with
    thousands of small maps that one takes several times as long as the rest of the network on a GPU.
    """
    eye = torch.eye(side, dtype=like.dtype, device=like.device)
    return F.interpolate(eye[None], POSITION_GRID, mode="linear", align_corners=False)[0].T


class PositionEncoder(nn.Module):
    """P = downsample(A)^T W (Eq. 2, Listing 2): where a token looked, as 32 numbers.

    Coefficient maps are resized to 14 x 14. A map's values shrink as H W grows, so they are multiplied by
    H W / 14^2: a smooth map is encoded alike at every resolution (and as it is at 224 px). The resize interpolates, as
    the listing does, and beyond 28 cells a side it passes over some: a map of few bright cells is then encoded by
    chance, more or less bright than it is. Averaging in its place would want other weights than those trained.
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.reduce = Pointwise(2, heads, 1)
        self.encode = Pointwise(1, POSITION_GRID**2, POSITION_CHANNELS)

    def forward(self, coefficients: Tensor) -> Tensor:
        """(N, h, L, H, W) -> (N, 32, L)."""
        n, heads, tokens, height, width = coefficients.shape
        maps = coefficients.transpose(1, 2).reshape(n * tokens, heads, height, width)
        # an exported graph serves every size, so it always resizes; at 14 x 14 that multiplies by 1
        if torch.compiler.is_exporting() or (height, width) != (POSITION_GRID, POSITION_GRID):
            rows, columns = (bilinear_weights(side, maps) for side in (height, width))
            maps = rows @ maps @ columns.T * (height * width / POSITION_GRID**2)
        maps = maps.to(self.reduce.conv.weight.dtype)  # coefficients are float32 in a model of any dtype
        reduced = self.reduce(maps).reshape(n, tokens, POSITION_GRID**2)
        return self.encode(reduced.transpose(1, 2))
