"""What changing a token does to a model's answer: measured against the answer before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from vtviz import scores
from vtviz.errors import ConfigError
from vtviz.geometry import Geometry


@dataclass(frozen=True, eq=False)
class ClassEffects:
    """What changing each token of a layer does to a classifier's answer; NaN (-1) where the mode does not apply.

    Attributes:
        logit: (L,) float32, change of the target's logit.
        probability: (L,) float32, change of its probability.
        top1: (L,) int64, the most probable class then.
    """

    logit: np.ndarray
    probability: np.ndarray
    top1: np.ndarray

    def __len__(self) -> int:
        """Tokens."""
        return len(self.logit)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data, with None for what does not apply."""
        return {
            "logit": plain(self.logit),
            "probability": plain(self.probability),
            "top1": [None if i < 0 else i for i in self.top1.tolist()],
        }


@dataclass(frozen=True, eq=False)
class AreaEffects:
    """What changing each token of a layer does to a segmentation; NaN where the mode does not apply.

    Attributes:
        areas: (L, C) float32, change of each class's share of the pixels.
        changed: (L,) float32, share of the pixels that get another class.
        iou: (L, C) float32, change of each class's IoU with the mask given; NaN also for a class that is neither in the
            mask nor predicted, before or after. None without a mask.
    """

    areas: np.ndarray
    changed: np.ndarray
    iou: np.ndarray | None = None

    def __len__(self) -> int:
        """Tokens."""
        return len(self.changed)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data, with None for what does not apply."""
        iou = None if self.iou is None else [plain(row) for row in self.iou]
        return {"areas": [plain(row) for row in self.areas], "changed": plain(self.changed), "iou": iou}


Effects = ClassEffects | AreaEffects


class ClassJudge:
    """Compares a classifier's logits with those before."""

    def __init__(self, logits: Tensor, target: int) -> None:
        self.logits, self.target = logits, target
        self.probability = float(logits.softmax(0)[target])
        self.top1 = int(logits.argmax())

    def judge(self, logits: Tensor) -> tuple[float, float, int]:
        """Change of the target's logit and probability, and the most probable class: of logits (classes,)."""
        change = float(logits[self.target] - self.logits[self.target])
        return change, float(logits.softmax(0)[self.target]) - self.probability, int(logits.argmax())

    def collect(self, answers: Sequence[tuple[int, Any]], count: int) -> ClassEffects:
        """The effects from (token, judgement) pairs; of several for one token, the mean."""
        logit, probability = _mean_by_token(answers, count, lambda a: a[:2], 2).T.astype(np.float32)
        top1 = np.full(count, -1, np.int64)
        for token, (_, _, best) in reversed(answers):  # of several draws, the first
            top1[token] = best
        return ClassEffects(logit, probability, top1)


class AreaJudge:
    """Compares a segmentation's labels, at the model's input size, with those before and with the truth."""

    def __init__(self, logits: Tensor, truth: np.ndarray | None, fitted: Geometry) -> None:
        self.classes = logits.shape[1]
        self.labels = logits[0].argmax(dim=0).cpu().numpy()
        self.areas = self._areas(self.labels)
        self.truth = None if truth is None else _at_input(truth, fitted)
        self.iou = self._iou(self.labels)

    def _areas(self, labels: np.ndarray) -> np.ndarray:
        return (np.bincount(labels.ravel(), minlength=self.classes) / labels.size).astype(np.float32)

    def _iou(self, labels: np.ndarray) -> np.ndarray | None:
        return None if self.truth is None else scores.iou(scores.confusion(labels, self.truth, self.classes))

    def judge(self, logits: Tensor) -> tuple[np.ndarray, float, np.ndarray | None]:
        """Change of the areas, share of changed pixels, change of the IoU: of logits (classes, h, w)."""
        labels = logits.argmax(dim=0).cpu().numpy()
        iou = self._iou(labels)
        change = None if iou is None or self.iou is None else iou - self.iou
        return self._areas(labels) - self.areas, float((labels != self.labels).mean()), change

    def collect(self, answers: Sequence[tuple[int, Any]], count: int) -> AreaEffects:
        """The effects from (token, judgement) pairs; of several for one token, the mean."""
        areas = _mean_by_token(answers, count, lambda a: a[0], self.classes)
        changed = _mean_by_token(answers, count, lambda a: [a[1]], 1)[:, 0]
        iou = None if self.truth is None else _mean_by_token(answers, count, lambda a: a[2], self.classes)
        parts = [each if each is None else each.astype(np.float32) for each in (areas, changed, iou)]
        return AreaEffects(*parts)  # type: ignore[arg-type]


def _mean_by_token(
    answers: Sequence[tuple[int, Any]], count: int, part: Callable[[Any], Any], width: int
) -> np.ndarray:
    """(count, width) float64: each token's mean over those of its draws that have a value; NaN where none has."""
    total, times = np.zeros((count, width)), np.zeros((count, width))
    for token, answer in answers:
        values = np.asarray(part(answer), np.float64)
        total[token] += np.nan_to_num(values)
        times[token] += ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return total / times


def _at_input(truth: np.ndarray, fitted: Geometry) -> np.ndarray:
    """A mask of the image, (H, W), at the pixels of the model's input: the nearest ones."""
    if truth.shape != fitted.original:
        raise ConfigError(f"the mask has {truth.shape} pixels, but the image has {fitted.original}")
    y, x = fitted.to_original(np.arange(fitted.input[0]), np.arange(fitted.input[1]))
    rows, columns = (np.clip(np.rint(p).astype(int), 0, n - 1) for p, n in ((y, truth.shape[0]), (x, truth.shape[1])))
    return truth[np.ix_(rows, columns)]


def plain(values: np.ndarray) -> list[float | None]:
    """JSON's numbers, with None for NaN."""
    return [None if np.isnan(v) else float(v) for v in values]
