"""Does a token matter? Take it out, or put another in its place, and see what the model says then.

A token is changed between its layer's tokenizer and transformer, and the model goes on from there:

========  =============================================================================================================
mode      what stands in the token's place
========  =============================================================================================================
absent    nothing: no softmax reads it from there on, no filter is made of it, the classifier's mean leaves it out
mean      the mean of the same token over other images
random    the token gathered with its own map, the cells shuffled: the same entropy elsewhere; the mean of some draws
gaussian  the token gathered with a centred Gaussian map: all it knows is that photos have a middle
========  =============================================================================================================

The last two are the baselines. A token whose absence matters, but whose place a shuffled map fills as well, matters as
an average of the photo and not for where it looks.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vtviz import geometry
from vtviz.engines import inference
from vtviz.errors import ConfigError, did_you_mean
from vtviz.explain.effects import AreaJudge, ClassJudge, Effects, plain
from vtviz.explain.lineage import slot_names
from vtviz.explain.onward import Onward
from vtviz.explain.origin import origin
from vtviz.explain.target import images_at_once
from vtviz.export import publish, staged
from vtviz.images import ImageSource
from vtviz.models.visual_transformer import BlockOutput, Edit
from vtviz.predictor import Predictor
from vtviz.tokens import check_index

MODES = ("absent", "mean", "random", "gaussian")
ROWS = 32
"""Changed tokens that go through the model at once, of an image of 224 x 224; of a larger one as many fewer."""
SIGMA = 0.25
"""Standard deviation of the centred Gaussian, as a share of the image's sides."""
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class LayerAblation:
    """The effects of changing each of a layer's tokens, one at a time.

    Attributes:
        name: of the layer.
        kept: how many of its tokens come from the previous layer; they stand first.
        effects: mode -> effects.
    """

    name: str
    kept: int
    effects: dict[str, Effects]


@dataclass(frozen=True, eq=False)
class Ablation:
    """Every token of every layer, changed one at a time, for one image.

    Attributes:
        model: name of the checkpoint.
        classes: names in the order of the logits.
        target: index of the class that is watched; None for a segmentation model, where all are.
        probability: of the target, before; NaN for a segmentation model.
        top1: the most probable class before; -1 for a segmentation model.
        areas: (C,) float32, each class's share of the pixels before; None for a classifier.
        layers: in the order of the forward pass.
        geometry: how the image became the model's input.
        weights: sha256 of the checkpoint's weights; empty for a model that came from none.
        source: where the image came from, if from a file.
    """

    model: str
    classes: tuple[str, ...]
    target: int | None
    probability: float
    top1: int
    areas: np.ndarray | None
    layers: tuple[LayerAblation, ...]
    geometry: geometry.Geometry
    weights: str
    source: str | None

    @property
    def names(self) -> list[list[str]]:
        """What the L tokens of each layer are called; see :func:`vtviz.explain.lineage.slot_names`."""
        return slot_names([(x.name, x.kept, len(next(iter(x.effects.values()))) - x.kept) for x in self.layers])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        layers = [
            {
                "name": x.name,
                "kept": x.kept,
                "tokens": names,
                "effects": {mode: effects.to_dict() for mode, effects in x.effects.items()},
            }
            for x, names in zip(self.layers, self.names, strict=True)
        ]
        data: dict[str, Any] = {**origin(self), "layers": layers}
        if self.target is None:
            shares = [] if self.areas is None else plain(self.areas)
            return {**data, "classes": [{"label": c, "area": a} for c, a in zip(self.classes, shares, strict=True)]}
        watched = {"index": self.target, "label": self.classes[self.target], "probability": self.probability}
        return {**data, "target": watched, "top1": {"index": self.top1, "label": self.classes[self.top1]}}

    def save(self, folder: str | os.PathLike[str]) -> dict[str, Path]:
        """Write ``ablation.json``.

        Returns:
            File name -> path of the file written.

        Raises:
            DataError: where the disk refuses.
        """
        with staged(folder) as stage:
            (stage / "ablation.json").write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")
            return publish(stage, folder, ("ablation.json",))


