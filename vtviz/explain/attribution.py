"""Which pixels speak for a class: Captum's methods and the tokens' own, on one image, one class and one geometry.

Two methods go through the tokens (:mod:`vtviz.explain.token_attribution`); three do not
(:mod:`vtviz.explain.captum_methods`), so that they check the others and work for models without tokens. With the
default settings all five take some 7 s of one CPU core for a VT-ResNet-18 at 224 px.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vtviz import geometry as geo
from vtviz.explain.explainer import METHODS, STEPS, Explainer, check_methods, rank_correlation
from vtviz.explain.origin import origin
from vtviz.explain.target import choose_target
from vtviz.export import publish, staged
from vtviz.images import ImageSource
from vtviz.images import load as load_image
from vtviz.predictor import Predictor

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Attribution:
    """What one method says.

    Attributes:
        method: a key of :data:`METHODS`.
        map: (H, W) float32 at the original image's size, drawn where the network looked; NaN where a crop cut it off.
        cells: (h, w) float32, the same in cells of 16 pixels of the model's input, in which methods compare.
        signed: whether values below 0 occur and speak against the class.
        tokens: layer name -> what each of its tokens adds to the score, (L,) float64, kept tokens first; None for
            methods that do not go through the tokens. The map is that of the last layer; of a VT-FPN, of all levels.
        total: sum of the attributions that make up the map; None where it means nothing.
        difference: what it should be by completeness, score(input) - score(baseline); None where a method promises
            nothing. Baselines are zero tokens, and an image of the mean colour.
        seconds: that it took.
    """

    method: str
    map: np.ndarray
    cells: np.ndarray
    signed: bool
    tokens: Mapping[str, np.ndarray] | None
    total: float | None
    difference: float | None
    seconds: float

    @property
    def completeness_error(self) -> float | None:
        """How far ``total`` lies from ``difference``, in the score's unit; None where nothing is promised."""
        return None if self.total is None or self.difference is None else abs(self.total - self.difference)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data, without the maps."""
        tokens = None if self.tokens is None else {name: a.tolist() for name, a in self.tokens.items()}
        seen = self.map[~np.isnan(self.map)]  # nothing where a crop left no pixel's centre
        return {
            "method": self.method,
            "signed": self.signed,
            "unit": METHODS[self.method].unit,
            "range": [float(end(seen)) if seen.size else None for end in (np.min, np.max)],
            "tokens": tokens,
            "total": self.total,
            "difference": self.difference,
            "completeness_error": self.completeness_error,
            "seconds": self.seconds,
        }


@dataclass(frozen=True, eq=False)
class Attributions:
    """What several methods say about one class in one image.

    Attributes:
        items: one a method, in the order asked for.
        agreement: (methods, methods) float64, Spearman's rank correlation of their ``cells``; 0 for a constant map.
        target: index of the class.
        label: its name.
        score: its logit; of a segmentation model the sum of its logits over the pixels predicted as it.
        probability: of the class; of a segmentation model its mean over those pixels.
        geometry: how the image became the model's input.
        model: name of the checkpoint.
        weights: sha256 of the checkpoint's weights; empty for a model that came from none.
        source: where the image came from, if from a file.
        image: (H, W, 3) uint8 RGB, the original.
    """

    items: tuple[Attribution, ...]
    agreement: np.ndarray
    target: int
    label: str
    score: float
    probability: float
    geometry: geo.Geometry
    model: str
    weights: str
    source: str | None
    image: np.ndarray

    def __getitem__(self, method: str) -> Attribution:
        """What one method says. Raises KeyError for one that was not asked."""
        return {item.method: item for item in self.items}[method]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data, without the maps."""
        return {
            **origin(self),
            "target": {
                "index": self.target,
                "label": self.label,
                "score": self.score,
                "probability": self.probability,
            },
            "methods": [item.to_dict() for item in self.items],
            "agreement": self.agreement.tolist(),
        }

    def save(self, folder: str | os.PathLike[str]) -> dict[str, Path]:
        """Write ``attributions.npz`` (of each method ``METHOD`` (H, W) and ``METHOD.cells``) and ``attributions.json``.

        Returns:
            File name -> path of each file written.

        Raises:
            DataError: where the disk refuses.
        """
        arrays = {item.method: item.map for item in self.items}
        arrays |= {f"{item.method}.cells": item.cells for item in self.items}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # typed as if names could clash with options
        with staged(folder) as stage:
            (stage / "attributions.npz").write_bytes(buffer.getvalue())
            text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
            (stage / "attributions.json").write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
            return publish(stage, folder, ("attributions.npz", "attributions.json"))


@torch.inference_mode(False)  # it needs gradients, wherever it is called
def attribute(
    predictor: Predictor,
    image: ImageSource,
    methods: Sequence[str] | None = None,
    *,
    target: int | None = None,
    steps: int = STEPS,
    size: int | None = None,
    crop: str | None = None,
    progress: Progress = lambda *_: None,
) -> Attributions:
    """Ask several methods which pixels speak for a class. Any number of threads may, also on one predictor.

    Args:
        predictor: of any model.
        image: what :func:`vtviz.images.load` takes.
        methods: keys of :data:`METHODS`; None for all that the model can do. The token methods need no Captum.
        target: the class, by index; the most probable one by default, or the one with the most pixels.
        steps: points of the quadrature of integrated gradients.
        size: as for :meth:`Predictor.extract`.
        crop: likewise.
        progress: called with (done, total) after every few images that go through the model; it may raise to stop.

    Raises:
        ImageError: for an image that cannot be read.
        ConfigError: for an option that cannot work, or where Captum is asked for and not installed.
    """
    chosen = check_methods(predictor, methods)
    photo = load_image(image)
    fitted = predictor.fit((photo.shape[0], photo.shape[1]), size=size, crop=crop)
    explainer = Explainer(predictor, steps=steps)
    x = explainer.prepare(geo.to_tensor(photo, fitted)[None])
    logits = explainer.logits(x)
    wanted = choose_target(logits, predictor.classes, target)
    ends = np.cumsum([explainer.cost(method) for method in chosen]).tolist()
    items, cells, done = [], [], 0

    def tick(rows: int) -> None:
        nonlocal done
        done = min(done + rows, end)
        progress(done, ends[-1])

    for method, end in zip(chosen, ends, strict=True):
        made = explainer.make(method, x, wanted, tick)
        tick(end)  # what it cost was an estimate
        cells.append(made.cells)
        items.append(
            Attribution(
                method=method,
                map=geo.upsample(made.values, fitted, stride=made.stride),
                cells=made.cells,
                signed=METHODS[method].signed,
                tokens=made.tokens,
                total=made.total,
                difference=made.difference,
                seconds=made.seconds,
            )
        )
    return Attributions(
        items=tuple(items),
        agreement=rank_correlation(cells),
        target=wanted.index,
        label=wanted.label,
        score=float(wanted.score(logits)[0]),
        probability=float(wanted.probability(logits)[0]),
        geometry=fitted,
        model=predictor.name,
        weights=predictor.card.sha256 if predictor.card else "",
        source=os.fspath(image) if isinstance(image, str | os.PathLike) else None,
        image=photo,
    )
