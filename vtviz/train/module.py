"""What training every model has in common: frozen stages, optimiser and schedule, and the end of a diverging run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from vtviz.card import Preprocessing
from vtviz.data.loading import mix_seed
from vtviz.errors import TrainingError
from vtviz.models.resnet import Classifier
from vtviz.models.vt_fpn import Segmenter
from vtviz.models.vt_resnet import VTResNet
from vtviz.statistics import map_statistics, summarize
from vtviz.train.job import goes_on
from vtviz.train.recipes import Recipe

BAD_BATCH = "bad_batch.safetensors"
"""Where a batch that made the loss infinite or NaN is kept, in the run folder."""
STATISTICS_IMAGES = 256
"""Validation images whose token maps are summarised after each epoch."""


class Training(L.LightningModule):
    """A model under a recipe. A task adds the steps and says what its validation measured.

    Batches are images (N, 3, h, w), uint8 or float in [0, 1], with targets.

    Attributes:
        confusion: of the last validation, (classes, classes) int64: rows are right classes, columns predicted ones.
        tokens: of the last validation, each layer's mean peak (× uniform), pairwise correlation and dead tokens over
            its first images.
    """

    score: str
    """The metric whose best value picks the weights that are kept."""

    def __init__(self, model: Classifier | Segmenter, recipe: Recipe, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.model = model
        self.recipe = recipe
        self.preprocessing = preprocessing
        self.levels = levels(model)
        frozen = self.levels[: min(recipe.freeze, model.backbone.stages)]
        self.frozen: list[nn.Module] = [module for stage in frozen for module in stage]
        for module in self.frozen:
            module.requires_grad_(False)
        self.confusion = torch.zeros(0, 0, dtype=torch.int64)
        self.tokens: dict[str, dict[str, float]] = {}
        self._losses: dict[str, list[Tensor]] = {}
        self._unchecked: tuple[Tensor, Tensor, Tensor, int] | None = None
        self._maps: list[list[np.ndarray]] = []
        self._steps = 1

    def accuracy(self, metrics: dict[str, float]) -> dict[str, Any]:
        """What the card says of a validation whose logged metrics are these."""
        raise NotImplementedError

    def normalise(self, images: Tensor) -> Tensor:
        """Images in [0, 1] -> the network's input, channels last."""
        return self.preprocessing.normalize(images).contiguous(memory_format=torch.channels_last)

    def on_train_start(self) -> None:
        """Let the recipe's rates and decays hold where a run goes on: its state would bring those it had before.

        It counts steps, too, of which an epoch may have had another number.
        """
        scheduler: Any = self.lr_schedulers()
        scheduler.last_epoch = self.trainer.current_epoch * self._steps
        scheduler.base_lrs = [group["lr"] for group in self._parameter_groups()]
        factor = scheduler.lr_lambdas[0](scheduler.last_epoch)
        for group, wanted in zip(scheduler.optimizer.param_groups, self._parameter_groups(), strict=True):
            group |= {"initial_lr": wanted["lr"], "lr": wanted["lr"] * factor, "weight_decay": wanted["weight_decay"]}

    def on_train_epoch_start(self) -> None:
        """Keep frozen stages in eval mode: Lightning has just put everything into training mode."""
        self._losses = {}
        for module in self.frozen:
            module.eval()

    def begin_step(self, batch_idx: int) -> None:
        """Make every random number of a step depend on seed, epoch and the micro-batch's number alone."""
        self.check_last()
        number = batch_idx * self.trainer.world_size + self.global_rank  # as one process would count it
        torch.manual_seed(mix_seed(self.recipe.seed, self.current_epoch, number))

    def end_step(
        self, loss: Tensor, parts: dict[str, Tensor], images: Tensor, targets: Tensor, batch_idx: int
    ) -> Tensor:
        """Keep a step's loss for the log and its batch until the loss has been looked at; returns the loss."""
        for name, value in {"train": loss, **parts}.items():
            self._losses.setdefault(name, []).append(value.detach())
        self._unchecked = (loss.detach(), images, targets, batch_idx)
        self.log("loss", loss.detach(), prog_bar=True)
        return loss

    def check_last(self) -> None:
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
            f"the loss became {value} in epoch {self.current_epoch + 1}, batch {batch_idx + 1}, which is in {file}: "
            f"lower --lr{goes_on(file.parent)}"
        )

    def begin_validation(self, classes: int) -> None:
        """Begin counting."""
        self.check_last()
        self.confusion = torch.zeros(classes, classes, dtype=torch.int64, device=self.device)
        self._maps = []

    def keep_maps(self, coefficients: list[Tensor]) -> None:
        """Keep the first images' maps, a layer's being (N, heads, tokens, h, w), for :attr:`tokens`."""
        if sum(len(m[0]) for m in self._maps) < STATISTICS_IMAGES:
            self._maps.append([maps.mean(dim=1).float().cpu().numpy() for maps in coefficients])

    def end_validation(self) -> None:
        """Log the epoch's losses and, for each layer, whether its tokens look at anything; add up the confusion."""
        for name, values in self._losses.items():
            self.log(f"loss/{name}", torch.stack(values).mean(), sync_dist=True)
        self.confusion = cast("Tensor", self.trainer.strategy.reduce(self.confusion, reduce_op="sum"))
        names = getattr(self.model, "token_names", ())
        self.tokens = {
            names[i] if names else f"block{i}": summarize([map_statistics(image) for batch in layer for image in batch])
            for i, layer in enumerate(zip(*self._maps, strict=True))
        }
        for name, statistics in self.tokens.items():
            for key, value in statistics.items():
                self.log(f"tokens/{name}_{key}", value)

    def configure_optimizers(self) -> Any:
        """The recipe's optimiser and, per step, its learning rate."""
        recipe = self.recipe
        groups = self._parameter_groups()
        optimizer: torch.optim.Optimizer
        if recipe.optimizer == "adamw":
            optimizer = torch.optim.AdamW(groups, lr=recipe.lr)
        elif recipe.optimizer in {"sgd", "nesterov"}:
            optimizer = torch.optim.SGD(
                groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.optimizer == "nesterov"
            )
        else:
            optimizer = torch.optim.RMSprop(
                groups, lr=recipe.lr, momentum=recipe.momentum, alpha=recipe.rmsprop_decay, eps=recipe.rmsprop_eps
            )
        self._steps = max(1, math.ceil(self.trainer.estimated_stepping_batches / recipe.epochs))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: recipe.learning_rate(step / self._steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """Trained parameters by level and by whether weight decay is for them; the head first, whose rate is logged."""
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {}  # as many for any decay: a state knows their number
        for depth, level in enumerate(reversed(self.levels)):
            rate = self.recipe.lr * self.recipe.layer_decay**depth
            for parameter in (p for module in level for p in module.parameters() if p.requires_grad):
                groups.setdefault((rate, parameter.ndim > 1), []).append(parameter)
        return [
            {"params": members, "lr": rate, "weight_decay": self.recipe.weight_decay if decays else 0.0}
            for (rate, decays), members in groups.items()
        ]


def levels(model: Classifier | Segmenter) -> list[list[nn.Module]]:
    """A model's modules from input to output: the stem, each residual stage, each VT block or the neck, the last layer.

    A recipe's ``freeze`` counts them as the paper counts stages (the stem is stage 1); each one's learning rate is
    ``layer_decay`` times that of the next.
    """
    backbone = model.backbone
    middle: list[nn.Module] = []
    if isinstance(model, VTResNet):
        middle = list(model.stage.blocks)
    elif isinstance(model, Segmenter):
        middle = [model.neck]
    last = model.head if isinstance(model, Segmenter) else model.fc
    stages = [[stage] for stage in backbone.residual_stages()]
    return [[backbone.conv1, backbone.bn1], *stages, *([m] for m in middle), [last]]
