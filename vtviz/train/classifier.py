"""The Lightning module that trains a classifier, with or without a teacher."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from vtviz.card import Preprocessing
from vtviz.models.resnet import Classifier
from vtviz.models.vt_resnet import VTResNet
from vtviz.train.losses import coefficient_divergence, map_redundancy, relative_error, soft_divergence
from vtviz.train.module import Training
from vtviz.train.recipes import ClassificationRecipe
from vtviz.train.teachers import Targets, Teacher


class ClassifierTraining(Training):
    """Labels, and a teacher's features, logits and token coefficients where there is one. Targets are (N,) int64."""

    model: Classifier
    recipe: ClassificationRecipe
    score = "val/top1"

    def __init__(
        self,
        model: Classifier,
        recipe: ClassificationRecipe,
        preprocessing: Preprocessing,
        *,
        teacher: Teacher | None = None,
    ) -> None:
        super().__init__(model, recipe, preprocessing)
        self._teacher = [teacher] if teacher is not None else []  # in a list: no part of this module's state
        self._hits = torch.zeros(3)

    @property
    def teacher(self) -> Teacher | None:
        """The network that is distilled from."""
        return self._teacher[0] if self._teacher else None

    def on_train_epoch_start(self) -> None:
        """Put the teacher where the model is."""
        super().on_train_epoch_start()
        if self.teacher is not None:
            self.teacher.to(self.device).to(memory_format=torch.channels_last)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """One micro-batch; every random number in it depends on seed, epoch and the micro-batch's number alone."""
        recipe = self.recipe
        self.begin_step(batch_idx)
        images, targets = batch
        if images.dtype == torch.uint8:
            images = images.float().div_(255)
        if recipe.mixup > 0:
            images, targets = v2.MixUp(alpha=recipe.mixup, num_classes=self.model.fc.out_features)(images, targets)
        features, coefficients, logits = self._forward(self.normalise(images))
        parts = {"label": F.cross_entropy(logits, targets, label_smoothing=recipe.label_smoothing)}
        loss = parts["label"]
        if coefficients and recipe.diversity_weight > 0:
            parts["diversity"] = torch.stack([map_redundancy(maps) for maps in coefficients]).mean()
            loss = loss + recipe.diversity_weight * parts["diversity"]
        if self.teacher is not None:
            loss = loss + self._distil(self.teacher, self.teacher(images), features, coefficients, logits, parts)
        return self.end_step(loss, parts, images, targets, batch_idx)

    def _forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Stage outputs, each block's token coefficients (none for a plain ResNet), and logits (N, classes) float32."""
        features = self.model.backbone(x)
        if not isinstance(self.model, VTResNet):
            return features, [], self.model.forward_head(features[-1]).float()  # type: ignore[operator]
        blocks = self.model.stage(features[-1])
        coefficients = [block.tokenizer.coefficients for block in blocks]
        return features, coefficients, self.model.forward_head(blocks[-1].tokens).float()

    def _distil(
        self,
        teacher: Teacher,
        said: Targets,
        features: list[Tensor],
        coefficients: list[Tensor],
        logits: Tensor,
        parts: dict[str, Tensor],
    ) -> Tensor:
        """What the teacher's targets add to the loss; each part goes into ``parts``."""
        recipe = self.recipe
        extra = logits.new_zeros(())
        if said.logits is not None and recipe.logit_weight > 0:
            shared = logits if teacher.shared == list(range(logits.shape[1])) else logits[:, teacher.shared]
            parts["logits"] = soft_divergence(shared, said.logits.float(), recipe.temperature)
            extra = extra + recipe.logit_weight * (parts["logits"] - parts["label"])
        progress = self.current_epoch / max(1, recipe.epochs - 1)
        weight = recipe.feature_weight + (recipe.feature_weight_end - recipe.feature_weight) * progress
        if said.features is not None and weight > 0 and recipe.freeze < 4:
            pairs = zip(features, said.features, strict=False)
            errors = [relative_error(own, target) for own, target in pairs if own.shape == target.shape]
            if errors:  # another ResNet's stages may all be wider
                parts["features"] = torch.stack(errors).mean()
                extra = extra + weight * parts["features"]
        if said.coefficients is not None and coefficients and recipe.token_weight > 0:
            parts["tokens"] = coefficient_divergence(coefficients, said.coefficients)
            extra = extra + recipe.token_weight * parts["tokens"]
        return extra

    def on_validation_epoch_start(self) -> None:
        """Begin counting."""
        self.begin_validation(self.model.fc.out_features)
        self._hits = torch.zeros(3, device=self.device)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:  # noqa: ARG002
        """Count top-1 and top-5 hits; keep the first images' token maps."""
        images, targets = batch
        x = self.normalise(images)
        if isinstance(self.model, VTResNet):
            logits, blocks = self.model(x, return_maps=True)
            self.keep_maps([block.tokenizer.coefficients for block in blocks])
        else:
            logits = self.model(x)
        best = logits.float().topk(min(5, logits.shape[1])).indices
        hit = best == targets[:, None]
        self._hits += torch.stack([hit[:, 0].sum(), hit.any(dim=1).sum(), hit.new_tensor(len(hit), dtype=torch.int64)])
        pairs = targets * len(self.confusion) + best[:, 0]
        self.confusion += torch.bincount(pairs, minlength=self.confusion.numel()).view_as(self.confusion)

    def on_validation_epoch_end(self) -> None:
        """Log the epoch's losses, accuracy and token statistics."""
        hits = self.trainer.strategy.reduce(self._hits, reduce_op="sum")
        self.log("val/top1", float(hits[0] / hits[2]), prog_bar=True)
        self.log("val/top5", float(hits[1] / hits[2]))
        self.end_validation()

    def accuracy(self, metrics: dict[str, float]) -> dict[str, Any]:
        """Top-1 and top-5 as shares."""
        return {"top1": metrics["val/top1"], "top5": metrics["val/top5"]}
