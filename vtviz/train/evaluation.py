"""Scoring a classifier on labelled folders, with images prepared exactly as the predictor prepares them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vtviz.data.folder import ClassList, open_folder
from vtviz.data.loading import EvaluationSet, evaluation_loader
from vtviz.data.store import PixelStore
from vtviz.engines import check_device
from vtviz.errors import ConfigError
from vtviz.predictor import Predictor, load_model
from vtviz.statistics import LayerStatistics, map_statistics, summarize
from vtviz.train.setup import image_memory

TOKEN_IMAGES = 512
"""Images whose token maps are summarised beside the accuracy, spread evenly over the split."""


@dataclass(frozen=True)
class ClassScore:
    """One class: how many images it has and the share of them that the model got right."""

    id: str
    name: str
    n: int
    top1: float


@dataclass(frozen=True)
class Evaluation:
    """What a classifier scores on a split.

    Attributes:
        model: checkpoint name.
        data: folder name.
        split: its part.
        size: input size; the input's area is about size x size pixels.
        crop: None or "center".
        n: images scored.
        top1: share of images whose most probable class is the right one.
        top5: share of images whose right class is among the five most probable.
        tokens: per block: mean peak (× uniform), mean pairwise correlation of the maps, dead tokens (mean peak below
            1.5), over images spread evenly over the split.
        per_class: every class that has images.
        skipped: files that could not be read.
    """

    model: str
    data: str
    split: str
    size: int
    crop: str | None
    n: int
    top1: float
    top5: float
    tokens: dict[str, dict[str, float]]
    per_class: tuple[ClassScore, ...]
    skipped: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return asdict(self)

    def table(self) -> str:
        """For people: the totals, the token statistics, the classes from worst to best."""
        half = 1.96 * (self.top1 * (1 - self.top1) / self.n) ** 0.5
        lines = [
            f"{self.model} on {self.data}/{self.split}, {self.n} images at {self.size} px",
            f"top-1 {100 * self.top1:.2f} % (95 % interval ± {100 * half:.2f})   top-5 {100 * self.top5:.2f} %",
        ]
        lines += [
            f"{name}: peak {s['peak']:.2f} × uniform, correlation {s['correlation']:.2f}, dead tokens {s['dead']}"
            for name, s in self.tokens.items()
        ]
        lines += [f"{len(self.skipped)} files could not be read; first: {self.skipped[0]}"] if self.skipped else []
        lines += [f"{100 * c.top1:6.1f} %  {c.n:5d}  {c.name}" for c in sorted(self.per_class, key=lambda c: c.top1)]
        return "\n".join(lines)


def evaluate_classifier(
    model: str | Predictor,
    data: str | Path,
    *,
    split: str = "val",
    size: int | None = None,
    crop: str | None = None,
    limit: int | None = None,
    batch_size: int = 64,
    device: str | None = None,
    workers: int = 0,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Evaluation:
    """Score ``model`` on ``data/split``, whose folders reach the model's classes by id or name.

    Args:
        model: a checkpoint's name or path, a run folder, or a loaded predictor.
        data: image folder.
        split: folder below it.
        size: model input size; None for the model's own.
        crop: None for whole images, "center" for the paper's crop.
        limit: score a random subset of at most this many images.
        batch_size: images at once.
        device: "cpu", "cuda", "cuda:1", "mps"; None or "auto" for a GPU if there is one.
        workers: data-loading processes.
        progress: called with (what is done, images done, images in all).

    Raises:
        CheckpointError, DataError, ConfigError: in one line.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
    predictor = model if isinstance(model, Predictor) else load_model(model, pick_device(device))
    if predictor.card is not None and predictor.card.task != "classification":
        raise ConfigError(f"{predictor.name} is a {predictor.card.task} model; top-1 is for classifiers")
    ids = predictor.card.class_ids if predictor.card else predictor.classes
    seed = (predictor.card and predictor.card.seed) or 0  # a folder without splits: what training kept apart
    images = open_folder(data, split, classes=ClassList(ids, predictor.classes), seed=seed).limit(limit)
    store = PixelStore(images.paths, memory=image_memory(1), check=True, progress=partial(progress, "decoding"))
    loader = evaluation_loader(
        EvaluationSet(store, images.targets, partial(predictor.fit, size=size, crop=crop)), batch_size, workers=workers
    )
    ranks: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    statistics: list[list[LayerStatistics]] = [[] for _ in predictor.strides]
    stride = max(1, len(store) // TOKEN_IMAGES)
    done = 0
    for batch, wanted in loader:
        logits, layers = predictor.forward(batch)
        top = logits.float().topk(min(5, logits.shape[1])).indices.cpu().numpy()
        hit = top == wanted.numpy()[:, None]
        ranks.append(np.where(hit.any(axis=1), hit.argmax(axis=1), 5))
        targets.append(wanted.numpy())
        picked = [i for i in range(len(wanted)) if (done + i) % stride == 0]
        for layer, collected in zip(layers, statistics, strict=True):
            maps = layer.tokenizer.coefficients[picked].mean(dim=1).cpu().numpy()
            collected += [map_statistics(image) for image in maps]
        done += len(wanted)
        progress("scoring", done, len(store))
    rank, target = np.concatenate(ranks), np.concatenate(targets)
    return Evaluation(
        model=predictor.name,
        data=Path(data).resolve().name,
        split=split,
        size=size or predictor.preprocessing.size,
        crop=crop,
        n=len(rank),
        top1=float((rank == 0).mean()),
        top5=float((rank < 5).mean()),
        tokens={name: summarize(s) for name, s in zip(predictor.layer_names, statistics, strict=True)},
        per_class=tuple(
            ClassScore(ids[c], predictor.classes[c], int((target == c).sum()), float((rank[target == c] == 0).mean()))
            for c in np.unique(target).tolist()
        ),
        skipped=tuple(store.skipped),
    )


def pick_device(name: str | None) -> str:
    """The device that ``name`` means: "auto" or None is a GPU where there is one.

    Raises:
        ConfigError: for a device that is not to be had here.
    """
    if name is None or name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return check_device(name)
