"""Batches whose order, crops and augmentation depend on seed, epoch and index alone, so that a run can be resumed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import v2

from vtviz import geometry
from vtviz.data.store import PixelStore
from vtviz.errors import ConfigError

AUGMENTATIONS = ("none", "flip", "crop", "jitter", "trivial", "auto")
JITTER = 0.4
"""Brightness, contrast and saturation are multiplied by factors within 1 ± this."""
SIZE_STEP = 16
"""Training sizes are whole cells of a stage-4 map."""


class Draw(NamedTuple):
    """One training sample: the position of its image, the epoch, and the side of its crop in pixels."""

    image: int
    epoch: int
    size: int


@dataclass(frozen=True)
class SizeStep:
    """Part of a progressive schedule: sides between ``low`` and ``high`` pixels until a fraction of all epochs."""

    until: float
    low: int
    high: int


def parse_sizes(text: str) -> tuple[SizeStep, ...]:
    """Read ``"64-96@0.5,128"``: sides 64 to 96 for the first half of the epochs, then 128.

    Raises:
        ConfigError: for anything else, naming the part that is wrong.
    """
    steps: list[SizeStep] = []
    parts = [p.strip() for p in text.split(",") if p.strip()]
    for i, part in enumerate(parts):
        sides, _, until = part.partition("@")
        low, dash, high = sides.partition("-")
        try:
            step = SizeStep(float(until) if until else 1.0, int(low), int(high if dash else low))
        except ValueError:
            raise ConfigError(f"sizes: expected LOW-HIGH@FRACTION or SIZE, got {part!r}") from None
        if not 32 <= step.low <= step.high <= 1024:
            raise ConfigError(f"sizes: sides must rise within 32 and 1024, got {part!r}")
        if not (steps[-1].until if steps else 0) < step.until <= 1 or (i == len(parts) - 1 and step.until != 1):
            raise ConfigError(f"sizes: fractions must rise and the last one be 1 (or left out), got {text!r}")
        steps.append(step)
    if not steps:
        raise ConfigError("sizes: expected LOW-HIGH@FRACTION or SIZE, got nothing")
    return tuple(steps)


class BatchPlan(Sampler[list[Draw]]):
    """Batches of :class:`Draw`: each epoch a permutation, each batch one size, all drawn from (seed, epoch).

    The stream of micro-batches is the same for any number of processes: process r of n takes every n-th one, so
    that n processes see what one process with n accumulation steps sees. Images that do not fill an optimiser's step
    are left for another epoch, unless they are all there are.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        sizes: Sequence[SizeStep],
        *,
        epochs: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
    ) -> None:
        """``accumulate``: micro-batches of ``batch_size`` images that a process takes for a step of the optimiser."""
        if length < 1 or batch_size < 1:
            raise ConfigError(f"need at least one image and a batch of one, got {length} images, batch {batch_size}")
        self.length, self.batch_size, self.sizes = length, batch_size, tuple(sizes)
        self.epochs, self.seed, self.rank, self.world, self.accumulate = epochs, seed, rank, world, accumulate
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose batches come next (Lightning calls this)."""
        self.epoch = epoch

    def __len__(self) -> int:
        # whole steps: Lightning would take a last step of fewer micro-batches, and still divide it by all of them
        return self.accumulate * max(1, self.length // (self.batch_size * self.world * self.accumulate))

    def sides(self, epoch: int) -> SizeStep:
        """The size range of an epoch."""
        progress = epoch / max(1, self.epochs)
        return next((s for s in self.sizes if progress < s.until), self.sizes[-1])

    def __iter__(self) -> Iterator[list[Draw]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(self.length)
        step = self.sides(self.epoch)
        choices = range(step.low, step.high + 1, SIZE_STEP)
        sides = rng.choice(np.array(choices), size=len(self) * self.world)
        for number in range(self.rank, len(self) * self.world, self.world):
            # a set smaller than a step is gone round again: all micro-batches have one size, all images one weight
            start, size = number * self.batch_size, min(self.batch_size, self.length)
            picked = order.take(range(start, start + size), mode="wrap")
            yield [Draw(int(i), self.epoch, int(sides[number])) for i in picked]


def training_transform(size: int, augment: str, crop_scale: tuple[float, float]) -> v2.Transform:
    """Torchvision's augmentation of one (3, H, W) uint8 image to (3, size, size) uint8.

    ``augment``: "none" (resize), "flip", "crop" (random resized crop and flip), "jitter" (crop, flip and colours),
    "trivial" (crop, flip and TrivialAugment, Mueller & Hutter 2021), "auto" (crop, flip and AutoAugment's ImageNet
    policy, the paper's Sec. 5.1).
    """
    if augment not in AUGMENTATIONS:
        raise ConfigError(f"augment must be one of {', '.join(AUGMENTATIONS)}, got {augment!r}")
    if augment in {"none", "flip"}:
        steps: list[v2.Transform] = [v2.Resize((size, size), antialias=True)]
    else:
        steps = [v2.RandomResizedCrop(size, scale=crop_scale, antialias=True)]
    if augment != "none":
        steps.append(v2.RandomHorizontalFlip())
    if augment == "jitter":
        steps.append(v2.ColorJitter(JITTER, JITTER, JITTER))
    if augment == "trivial":
        steps.append(v2.TrivialAugmentWide())
    if augment == "auto":
        steps.append(v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET))
    return v2.Compose(steps)


class TrainingSet(Dataset):
    """Whole augmented batches by their :class:`Draw`s: (N, 3, size, size) uint8 and targets (N,)."""

    def __init__(
        self, store: PixelStore, targets: Sequence[int], *, augment: str, crop_scale: tuple[float, float], seed: int
    ) -> None:
        self.store, self.targets = store, [targets[i] for i in store.kept]
        self.augment, self.crop_scale, self.seed = augment, crop_scale, seed
        self._transforms: dict[int, v2.Transform] = {}
        training_transform(32, augment, crop_scale)  # a wrong name is an error here, not in a worker

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, draws: Sequence[Draw]) -> tuple[Tensor, Tensor]:
        """The images of ``draws``, cropped and augmented as (seed, epoch, image) decide.

        Raises:
            DataError: in the first epoch, where more files than the store's bound cannot be read. Later ones only
                where nothing can be read any more: a run does not end at its 37th epoch for a file of the first.
        """
        with torch.random.fork_rng(devices=[]):
            samples = [self._augmented(draw) for draw in draws]
        return torch.stack([pixels for pixels, _ in samples]), torch.tensor([target for _, target in samples])

    def _augmented(self, draw: Draw) -> tuple[Tensor, int]:
        if draw.size not in self._transforms:
            self._transforms[draw.size] = training_transform(draw.size, self.augment, self.crop_scale)
        index, pixels = self.store.read_near(draw.image, bounded=draw.epoch == 0)
        torch.default_generator.manual_seed(mix_seed(self.seed, draw.epoch, draw.image))  # of the CPU alone: cheap
        return self._transforms[draw.size](pixels), self.targets[index]


class EvaluationSet(Dataset):
    """Images as the predictor sees them: uint8 store -> geometry -> (3, h, w) float32 in [0, 1], and the target.

    The predictor sees them so where the store holds them as the files do. In training it shrinks them to a short side
    of 256 pixels first: they are resized twice, and of random shapes some 1.5 % get another input shape at 224 pixels,
    as the sides of what was shrunk are whole pixels.
    """

    def __init__(
        self, store: PixelStore, targets: Sequence[int], fit: Callable[[tuple[int, int]], geometry.Geometry]
    ) -> None:
        """``fit`` says where an image of (H, W) pixels lands in the model's input (:meth:`Predictor.fit`)."""
        self.store, self.targets = store, [targets[i] for i in store.kept]
        self.fit = fit

    def __len__(self) -> int:
        return len(self.store)

    def input_shape(self, index: int) -> tuple[int, int]:
        """(h, w) of the model's input for image ``index``."""
        return self.fit(self.store.shape(index)).input

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Image ``index``, resized and cropped, and its target."""
        image = self.store[index].permute(1, 2, 0).numpy()
        return geometry.to_tensor(image, self.fit((image.shape[0], image.shape[1]))), self.targets[index]


class SameShapeBatches(Sampler[list[int]]):
    """Evaluation batches of images whose inputs have one shape, in a fixed order.

    Process r of n takes every n-th batch. None may go empty, as the others would wait for it: batches are made smaller
    until there is one for each. With fewer images than processes each takes all: what they count together is then n
    times too much, and right only as shares.
    """

    def __init__(self, shapes: Sequence[tuple[int, int]], batch_size: int, *, rank: int = 0, world: int = 1) -> None:
        groups: dict[tuple[int, int], list[int]] = {}
        for index, shape in enumerate(shapes):
            groups.setdefault(shape, []).append(index)
        while len(batches := _cut(groups.values(), batch_size)) < world and batch_size > 1:
            batch_size //= 2
        self.batches = batches[rank::world] if len(batches) >= world else batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)


def _cut(groups: Iterable[list[int]], size: int) -> list[list[int]]:
    return [members[i : i + size] for members in groups for i in range(0, len(members), size)]


def evaluation_loader(
    data: EvaluationSet, batch_size: int, workers: int = 0, *, rank: int = 0, world: int = 1
) -> DataLoader:
    """Batches (N, 3, h, w) float32 in [0, 1] and targets (N,), grouped by input shape."""
    shapes = [data.input_shape(i) for i in range(len(data))]
    batches = SameShapeBatches(shapes, batch_size, rank=rank, world=world)
    return DataLoader(data, batch_sampler=batches, **worker_options(workers))


def training_loader(data: Dataset, plan: BatchPlan, *, workers: int = 0, pin: bool = False) -> DataLoader:
    """The plan's batches. The plan stands where a sampler does, so that Lightning tells it the epoch."""
    options = worker_options(workers) | {"persistent_workers": workers > 0, "pin_memory": pin}
    return DataLoader(data, sampler=plan, batch_size=None, **options)


def can_fork() -> bool:
    """Whether data-loading processes share the decoded images: where not, each would get a copy of all of them.

    Only on Linux: macOS has fork too, but its libraries do not bear it.
    """
    return sys.platform == "linux"


def worker_options(workers: int) -> dict[str, Any]:
    """What a ``DataLoader`` takes to start so many processes; Python 3.14 no longer forks by itself."""
    return {"num_workers": workers, "multiprocessing_context": "fork" if workers > 0 and can_fork() else None}


def mix_seed(*parts: int) -> int:
    """A seed in [0, 2**63) that differs for different parts; the same on every platform."""
    return int(np.random.SeedSequence([p & 0xFFFFFFFF for p in parts]).generate_state(1, np.uint64)[0] >> 1)