def ablate(
    predictor: Predictor,
    image: ImageSource,
    *,
    target: int | None = None,
    modes: Sequence[str] = ("absent", "random", "gaussian"),
    reference: Sequence[np.ndarray] | None = None,
    truth: np.ndarray | None = None,
    draws: int = 4,
    seed: int = 0,
    size: int | None = None,
    crop: str | None = None,
    progress: Progress = lambda *_: None,
) -> Ablation:
    """Change each token of each layer, one at a time, and see what becomes of the answer.

    Args:
        predictor: of a model with tokens.
        image: what :func:`vtviz.images.load` takes.
        target: the class to watch, by index; the most probable one by default. For classifiers.
        modes: of "absent", "mean", "random" and "gaussian"; "mean" needs a reference.
        reference: for each layer (L, C_T), from :func:`vtviz.explain.ablation.mean_tokens`.
        truth: (H, W) integers, right classes of the image's pixels; others than classes are ignored. For segmentation.
        draws: shuffled maps a token in the mode "random", whose effects are averaged.
        seed: of the shuffles.
        size: as for :meth:`Predictor.extract`.
        crop: likewise.
        progress: called with (changed tokens seen, in all).

    Raises:
        ImageError: for an image that cannot be read.
        ConfigError: for a model without tokens, or an option that cannot work.
    """
    _check(predictor, modes, reference, target, draws)
    photo = predictor.open(image, size=size, crop=crop)
    rng = torch.Generator().manual_seed(seed)
    with inference(predictor.model, predictor.device):
        x = predictor.preprocessing.normalize(photo.input[None].to(predictor.device))
        run = Onward(predictor.model, x)
        logits, outputs = run.forward([])
        _check_reference(predictor, reference, outputs)
        judge: ClassJudge | AreaJudge
        if predictor.palette is None:
            watched = int(logits.argmax()) if target is None else check_index("class", target, logits.shape[1])
            judge = ClassJudge(logits[0].float(), watched % logits.shape[1])
        else:
            judge = AreaJudge(logits.float(), truth, photo.geometry)
        total, done = sum(_count(out, mode, draws) for out in outputs for mode in modes), 0
        found: list[dict[str, Effects]] = [{} for _ in outputs]
        together = images_at_once(x, ROWS)
        for layer, mode in product(range(len(outputs)), modes):
            answers: list[tuple[int, Any]] = []
            rows = _replacements(run, outputs, layer, mode, reference, draws, rng)
            while some := list(islice(rows, together)):
                changed, _ = run.forward([None] * layer + [_stack([edit for _, edit in some])], rows=len(some))
                answers += [(token, judge.judge(row)) for (token, _), row in zip(some, changed.float(), strict=True)]
                done += len(some)
                progress(done, total)
            found[layer][mode] = judge.collect(answers, outputs[layer].tokens.shape[2])
    layers = zip(predictor.layer_names, outputs, found, strict=True)
    return Ablation(
        model=predictor.name,
        classes=predictor.classes,
        target=judge.target if isinstance(judge, ClassJudge) else None,
        probability=judge.probability if isinstance(judge, ClassJudge) else float("nan"),
        top1=judge.top1 if isinstance(judge, ClassJudge) else -1,
        areas=judge.areas if isinstance(judge, AreaJudge) else None,
        layers=tuple(LayerAblation(name, _kept(out), effects) for name, out, effects in layers),
        geometry=photo.geometry,
        weights=predictor.card.sha256 if predictor.card else "",
        source=photo.source,
    )


def mean_tokens(
    predictor: Predictor,
    images: Sequence[ImageSource],
    *,
    size: int | None = None,
    crop: str | None = None,
    progress: Progress = lambda *_: None,
) -> list[np.ndarray]:
    """Each layer's tokens before its transformer, the mean over images: for each layer (L, C_T) float32.

    Args:
        predictor: of a model with tokens.
        images: one or more.
        size: as for :meth:`Predictor.extract`, and as for the image that they stand in for.
        crop: likewise.
        progress: called with (images done, images in all).

    Raises:
        ImageError: for an image that cannot be read.
        ConfigError: for a model without tokens, or no images.
    """
    if not images:
        raise ConfigError("a reference needs at least one image, got none")
    total: list[np.ndarray] = []
    for done, image in enumerate(images, start=1):
        tokens = [layer.tokens_in.astype(np.float64) for layer in predictor.extract(image, size=size, crop=crop).layers]
        total = tokens if done == 1 else [a + b for a, b in zip(total, tokens, strict=True)]
        progress(done, len(images))
    return [(each / len(images)).astype(np.float32) for each in total]


