"""Do attribution maps tell the truth about a model? Measured over a folder of images, beside two baselines.

Deletion and insertion (Petsiuk et al. 2018, :mod:`vtviz.explain.curves`) ask whether the pixels that a map ranks first
are those that the class's probability hangs on. A random map and a centre prior (photographers put things there) are
measured in the same way: a method that is no better than these says nothing about the model.

The randomisation check (Adebayo et al. 2018) asks whether a map depends on what the model has learned: the rank
correlation with the same method's map of the same network with random weights should vanish.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vtviz import geometry as geo
from vtviz.errors import ConfigError, DataError, ImageError
from vtviz.explain.ablation import centred_gaussian
from vtviz.explain.curves import STEPS as SHARES
from vtviz.explain.curves import Curves, Interval, area, blurred, bootstrap, curves
from vtviz.explain.dissection import untrained_twin
from vtviz.explain.explainer import CELL, METHODS, Explainer, check_methods, rank_correlation
from vtviz.explain.target import Target, choose_target, images_at_once
from vtviz.export import publish, staged
from vtviz.images import ImageSource
from vtviz.images import load as load_image
from vtviz.predictor import Predictor
from vtviz.tokens import check_index

BASELINES = ("random", "centre")
"""A random map, and a Gaussian on the middle: the same for every model."""
PATH_STEPS = 8
"""Points of the quadrature of integrated gradients: few, for it is done for every image."""
SEEDS_APART = 1_000_003
"""Between the random weights' seeds of one seed and the next: more than there are images."""
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class MethodFaithfulness:
    """How one method did on n images.

    Attributes:
        method: its name, or one of :data:`BASELINES`.
        deletion: (n, 21) float64, the class's probability after each twentieth of the pixels is gone.
        insertion: (n, 21) float64, the same as they come.
        randomization: (n,) float64, rank correlation with the map of the network with random weights, others for each
            image; NaN where one of both maps is constant and ranks nothing, where it was not asked for, and for the
            baselines.
        seconds: (n,) float64, what each map took.
    """

    method: str
    deletion: np.ndarray
    insertion: np.ndarray
    randomization: np.ndarray
    seconds: np.ndarray


