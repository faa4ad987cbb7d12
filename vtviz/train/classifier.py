"""The Lightning module that trains a classifier, with or without a teacher."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2

from vtviz.checkpoints import Preprocessing
from vtviz.data.loading import mix_seed
from vtviz.models.resnet import Classifier
from vtviz.models.vt_resnet import VTResNet
from vtviz.statistics import map_statistics, summarize
from vtviz.train.recipes import Recipe
from vtviz.train.teachers import Targets, Teacher

STATISTICS_IMAGES = 256
"""Validation images whose token maps are summarised after each epoch."""


class ClassifierTraining(L.LightningModule):
    """Labels, and a teacher's features, logits and token coefficients where there is one.

    Batches are images (N, 3, s, s), uint8 or float in [0, 1], with targets (N,).
    """

    def __init__(
        self, model: Classifier, recipe: Recipe, preprocessing: Preprocessing, *, teacher: Teacher | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.recipe = recipe
        self._teacher = [teacher] if teacher is not None else []  # in a list: no part of this module's state
        self.preprocessing = preprocessing
        self.frozen = self._freeze()
        self._losses: dict[str, list[Tensor]] = {}
        self._hits = torch.zeros(3)
        self._maps: list[list[np.ndarray]] = []

    @property
    def teacher(self) -> Teacher | None:
        """The network that is distilled from."""
        return self._teacher[0] if self._teacher else None

    def _freeze(self) -> list[nn.Module]:
        """Stop the gradients of the first stages; their batch norms keep their statistics too."""
        backbone = self.model.backbone
        stem = [backbone.conv1, backbone.bn1]
        frozen: list[nn.Module] = [*stem, *backbone.residual_stages()[: self.recipe.freeze - 1]] if self.recipe.freeze else []
        for module in frozen:
            module.requires_grad_(False)
        return frozen

    def on_train_epoch_start(self) -> None:
        """Keep frozen stages in eval mode: Lightning has just put everything into training mode."""
        self._losses = {}
        for module in self.frozen:
            module.eval()
        if self.teacher is not None:
            self.teacher.to(self.device).to(memory_format=torch.channels_last)

    def normalise(self, images: Tensor) -> Tensor:
        """Images in [0, 1] -> the network's input, channels last."""
        return self.preprocessing.normalize(images).contiguous(memory_format=torch.channels_last)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """One micro-batch; every random number in it depends on seed, epoch, batch and process alone."""
        recipe = self.recipe
        torch.manual_seed(mix_seed(recipe.seed, self.current_epoch, batch_idx, self.global_rank))
        images, targets = batch
        if images.dtype == torch.uint8:
            images = images.float().div_(255)
        if recipe.mixup > 0:
            images, targets = v2.MixUp(alpha=recipe.mixup, num_classes=self.model.fc.out_features)(images, targets)
        said = self.teacher(images) if self.teacher is not None else Targets(None, None, None)

        features = self.model.backbone(self.normalise(images))
        if isinstance(self.model, VTResNet):
            blocks = self.model.stage(features[-1])
            coefficients = [block.tokenizer.coefficients for block in blocks]
            logits = self.model.forward_head(blocks[-1].tokens)
        else:
            coefficients = []
            logits = self.model.forward_head(features[-1])
        logits = logits.float()

        label_loss = F.cross_entropy(logits, targets, label_smoothing=recipe.label_smoothing)
        parts = {"label": label_loss}
        loss = label_loss
        if said.logits is not None and recipe.logit_weight > 0:
            shared = logits if self.teacher.shared == list(range(logits.shape[1])) else logits[:, self.teacher.shared]
            parts["logits"] = soft_divergence(shared, said.logits.float(), recipe.temperature)
            loss = (1 - recipe.logit_weight) * label_loss + recipe.logit_weight * parts["logits"]
        if said.features is not None and (weight := self._feature_weight()) > 0 and recipe.freeze < 4:
            pairs = list(zip(features, said.features, strict=False))
            parts["features"] = torch.stack([relative_error(own, target) for own, target in pairs]).mean()
            loss = loss + weight * parts["features"]
        if said.coefficients is not None and coefficients and recipe.token_weight > 0:
            parts["tokens"] = coefficient_divergence(coefficients, said.coefficients)
            loss = loss + recipe.token_weight * parts["tokens"]
        if coefficients and recipe.diversity_weight > 0:
            parts["diversity"] = torch.stack([map_correlation(maps) for maps in coefficients]).mean()
            loss = loss + recipe.diversity_weight * parts["diversity"]
        for name, value in {"train": loss, **parts}.items():
            self._losses.setdefault(name, []).append(value.detach())
        self.log("loss", loss.detach(), prog_bar=True)
        return loss

    def _feature_weight(self) -> float:
        start, end = self.recipe.feature_weight, self.recipe.feature_weight_end
        return start + (end - start) * self.current_epoch / max(1, self.recipe.epochs - 1)

    def on_validation_epoch_start(self) -> None:
        """Begin counting."""
        self._hits = torch.zeros(3, device=self.device)
        self._maps = []

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:  # noqa: ARG002
        """Count top-1 and top-5 hits; keep the first images' token maps."""
        images, targets = batch
        x = self.normalise(images)
        if isinstance(self.model, VTResNet):
            logits, blocks = self.model(x, return_maps=True)
            if sum(len(m[0]) for m in self._maps) < STATISTICS_IMAGES:
                self._maps.append([b.tokenizer.coefficients.mean(dim=1).float().cpu().numpy() for b in blocks])
        else:
            logits = self.model(x)
        best = logits.float().topk(min(5, logits.shape[1])).indices == targets[:, None]
        self._hits += torch.stack([best[:, 0].sum(), best.any(dim=1).sum(), torch.tensor(len(best), device=best.device)])

    def on_validation_epoch_end(self) -> None:
        """Log the epoch's losses, accuracy and, for each block, whether its tokens look at anything."""
        for name, values in self._losses.items():
            self.log(f"loss/{name}", torch.stack(values).mean())
        hits = self.trainer.strategy.reduce(self._hits, reduce_op="sum")
        self.log("val/top1", float(hits[0] / hits[2]), prog_bar=True)
        self.log("val/top5", float(hits[1] / hits[2]))
        for number, statistics in enumerate(self.token_statistics()):
            for name, value in statistics.items():
                self.log(f"tokens/block{number}_{name}", value)

    def token_statistics(self) -> list[dict[str, float]]:
        """Mean peak (× uniform), pairwise correlation and dead tokens of each block over the validation's first images."""
        return [
            summarize([map_statistics(image) for batch in block for image in batch])
            for block in zip(*self._maps, strict=True)
        ]

    def configure_optimizers(self) -> Any:
        """The recipe's optimiser and, per step, its learning rate."""
        recipe = self.recipe
        decayed = [p for p in self.model.parameters() if p.requires_grad and p.ndim > 1]
        plain = [p for p in self.model.parameters() if p.requires_grad and p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        optimizer: torch.optim.Optimizer
        if recipe.optimizer == "adamw":
            optimizer = torch.optim.AdamW(groups, lr=recipe.lr)
        elif recipe.optimizer == "sgd":
            optimizer = torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.momentum > 0)
        else:
            optimizer = torch.optim.RMSprop(groups, lr=recipe.lr, momentum=recipe.momentum)
        steps = max(1, math.ceil(self.trainer.estimated_stepping_batches / recipe.epochs))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: recipe.learning_rate(step / steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def soft_divergence(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) of softened logits (N, k) (Hinton et al. 2015, Sec. 2)."""
    own = F.log_softmax(logits / temperature, dim=1)
    wanted = F.log_softmax(target / temperature, dim=1)
    return F.kl_div(own, wanted, reduction="batchmean", log_target=True) * temperature**2


def relative_error(own: Tensor, target: Tensor) -> Tensor:
    """Squared error of a feature map over the target's variance about its channels' means: 1 says "only the mean"."""
    own, target = own.float(), target.float()
    spread = (target - target.mean(dim=(0, 2, 3), keepdim=True)).square().mean()
    return (own - target).square().mean() / spread.clamp_min(1e-6)


def coefficient_divergence(own: list[Tensor], target: list[Tensor]) -> Tensor:
    """Mean KL(teacher's A || student's A) over maps and blocks, in nats; both (N, heads, tokens, h, w)."""
    losses = [
        (t * (t.clamp_min(1e-12).log() - o.clamp_min(1e-12).log())).flatten(3).sum(dim=-1).mean()
        for o, t in zip(own, target, strict=True)
        if o.shape == t.shape
    ]
    return torch.stack(losses).mean() if losses else own[0].new_zeros(())


def map_correlation(coefficients: Tensor) -> Tensor:
    """Mean squared correlation between the maps of a block's tokens: (N, heads, tokens, h, w) -> scalar in [0, 1]."""
    maps = coefficients.mean(dim=1).flatten(2)
    directions = F.normalize(maps - maps.mean(dim=-1, keepdim=True), dim=-1)
    square = (directions @ directions.transpose(1, 2)).square()
    tokens = maps.shape[1]
    return (square.sum(dim=(1, 2)) - tokens).mean() / max(1, tokens * (tokens - 1))
