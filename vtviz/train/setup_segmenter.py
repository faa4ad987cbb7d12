"""Data and model of a run that trains a segmentation model."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.data import DataLoader
from tqdm import tqdm

from vtviz.data.classes import find_groups
from vtviz.data.folder import ClassList
from vtviz.data.joint import (
    SegmentationEvaluationSet,
    SegmentationTrainingSet,
    segmentation_loader,
)
from vtviz.data.loading import BatchPlan, training_loader
from vtviz.data.segmentation import SegmentationDataset, open_segmentation
from vtviz.errors import ConfigError, DataError
from vtviz.predictor import Predictor
from vtviz.train import setup
from vtviz.train.job import TrainingJob
from vtviz.train.recipes import SegmentationRecipe
from vtviz.train.segmenter import SegmenterTraining, class_weights

COUNTED_IMAGES = 2000
"""Training images whose labels are counted for the loss's class weights."""


def set_up_segmenter(job: TrainingJob) -> setup.Setup:
    """Open the images and masks, decode them, and build the model.

    Raises:
        DataError, ConfigError, CheckpointError, TrainingError: in one line.
    """
    recipe = cast("SegmentationRecipe", job.recipe)
    if job.teacher or job.classes_file or job.pixels == "device":
        raise ConfigError("--teacher, --classes and --pixels device are for classifiers")
    train = open_segmentation(job.data, "train", groups=job.groups).limit(job.limit, recipe.seed)
    val = open_segmentation(job.data, "val", groups=job.groups)
    val = val.limit(job.val_limit or (job.limit and max(1, job.limit // 4)), recipe.seed)
    classes = ClassList(train.classes, train.classes)
    name, model = setup.make_model(job, classes)
    setup.check_resumable(job, classes.ids, name, model)
    memory = setup.image_memory(job.devices)
    _decode(val, "val", memory - _decode(train, "train", memory), check=True)
    card = setup.make_card(job, name, model, classes, len(train), len(val))
    groups = {k: list(v) for k, v in find_groups(job.groups).items()} if job.groups else None
    predictor = Predictor(model, classes=classes.names, preprocessing=card.preprocessing)

    def training(plan: BatchPlan, accelerator: str, workers: int) -> Any:
        scale = (recipe.scale_min, recipe.scale_max)
        data = SegmentationTrainingSet(
            train, eval_size=recipe.eval_size, scale=scale, jitter=recipe.jitter, seed=recipe.seed
        )
        return training_loader(data, plan, workers=workers, pin=accelerator == "cuda")

    def validation(batch_size: int, workers: int, rank: int, world: int) -> DataLoader:
        data = SegmentationEvaluationSet(val, predictor.fit)
        return segmentation_loader(data, batch_size, workers=workers, rank=rank, world=world)

    weights = torch.ones(len(classes))
    if recipe.class_balance > 0:
        weights = class_weights(_count_pixels(train, recipe.seed), recipe.class_balance)
    return setup.Setup(
        module=SegmenterTraining(model, recipe, card.preprocessing, weights),
        card=replace(card, palette=train.palette, groups=groups),
        length=len(train),
        training=training,
        validation=validation,
        probe=val[0][0].permute(1, 2, 0).contiguous().numpy(),
        skipped=[],
        heavy=[model.backbone, model.neck, model.head],
    )


def _decode(data: SegmentationDataset, what: str, memory: float, *, check: bool = False) -> float:
    """Keep the split's pixels, where they fit, and say how many bytes they take; a wrong file is found here then.

    ``check``: find it here where they do not fit, too.
    """
    keep = (size := data.estimate_bytes()) <= memory
    if not (keep or check):
        return 0.0
    quiet = getattr(rank_zero_only, "rank", 0) != 0
    doing = "decoding" if keep else "checking"
    with tqdm(total=len(data), desc=f"{doing} {what}", unit="img", leave=False, disable=quiet) as bar:
        if keep:
            data.preload(lambda done, _: bar.update(done - bar.n))
            return size
        for index in range(len(data)):
            data[index]
            bar.update()
    return 0.0


def _count_pixels(data: SegmentationDataset, seed: int) -> torch.Tensor:
    """(classes,) int64: how many pixels each class has in the split, or in a random part of a large one."""
    counts = np.zeros(256, np.int64)
    for index in np.random.default_rng(seed).permutation(len(data))[:COUNTED_IMAGES]:
        with suppress(DataError):  # of too many, the training set tells
            counts += np.bincount(data[int(index)][1].numpy().ravel(), minlength=256)
    return torch.from_numpy(counts[: len(data.classes)])
