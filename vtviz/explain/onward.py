"""From one image's backbone on, again and again, with its tokens changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from vtviz.models.visual_transformer import BlockOutput, Edit


class Onward:
    """One image's backbone output, from which a model goes on.

    Args:
        model: a VT-ResNet or a VT-FPN.
        x: (1, 3, h, w), normalised.
    """

    def __init__(self, model: Any, x: Tensor) -> None:
        self.model, self._size = model, x.shape[-2:]
        self._features = model.backbone(x.to(next(model.parameters()).dtype))

    def forward(self, edits: Sequence[Edit | None], rows: int = 1) -> tuple[Tensor, list[BlockOutput]]:
        """Logits and every layer's output for ``rows`` copies of the image, each with its row of the edits.

        ``edits``: one a layer, of the first layers where there are fewer.
        """
        features = [feature.expand(rows, -1, -1, -1) for feature in self._features]
        return self.model.forward_edited(features, edits, self._size)
