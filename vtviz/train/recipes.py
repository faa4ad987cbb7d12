"""Recipes: everything that decides how a classifier is trained, by name, every field overridable and saved with the run."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

from vtviz.data.loading import AUGMENTATIONS, parse_sizes
from vtviz.errors import ConfigError, did_you_mean

OPTIMIZERS = ("adamw", "sgd", "rmsprop")
SCHEDULES = ("cosine", "exponential")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


@dataclass(frozen=True)
class Recipe:
    """How to train a classifier.

    Attributes:
        epochs: passes over the training images.
        batch_size: images an optimiser step, over all devices and accumulated micro-batches.
        optimizer: "adamw", "sgd" (Nesterov) or "rmsprop".
        lr: peak learning rate, for the whole batch.
        weight_decay: of convolution and linear weights; norms and biases have none.
        momentum: of SGD and RMSProp.
        warmup_epochs: of a linear rise from ``warmup_from * lr``; may be a fraction.
        warmup_from: share of ``lr`` that the warm-up starts at.
        schedule: after the warm-up, "cosine" to zero, or "exponential": times ``lr_decay`` an epoch.
        lr_decay: factor an epoch of the exponential schedule.
        label_smoothing: share of the target spread over all classes.
        augment: see :func:`vtviz.data.loading.training_transform`.
        crop_scale_min: least share of the image's area that a random crop keeps.
        mixup: alpha of mixup (Zhang et al. 2018); 0 is off.
        sizes: side of the training crops in pixels by progress, e.g. "64-96@0.5,128".
        eval_size: the page's input size: area eval_size squared, aspect kept.
        dropout: before the last layer.
        drop_path: stochastic depth of the last block.
        ema: decay of the averaged weights that are validated and saved; 0 is off.
        clip: largest gradient norm; 0 is off.
        precision: "32-true", "bf16-mixed" or "16-mixed".
        seed: of initialisation, order and augmentation.
        freeze: residual stages that are not trained, counted from the input as the paper does (4: the whole backbone
            of a VT-ResNet).
        feature_weight: weight of the normalised squared error to the teacher's stage outputs, at the start.
        feature_weight_end: the same at the end; linear between.
        logit_weight: weight of the KL divergence to the teacher's logits; the labels get 1 minus it.
        token_weight: weight of the KL divergence to the teacher's token coefficients A.
        diversity_weight: weight of the mean squared correlation between the token maps of a block (heads' mean). Not the
            paper's: dynamic tokens whose queries are alike look at the same pixels, and nothing else drives them apart.
        temperature: of both softmaxes in the logits' KL divergence.
    """

    epochs: int = 30
    batch_size: int = 128
    optimizer: str = "adamw"
    lr: float = 2e-3
    weight_decay: float = 0.05
    momentum: float = 0.9
    warmup_epochs: float = 1.0
    warmup_from: float = 0.01
    schedule: str = "cosine"
    lr_decay: float = 1.0
    label_smoothing: float = 0.1
    augment: str = "crop"
    crop_scale_min: float = 0.25
    mixup: float = 0.0
    sizes: str = "64-96@0.6,96-128"
    eval_size: int = 224
    dropout: float = 0.0
    drop_path: float = 0.0
    ema: float = 0.999
    clip: float = 1.0
    precision: str = "bf16-mixed"
    seed: int = 0
    freeze: int = 0
    feature_weight: float = 1.0
    feature_weight_end: float = 0.2
    logit_weight: float = 0.7
    token_weight: float = 0.5
    diversity_weight: float = 0.0
    temperature: float = 2.0

    def __post_init__(self) -> None:
        for name, choices in (
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("augment", AUGMENTATIONS),
            ("precision", PRECISIONS),
        ):
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("label_smoothing", "ema", "dropout", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        for name in ("feature_weight", "feature_weight_end", "token_weight", "diversity_weight", "mixup", "clip", "weight_decay"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.logit_weight <= 1:
            raise ConfigError(f"logit_weight must be in [0, 1], got {self.logit_weight}")
        if not 0 < self.crop_scale_min <= 1:
            raise ConfigError(f"crop_scale_min must be in (0, 1], got {self.crop_scale_min}")
        if self.lr <= 0 or self.temperature <= 0:
            raise ConfigError(f"lr and temperature must be positive, got {self.lr} and {self.temperature}")
        if self.freeze not in {0, 1, 2, 3, 4, 5}:
            raise ConfigError(f"freeze must be a number of stages from 0 to 5, got {self.freeze}")
        parse_sizes(self.sizes)

    def learning_rate(self, epoch: float) -> float:
        """Factor on ``lr`` after a (fractional) number of epochs."""
        if epoch < self.warmup_epochs:
            return self.warmup_from + (1 - self.warmup_from) * epoch / self.warmup_epochs
        past = epoch - self.warmup_epochs
        if self.schedule == "exponential":
            return float(self.lr_decay**past)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, past / max(1e-9, self.epochs - self.warmup_epochs))))


RECIPES: dict[str, Recipe] = {
    # a 2-core machine: small pictures, half precision, minutes an epoch
    "small": Recipe(),
    # how the shipped IN-109 models were trained
    "in109": Recipe(
        epochs=64,
        batch_size=512,
        lr=3e-3,
        augment="jitter",
        mixup=0.2,
        sizes="96-128@0.5,128-176@0.85,176-224",
        clip=5.0,
    ),
    # a few epochs from a trained model, at the page's size
    "finetune": Recipe(epochs=10, batch_size=64, lr=3e-4, warmup_epochs=0.5, sizes="160-224", ema=0.99),
}


def make_recipe(name: str, **overrides: Any) -> Recipe:
    """The recipe ``name`` with fields replaced.

    Raises:
        ConfigError: for an unknown recipe or field, or a value that cannot work.
    """
    if name not in RECIPES:
        raise ConfigError(f"unknown recipe {name!r}{did_you_mean(name, RECIPES)}")
    known = [f.name for f in fields(Recipe)]
    for key in overrides:
        if key not in known:
            raise ConfigError(f"recipes have no field {key!r}{did_you_mean(key, known)}")
    return replace(RECIPES[name], **overrides)
