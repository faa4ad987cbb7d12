"""Recipes: everything that decides how a model is trained, by name, every field overridable."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from vtviz.data.loading import AUGMENTATIONS, parse_sizes
from vtviz.errors import ConfigError, did_you_mean

CHOICES = {
    "optimizer": ("adamw", "sgd", "nesterov", "rmsprop"),
    "schedule": ("cosine", "exponential", "poly", "step"),
    "augment": AUGMENTATIONS,
    "precision": ("32-true", "bf16-mixed", "16-mixed"),
}
"""Field -> the words that it takes."""
RANGES = {
    "epochs": ("from 1 to 100000", lambda v: 1 <= v <= 100_000),
    "batch_size": ("at least 1", lambda v: v >= 1),
    **dict.fromkeys(("lr", "temperature", "rmsprop_eps"), ("positive", lambda v: v > 0)),
    **dict.fromkeys(
        ("label_smoothing", "ema", "dropout", "drop_path", "momentum"), ("in [0, 1)", lambda v: 0 <= v < 1)
    ),
    **dict.fromkeys(
        ("crop_scale_min", "lr_decay", "layer_decay", "rmsprop_decay", "scale_min"), ("in (0, 1]", lambda v: 0 < v <= 1)
    ),
    **dict.fromkeys(("logit_weight", "warmup_from", "jitter", "class_balance"), ("in [0, 1]", lambda v: 0 <= v <= 1)),
    "scale_max": ("from 1 to 4", lambda v: 1 <= v <= 4),
    **dict.fromkeys(
        (
            "feature_weight",
            "feature_weight_end",
            "token_weight",
            "diversity_weight",
            "mixup",
            "clip",
            "weight_decay",
            "warmup_epochs",
        ),
        ("0 or more", lambda v: v >= 0),
    ),
    "seed": (f"from 0 to {2**32 - 1}", lambda v: 0 <= v < 2**32),
    "freeze": ("a number of stages from 0 to 5", lambda v: 0 <= v <= 5),
    "eval_size": ("from 32 to 1024 pixels", lambda v: 32 <= v <= 1024),
}
"""Field -> what its value must be, in words and as a test."""


@dataclass(frozen=True)
class Recipe:
    """What every task's recipe decides.

    Attributes:
        epochs: passes over the training images.
        batch_size: images an optimiser step, over all devices and accumulated micro-batches.
        optimizer: "adamw", "sgd", "nesterov" (SGD with Nesterov's momentum) or "rmsprop".
        lr: peak learning rate, for the whole batch.
        layer_decay: each level below the last layer (block, stage, stem) learns at this share of the rate of the one
            above; 1 is the same rate everywhere.
        weight_decay: of convolution and linear weights; norms and biases have none.
        momentum: of SGD and RMSProp.
        rmsprop_decay: of RMSProp's mean square.
        rmsprop_eps: added to RMSProp's root mean square, as PyTorch does (TensorFlow adds its square under the root).
        warmup_epochs: of a linear rise from ``warmup_from * lr``; may be a fraction.
        warmup_from: share of ``lr`` that the warm-up starts at.
        schedule: after the warm-up, "cosine" to zero; "exponential": times ``lr_decay`` an epoch; "poly": (1 - t)^0.9
            at the fraction t of all epochs; "step": times ``lr_decay`` at each of ``milestones``.
        lr_decay: factor of the exponential and the step schedule.
        milestones: of the step schedule, fractions of all epochs, e.g. "0.667,0.889".
        sizes: side of the training crops in pixels by progress, e.g. "64-96@0.5,128".
        eval_size: the page's input size: area eval_size squared, aspect kept.
        dropout: before the last layer.
        drop_path: stochastic depth of the last block.
        ema: decay of the averaged weights that are validated and saved; 0 is off.
        clip: largest gradient norm; 0 is off.
        precision: "32-true", "bf16-mixed" or "16-mixed".
        seed: of initialisation, order and augmentation.
        freeze: stages that are not trained, counted from the input as the paper does (1 is the stem; 4 the whole
            backbone of a VT-ResNet, 5 that of a segmentation model).
    """

    epochs: int = 30
    batch_size: int = 128
    optimizer: str = "adamw"
    lr: float = 2e-3
    layer_decay: float = 1.0
    weight_decay: float = 0.05
    momentum: float = 0.9
    rmsprop_decay: float = 0.9
    rmsprop_eps: float = 1e-3
    warmup_epochs: float = 1.0
    warmup_from: float = 0.01
    schedule: str = "cosine"
    lr_decay: float = 1.0
    milestones: str = ""
    sizes: str = "64-96@0.6,96-128"
    eval_size: int = 224
    dropout: float = 0.0
    drop_path: float = 0.0
    ema: float = 0.999
    clip: float = 1.0
    precision: str = "bf16-mixed"
    seed: int = 0
    freeze: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            _check_kind(field.name, field.default, getattr(self, field.name))
        for name, choices in CHOICES.items():
            if (value := getattr(self, name, choices[0])) not in choices:
                raise ConfigError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
        for name, (words, holds) in RANGES.items():
            if hasattr(self, name) and not holds(getattr(self, name)):  # NaN holds nowhere
                raise ConfigError(f"{name} must be {words}, got {getattr(self, name)}")
        parse_sizes(self.sizes)
        parse_milestones(self.milestones)

    def learning_rate(self, epoch: float) -> float:
        """Factor on ``lr`` after a (fractional) number of epochs."""
        if epoch < self.warmup_epochs:
            return self.warmup_from + (1 - self.warmup_from) * epoch / self.warmup_epochs
        past = epoch - self.warmup_epochs
        if self.schedule == "exponential":
            return float(self.lr_decay**past)
        if self.schedule == "step":
            return float(self.lr_decay ** sum(epoch >= self.epochs * m for m in parse_milestones(self.milestones)))
        if self.schedule == "poly":
            return float((1 - min(1.0, epoch / self.epochs)) ** 0.9)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, past / max(1e-9, self.epochs - self.warmup_epochs))))


@dataclass(frozen=True)
class ClassificationRecipe(Recipe):
    """How to train a classifier.

    Attributes:
        label_smoothing: share of the target spread over all classes.
        augment: see :func:`vtviz.data.loading.training_transform`.
        crop_scale_min: least share of the image's area that a random crop keeps.
        mixup: alpha of mixup (Zhang et al. 2018); 0 is off.
        feature_weight: weight of the normalised squared error to the teacher's stage outputs, at the start.
        feature_weight_end: the same at the end; linear between.
        logit_weight: weight of the KL divergence to the teacher's logits; the labels get 1 minus it.
        token_weight: weight of the KL divergence to the teacher's token coefficients A.
        diversity_weight: weight of :func:`vtviz.train.losses.map_redundancy`. Not the paper's: dynamic tokens whose
            queries are alike look at the same pixels, and nothing else drives them apart.
        temperature: of both softmaxes in the logits' KL divergence.
    """

    label_smoothing: float = 0.1
    augment: str = "crop"
    crop_scale_min: float = 0.25
    mixup: float = 0.0
    feature_weight: float = 1.0
    feature_weight_end: float = 0.2
    logit_weight: float = 0.7
    token_weight: float = 0.5
    diversity_weight: float = 0.0
    temperature: float = 2.0


@dataclass(frozen=True)
class SegmentationRecipe(Recipe):
    """How to train a segmentation model.

    Attributes:
        scale_min: an image's least random scale; 1 is the scale at which the model will see it (``eval_size``).
        scale_max: its largest.
        jitter: brightness, contrast and saturation are multiplied by factors within 1 ± this; 0 is off.
        class_balance: the loss weighs a class's pixels by the class's share of all pixels to the power of minus this:
            0 treats pixels alike, 1 classes.
    """

    batch_size: int = 8
    lr: float = 1e-3
    sizes: str = "256"
    eval_size: int = 416
    scale_min: float = 0.5
    scale_max: float = 2.0
    jitter: float = 0.4
    class_balance: float = 0.0


def parse_milestones(text: str) -> tuple[float, ...]:
    """Read ``"0.667,0.889"``.

    Raises:
        ConfigError: for anything but rising fractions.
    """
    try:
        values = tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        values = (-1.0,)
    if any(not low < high < 1 for low, high in zip((0.0, *values), values, strict=False)):
        raise ConfigError(f"milestones must be rising fractions of all epochs, e.g. 0.667,0.889, got {text!r}")
    return values


def _check_kind(name: str, default: Any, value: Any) -> None:
    numbers = (int, float) if isinstance(default, float) else (type(default),)
    if not isinstance(value, numbers) or isinstance(value, bool):
        kind = {int: "a whole number", float: "a number", str: "a word"}[type(default)]
        raise ConfigError(f"{name} must be {kind}, got {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{name} must be a finite number, got {value}")


_PAPER = ClassificationRecipe(
    epochs=400,  # Sec. 5.1
    batch_size=2048,  # Sec. 5.1, with batch norm synchronised over the devices
    optimizer="rmsprop",  # Sec. 5.1
    lr=0.16,  # Sec. 5.1: from 0.01 to 0.16 in 5 epochs, then times 0.9875 an epoch
    warmup_epochs=5,
    warmup_from=0.01 / 0.16,
    schedule="exponential",
    lr_decay=0.9875,
    augment="auto",  # Sec. 5.1: AutoAugment
    drop_path=0.1,  # Sec. 5.1: stochastic depth's survival probability is 0.9
    dropout=0.2,  # Sec. 5.1
    ema=0.99985,  # Sec. 5.1
    # From here on the paper is silent. Its optimiser, warm-up, decay (0.97 every 2.4 epochs is 0.9874 an epoch),
    # AutoAugment, dropout and survival probability are those of EfficientNet (Tan & Le 2019, Sec. 5.2), whose RMSProp
    # has decay 0.9, momentum 0.9 and weight decay 1e-5; the published code adds 0.001 under the root.
    rmsprop_decay=0.9,
    momentum=0.9,
    rmsprop_eps=0.001**0.5,
    weight_decay=1e-5,
    label_smoothing=0.1,  # Sec. 5.1 names it without a value: that of Szegedy et al. 2016, Sec. 7
    # random crops of 8 to 100 % of the area (Szegedy et al. 2015), torchvision's default; of photos that were shrunk to
    # 256 pixels on the short side, so that a small crop is of fewer pixels than the file has
    crop_scale_min=0.08,
    sizes="224",  # the input of Tables 1 and 3
    clip=0.0,  # no clipping is mentioned
    precision="bf16-mixed",  # ours; --set precision=32-true for float32
)

_DETECTRON2 = 90_000 / 118_287  # "1x" is 90,000 steps; COCO's train2017 has 118,287 images

RECIPES: dict[str, Recipe] = {
    # a 2-core machine: small pictures, half precision, minutes an epoch
    "small": ClassificationRecipe(),
    # how the shipped IN-109 models were trained
    "in109": ClassificationRecipe(
        epochs=64,
        batch_size=512,
        lr=3e-3,
        augment="jitter",
        mixup=0.2,
        sizes="96-128@0.5,128-176@0.85,176-224",
        clip=5.0,
    ),
    # a few epochs from a trained model, at the page's size; the lower a stage the more it fits any photo: the first two
    # stay as they are (Detectron2 freezes the same ones), the others move the less the lower they are
    "finetune": ClassificationRecipe(
        epochs=10, batch_size=64, lr=3e-4, layer_decay=0.7, freeze=2, warmup_epochs=0.5, sizes="160-224", ema=0.99
    ),
    # the paper's ImageNet training (Sec. 5.1): 8 GPUs, vtviz train --recipe imagenet_paper --devices 8
    "imagenet_paper": _PAPER,
    # the paper's ablations (Sec. 5.2): 90 epochs; it says of no other change
    "imagenet_ablation": replace(_PAPER, epochs=90),
    # a segmentation model from a classifier's backbone on a 2-core machine
    "segment_small": SegmentationRecipe(
        epochs=40,
        layer_decay=0.8,
        ema=0.99,
        sizes="192-256@0.7,256-320",
        scale_min=0.6,
        class_balance=0.5,
    ),
    "coco_stuff_paper": SegmentationRecipe(
        # Sec. 5.3: Detectron2's semantic FPN recipe with 1x training steps, batch 32, base learning rate 0.04, batch
        # norm synchronised. Taken at its word, 90,000 steps of 32 images; --epochs 12 sees as many images as 1x does.
        epochs=round(32 * _DETECTRON2),
        batch_size=32,
        lr=0.04,
        # From here on Detectron2's Base-RCNN-FPN and semantic R_50_FPN_1x: SGD without Nesterov, steps at 60,000 and
        # 80,000, 1,000 steps of warm-up from 0.001, weight decay 1e-4 (ours spares biases), stem and stage 2 frozen,
        # short side 640 to 800 in training (whole images there; here, crops of 640 at those scales) and 800 in
        # evaluation, where images of 4:3 have the area of 924 x 924.
        optimizer="sgd",
        weight_decay=1e-4,
        warmup_epochs=1000 * 32 / 118_287,
        warmup_from=0.001,
        schedule="step",
        lr_decay=0.1,
        milestones="0.6667,0.8889",
        sizes="640",
        eval_size=924,
        scale_min=0.8,
        scale_max=1.0,
        jitter=0.0,
        freeze=2,
        ema=0.0,
        clip=0.0,
    ),
    "lip_paper": SegmentationRecipe(
        # Sec. 5.3: SGD, learning rate 0.01, weight decay 5e-4, batch 96, batch norm synchronised; Table 4: 473 x 473
        batch_size=96,
        optimizer="sgd",
        lr=0.01,
        weight_decay=5e-4,
        sizes="473",
        eval_size=473,
        # From here on the paper is silent: 150 epochs and "poly" decay as CE2P on LIP (Ruan et al. 2019), which has the
        # same input and weight decay; the random scales are ours.
        epochs=150,
        schedule="poly",
        warmup_epochs=0.0,
        scale_min=0.75,
        scale_max=1.25,
        jitter=0.0,
        ema=0.0,
        clip=0.0,
    ),
}


def make_recipe(name: str | Recipe, **overrides: Any) -> Recipe:
    """The recipe ``name`` (or the recipe given) with fields replaced.

    Raises:
        ConfigError: for an unknown recipe or field, or a value that cannot work.
    """
    if isinstance(name, str):
        if name not in RECIPES:
            raise ConfigError(f"unknown recipe {name!r}{did_you_mean(name, RECIPES)}")
        name = RECIPES[name]
    _check_names(overrides, type(name))
    return replace(name, **overrides)


def recipe_from_dict(data: Mapping[str, Any]) -> Recipe:
    """A recipe from :func:`dataclasses.asdict`'s data, as run folders hold it: its fields tell its kind.

    Raises:
        ConfigError: for an unknown field, or a value that cannot work.
    """
    own = {f.name for f in fields(SegmentationRecipe)} - {f.name for f in fields(Recipe)}
    kind = SegmentationRecipe if own & set(data) else ClassificationRecipe
    _check_names(data, kind)
    return kind(**data)


def _check_names(data: Mapping[str, Any], kind: type[Recipe]) -> None:
    known = [f.name for f in fields(kind)]
    for key in data:
        if key not in known:
            raise ConfigError(f"recipes have no field {key!r}{did_you_mean(key, known)}")
