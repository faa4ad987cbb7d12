"""Training samples for segmentation: image and labels cropped, scaled and mirrored together, images recoloured."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tvf

from vtviz import geometry
from vtviz.data.loading import Draw, SameShapeBatches, mix_seed, worker_options
from vtviz.data.segmentation import IGNORE, SegmentationDataset
from vtviz.errors import DataError

GREY = 124
"""What stands beyond an image's border in a crop: about the mean of photos."""
_LOG = logging.getLogger(__name__)


class ScaledCrop(v2.Transform):
    """A square window at a random scale, resized to ``size`` x ``size`` pixels: bilinear, labels to the nearest.

    Where the window is larger than the image, the rest is grey, and ignored in labels.

    Args:
        size: of the crop, in pixels.
        eval_size: scale 1 gives the image an area of ``eval_size`` x ``eval_size`` pixels, as the model will see it.
        scale: least and largest random scale; its logarithm is uniform.
    """

    def __init__(self, size: int, eval_size: int, scale: tuple[float, float]) -> None:
        super().__init__()
        self.size, self.eval_size, self.scale = size, eval_size, scale

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Choose the window."""
        height, width = tvf.get_size(flat_inputs[0])
        low, high = (torch.tensor(s).log() for s in self.scale)
        scale = float((low + (high - low) * torch.rand(())).exp()) * self.eval_size / (height * width) ** 0.5
        side = max(1, round(self.size / scale))
        top, left = (
            int(torch.randint(min(0, extent - side), max(0, extent - side) + 1, ())) for extent in (height, width)
        )
        beyond = [max(0, -left), max(0, -top), max(0, left + side - width), max(0, top + side - height)]
        return {"beyond": beyond, "window": (top + beyond[1], left + beyond[0], side, side)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Cut the window out of an image or its labels."""
        if any(params["beyond"]):
            fill = IGNORE if isinstance(inpt, tv_tensors.Mask) else GREY
            inpt = tvf.pad(inpt, params["beyond"], fill=fill)
        window, size = tvf.crop(inpt, *params["window"]), [self.size, self.size]
        if not isinstance(inpt, tv_tensors.Mask):
            return tvf.resize(window, size, antialias=True)
        # torchvision resizes a Mask by the older "nearest", half a pixel away from where the image's pixels land
        labels = window.as_subclass(Tensor)[None]
        return tv_tensors.wrap(tvf.resize(labels, size, v2.InterpolationMode.NEAREST_EXACT)[0], like=inpt)


class Mirror(v2.Transform):
    """Mirror every other sample, left and right parts changing their labels.

    Args:
        pairs: labels that change places, see :func:`vtviz.data.classes.mirror_pairs`.
    """

    def __init__(self, pairs: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.swapped = torch.arange(256, dtype=torch.uint8)
        for left, right in pairs:
            self.swapped[left], self.swapped[right] = right, left

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:  # noqa: ARG002
        """Toss a coin."""
        return {"mirror": bool(torch.rand(()) < 0.5)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Mirror an image or its labels."""
        if not params["mirror"]:
            return inpt
        mirrored = tvf.horizontal_flip(inpt)
        if isinstance(inpt, tv_tensors.Mask):
            return tv_tensors.wrap(self.swapped[mirrored.long()], like=mirrored)
        return mirrored


class SegmentationTrainingSet(Dataset):
    """Whole augmented batches by their :class:`~vtviz.data.loading.Draw`: images (N, 3, s, s) uint8, labels (N, s, s).

    Labels are int64, with :data:`~vtviz.data.segmentation.IGNORE`. A sample depends on (seed, epoch, image) alone.
    """

    def __init__(
        self, data: SegmentationDataset, *, eval_size: int, scale: tuple[float, float], jitter: float, seed: int
    ) -> None:
        self.data, self.seed = data, seed
        self.eval_size, self.scale = eval_size, scale
        colour = [v2.ColorJitter(jitter, jitter, jitter)] if jitter > 0 else []
        self._rest = v2.Compose([Mirror(data.mirror_pairs), *colour])
        self._left_out: set[int] = set()

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, draws: Sequence[Draw]) -> tuple[Tensor, Tensor]:
        """The samples of ``draws``.

        Raises:
            DataError: in the first epoch, where more than 1 % of the files (and more than 10) cannot be read; later
                ones only where so many cannot be read one after the other.
        """
        with torch.random.fork_rng(devices=[]):
            samples = [self._augmented(draw) for draw in draws]
        return torch.stack([image for image, _ in samples]), torch.stack([labels for _, labels in samples]).long()

    def _augmented(self, draw: Draw) -> tuple[Tensor, Tensor]:
        image, labels = self._read_near(draw.image, bounded=draw.epoch == 0)
        torch.default_generator.manual_seed(mix_seed(self.seed, draw.epoch, draw.image))  # of the CPU alone: cheap
        pair = tv_tensors.Image(image), tv_tensors.Mask(labels.to(torch.uint8))
        image, labels = self._rest(*ScaledCrop(draw.size, self.eval_size, self.scale)(*pair))
        return image.as_subclass(Tensor), labels.as_subclass(Tensor)

    def _read_near(self, index: int, *, bounded: bool) -> tuple[Tensor, Tensor]:
        """Image and labels, or the next ones that can be read; each that cannot is logged once."""
        limit = max(10, len(self) // 100)
        tries = min(len(self), limit + 1)
        for place in range(index, index + tries):
            position = place % len(self)
            try:
                return self.data[position]
            except DataError as error:
                last = error
                if position not in self._left_out:
                    self._left_out.add(position)
                    _LOG.warning("left out: %s", error)
                if bounded and len(self._left_out) > limit:
                    raise
        raise DataError(f"{tries} samples one after the other cannot be read; last: {last}")


class SegmentationEvaluationSet(Dataset):
    """Images as the predictor sees them, (3, h, w) float32 in [0, 1], and their labels (H, W) int64 as they are.

    Args:
        data: the split.
        fit: says where an image of (H, W) pixels lands in the model's input (:meth:`Predictor.fit`).
    """

    def __init__(self, data: SegmentationDataset, fit: Callable[[tuple[int, int]], geometry.Geometry]) -> None:
        self.data, self.fit = data, fit

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Image ``index`` and its labels."""
        image, labels = self.data[index]
        pixels = image.permute(1, 2, 0).contiguous().numpy()
        return geometry.to_tensor(pixels, self.fit((pixels.shape[0], pixels.shape[1]))), labels


def segmentation_loader(
    data: SegmentationEvaluationSet, batch_size: int, workers: int = 0, *, rank: int = 0, world: int = 1
) -> DataLoader:
    """Batches (N, 3, h, w) float32 and labels (N, H, W) int64 of images of one size."""
    shapes = [data.data.shape(i) for i in range(len(data))]
    batches = SameShapeBatches(shapes, batch_size, rank=rank, world=world)
    return DataLoader(data, batch_sampler=batches, **worker_options(workers))
