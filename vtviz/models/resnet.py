"""ResNet backbones and the plain ResNet baselines, on torchvision's blocks and with torchvision's parameter names.

Torchvision numbers the residual stages layer1..layer4; the paper counts the stem as stage 1, so layer3 ends stage 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.models import resnet as tv
from torchvision.ops import StochasticDepth

from vtviz.errors import ConfigError


class BasicBlock(tv.BasicBlock):
    """torchvision's basic block with stochastic depth on its residual branch."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.drop_path = StochasticDepth(0.0, "row")

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C, H / stride, W / stride)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.drop_path(self.bn2(self.conv2(out)))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(tv.Bottleneck):
    """torchvision's bottleneck block with stochastic depth on its residual branch."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.drop_path = StochasticDepth(0.0, "row")

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C, H / stride, W / stride)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.drop_path(self.bn3(self.conv3(out)))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


LAYOUTS: dict[int, tuple[type[BasicBlock | Bottleneck], tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
}
"""Depth -> residual block and blocks per stage (He et al. 2016, Table 1)."""


def drop_path_rates(last: float, blocks: int) -> list[float]:
    """Stochastic depth's linear rule (Huang et al. 2016): drop probabilities rising from last / blocks to ``last``."""
    if not 0 <= last < 1:
        raise ConfigError(f"drop_path must be in [0, 1), got {last}")
    return [last * (i + 1) / blocks for i in range(blocks)]


def set_drop_path(blocks: Iterable[BasicBlock | Bottleneck], rates: Iterable[float]) -> None:
    """Give each residual block its stochastic depth probability."""
    for block, rate in zip(blocks, rates, strict=False):
        block.drop_path.p = rate


class ResNetBackbone(tv.ResNet):
    """Stages 1 to ``stages`` of a ResNet, as a list of stage outputs.

    The centre of cell i of every stage lies at input pixel ``stride * i`` (all paddings are symmetric), which is where
    overlays draw it.

    Args:
        depth: 18, 34, 50 or 101.
        stages: 4 (what a VT-ResNet keeps) or 5.
        in_channels: image channels.
        stride_in_1x1: let a bottleneck stride in its first 1x1 convolution, as He et al.'s (MSRA's) own ResNets and
            Detectron2's do, in the place of its 3x3, as torchvision's weights expect. Same parameters, fewer MACs.
    """

    def __init__(self, depth: int, *, stages: int = 5, in_channels: int = 3, stride_in_1x1: bool = False) -> None:
        if depth not in LAYOUTS:
            raise ConfigError(f"depth must be one of {', '.join(map(str, LAYOUTS))}, got {depth}")
        if stages not in (4, 5):
            raise ConfigError(f"stages must be 4 or 5, got {stages}")
        if in_channels < 1:
            raise ConfigError(f"in_channels must be at least 1, got {in_channels}")
        block, layers = LAYOUTS[depth]
        super().__init__(block, list(layers))
        del self.avgpool, self.fc
        if stages == 4:
            del self.layer4
        if in_channels != 3:
            self.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
            nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.depth = depth
        self.stages = stages
        self.stride_in_1x1 = stride_in_1x1
        if stride_in_1x1:
            for residual in self.residual_blocks():
                if isinstance(residual, Bottleneck):
                    residual.conv1.stride, residual.conv2.stride = residual.conv2.stride, residual.conv1.stride
        self.channels: tuple[int, ...] = tuple(64 * block.expansion * 2**i for i in range(stages - 1))
        """Channels of the outputs of stages 2 to ``stages``."""
        self.strides: tuple[int, ...] = tuple(4 * 2**i for i in range(stages - 1))
        """Input pixels per cell of the same outputs."""

    def residual_stages(self) -> list[nn.Sequential]:
        """layer1, layer2, ... as far as this backbone goes."""
        return [getattr(self, f"layer{i + 1}") for i in range(self.stages - 1)]

    def residual_blocks(self) -> Iterator[BasicBlock | Bottleneck]:
        """Every residual block, from the input to the output."""
        for stage in self.residual_stages():
            yield from cast("Iterable[BasicBlock | Bottleneck]", stage)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Image (N, in_channels, H, W) -> outputs of stages 2 to ``stages``, strides 4, 8, 16 (and 32)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        outputs = []
        for stage in self.residual_stages():
            x = stage(x)
            outputs.append(x)
        return outputs


@dataclass(frozen=True)
class ResNetConfig:
    """A plain ResNet classifier.

    Attributes:
        depth: 18, 34, 50 or 101.
        num_classes: length of the logits.
        in_channels: image channels.
        dropout: probability before the last layer.
        drop_path: stochastic depth probability of the last residual block (linear rule).
    """

    depth: int
    num_classes: int = 1000
    in_channels: int = 3
    dropout: float = 0.0
    drop_path: float = 0.0


class Classifier(nn.Module):
    """What both classifier families share: a backbone, features of ``num_features`` channels, a linear head ``fc``."""

    config: Any
    backbone: ResNetBackbone
    num_features: int
    fc: nn.Linear
    dropout: nn.Dropout

    def _make_head(self, num_features: int, num_classes: int, dropout: float) -> None:
        if not 0 <= dropout < 1:
            raise ConfigError(f"dropout must be in [0, 1), got {dropout}")
        self.num_features = num_features
        self.dropout = nn.Dropout(dropout)
        self.fc = self._make_fc(num_classes)

    def _make_fc(self, num_classes: int) -> nn.Linear:
        if num_classes < 1:
            raise ConfigError(f"num_classes must be at least 1, got {num_classes}")
        return nn.Linear(self.num_features, num_classes)

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the last layer by a freshly initialised one for ``num_classes`` classes."""
        self.fc = self._make_fc(num_classes).to(self.fc.weight.device, self.fc.weight.dtype)
        self.config = replace(self.config, num_classes=num_classes)


class ResNet(Classifier):
    """The baseline: a ResNet under the same interface as :class:`~vtviz.models.vt_resnet.VTResNet`."""

    token_strides: tuple[int, ...] = ()
    """A plain ResNet has no tokens."""
    token_names: tuple[str, ...] = ()

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = ResNetBackbone(config.depth, in_channels=config.in_channels)
        residual = list(self.backbone.residual_blocks())
        set_drop_path(residual, drop_path_rates(config.drop_path, len(residual)))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self._make_head(self.backbone.channels[-1], config.num_classes, config.dropout)

    def forward_features(self, x: Tensor) -> Tensor:
        """Image (N, in_channels, H, W), normalised -> the last stage's feature map (N, num_features, H/32, W/32)."""
        return self.backbone(x)[-1]

    def forward_head(self, features: Tensor) -> Tensor:
        """Feature map -> logits (N, num_classes)."""
        return self.fc(self.dropout(torch.flatten(self.avgpool(features), 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Image (N, in_channels, H, W), normalised, any size from 1 x 1 -> logits (N, num_classes)."""
        return self.forward_head(self.forward_features(x))
