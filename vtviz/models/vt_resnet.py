"""VT-ResNet: ResNet stages 1-4, then visual transformers in the place of stage 5 (Sec. 4.1, Table 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from vtviz.models.resnet import Classifier, ResNetBackbone, drop_path_rates, set_drop_path
from vtviz.models.visual_transformer import BlockOutput, Edit, Tokenizer, VTStage, VTStageConfig


@dataclass(frozen=True)
class VTResNetConfig:
    """A VT-ResNet classifier.

    Attributes:
        depth: of the ResNet that stages 1-4 come from: 18, 34, 50 or 101.
        stage: the visual transformer stage.
        num_classes: length of the logits.
        in_channels: image channels.
        dropout: probability before the last layer.
        drop_path: stochastic depth probability of the last block, rising linearly from the first residual block on.
    """

    depth: int
    stage: VTStageConfig
    num_classes: int = 1000
    in_channels: int = 3
    dropout: float = 0.0
    drop_path: float = 0.0


class VTResNet(Classifier):
    """A ResNet whose last stage relates visual tokens instead of convolving pixels."""

    config: VTResNetConfig

    def __init__(self, config: VTResNetConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = ResNetBackbone(config.depth, stages=4, in_channels=config.in_channels)
        residual = list(self.backbone.residual_blocks())
        rates = drop_path_rates(config.drop_path, len(residual) + config.stage.blocks)
        set_drop_path(residual, rates)
        self.stage = VTStage(self.backbone.channels[-1], config.stage, rates[len(residual) :])
        self._make_head(config.stage.token_channels, config.num_classes, config.dropout)

    @property
    def token_strides(self) -> tuple[int, ...]:
        """Input pixels per cell of each block's token maps; cell i is centred at pixel ``stride * i``."""
        return (self.backbone.strides[-1],) * self.config.stage.blocks

    @property
    def token_names(self) -> tuple[str, ...]:
        """Name of each block's token maps."""
        return tuple(f"block{i}" for i in range(self.config.stage.blocks))

    def forward_features(self, x: Tensor) -> Tensor:
        """Image (N, in_channels, H, W), normalised -> the stage's output tokens (N, C_T, L)."""
        return self.stage(self.backbone(x)[-1])[-1].tokens

    def forward_head(self, tokens: Tensor, absent: Tensor | None = None) -> Tensor:
        """Tokens (N, C_T, L) -> logits (N, num_classes): the mean of the tokens that are there, dropout, linear."""
        if absent is None:
            mean = tokens.mean(dim=2)
        else:
            there = (~absent)[:, None, :].to(tokens.dtype)
            mean = (tokens * there).sum(dim=2) / there.sum(dim=2).clamp(min=1)
        return self.fc(self.dropout(mean))

    @property
    def tokenizers(self) -> list[Tokenizer]:
        """Each block's tokenizer."""
        return [block.tokenizer for block in self.stage.blocks]  # type: ignore[misc]

    def forward_edited(
        self,
        features: Sequence[Tensor],
        edits: Sequence[Edit | None],
        size: Sequence[int] = (),  # noqa: ARG002
    ) -> tuple[Tensor, list[BlockOutput]]:
        """Backbone outputs -> logits and every block's output, with tokens changed on the way.

        Args:
            features: of ``backbone``; the last one is read.
            edits: one a block, of the first blocks where there are fewer.
            size: of the image; only a segmentation model needs it.
        """
        outputs = self.stage(features[-1], edits)
        return self.forward_head(outputs[-1].tokens, outputs[-1].absent), outputs

    def forward(self, x: Tensor, *, return_maps: bool = False) -> Tensor | tuple[Tensor, list[BlockOutput]]:
        """Image (N, in_channels, H, W), normalised, any size from 1 x 1 -> logits (N, num_classes).

        With ``return_maps`` also every block's output, for compilation and export, where hooks do not reach.
        """
        if not return_maps:
            return self.forward_head(self.forward_features(x))
        outputs = self.stage(self.backbone(x)[-1])
        return self.forward_head(outputs[-1].tokens), outputs
