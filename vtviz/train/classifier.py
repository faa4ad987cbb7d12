"""The Lightning module that trains a classifier, with or without a teacher."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2

from vtviz.checkpoints import Preprocessing
from vtviz.data.loading import mix_seed
from vtviz.errors import TrainingError
from vtviz.models.resnet import Classifier
from vtviz.models.vt_resnet import VTResNet
from vtviz.statistics import map_statistics, summarize
from vtviz.train.losses import coefficient_divergence, map_redundancy, relative_error, soft_divergence
from vtviz.train.recipes import Recipe
from vtviz.train.teachers import Targets, Teacher

STATISTICS_IMAGES = 256
"""Validation images whose token maps are summarised after each epoch."""
BAD_BATCH = "bad_batch.safetensors"
"""Where a batch that made the loss infinite or NaN is kept, in the run folder."""


class ClassifierTraining(L.LightningModule):
    """Labels, and a teacher's features, logits and token coefficients where there is one.

    Batches are images (N, 3, s, s), uint8 or float in [0, 1], with targets (N,).

    Attributes:
        confusion: of the last validation, (classes, classes) int64: rows are right classes, columns predicted ones.
    """

    def __init__(
        self, model: Classifier, recipe: Recipe, preprocessing: Preprocessing, *, teacher: Teacher | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.recipe = recipe
        self._teacher = [teacher] if teacher is not None else []  # in a list: no part of this module's state
        self.preprocessing = preprocessing
        self.levels = levels(model)
        self.frozen: list[nn.Module] = [
            m for stage in self.levels[: min(recipe.freeze, model.backbone.stages)] for m in stage
        ]
        for module in self.frozen:
            module.requires_grad_(False)
        self.confusion = torch.zeros(0, 0, dtype=torch.int64)
        self._losses: dict[str, list[Tensor]] = {}
        self._unchecked: tuple[Tensor, Tensor, Tensor, int] | None = None
        self._hits = torch.zeros(3)
        self._maps: list[list[np.ndarray]] = []

    @property
    def teacher(self) -> Teacher | None:
        """The network that is distilled from."""
        return self._teacher[0] if self._teacher else None

    def on_train_start(self) -> None:
        """Let the recipe's rates and decays hold where a run goes on: its state would bring those it had before."""
        scheduler: Any = self.lr_schedulers()
        scheduler.base_lrs = [group["lr"] for group in self._parameter_groups()]
        factor = scheduler.lr_lambdas[0](scheduler.last_epoch)
        for group, wanted in zip(scheduler.optimizer.param_groups, self._parameter_groups(), strict=True):
            group |= {"initial_lr": wanted["lr"], "lr": wanted["lr"] * factor, "weight_decay": wanted["weight_decay"]}

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
        """One micro-batch; every random number in it depends on seed, epoch and the micro-batch's number alone."""
        recipe = self.recipe
        self._check_last()
        number = batch_idx * self.trainer.world_size + self.global_rank  # as one process would count it
        torch.manual_seed(mix_seed(recipe.seed, self.current_epoch, number))
        images, targets = batch
        if images.dtype == torch.uint8:
            images = images.float().div_(255)
        labels = targets
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
        for name, value in {"train": loss, **parts}.items():
            self._losses.setdefault(name, []).append(value.detach())
        self._unchecked = (loss.detach(), images, labels, batch_idx)
        self.log("loss", loss.detach(), prog_bar=True)
        return loss

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
            parts["features"] = torch.stack([relative_error(own, target) for own, target in pairs]).mean()
            extra = extra + weight * parts["features"]
        if said.coefficients is not None and coefficients and recipe.token_weight > 0:
            parts["tokens"] = coefficient_divergence(coefficients, said.coefficients)
            extra = extra + recipe.token_weight * parts["tokens"]
        return extra

    def _check_last(self) -> None:
        """Stop where the last step's loss was not finite; asked a step late, so that a GPU need not be waited for.

        Raises:
            TrainingError: naming the epoch, the batch and the file that holds it.
        """
        if self._unchecked is None:
            return
        loss, images, targets, batch_idx = self._unchecked
        self._unchecked = None
        if math.isfinite(value := float(loss)):
            return
        file = Path(self.trainer.default_root_dir) / BAD_BATCH
        kept = {"images": images.contiguous().cpu(), "targets": targets.contiguous().cpu()}
        safetensors.torch.save_file(kept, file)
        raise TrainingError(
            f"the loss became {value} in epoch {self.current_epoch + 1}, batch {batch_idx + 1}, which is in {file}; "
            "the epochs before are kept: lower --lr, and --resume goes on from there"
        )

    def on_validation_epoch_start(self) -> None:
        """Begin counting."""
        self._check_last()
        classes = self.model.fc.out_features
        self._hits = torch.zeros(3, device=self.device)
        self.confusion = torch.zeros(classes, classes, dtype=torch.int64, device=self.device)
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
        best = logits.float().topk(min(5, logits.shape[1])).indices
        hit = best == targets[:, None]
        self._hits += torch.stack([hit[:, 0].sum(), hit.any(dim=1).sum(), hit.new_tensor(len(hit), dtype=torch.int64)])
        pairs = targets * len(self.confusion) + best[:, 0]
        self.confusion += torch.bincount(pairs, minlength=self.confusion.numel()).view_as(self.confusion)

    def on_validation_epoch_end(self) -> None:
        """Log the epoch's losses, accuracy and, for each block, whether its tokens look at anything."""
        for name, values in self._losses.items():
            self.log(f"loss/{name}", torch.stack(values).mean(), sync_dist=True)
        reduce = self.trainer.strategy.reduce
        hits = reduce(self._hits, reduce_op="sum")
        self.confusion = cast("Tensor", reduce(self.confusion, reduce_op="sum"))
        self.log("val/top1", float(hits[0] / hits[2]), prog_bar=True)
        self.log("val/top5", float(hits[1] / hits[2]))
        for number, statistics in enumerate(self.token_statistics()):
            for name, value in statistics.items():
                self.log(f"tokens/block{number}_{name}", value)

    def token_statistics(self) -> list[dict[str, float]]:
        """Each block's mean peak (× uniform), pairwise correlation and dead tokens over the first images validated."""
        return [
            summarize([map_statistics(image) for batch in block for image in batch])
            for block in zip(*self._maps, strict=True)
        ]

    def configure_optimizers(self) -> Any:
        """The recipe's optimiser and, per step, its learning rate."""
        recipe = self.recipe
        groups = self._parameter_groups()
        optimizer: torch.optim.Optimizer
        if recipe.optimizer == "adamw":
            optimizer = torch.optim.AdamW(groups, lr=recipe.lr)
        elif recipe.optimizer == "sgd":
            optimizer = torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.momentum > 0)
        else:
            optimizer = torch.optim.RMSprop(
                groups, lr=recipe.lr, momentum=recipe.momentum, alpha=recipe.rmsprop_decay, eps=recipe.rmsprop_eps
            )
        steps = max(1, math.ceil(self.trainer.estimated_stepping_batches / recipe.epochs))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: recipe.learning_rate(step / steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """Trained parameters by level and by whether weight decay is for them; the head first, whose rate is logged."""
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for depth, level in enumerate(reversed(self.levels)):
            rate = self.recipe.lr * self.recipe.layer_decay**depth
            for parameter in (p for module in level for p in module.parameters() if p.requires_grad):
                decay = self.recipe.weight_decay if parameter.ndim > 1 else 0.0
                groups.setdefault((rate, decay), []).append(parameter)
        return [{"params": members, "lr": rate, "weight_decay": decay} for (rate, decay), members in groups.items()]


def levels(model: Classifier) -> list[list[nn.Module]]:
    """A classifier's modules from input to output: the stem, each residual stage, each VT block, the last layer.

    A recipe's ``freeze`` counts them as the paper counts stages (the stem is stage 1); each one's learning rate is
    ``layer_decay`` times that of the next.
    """
    backbone = model.backbone
    blocks = list(model.stage.blocks) if isinstance(model, VTResNet) else []
    return [
        [backbone.conv1, backbone.bn1],
        *([stage] for stage in backbone.residual_stages()),
        *([block] for block in blocks),
        [model.fc],
    ]
