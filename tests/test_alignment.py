"""Where a stage-4 cell looks, measured on the network itself, against where its overlay is drawn."""

import numpy as np
import pytest
import torch
from torch import nn

from vtviz import geometry
from vtviz.models.resnet import ResNetBackbone

RECEPTIVE_FIELD = {18: 211, 50: 267}
"""Side in pixels of what a stage-4 cell sees."""


def linearised(depth: int, **options) -> ResNetBackbone:
    """The backbone's paddings, strides and kernels without its weights: a positive mean over the receptive field."""
    backbone = ResNetBackbone(depth, stages=4, **options).eval()
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU | nn.BatchNorm2d):
                setattr(module, name, nn.Identity())
    backbone.maxpool = nn.AvgPool2d(3, stride=2, padding=1)
    return backbone


@pytest.mark.parametrize(("depth", "options"), [(18, {}), (50, {}), (50, {"stride_in_1x1": True})])
def test_a_cell_is_drawn_where_the_network_looks(depth, options):
    height, width = 16 * 36, 16 * 35
    assert min(height, width) > 2 * RECEPTIVE_FIELD[depth]
    image = torch.zeros(1, 3, height, width, requires_grad=True)
    backbone = linearised(depth, **options)
    cell = (19, 17)
    feature = backbone(image)[-1]
    assert feature.shape[-2:] == (height // 16, width // 16)
    (gradient,) = torch.autograd.grad(feature[0, :, *cell].sum(), image)
    impulse = gradient[0].sum(0).double().numpy()
    assert impulse.min() >= 0

    rows, columns = np.nonzero(impulse)
    sides = (np.ptp(rows) + 1, np.ptp(columns) + 1)
    assert sides == (RECEPTIVE_FIELD[depth],) * 2 or options  # striding first skips the outermost pixels
    assert rows.min() > 0, "an interior cell"
    assert columns.min() > 0, "an interior cell"
    y, x = np.arange(height), np.arange(width)
    looked = np.array([impulse.sum(1) @ y, impulse.sum(0) @ x]) / impulse.sum()
    stride = backbone.strides[-1]
    assert np.abs(looked - np.array(cell) * stride).max() < 1

    # the same on a photo of another size and shape, through the overlay
    place = geometry.Geometry((700, 1200), (height, width), (0, 0), (height, width))
    one_hot = np.zeros((height // 16, width // 16), np.float32)
    one_hot[cell] = 1
    for align, shift in (("receptive_field", 0.0), ("resize", (stride - 1) / 2)):
        drawn = geometry.upsample(one_hot, place, stride=stride, align=align).astype(np.float64)
        centre = np.array([drawn.sum(1) @ np.arange(700), drawn.sum(0) @ np.arange(1200)]) / drawn.sum()
        assert np.abs(np.array(place.to_input(*centre)) - looked - shift).max() < 1
