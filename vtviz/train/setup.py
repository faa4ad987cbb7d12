"""What a task brings to a run, and how its model starts."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from torch.utils.data import DataLoader

from vtviz import checkpoints
from vtviz.backbones import create_model
from vtviz.card import Card, Preprocessing
from vtviz.data.folder import ClassList
from vtviz.data.loading import BatchPlan
from vtviz.errors import CheckpointError, ConfigError, DataError
from vtviz.models.registry import config_to_dict, find_entry, model_from_config
from vtviz.models.resnet import Classifier
from vtviz.models.vt_fpn import Segmenter
from vtviz.train.job import STATE, TrainingJob, read_job
from vtviz.train.module import Training
from vtviz.train.recipes import RECIPES, Recipe, SegmentationRecipe

MEMORY = 12 * 2**30
"""Bytes of decoded images that a machine keeps at most, shared among its processes."""
FIXED = ("optimizer", "freeze", "layer_decay", "seed")
"""Fields of a recipe that a run's state is of. The seed says which images of a folder without splits are trained on."""
RATES = ("dropout", "drop_path")
"""Fields of a model's configuration that come from the recipe, and leave no trace in its weights."""
LAST_LAYER = {"classification": "fc.", "segmentation": "head.predictor."}
"""Task -> what the names of its last layer's weights begin with."""


@dataclass(frozen=True)
class Setup:
    """What a task brings to a run.

    Attributes:
        module: the model with its training steps.
        card: of the weights that the run will write.
        length: training images.
        training: the batches of a plan, on an accelerator, with so many data-loading processes.
        validation: (images a batch, data-loading processes, rank, processes in all) -> batches.
        probe: the image, (H, W, 3) uint8, whose token maps are kept after each epoch.
        skipped: files that could not be read.
        heavy: the parts of the model that are worth compiling.
    """

    module: Training
    card: Card
    length: int
    training: Callable[[BatchPlan, str, int], Any]
    validation: Callable[[int, int, int, int], DataLoader]
    probe: np.ndarray
    skipped: list[str]
    heavy: list[nn.Module]


def image_memory(devices: int) -> float:
    """Bytes of decoded images that each of a machine's processes may keep: of half of its memory, its part.

    Not of the memory that is free: what is kept must not differ between the processes of a run, or when it is resumed.
    """
    half = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2 if hasattr(os, "sysconf") else MEMORY
    return min(MEMORY, half) / devices


def task_of(job: TrainingJob) -> str:
    """What the job's recipe trains: "classification" or "segmentation"."""
    return _recipe_task(job.recipe)


def _recipe_task(recipe: Recipe) -> str:
    return "segmentation" if isinstance(recipe, SegmentationRecipe) else "classification"


def make_model(job: TrainingJob, classes: ClassList) -> tuple[str, Any]:
    """The network to train and its registry name: from scratch, from a checkpoint, or on a classifier's backbone.

    Raises:
        ConfigError: for a model that the recipe cannot train, or options that a start takes from its checkpoint.
        CheckpointError: where the start is not there or damaged.
    """
    options = {"num_classes": len(classes), "dropout": job.recipe.dropout, "drop_path": job.recipe.drop_path}
    if job.start is None:
        _check_task(job, job.model, model_task(job.model))
        return job.model, create_model(job.model, job.preset, weights=job.weights, **{**job.model_options, **options})
    old, card = checkpoints.load(job.start)
    if card.task == "classification" and model_task(job.model) == "segmentation":
        _check_task(job, job.model, "segmentation")
        if job.weights:
            raise ConfigError("a segmentation model starts from a classifier or from --weights, not from both")
        segmenter = create_model(job.model, job.preset, **{**job.model_options, **options})
        _take_backbone(segmenter, old, card.name)
        return job.model, segmenter
    if job.model_options or job.preset or job.weights:
        raise ConfigError("a run that starts from a checkpoint takes its model: no --preset, --option or --weights")
    _check_task(job, card.name, card.task)
    model = model_from_config(card.model, {**card.config, **options})
    last = LAST_LAYER[card.task]
    kept = {k: v for k, v in old.state_dict().items() if card.class_ids == classes.ids or not k.startswith(last)}
    model.load_state_dict({**model.state_dict(), **kept})
    return card.model, model


