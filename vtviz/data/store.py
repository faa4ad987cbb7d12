"""Pixels decoded once: at small training sizes, decoding every epoch costs more than the network's step."""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tvf

from vtviz import images
from vtviz.errors import DataError, ImageError

MAX_BAD_SHARE = 0.01
"""Unreadable files up to this share of a data set (and at least 10) are reported and left out."""
CHUNK = 64
_LOG = logging.getLogger(__name__)


class PixelStore:
    """The images of a data set as uint8 tensors, either all in memory or decoded at each access.

    Memory is shared with data-loading processes that are forked after the store was made.

    Attributes:
        kept: positions in the list given of the images in the store: ``store[i]`` is image ``kept[i]``.
        skipped: one line for each file that could not be read.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        short_side: int | None = None,
        memory: float = math.inf,
        check: bool = False,
        workers: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Decode ``paths``.

        Args:
            paths: image files.
            short_side: shrink images whose shorter side is larger than this, so that they take less memory.
            memory: bytes that the decoded images may take; larger sets are decoded at each access.
            check: decode everything once even where it cannot be kept, so that files that cannot be read are found
                ahead, and :meth:`shape` costs nothing.
            workers: decoding processes; by default one a core.
            progress: called with (images done, images in all).

        Raises:
            DataError: where too many files cannot be read.
        """
        if not paths:
            raise DataError("a data set needs at least one image, got none")
        self.paths = list(paths)
        self.short_side = short_side
        self.kept: list[int] = list(range(len(self.paths)))
        self.skipped: list[str] = []
        self.limit = int(max(10, MAX_BAD_SHARE * len(self.paths)))
        self._images: list[np.ndarray] | None = None
        self._shapes: np.ndarray | None = None
        fits = memory == math.inf or self._estimate() <= memory
        if fits or check:
            self._decode(workers or os.cpu_count() or 1, progress, keep=fits)

    @property
    def in_memory(self) -> bool:
        """Whether all pixels were decoded ahead."""
        return self._images is not None

    @property
    def nbytes(self) -> int:
        """Bytes of the pixels in memory."""
        return sum(image.nbytes for image in self._images or ())

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, index: int) -> Tensor:
        """Image ``index`` as (3, H, W) uint8, a fresh tensor.

        Raises:
            ImageError: for a file that cannot be read, where the pixels were not decoded ahead.
        """
        if self._images is None:
            return _to_chw(_read(self.paths[index], self.short_side))
        return _to_chw(self._images[index].copy())

    def read_near(self, index: int, *, bounded: bool = True) -> tuple[int, Tensor]:
        """Image ``index``, or the first one after it that can be read: its position and pixels.

        Each file that cannot be read is logged once and added to ``skipped``, of this process: of several that load
        data, each counts for itself.

        Raises:
            DataError: where there are too many of them: in all if ``bounded``, else one after the other.
        """
        tries = min(len(self), self.limit + 1)
        for position in range(index, index + tries):
            place = position % len(self)
            try:
                return place, self[place]
            except ImageError as error:
                line = f"{self.paths[place]}: {error}"
                if line not in self.skipped:
                    _LOG.warning("left out: %s", line)
                    self.skipped.append(line)
                if bounded:
                    self._check_skipped()
        raise DataError(f"{tries} images one after the other cannot be read; last: {line}")

    def shape(self, index: int) -> tuple[int, int]:
        """(H, W) of image ``index``."""
        if self._shapes is None:
            return tuple(self[index].shape[-2:])  # type: ignore[return-value]
        return int(self._shapes[index][0]), int(self._shapes[index][1])

    def _estimate(self) -> float:
        """Bytes that all images would take, judged by a sample."""
        sample = self.paths[:: max(1, len(self.paths) // 32)]
        sizes = [image.nbytes for image in (_try_read(p, self.short_side).image for p in sample) if image is not None]
        return float(np.mean(sizes)) * len(self.paths) if sizes else 0.0

    def _decode(self, workers: int, progress: Callable[[int, int], None] | None, *, keep: bool) -> None:
        chunks = [self.paths[i : i + CHUNK] for i in range(0, len(self.paths), CHUNK)]
        decoded: list[np.ndarray] = []
        shapes: list[tuple[int, int]] = []
        problems: list[str] = []
        self.kept = []
        with _mapper(min(workers, len(chunks))) as run:
            for number, results in enumerate(run(_read_chunk, chunks, [(self.short_side, keep)] * len(chunks))):
                for position, result in enumerate(results, start=number * CHUNK):
                    if result.shape is None:
                        problems.append(result.problem)
                        continue
                    self.kept.append(position)
                    shapes.append(result.shape)
                    if result.image is not None:
                        decoded.append(result.image)
                if progress is not None:
                    progress(min((number + 1) * CHUNK, len(self.paths)), len(self.paths))
        self.skipped += problems
        self._check_skipped()
        if not shapes:
            raise DataError(f"none of {len(self.paths)} images can be read; first: {problems[0]}")
        self.paths = [self.paths[i] for i in self.kept]
        self._shapes = np.array(shapes, np.int64)
        if keep:
            self._images = decoded  # as they are: one array of them all would take as much again while it is made

    def _check_skipped(self) -> None:
        if len(self.skipped) > self.limit:
            raise DataError(f"{len(self.skipped)} of {len(self.paths)} images cannot be read; first: {self.skipped[0]}")


class _Result(NamedTuple):
    """One file: its pixels where they are wanted, its shape where it could be read, else what is wrong."""

    image: np.ndarray | None
    shape: tuple[int, int] | None
    problem: str


@contextmanager
def _mapper(workers: int) -> Iterator[Callable]:
    """``map`` in forked processes, or the built-in one where forking is not to be had or not worth it."""
    if workers < 2 or sys.platform != "linux":
        yield map
        return
    fork = multiprocessing.get_context("fork")
    executor = ProcessPoolExecutor(workers, mp_context=fork, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield executor.map
    finally:
        executor.shutdown(cancel_futures=True)


def _read_chunk(paths: Sequence[Path], options: tuple[int | None, bool]) -> list[_Result]:
    short_side, keep = options
    results: list[_Result] = []
    for path in paths:
        result = _try_read(path, short_side)
        results.append(result if keep else result._replace(image=None))
    return results


def _try_read(path: Path, short_side: int | None) -> _Result:
    try:
        image = _read(path, short_side)
    except ImageError as error:
        return _Result(None, None, f"{path}: {error}")
    return _Result(image, (image.shape[0], image.shape[1]), "")


def _read(path: Path, short_side: int | None) -> np.ndarray:
    image = images.load(path)
    if short_side is None or min(image.shape[:2]) <= short_side:
        return image
    return tvf.resize(_to_chw(image), [short_side], antialias=True).permute(1, 2, 0).contiguous().numpy()


def _to_chw(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)
