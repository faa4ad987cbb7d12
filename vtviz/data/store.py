"""Pixels decoded once: at small training sizes, decoding every epoch costs more than the network's step."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tvf

from vtviz import images
from vtviz.errors import DataError, ImageError

MAX_BAD_SHARE = 0.01
"""Unreadable files up to this share of a data set (and at least 10) are reported and left out."""
CHUNK = 64


class PixelStore:
    """The images of a data set as uint8 tensors, either all in memory or decoded at each access.

    Memory is shared with data-loading processes that are forked after the store was made.

    Attributes:
        kept: positions in the list given that could be read; ``store[i]`` is image ``kept[i]``.
        skipped: one line for each file that could not be read.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        short_side: int | None = None,
        memory: int = 12 * 2**30,
        workers: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Decode ``paths``.

        Args:
            paths: image files.
            short_side: shrink images whose shorter side is larger than this, so that they take less memory.
            memory: bytes that the decoded images may take; larger sets are decoded at each access.
            workers: decoding processes; by default one a core.
            progress: called with (images done, images in all).

        Raises:
            DataError: where too many files cannot be read.
        """
        self.paths = list(paths)
        self.short_side = short_side
        self.kept: list[int] = list(range(len(self.paths)))
        self.skipped: list[str] = []
        self._pixels: np.ndarray | None = None
        self._shapes = np.zeros((0, 2), np.int64)
        self._offsets = np.zeros(1, np.int64)
        if self._estimate() <= memory:
            self._decode(workers or os.cpu_count() or 1, progress)

    @property
    def in_memory(self) -> bool:
        """Whether all pixels were decoded ahead."""
        return self._pixels is not None

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, index: int) -> Tensor:
        """Image ``index`` as (3, H, W) uint8, a fresh tensor."""
        if self._pixels is None:
            return _to_chw(_read(self.paths[index], self.short_side))
        height, width = self._shapes[index]
        flat = self._pixels[self._offsets[index] : self._offsets[index + 1]]
        return _to_chw(flat.reshape(height, width, 3).copy())

    def shape(self, index: int) -> tuple[int, int]:
        """(H, W) of image ``index``."""
        if self._pixels is None:
            return tuple(self[index].shape[-2:])  # type: ignore[return-value]
        return int(self._shapes[index][0]), int(self._shapes[index][1])

    def _estimate(self) -> float:
        """Bytes that all images would take, judged by a sample."""
        sample = self.paths[:: max(1, len(self.paths) // 32)]
        sizes = [image.nbytes for image in (_try_read(p, self.short_side)[0] for p in sample) if image is not None]
        return float(np.mean(sizes)) * len(self.paths) if sizes else 0.0

    def _decode(self, workers: int, progress: Callable[[int, int], None] | None) -> None:
        chunks = [self.paths[i : i + CHUNK] for i in range(0, len(self.paths), CHUNK)]
        decoded: list[np.ndarray] = []
        self.kept = []
        with _pool(min(workers, len(chunks))) as run:
            for number, results in enumerate(run(chunks, self.short_side)):
                for position, (image, problem) in enumerate(results, start=number * CHUNK):
                    if image is None:
                        self.skipped.append(problem)
                    else:
                        self.kept.append(position)
                        decoded.append(image)
                if progress is not None:
                    progress(min((number + 1) * CHUNK, len(self.paths)), len(self.paths))
        if len(self.skipped) > max(10, MAX_BAD_SHARE * len(self.paths)) or not decoded:
            raise DataError(f"{len(self.skipped)} of {len(self.paths)} images cannot be read; first: {self.skipped[0]}")
        self.paths = [self.paths[i] for i in self.kept]
        self._shapes = np.array([image.shape[:2] for image in decoded], np.int64)
        self._offsets = np.concatenate([[0], np.cumsum([image.size for image in decoded])]).astype(np.int64)
        self._pixels = np.concatenate([image.reshape(-1) for image in decoded])


class _pool:  # noqa: N801 - a context manager that reads like a function
    """Decoding in forked processes, or in this one where forking is not to be had or not worth it."""

    def __init__(self, workers: int) -> None:
        self.executor = None
        if workers > 1 and sys.platform == "linux":
            self.executor = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork"))

    def __enter__(self) -> Callable:
        mapper = map if self.executor is None else self.executor.map
        return lambda chunks, side: mapper(_read_chunk, chunks, [side] * len(chunks))

    def __exit__(self, *_: object) -> None:
        if self.executor is not None:
            self.executor.shutdown(cancel_futures=True)


def _read_chunk(paths: Sequence[Path], short_side: int | None) -> list[tuple[np.ndarray | None, str]]:
    torch.set_num_threads(1)
    return [_try_read(path, short_side) for path in paths]


def _try_read(path: Path, short_side: int | None) -> tuple[np.ndarray | None, str]:
    try:
        return _read(path, short_side), ""
    except ImageError as error:
        return None, f"{path}: {error}"


def _read(path: Path, short_side: int | None) -> np.ndarray:
    image = images.load(path)
    if short_side is None or min(image.shape[:2]) <= short_side:
        return image
    return tvf.resize(_to_chw(image), [short_side], antialias=True).permute(1, 2, 0).contiguous().numpy()


def _to_chw(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)
