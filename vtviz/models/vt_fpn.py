"""VT-FPN and its baseline, Panoptic FPN, for semantic segmentation (Sec. 4.2, Fig. 3).

Both are a ResNet backbone, a neck that makes four maps of equal width (p2..p5, strides 4..32), and the semantic head
that Detectron2 calls SemSegFPNHead. The baseline's neck fuses the levels pixel by pixel with 3x3 convolutions and
interpolation; VT-FPN's lets 8 tokens per level meet in one transformer and projects them back.

The paper leaves the VT neck's inside open. The one here has the MACs of Table 4, as have others: it is a fit to that
table, not the authors' word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtviz.errors import ConfigError
from vtviz.models.layers import Pointwise
from vtviz.models.resnet import ResNetBackbone, drop_path_rates, set_drop_path
from vtviz.models.visual_transformer import (
    BlockOutput,
    Edit,
    Projector,
    Tokenizer,
    Transformer,
    TransformerOutput,
    apply_edit,
    check_widths,
)

LEVELS = ("p2", "p3", "p4", "p5")
"""Names of a neck's levels: level p_k has stride 2^k."""
NORM_GROUPS = 32
"""Groups of the head's group norms."""


@dataclass(frozen=True)
class PanopticFPNConfig:
    """The baseline: a semantic FPN.

    Attributes:
        depth: of the ResNet: 18, 34, 50 or 101.
        num_classes: channels of the logits; 54 are COCO-Stuff's in Detectron2's reading.
        channels: of every level of the neck.
        head_channels: of the head's 3x3 convolutions, a multiple of 64: two values for each of a norm's 32 groups, even
            where a level is one cell.
        in_channels: image channels.
        stride_in_1x1: bottlenecks stride in their first 1x1 convolution (MSRA's placement, which Table 4's totals
            need) in the place of the 3x3 (torchvision's, which its weights need). No matter to depths 18 and 34.
        dropout: probability that a channel is dropped before the last layer.
        drop_path: stochastic depth probability of the last residual block (linear rule).
    """

    depth: int
    num_classes: int = 54
    channels: int = 256
    head_channels: int = 128
    in_channels: int = 3
    stride_in_1x1: bool = False
    dropout: float = 0.0
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        for name in ("num_classes", "channels", "head_channels"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.head_channels % (2 * NORM_GROUPS):
            raise ConfigError(f"head_channels must be a multiple of {2 * NORM_GROUPS}, got {self.head_channels}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must be in [0, 1), got {self.dropout}")


@dataclass(frozen=True)
class VTFPNConfig(PanopticFPNConfig):
    """VT-FPN: the baseline's fields and those of the visual transformer neck.

    Attributes:
        num_tokens: L, the tokens of each level; the transformer relates those of all four.
        token_channels: C_T.
        heads: attention heads of the transformer and the projectors; the static tokenizers have one.
        kqv_groups: groups of the transformer's key, query and value convolutions.
        groups: of the tokenizers' value and the projectors' query convolutions.
        position_encoding: Eq. 2.
        static_scale: divide token coefficients' logits by sqrt(C), as Listing 1 does and Eq. 1 does not.
    """

    num_tokens: int = 8
    token_channels: int = 1024
    heads: int = 16
    kqv_groups: int = 8
    groups: int = 32
    position_encoding: bool = True
    static_scale: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_tokens", "token_channels", "heads", "kqv_groups", "groups"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        check_widths(self.channels, self.token_channels, self.heads, self.kqv_groups)
        if self.channels % self.groups:
            raise ConfigError(f"groups={self.groups} must divide channels={self.channels}")


def upsample(x: Tensor, size: Sequence[int], *, factor: int = 2, mode: str = "bilinear") -> Tensor:
    """Enlarge (N, C, h, w) exactly ``factor`` times, then cut to ``size`` at the bottom and right.

    A stride rounds odd sizes up, so the finer map is never larger than the result. Cutting gives what padding the
    image to whole cells would give (Detectron2's way), where stretching to ``size`` would shift every cell a little.
    """
    x = F.interpolate(x, scale_factor=float(factor), mode=mode, align_corners=None if mode == "nearest" else False)
    return x[..., : size[0], : size[1]]


class FPNNeck(nn.Module):
    """The feature pyramid (Lin et al. 2017): 1x1 laterals, summed from the top down, then a 3x3 for each level."""

    def __init__(self, channels_in: Sequence[int], channels: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in channels_in)
        self.outputs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in channels_in)
        for conv in (*self.laterals, *self.outputs):
            nn.init.kaiming_uniform_(conv.weight, a=1)  # Caffe2's XavierFill, which Detectron2 keeps to
            nn.init.zeros_(conv.bias)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Backbone outputs, finest first -> maps (N, channels, H, W) of the same sizes, finest first."""
        maps = [lateral(x) for lateral, x in zip(self.laterals, features, strict=True)]
        for i in range(len(maps) - 1, 0, -1):
            maps[i - 1] = maps[i - 1] + upsample(maps[i], maps[i - 1].shape[-2:], mode="nearest")
        return [output(x) for output, x in zip(self.outputs, maps, strict=True)]


class VTNeck(nn.Module):
    """Fig. 3, right: tokens of every level meet in one transformer, and each level reads its own back.

    Per level: lateral 1x1 and batch norm, a static tokenizer and a projector. A fresh neck passes its laterals through.
    """

    def __init__(self, channels_in: Sequence[int], config: VTFPNConfig) -> None:
        super().__init__()
        channels, token_channels = config.channels, config.token_channels
        self.num_tokens = config.num_tokens
        self.laterals = nn.ModuleList(Pointwise(2, c, channels) for c in channels_in)
        self.tokenizers = nn.ModuleList(
            Tokenizer(
                channels,
                token_channels,
                config.num_tokens,
                heads=config.heads,
                dynamic=False,
                position_encoding=config.position_encoding,
                static_scale=config.static_scale,
                groups=config.groups,
            )
            for _ in channels_in
        )
        self.transformer = Transformer(token_channels, heads=config.heads, kqv_groups=config.kqv_groups)
        self.projectors = nn.ModuleList(
            Projector(channels, channels, token_channels, heads=config.heads, groups=config.groups) for _ in channels_in
        )

    def forward(self, features: Sequence[Tensor], edits: Sequence[Edit | None] = ()) -> list[BlockOutput]:
        """Backbone outputs, finest first -> each level's output, finest first.

        ``edits``: what to change in each level, finest first, of the first levels where there are fewer.

        The transformer sees the tokens of all levels, finest level first. A level's ``tokens`` and ``transformer`` are
        its own L rows of it: tokens (N, C_T, L), attention (N, h, L, 4 L) over the tokens of all levels.
        """
        maps = [lateral(x) for lateral, x in zip(self.laterals, features, strict=True)]
        tokenized = [tokenizer(x) for tokenizer, x in zip(self.tokenizers, maps, strict=True)]
        chosen = [*edits, *[None] * (len(maps) - len(edits))]
        edited = [apply_edit(t.tokens, None, edit) for t, edit in zip(tokenized, chosen, strict=True)]
        absent: list[Tensor | None] = [a for _, a in edited]
        everywhere = None
        if any(a is not None for a in absent):
            absent = [a if a is not None else t.new_zeros(len(t), t.shape[2], dtype=torch.bool) for t, a in edited]
            everywhere = torch.cat([a for a in absent if a is not None], dim=1)
        transformed = self.transformer(torch.cat([t for t, _ in edited], dim=2), everywhere)
        tokens = transformed.tokens.split(self.num_tokens, dim=2)
        attention = transformed.attention.split(self.num_tokens, dim=2)
        levels = zip(self.projectors, maps, tokens, absent, strict=True)
        projected = [projector(x, t, a) for projector, x, t, a in levels]
        return [
            BlockOutput(p.feature, tokens[i], tokenized[i], TransformerOutput(tokens[i], attention[i]), p, absent[i])
            for i, p in enumerate(projected)
        ]


class SemanticHead(nn.Module):
    """Panoptic FPN's semantic head (Kirillov et al. 2019): every level up to stride 4, summed, classified.

    A level reaches stride 4 by steps of 3x3 convolution, group norm, ReLU and bilinear x2; stride 4 itself has the
    convolution only.
    """

    def __init__(self, channels: int, hidden: int, num_classes: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.ModuleList(self._step(channels if step == 0 else hidden, hidden) for step in range(max(1, level)))
            for level in range(len(LEVELS))
        )
        self.dropout = nn.Dropout2d(dropout)
        self.predictor = self._predictor(hidden, num_classes)

    @staticmethod
    def _step(cin: int, cout: int) -> nn.Sequential:
        conv = nn.Conv2d(cin, cout, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        return nn.Sequential(conv, nn.GroupNorm(NORM_GROUPS, cout), nn.ReLU(inplace=True))

    @staticmethod
    def _predictor(cin: int, num_classes: int) -> nn.Conv2d:
        conv = nn.Conv2d(cin, num_classes, 1)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        return conv

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the last 1x1 convolution by a freshly initialised one, on its device and in its dtype."""
        old = self.predictor
        self.predictor = self._predictor(old.in_channels, num_classes).to(old.weight.device, old.weight.dtype)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (N, channels, H_k, W_k), finest first -> logits (N, num_classes, H_0, W_0), at the finest's size."""
        sizes = [x.shape[-2:] for x in maps]
        total = self._to_finest(0, maps[0], sizes)
        for level in range(1, len(maps)):
            total = total + self._to_finest(level, maps[level], sizes)
        return self.predictor(self.dropout(total))

    def _to_finest(self, level: int, x: Tensor, sizes: Sequence[Sequence[int]]) -> Tensor:
        for done, step in enumerate(self.levels[level].children()):
            x = step(x)
            if level > 0:
                x = upsample(x, sizes[level - done - 1])
        return x