def model_task(name: str) -> str:
    """The task of a model of the registry. Raises ConfigError for an unknown one."""
    build = find_entry(name).build
    return "segmentation" if isinstance(build, type) and issubclass(build, Segmenter) else "classification"


def _check_task(job: TrainingJob, name: str, task: str) -> None:
    if task != task_of(job):
        fitting = [key for key, recipe in RECIPES.items() if _recipe_task(recipe) == task]
        raise ConfigError(
            f"{name} is a {task} model, but the recipe is for {task_of(job)}; recipes for it: {', '.join(fitting)}"
        )


def _take_backbone(segmenter: Any, classifier: Any, name: str) -> None:
    """Copy a classifier's backbone; a VT-ResNet has no stage 5, which then starts from random weights."""
    own, given = segmenter.backbone, classifier.backbone
    if own.depth != given.depth:
        raise ConfigError(f"{name} has a ResNet-{given.depth} backbone, the model a ResNet-{own.depth}")
    if own.stride_in_1x1 != given.stride_in_1x1:
        raise ConfigError(
            f"{name} has a backbone with stride_in_1x1={given.stride_in_1x1}, the model one with {own.stride_in_1x1}: "
            "it would fit, and fail"
        )
    try:
        own.load_state_dict({**own.state_dict(), **given.state_dict()})
    except RuntimeError as error:
        raise CheckpointError(f"{name}: {' '.join(str(error).split())}") from None


def make_card(
    job: TrainingJob, name: str, model: Classifier | Segmenter, classes: ClassList, n_train: int, n_val: int
) -> Card:
    """The card of the run's weights, as far as it is known before training."""
    return Card(
        name=Path(job.out).resolve().name,
        model=name,
        config=config_to_dict(model.config),
        classes=classes.names,
        class_ids=classes.ids,
        preprocessing=Preprocessing(size=job.recipe.eval_size),
        task=task_of(job),
        data={"name": Path(job.data).resolve().name, "n_train": n_train, "n_val": n_val, "terms": job.terms},
        recipe={**asdict(job.recipe), **started_from(job.start)},
        seed=job.recipe.seed,
    )


def started_from(start: str | None) -> dict[str, Any]:
    """What a card's recipe says of the run that this one went on from; nothing for a run from scratch."""
    if start is None:
        return {}
    before = checkpoints.read_card(checkpoints.find(start))
    said = {"name": before.name, "data": before.data, "recipe": before.recipe, "teacher": before.teacher}
    return {"started_from": {**said, "epochs": before.epochs}}


def check_resumable(job: TrainingJob, class_ids: Sequence[str], name: str, model: Classifier | Segmenter) -> None:
    """Raise an error where a run that goes on would get other classes, another model or optimiser than its state's.

    Args:
        job: to go on with.
        class_ids: of its data.
        name: of its model in the registry.
        model: from :func:`make_model`.
    """
    out = Path(job.out)
    if not (out / STATE).is_file():
        return
    before = read_job(out)
    recipe = before.recipe
    card = checkpoints.read_card(out / "last.safetensors")
    if card.class_ids != tuple(class_ids):
        differ = sorted(set(card.class_ids) ^ set(class_ids))
        raise DataError(
            f"the run in {out} has {len(card.class_ids)} classes, {job.data} has {len(class_ids)}; "
            f"they differ in {', '.join(differ[:3]) or 'their order'}"
        )
    kept = [(field, getattr(recipe, field), getattr(job.recipe, field)) for field in FIXED]
    kept += [("start", before.start, job.start), ("weights", before.weights, job.weights)]
    kept += [("averaging", _averaging(recipe), _averaging(job.recipe)), ("model", card.model, name)]
    if card.model == name:
        was_built, is_built = _flat(card.config), _flat(config_to_dict(model.config))
        kept += [(key, value, is_built.get(key)) for key, value in was_built.items() if key not in RATES]
    for field, was, now in kept:
        if was != now:
            raise ConfigError(f"a resumed run cannot change its {field}: it has {was}, got {now}")


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with the fields of its parts beside its own."""
    return {
        k: v for name, value in config.items() for k, v in (value if isinstance(value, dict) else {name: value}).items()
    }


def _averaging(recipe: Recipe) -> str:
    return "an average of its weights (ema)" if recipe.ema > 0 else "no average of its weights (ema)"
