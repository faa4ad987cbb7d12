"""Training batches made on the accelerator: pixels are kept there, and a batch is cropped in a few kernels.

A GPU trains a small network faster than a machine's cores can crop for it. The augmentation is torchvision's random
resized crop, flip and colour jitter with parameters drawn per image, written for a whole batch at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vtviz.data.loading import JITTER, BatchPlan
from vtviz.data.store import PixelStore
from vtviz.errors import ConfigError

AUGMENTATIONS = ("none", "flip", "crop", "jitter")
RATIOS = (3 / 4, 4 / 3)
"""Least and largest width / height of a random crop, as torchvision's."""
TRIES = 10
"""Crops that are drawn for an image before the largest central one is taken, as torchvision does."""


class DeviceLoader:
    """Batches (N, 3, s, s) float32 in [0, 1] and targets (N,) on the device, in a :class:`BatchPlan`'s order.

    Every random number depends on seed, epoch and the micro-batch's number alone, whichever process makes it.

    Attributes:
        sampler: the plan, where Lightning looks for what it tells the epoch to.
    """

    def __init__(
        self,
        store: PixelStore,
        targets: Sequence[int],
        plan: BatchPlan,
        *,
        augment: str,
        crop_scale: tuple[float, float],
        device: torch.device,
    ) -> None:
        if augment not in AUGMENTATIONS:
            raise ConfigError(f"augment on the device must be one of {', '.join(AUGMENTATIONS)}, got {augment!r}")
        self.sampler = plan
        self.augment, self.crop_scale, self.device = augment, crop_scale, device
        by_shape: dict[tuple[int, int], list[int]] = {}
        places = np.empty(len(store), np.int64)
        for index in range(len(store)):
            places[index], pixels = store.read_near(index)
            if places[index] == index:
                by_shape.setdefault((pixels.shape[1], pixels.shape[2]), []).append(index)
        self.targets = torch.tensor([targets[store.kept[place]] for place in places], device=device)
        self._pixels = [torch.stack([store[i] for i in members]).to(device) for members in by_shape.values()]
        self._aspect = np.array([width / height for height, width in by_shape])
        self._group = np.empty(len(store), np.int64)
        self._place = np.empty(len(store), np.int64)
        for number, members in enumerate(by_shape.values()):
            self._group[members] = number
            self._place[members] = np.arange(len(members))
        # of a file that cannot be read, the next one that can
        self._group, self._place = self._group[places], self._place[places]

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch = self.sampler.epoch
        for number, draws in enumerate(self.sampler):
            rng = np.random.default_rng((self.sampler.seed, epoch, number * self.sampler.world + self.sampler.rank))
            indices = np.array([draw.image for draw in draws])
            yield self._batch(indices, draws[0].size, rng)

    def _batch(self, indices: np.ndarray, size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        groups = self._group[indices]
        theta = self._on_device(self._crops(self._aspect[groups], rng))
        parts, order = [], []
        for number in np.unique(groups):
            members = np.flatnonzero(groups == number)
            places = self._on_device(self._place[indices[members]])
            pixels = self._pixels[number][places].float()
            parts.append(_resample(pixels, theta[self._on_device(members)], size))
            order.append(members)
        inverse = self._on_device(np.argsort(np.concatenate(order)))
        images = torch.cat(parts)[inverse].div_(255)
        if self.augment == "jitter":
            images = _jitter(images, self._on_device(rng.uniform(1 - JITTER, 1 + JITTER, (3, len(indices), 1, 1, 1))))
        return images, self.targets[self._on_device(indices)]

    def _crops(self, aspect: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Affine matrices (n, 2, 3) from output to input in [-1, 1] coordinates, for images of this width / height."""
        n = len(aspect)
        width, height, corner = _windows(aspect, self.crop_scale, rng)
        mirror = np.where(rng.uniform(size=n) < 0.5, -1.0, 1.0)
        if self.augment in {"none", "flip"}:
            width, height = np.ones(n), np.ones(n)
        if self.augment == "none":
            mirror = np.ones(n)
        theta = np.zeros((n, 2, 3))
        theta[:, 0, 0], theta[:, 1, 1] = width * mirror, height
        theta[:, 0, 2] = (2 * corner[0] - 1) * (1 - width)
        theta[:, 1, 2] = (2 * corner[1] - 1) * (1 - height)
        return theta

    def _on_device(self, values: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(values)
        return (tensor.float() if tensor.is_floating_point() else tensor).to(self.device, non_blocking=True)


def _windows(
    aspect: np.ndarray, scale: tuple[float, float], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Windows of torchvision's RandomResizedCrop, but that sides are not rounded to whole pixels.

    Returns:
        Width and height (n,) as shares of the image's, and where in the room beside it each lies, (2, n) in [0, 1].
    """
    n = len(aspect)
    area = rng.uniform(*scale, (TRIES, n))
    low, high = np.log(RATIOS)
    ratio = np.exp(rng.uniform(low, high, (TRIES, n))) / aspect  # of the crop in pixels -> in the image's own sides
    width, height = np.sqrt(area * ratio), np.sqrt(area / ratio)
    fits = (width <= 1) & (height <= 1)
    first = fits.argmax(axis=0), np.arange(n)
    drawn = fits[first]
    width = np.where(drawn, width[first], np.minimum(1, RATIOS[1] / aspect))
    height = np.where(drawn, height[first], np.minimum(1, aspect / RATIOS[0]))
    return width, height, np.where(drawn, rng.uniform(0, 1, (2, n)), 0.5)


def _resample(pixels: Tensor, theta: Tensor, size: int) -> Tensor:
    """Crop and resize (n, 3, H, W) to (n, 3, size, size), averaging 2 x 2 samples a pixel where that shrinks."""
    finer = 2 if max(pixels.shape[-2:]) > size else 1
    grid = F.affine_grid(theta, [len(pixels), 3, size * finer, size * finer], align_corners=False)
    sampled = F.grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)
    return F.avg_pool2d(sampled, 2) if finer == 2 else sampled


def _jitter(images: Tensor, factors: Tensor) -> Tensor:
    """Brightness, contrast and saturation of (N, 3, H, W) in [0, 1] by ``factors`` (3, N, 1, 1, 1), clipped."""
    luma = images.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    brightness, contrast, saturation = factors
    images = (images * brightness).clamp_(0, 1)
    mean = (images * luma).sum(dim=1, keepdim=True).mean(dim=(2, 3), keepdim=True)
    images = (mean + (images - mean) * contrast).clamp_(0, 1)
    grey = (images * luma).sum(dim=1, keepdim=True)
    return (grey + (images - grey) * saturation).clamp_(0, 1)
