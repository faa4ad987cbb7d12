"""The Lightning module that trains a segmentation model."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vtviz import scores
from vtviz.card import Preprocessing
from vtviz.data.segmentation import IGNORE
from vtviz.models.vt_fpn import VTFPN, Segmenter
from vtviz.train.module import Training
from vtviz.train.recipes import SegmentationRecipe


class SegmenterTraining(Training):
    """Cross-entropy of every labelled pixel. Targets are (N, h, w) int64, 255 being ignored."""

    model: Segmenter
    recipe: SegmentationRecipe
    score = "val/miou"
    class_weights: Tensor

    def __init__(
        self, model: Segmenter, recipe: SegmentationRecipe, preprocessing: Preprocessing, class_weights: Tensor
    ) -> None:
        """``class_weights``: (classes,) float32, what a pixel of each class counts in the loss."""
        super().__init__(model, recipe, preprocessing)
        self.register_buffer("class_weights", class_weights, persistent=False)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """One micro-batch."""
        self.begin_step(batch_idx)
        images, targets = batch
        if images.dtype == torch.uint8:
            images = images.float().div_(255)
        logits = self.model(self.normalise(images)).float()
        loss = F.cross_entropy(logits, targets, self.class_weights, ignore_index=IGNORE, reduction="sum")
        weight = self.class_weights[targets[targets != IGNORE]].sum()
        loss = loss / weight.clamp(min=1e-6)  # a crop without a single labelled pixel has no mean
        return self.end_step(loss, {"label": loss}, images, targets, batch_idx)

    def on_validation_epoch_start(self) -> None:
        """Begin counting."""
        self.begin_validation(self.model.config.num_classes)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:  # noqa: ARG002
        """Count pixels at the labels' own size; keep the first images' token maps."""
        images, targets = batch
        x = self.normalise(images)
        if isinstance(self.model, VTFPN):
            logits, blocks = self.model(x, return_maps=True)
            self.keep_maps([block.tokenizer.coefficients for block in blocks])
        else:
            logits = self.model(x)
        logits = F.interpolate(logits.float(), size=targets.shape[-2:], mode="bilinear", align_corners=False)
        counts = scores.confusion(logits.argmax(dim=1).cpu().numpy(), targets.cpu().numpy(), len(self.confusion))
        self.confusion += torch.from_numpy(counts).to(self.confusion.device)

    def on_validation_epoch_end(self) -> None:
        """Log the epoch's losses, mean IoU and token statistics."""
        self.end_validation()
        counts = self.confusion.cpu().numpy()
        self.log("val/miou", float(scores.mean_iou(counts)), prog_bar=True)
        self.log("val/pixel_accuracy", scores.pixel_accuracy(counts))

    def accuracy(self, metrics: dict[str, float]) -> dict[str, Any]:
        """Mean IoU and pixel accuracy as shares."""
        return {"miou": metrics["val/miou"], "pixel_accuracy": metrics["val/pixel_accuracy"]}


def class_weights(pixels: Tensor, balance: float) -> Tensor:
    """What a pixel of each class counts: its class's share of all pixels to the power of -balance.

    Args:
        pixels: (classes,) how many pixels each class has in the training set.
        balance: 0 counts pixels alike, 1 classes.

    Returns:
        (classes,) float32, whose mean over all pixels is 1. A class without pixels, which may be among the images that
        were not counted, has the largest one.
    """
    share = pixels.double() / pixels.sum().clamp(min=1)
    least = share[share > 0].min() if share.any() else 1.0
    weights = share.clamp(min=least) ** -balance
    return (weights / (weights * share).sum().clamp(min=1e-12)).float()