@dataclass(frozen=True, eq=False)
class Faithfulness:
    """How several methods did on the same images.

    Attributes:
        model: name of the checkpoint.
        weights: sha256 of the checkpoint's weights; empty for a model that came from none.
        methods: the baselines last.
        images: n paths; of an image that came from no file its place among those given.
        targets: n names of classes, each the one that was asked for, or the most probable one of its image.
        skipped: path -> what was wrong with the image.
        input: of the first image, (h, w) pixels.
        seed: of the images, the random maps, the random weights and the bootstrap.
    """

    model: str
    weights: str
    methods: tuple[MethodFaithfulness, ...]
    images: tuple[str, ...]
    targets: tuple[str, ...]
    skipped: Mapping[str, str]
    input: tuple[int, int]
    seed: int

    def summary(self) -> dict[str, dict[str, Interval]]:
        """Method -> measure -> mean and 95 % interval over the images that have it.

        Measures are the areas ``deletion`` (lower is better) and ``insertion`` (higher is better), both minus those of
        the centre prior on the same images, ``deletion_over_centre`` and ``insertion_over_centre``, and
        ``randomization`` where it was asked for.
        """
        (centre,) = (m for m in self.methods if m.method == "centre")
        found = {}
        for each in self.methods:
            values = {
                "deletion": area(each.deletion),
                "insertion": area(each.insertion),
                "deletion_over_centre": area(each.deletion) - area(centre.deletion),
                "insertion_over_centre": area(each.insertion) - area(centre.insertion),
                "randomization": each.randomization,
            }
            known = {name: value[~np.isnan(value)] for name, value in values.items()}
            found[each.method] = {name: bootstrap(value, self.seed) for name, value in known.items() if value.size}
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data: the summary, the mean curves, and what they were measured on."""
        summary = self.summary()
        return {
            "model": self.model,
            "weights": self.weights,
            "n": len(self.images),
            "input": list(self.input),
            "seed": self.seed,
            "probability": float(np.mean(self.methods[0].deletion[:, 0])),
            "probability_blurred": float(np.mean(self.methods[0].deletion[:, -1])),
            "methods": [
                {
                    "method": each.method,
                    **{name: interval._asdict() for name, interval in summary[each.method].items()},
                    "deletion_curve": each.deletion.mean(axis=0).tolist(),
                    "insertion_curve": each.insertion.mean(axis=0).tolist(),
                    "seconds": float(each.seconds.mean()),
                }
                for each in self.methods
            ],
            "images": [{"image": i, "target": t} for i, t in zip(self.images, self.targets, strict=True)],
            "skipped": [{"image": i, "error": e} for i, e in self.skipped.items()],
        }

    def save(self, folder: str | os.PathLike[str]) -> dict[str, Path]:
        """Write ``faithfulness.json``, and ``faithfulness.npz`` with every image's curves as ``METHOD.deletion``, ....

        Returns:
            File name -> path of each file written.

        Raises:
            DataError: where the disk refuses.
        """
        arrays = {
            f"{each.method}.{name}": getattr(each, name)
            for each in self.methods
            for name in ("deletion", "insertion", "randomization", "seconds")
        }
        with staged(folder) as stage:
            np.savez_compressed(stage / "faithfulness.npz", **arrays)
            text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False)
            (stage / "faithfulness.json").write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
            return publish(stage, folder, ("faithfulness.npz", "faithfulness.json"))


@torch.inference_mode(False)  # it needs gradients, wherever it is called
def measure_faithfulness(
    predictor: Predictor,
    images: Sequence[ImageSource],
    methods: Sequence[str] | None = None,
    *,
    target: int | None = None,
    steps: int = PATH_STEPS,
    randomize: bool = True,
    size: int | None = None,
    crop: str | None = None,
    seed: int = 0,
    progress: Progress = lambda *_: None,
) -> Faithfulness:
    """Measure how faithful methods are on images, each for one class.

    Args:
        predictor: of any model.
        images: files, for example of :func:`vtviz.explain.faithfulness.pick_images`, or whatever else
            :func:`vtviz.images.load` takes. One that cannot be read, or of which no pixel is predicted as the target,
            is skipped and named.
        methods: keys of :data:`~vtviz.explain.explainer.METHODS`; None for all that the model can do.
        target: the class, by index; by default the most probable one of each image, or the one with the most pixels.
        steps: points of the quadrature of integrated gradients.
        randomize: also make every map with random weights, others for each image.
        size: as for :meth:`Predictor.extract`.
        crop: likewise.
        seed: of the random maps, the random weights and the bootstrap.
        progress: called with (done, total) after every few images that go through the model; it may raise to stop.

    Raises:
        ConfigError: for an option that cannot work, or where Captum is asked for and not installed.
        DataError: where no image is left of several, or the only one cannot be read.
    """
    chosen = check_methods(predictor, methods)
    if target is not None:
        check_index("class", target, len(predictor.classes))
    if seed < 0:
        raise ConfigError(f"a seed must be at least 0, got {seed}")
    explainer = Explainer(predictor, steps=steps)
    names = (*chosen, *BASELINES)
    found: dict[str, list[tuple[Curves, float, float]]] = {name: [] for name in names}
    used: list[str] = []
    targets: list[str] = []
    skipped: dict[str, str] = {}
    inputs: list[tuple[int, int]] = []
    makings = [explainer.cost(name) * (1 + randomize) if name in METHODS else 0 for name in names]
    ends = np.cumsum([making + 2 * (SHARES - 1) for making in makings] * len(images)).tolist()
    done = 0

    def tick(rows: int) -> None:
        nonlocal done
        done = min(done + rows, end)
        progress(done, ends[-1])

    for number, source in enumerate(images):
        path = os.fspath(source) if isinstance(source, str | os.PathLike) else f"image {number}"
        try:
            photo = load_image(source)
        except ImageError as error:
            skipped[path] = str(error)
            continue
        fitted = predictor.fit((photo.shape[0], photo.shape[1]), size=size, crop=crop)
        image = geo.to_tensor(photo, fitted).to(predictor.device)
        rng = np.random.default_rng((seed, number))
        # another network for each image: over one that all share, the interval would be that network's
        drawn = (seed * SEEDS_APART + number) % 2**32  # PyTorch's generator takes no more of it
        random = Explainer(with_random_weights(predictor, drawn), steps=steps) if randomize else None
        try:
            measured = _Image(explainer, random, image, predictor.classes, target, rng)
        except ConfigError as error:  # no pixel is predicted as the class
            if len(images) == 1:
                raise
            skipped[path] = f"{path}: {error}"
            continue
        for name, end in zip(names, ends[number * len(names) :], strict=False):
            found[name].append(measured.measure(name, tick))
            tick(end)  # what it cost was an estimate
        used.append(path)
        targets.append(measured.target.label)
        inputs.append(fitted.input)
    if not used:
        first = next(iter(skipped.values()), "there are none")
        raise DataError(f"none of {len(images)} images can be used: {first}")
    return Faithfulness(
        model=predictor.name,
        weights=predictor.card.sha256 if predictor.card else "",
        methods=tuple(_collect(name, found[name]) for name in names),
        images=tuple(used),
        targets=tuple(targets),
        skipped=skipped,
        input=inputs[0],
        seed=seed,
    )


class _Image:
    """One image with a class, on which methods are measured one by one."""

    def __init__(
        self,
        explainer: Explainer,
        random: Explainer | None,
        image: Tensor,
        classes: Sequence[str],
        wanted: int | None,
        rng: np.random.Generator,
    ) -> None:
        self.explainer, self.random, self.image, self.rng = explainer, random, image, rng
        self.x = explainer.prepare(image[None])
        self.target: Target = choose_target(explainer.logits(self.x), classes, wanted)
        self.nothing = blurred(image)
        ends = self._probability(torch.stack((image, self.nothing)))
        self.ends = (float(ends[0]), float(ends[1]))

    def _probability(self, images: Tensor, tick: Callable[[int], None] = lambda _: None) -> Tensor:
        found = []
        for part in images.split(images_at_once(images)):
            found.append(self.target.probability(self.explainer.logits(self.explainer.prepare(part))))
            tick(len(part))
        return torch.cat(found)

    def measure(self, name: str, tick: Callable[[int], None]) -> tuple[Curves, float, float]:
        """Curves, rank correlation with random weights, and the map's seconds.

        Args:
            name: of a method or a baseline.
            tick: called with the number of images, after they went through the model.
        """
        same, seconds = float("nan"), 0.0
        if name in BASELINES:
            cells = self._baseline(name)
        else:
            made = self.explainer.make(name, self.x, self.target, tick)
            cells, seconds = made.cells, made.seconds
            if self.random is not None:
                other = self.random.make(name, self.x, self.target, tick).cells
                if np.ptp(cells) > 0 and np.ptp(other) > 0:
                    same = float(rank_correlation([cells, other])[0, 1])
        probability = partial(self._probability, tick=tick)
        return curves(cells, self.image, self.nothing, self.ends, probability), same, seconds

    def _baseline(self, name: str) -> np.ndarray:
        height, width = (-(-side // CELL) for side in self.image.shape[1:])
        if name == "random":
            return self.rng.random((height, width), np.float32)
        return centred_gaussian(height, width, CELL).numpy()


def _collect(name: str, measured: Sequence[tuple[Curves, float, float]]) -> MethodFaithfulness:
    found, same, seconds = zip(*measured, strict=True)
    return MethodFaithfulness(
        method=name,
        deletion=np.stack([each.deletion for each in found]),
        insertion=np.stack([each.insertion for each in found]),
        randomization=np.array(same),
        seconds=np.array(seconds),
    )


def with_random_weights(predictor: Predictor, seed: int = 0) -> Predictor:
    """The same network before training, from a seed.

    Norms that start at zero, which shut their branch off, start at one here: otherwise a fresh visual transformer
    would not be there at all, and its check too easy.
    """
    twin = untrained_twin(predictor, seed)
    for name, parameter in twin.model.named_parameters():
        if name.endswith("norm.weight") and not parameter.any():
            nn.init.ones_(parameter)
    return twin


def pick_images(files: Sequence[Path], n: int, seed: int = 0) -> list[Path]:
    """``n`` of the files, one at random from each of as many equal stretches of their order; all where there are fewer.

    Where files are sorted by class folders, every class has its share. None is there twice: where two stretches share a
    file and both would take it, the later one takes the next.

    Raises:
        ConfigError: for n < 1.
    """
    if n < 1:
        raise ConfigError(f"the number of images must be at least 1, got {n}")
    if n >= len(files):
        return list(files)
    order = np.arange(n)
    places = ((order + np.random.default_rng(seed).random(n)) * len(files) / n).astype(int)
    places = np.minimum(np.maximum.accumulate(places - order), len(files) - n) + order
    return [files[i] for i in places]