def _count(out: BlockOutput, mode: str, draws: int) -> int:
    """How many rows :func:`_replacements` gives."""
    count = out.tokenizer.tokens.shape[2]
    return count if mode in {"absent", "mean"} else (count - _kept(out)) * (draws if mode == "random" else 1)


def _replacements(
    run: Onward,
    outputs: Sequence[BlockOutput],
    layer: int,
    mode: str,
    reference: Sequence[np.ndarray] | None,
    draws: int,
    rng: torch.Generator,
) -> Iterator[tuple[int, Edit]]:
    """(token, edit of one row) for each token of a layer that the mode applies to."""
    out = outputs[layer]
    tokens = out.tokenizer.tokens
    count, kept = tokens.shape[2], _kept(out)
    if mode == "absent":
        for token, row in enumerate(torch.eye(count, dtype=torch.bool, device=tokens.device)):
            yield token, Edit(absent=row[None])
        return
    if mode == "mean":
        mean = torch.from_numpy((reference or ())[layer]).to(tokens).T
        for token in range(count):
            yield token, Edit(tokens=_with_token(tokens, token, mean[:, token]))
        return
    before = outputs[layer - 1].tokens if kept else None
    maps = out.tokenizer.coefficients
    for _ in range(draws if mode == "random" else 1):
        if mode == "random":
            shuffled = torch.randperm(maps[0, 0, 0].numel(), generator=rng).to(maps.device)
            other = maps.flatten(3)[..., shuffled].view_as(maps)
        else:
            other = (
                centred_gaussian(maps.shape[-2], maps.shape[-1], run.model.token_strides[layer])
                .to(maps)
                .expand_as(maps)
            )
        gathered = run.model.tokenizers[layer].gather(out.tokenizer.values, other, before).tokens
        for token in range(kept, count):
            yield token, Edit(tokens=_with_token(tokens, token, gathered[0, :, token]))


def centred_gaussian(height: int, width: int, stride: int) -> Tensor:
    """A map (height, width) float32 that sums to 1: a Gaussian on the image's middle, as wide as :data:`SIGMA` says.

    Cell i stands for the image around pixel ``stride * i``, so the image's middle lies half a cell beyond the map's.
    """
    axes = [(stride * torch.arange(n) + 0.5) / (stride * n) - 0.5 for n in (height, width)]
    rows, columns = (torch.exp(-0.5 * (axis / SIGMA) ** 2) for axis in axes)
    weights = rows[:, None] * columns
    return weights / weights.sum()


def _with_token(tokens: Tensor, token: int, value: Tensor) -> Tensor:
    changed = tokens.clone()
    changed[0, :, token] = value
    return changed


def _stack(edits: Sequence[Edit]) -> Edit:
    """One edit of many rows from edits of one row, all of one kind."""
    if edits[0].absent is not None:
        return Edit(absent=torch.cat([e.absent for e in edits if e.absent is not None]))
    return Edit(tokens=torch.cat([e.tokens for e in edits if e.tokens is not None]))


def _kept(out: BlockOutput) -> int:
    return out.tokens.shape[2] - out.tokenizer.coefficients.shape[2]


def _check(
    predictor: Predictor,
    modes: Sequence[str],
    reference: Sequence[np.ndarray] | None,
    target: int | None,
    draws: int,
) -> None:
    if not predictor.strides:
        raise ConfigError(f"{predictor.name} is a model without tokens: there is nothing to take out")
    if not modes:
        raise ConfigError(f"at least one mode is needed, of {', '.join(MODES)}")
    for mode in modes:
        if mode not in MODES:
            raise ConfigError(f"unknown mode {mode!r}{did_you_mean(mode, MODES)}")
    if "mean" in modes and reference is None:
        raise ConfigError("the mode mean needs a reference: the mean tokens of other images")
    if target is not None and predictor.palette is not None:
        raise ConfigError(f"{predictor.name} is a segmentation model: all its classes are watched, none is a target")
    if draws < 1:
        raise ConfigError(f"draws must be at least 1, got {draws}")


def _check_reference(
    predictor: Predictor, reference: Sequence[np.ndarray] | None, outputs: Sequence[BlockOutput]
) -> None:
    """Raise ConfigError for a reference that is not of this model's tokens."""
    if reference is None:
        return
    ours = [(out.tokens.shape[2], out.tokens.shape[1]) for out in outputs]
    theirs = [np.shape(each) for each in reference]
    if theirs != ours:
        raise ConfigError(f"the reference is of tokens of (L, C_T) {theirs}, {predictor.name} has {ours}")
