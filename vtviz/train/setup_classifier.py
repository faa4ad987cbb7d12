"""Data and model of a run that trains a classifier."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from typing import Any, cast

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.data import DataLoader
from tqdm import tqdm

from vtviz.data.device import DeviceLoader
from vtviz.data.folder import ImageList, open_folder, read_class_names
from vtviz.data.loading import BatchPlan, EvaluationSet, TrainingSet, evaluation_loader, parse_sizes, training_loader
from vtviz.data.store import PixelStore
from vtviz.errors import ConfigError
from vtviz.models.vt_resnet import VTResNet
from vtviz.predictor import Predictor
from vtviz.train import setup
from vtviz.train.classifier import ClassifierTraining
from vtviz.train.job import TrainingJob
from vtviz.train.recipes import ClassificationRecipe
from vtviz.train.teachers import load_teacher

SHORT_SIDE = 256
"""Decoded images are kept with a short side of this, the usual one for crops of 224 pixels; of more for larger ones."""


def set_up_classifier(job: TrainingJob) -> setup.Setup:
    """Open the image folder, decode it, and build the model and its teacher.

    Raises:
        DataError, ConfigError, CheckpointError, TrainingError: in one line.
    """
    recipe = cast("ClassificationRecipe", job.recipe)
    if job.groups is not None:
        raise ConfigError(f"--groups is for segmentation, got {job.groups!r}")
    names = read_class_names(job.classes_file) if job.classes_file else None
    train = open_folder(job.data, "train", names=names, seed=recipe.seed).limit(job.limit, recipe.seed)
    val = open_folder(job.data, "val", classes=train.classes, seed=recipe.seed)
    val = val.limit(job.val_limit or (job.limit and max(1, job.limit // 4)), recipe.seed)
    name, model = setup.make_model(job, train.classes)
    setup.check_resumable(job, train.classes.ids, name, model)
    teacher = None if job.teacher is None else load_teacher(job.teacher, train.classes)
    if teacher is not None and not teacher.has_to_say(model):
        raise ConfigError(
            f"{teacher.name} has nothing to teach {name}: no stage of theirs is equally wide, and they share fewer "
            "than two classes"
        )
    memory = setup.image_memory(job.devices)
    train_store = _decode(train, "train", recipe, memory)
    val_store = _decode(val, "val", recipe, memory - train_store.nbytes, check=True)
    card = setup.make_card(job, name, model, train.classes, len(train_store), len(val_store))
    predictor = Predictor(model, classes=train.classes.names, preprocessing=card.preprocessing)

    def training(plan: BatchPlan, accelerator: str, workers: int) -> Any:
        crop_scale = (recipe.crop_scale_min, 1.0)
        if job.pixels == "device":
            gpu = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            device = gpu if accelerator == "cuda" else torch.device(accelerator)
            return DeviceLoader(
                train_store, train.targets, plan, augment=recipe.augment, crop_scale=crop_scale, device=device
            )
        data = TrainingSet(train_store, train.targets, augment=recipe.augment, crop_scale=crop_scale, seed=recipe.seed)
        return training_loader(data, plan, workers=workers, pin=accelerator == "cuda")

    def validation(batch_size: int, workers: int, rank: int, world: int) -> DataLoader:
        data = EvaluationSet(val_store, val.targets, predictor.fit)
        return evaluation_loader(data, batch_size, workers=workers, rank=rank, world=world)

    return setup.Setup(
        module=ClassifierTraining(model, recipe, card.preprocessing, teacher=teacher),
        card=replace(card, teacher=teacher.name if teacher else None),
        length=len(train_store),
        training=training,
        validation=validation,
        probe=val_store[0].permute(1, 2, 0).contiguous().numpy(),
        skipped=[*train_store.skipped, *val_store.skipped],
        heavy=[model.backbone, model.stage] if isinstance(model, VTResNet) else [model.backbone],
    )


def short_side(recipe: ClassificationRecipe) -> int:
    """Pixels that an image's short side keeps: as many more than the largest crop as 256 are than 224."""
    largest = max(recipe.eval_size, *(step.high for step in parse_sizes(recipe.sizes)))
    return max(SHORT_SIDE, math.ceil(largest * 256 / 224))


def _decode(
    images: ImageList, what: str, recipe: ClassificationRecipe, memory: float, *, check: bool = False
) -> PixelStore:
    quiet = getattr(rank_zero_only, "rank", 0) != 0
    with tqdm(total=len(images), desc=f"decoding {what}", unit="img", leave=False, disable=quiet) as bar:
        return PixelStore(
            images.paths,
            short_side=short_side(recipe),
            memory=memory,
            check=check,
            progress=lambda done, _: bar.update(done - bar.n),
        )