class Segmenter(nn.Module):
    """What both segmentation families share: ``backbone``, ``neck`` and ``head``."""

    config: PanopticFPNConfig
    token_strides: tuple[int, ...] = ()
    """Input pixels per cell of each level's token maps; cell i is centred at pixel ``stride * i``."""
    token_names: tuple[str, ...] = ()
    """Names of those levels."""

    def __init__(self, config: PanopticFPNConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = ResNetBackbone(config.depth, in_channels=config.in_channels, stride_in_1x1=config.stride_in_1x1)
        residual = list(self.backbone.residual_blocks())
        set_drop_path(residual, drop_path_rates(config.drop_path, len(residual)))
        self.neck = self._make_neck()
        self.head = SemanticHead(config.channels, config.head_channels, config.num_classes, dropout=config.dropout)

    def _make_neck(self) -> nn.Module:
        raise NotImplementedError

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the last layer by a freshly initialised one for ``num_classes`` classes."""
        self.head.reset_classifier(num_classes)
        self.config = replace(self.config, num_classes=num_classes)

    def forward_head(self, maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """p2..p5 -> logits (N, num_classes, H, W) at the image's ``size`` (H, W)."""
        return upsample(self.head(maps), size, factor=4)


class PanopticFPN(Segmenter):
    """The baseline: a semantic FPN under the same interface as :class:`VTFPN`."""

    def _make_neck(self) -> FPNNeck:
        return FPNNeck(self.backbone.channels, self.config.channels)

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Image (N, in_channels, H, W), normalised -> p2..p5, each (N, channels, H / stride, W / stride)."""
        return self.neck(self.backbone(x))

    def forward(self, x: Tensor) -> Tensor:
        """Image (N, in_channels, H, W), normalised, any size from 1 x 1 -> logits (N, num_classes, H, W)."""
        return self.forward_head(self.forward_features(x), x.shape[-2:])


class VTFPN(Segmenter):
    """A semantic FPN whose neck relates visual tokens in the place of convolving pixels."""

    config: VTFPNConfig
    token_names = LEVELS

    def __init__(self, config: VTFPNConfig) -> None:
        super().__init__(config)
        self.token_strides = self.backbone.strides

    def _make_neck(self) -> VTNeck:
        return VTNeck(self.backbone.channels, self.config)

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Image (N, in_channels, H, W), normalised -> p2..p5, each (N, channels, H / stride, W / stride)."""
        return [level.feature for level in self.neck(self.backbone(x))]

    def forward(self, x: Tensor, *, return_maps: bool = False) -> Tensor | tuple[Tensor, list[BlockOutput]]:
        """Image (N, in_channels, H, W), normalised, any size from 1 x 1 -> logits (N, num_classes, H, W).

        With ``return_maps`` also every level's output, finest first, for compilation and export, where hooks do not
        reach.
        """
        levels = self.neck(self.backbone(x))
        logits = self.forward_head([level.feature for level in levels], x.shape[-2:])
        return (logits, levels) if return_maps else logits

    @property
    def tokenizers(self) -> list[Tokenizer]:
        """Each level's tokenizer, finest first."""
        return list(self.neck.tokenizers)  # type: ignore[arg-type]

    def forward_edited(
        self, features: Sequence[Tensor], edits: Sequence[Edit | None], size: Sequence[int]
    ) -> tuple[Tensor, list[BlockOutput]]:
        """Backbone outputs -> logits at the image's ``size`` (H, W) and every level's output, with tokens changed.

        ``edits``: one a level, finest first; see :class:`~vtviz.models.visual_transformer.Edit`.
        """
        levels = self.neck(features, edits)
        return self.forward_head([level.feature for level in levels], size), levels
