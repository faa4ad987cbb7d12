"""Running sums over a data set's token maps: what a dissection counts, a photo at a time."""

from __future__ import annotations

import heapq
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from vtviz.explain.atlas import ClassOverlap, LayerAtlas, Peak, TokenMeans
from vtviz.geometry import Geometry, upsample
from vtviz.statistics import map_overlaps, map_statistics


class LayerTally:
    """One layer of a model and of its untrained twin.

    Maps are (L, h, w) float32, each summing to 1.

    Args:
        stride: of the layer.
        classes: of the masks; 0 where there are none.
        photos: kept of those that a token peaks on most.
        threshold: in x uniform; a token's region is where its map is larger.
    """

    def __init__(self, stride: int, classes: int, photos: int, threshold: float) -> None:
        self._stride, self._classes, self._photos, self._threshold = stride, classes, photos, threshold
        self._trained, self._untrained = _Means(), _Means()
        self._regions = {name: _Regions(classes) for name in ("iou", "untrained", "shuffled")}
        self._shuffled_overlap = _Mean()
        self._before: np.ndarray | None = None
        self._peaks: list[list[tuple[float, str, Peak]]] = []

    def add_photo(self, file: str, maps: np.ndarray, twin: np.ndarray, where: Geometry) -> None:
        """Count a photo: its name, the model's maps and the twin's, and how the photo became the input."""
        self._trained.add(maps)
        self._untrained.add(twin)
        if self._before is not None:
            self._shuffled_overlap.add(map_overlaps(maps, resample_maps(self._before, maps.shape[1:])))
        self._before = maps
        self._peaks = self._peaks or [[] for _ in maps]
        for best, values in zip(self._peaks, maps, strict=True):
            row, column = np.unravel_index(int(values.argmax()), values.shape)
            peak = float(values[row, column]) * values.size
            if len(best) == self._photos and peak <= best[0][0]:
                continue
            y, x = where.to_original(int(row) * self._stride, int(column) * self._stride)
            y, x = ((at + 0.5) / side for at, side in zip((y, x), where.original, strict=True))
            entry = (peak, file, Peak(file, peak, min(max(y, 0.0), 1.0), min(max(x, 0.0), 1.0)))
            (heapq.heappush if len(best) < self._photos else heapq.heappushpop)(best, entry)

    def add_mask(
        self, maps: np.ndarray, twin: np.ndarray, where: Geometry, labels: np.ndarray, other: np.ndarray
    ) -> None:
        """Count a mask.

        Args:
            maps: of the photo, the model's.
            twin: the untrained twin's.
            where: how the photo became the input.
            labels: (h, w) uint8 that cover the photo, at any size; what is no class does not count.
            other: labels of another photo, of any size.
        """
        sampled = replace(where, original=labels.shape)
        regions, random = (
            upsample(m * m[0].size, sampled, stride=self._stride) > self._threshold for m in (maps, twin)
        )
        rows, columns = (np.arange(n) * m // n for n, m in zip(labels.shape, other.shape, strict=True))
        self._regions["iou"].add(regions, labels)
        self._regions["untrained"].add(random, labels)
        self._regions["shuffled"].add(regions, other[np.ix_(rows, columns)])

    def finish(self, name: str) -> LayerAtlas:
        """What was counted, as the layer ``name`` of an atlas."""
        return LayerAtlas(
            name=name,
            trained=self._trained.finish(),
            untrained=self._untrained.finish(),
            shuffled_overlap=self._shuffled_overlap.finish(),
            photos=tuple(
                tuple(peak for *_, peak in sorted(best, key=lambda entry: (-entry[0], entry[1])))
                for best in self._peaks
            ),
            classes=ClassOverlap(**{n: r.iou() for n, r in self._regions.items()}) if self._classes else None,
        )


def resample_maps(maps: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Maps (L, h, w) on another grid (h', w'), each summing to 1 again."""
    if maps.shape[1:] == shape:
        return maps
    tensor = torch.from_numpy(np.ascontiguousarray(maps, np.float32))[None]
    drawn = F.interpolate(tensor, size=shape, mode="bilinear", antialias=True)[0].numpy()
    return drawn / drawn.sum(axis=(1, 2), keepdims=True)


class _Mean:
    """The mean of arrays of one shape."""

    def __init__(self) -> None:
        self._sum: np.ndarray | float = 0.0
        self._n = 0

    def add(self, values: np.ndarray) -> None:
        self._sum = self._sum + values.astype(np.float64)
        self._n += 1

    def finish(self) -> np.ndarray:
        return np.asarray(self._sum) / self._n


class _Means:
    """The statistics of one network's maps."""

    def __init__(self) -> None:
        self._peak, self._entropy, self._overlap = _Mean(), _Mean(), _Mean()

    def add(self, maps: np.ndarray) -> None:
        statistics = map_statistics(maps)
        self._peak.add(statistics.token_peak)
        self._entropy.add(statistics.token_entropy_normalized)
        self._overlap.add(map_overlaps(maps, maps))

    def finish(self) -> TokenMeans:
        return TokenMeans(self._peak.finish(), self._entropy.finish(), self._overlap.finish())


class _Regions:
    """Pixels of tokens, of classes and of both."""

    def __init__(self, classes: int) -> None:
        self._classes = classes
        self._both: np.ndarray | int = 0
        self._token: np.ndarray | int = 0
        self._class: np.ndarray | int = 0

    def add(self, regions: np.ndarray, labels: np.ndarray) -> None:
        known = labels < self._classes
        inside, counted = regions[:, known], labels[known].astype(np.intp)
        self._both = self._both + np.stack([np.bincount(counted[region], minlength=self._classes) for region in inside])
        self._token = self._token + inside.sum(axis=1)
        self._class = self._class + np.bincount(counted, minlength=self._classes)

    def iou(self) -> np.ndarray:
        """(L, C) float64: pixels in both over pixels in either."""
        both = np.asarray(self._both)
        either = np.asarray(self._token)[:, None] + np.asarray(self._class) - both
        return both / np.maximum(1, either)
