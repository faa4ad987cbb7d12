"""A place in the photo, asked both ways: which tokens read it, and which tokens it reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vtviz.errors import ConfigError
from vtviz.explain.lineage import slot_names
from vtviz.explain.origin import origin
from vtviz.geometry import Geometry, interpolation
from vtviz.tokens import LayerMaps, TokenMaps


@dataclass(frozen=True, eq=False)
class LayerQuery:
    """One layer's answer.

    Attributes:
        name: of the layer.
        kept: how many of its L tokens come from the layer before; they stand first. They were gathered there and read
            nothing here.
        read_by: how much each of the other L - kept tokens reads the place: A of Eq. 1 there, (heads, L - kept) float32
            in x uniform.
        reads: which tokens the place reads: the projector's coefficients of Eq. 4 there, (heads, L) float32, each head
            summing to 1. None in a classifier's last block, which has no projector.
    """

    name: str
    kept: int
    read_by: np.ndarray
    reads: np.ndarray | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data: of both answers the heads' mean and each head."""
        return {"name": self.name, "kept": self.kept, "read_by": _plain(self.read_by), "reads": _plain(self.reads)}


@dataclass(frozen=True, eq=False)
class PixelQuery:
    """All layers' answers for one place.

    Attributes:
        box: (x0, y0, x1, y1): pixels x0 <= x < x1 and y0 <= y < y1 of the original image.
        pixels: how many of them the model saw; the answers are their mean.
        layers: in the order of the forward pass.
        geometry: how the image became the model's input.
        model: name of the checkpoint.
        weights: sha256 of the checkpoint's weights; empty for a model that came from none.
        source: where the image came from, if from a file.
    """

    box: tuple[int, int, int, int]
    pixels: int
    layers: tuple[LayerQuery, ...]
    geometry: Geometry
    model: str
    weights: str
    source: str | None

    @property
    def names(self) -> list[list[str]]:
        """What the L tokens of each layer are called; see :func:`vtviz.explain.lineage.slot_names`."""
        return slot_names([(x.name, x.kept, x.read_by.shape[1]) for x in self.layers])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            **origin(self),
            "box": list(self.box),
            "pixels": self.pixels,
            "layers": [x.to_dict() | {"tokens": names} for x, names in zip(self.layers, self.names, strict=True)],
        }


def query(
    maps: TokenMaps, *, at: tuple[int, int] | None = None, box: tuple[int, int, int, int] | None = None
) -> PixelQuery:
    """Ask the maps of an image about one of its pixels, or a region.

    Values lie where the network looked (``align="receptive_field"``), bilinear between the cells: of one pixel they are
    exactly those of :meth:`TokenMaps.at_image_size`.

    Args:
        maps: of the image.
        at: (x, y) of a pixel of the original image, from 0.
        box: (x0, y0, x1, y1) in the place of ``at``: the mean over its pixels x0 <= x < x1, y0 <= y < y1, without those
            that a crop cut off.

    Raises:
        ConfigError: for both or neither, or a place outside the image or of which the model saw nothing.
    """
    if (at is None) == (box is None):
        raise ConfigError("a query needs either at=(x, y) or box=(x0, y0, x1, y1)")
    place = _check(maps.geometry.original, at, box)
    rows, columns = _seen(maps.geometry, place)
    if not len(rows) or not len(columns):
        raise ConfigError(f"the model did not see {_name(at, place)}: the crop cut it off")
    layers = tuple(_ask(layer, rows, columns) for layer in maps.layers)
    return PixelQuery(place, len(rows) * len(columns), layers, maps.geometry, maps.model, maps.weights, maps.source)


def _check(size: tuple[int, int], at: Sequence[int] | None, box: Sequence[int] | None) -> tuple[int, int, int, int]:
    """The box of either, inside an image of ``size`` (H, W)."""
    height, width = size
    given: Any = at if box is None else box
    if len(given) != (2 if box is None else 4) or not all(isinstance(n, int | np.integer) for n in given):
        what = "at needs two whole numbers (x, y)" if box is None else "box needs four whole numbers (x0, y0, x1, y1)"
        raise ConfigError(f"{what}, got {tuple(given)!r:.100}")
    x0, y0, x1, y1 = (*given, given[0] + 1, given[1] + 1) if box is None else given
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        what = "is outside" if box is None else "is empty or not within"
        raise ConfigError(f"{_name(at, (x0, y0, x1, y1))} {what} the image of {width} x {height} pixels")
    return int(x0), int(y0), int(x1), int(y1)


def _name(at: Sequence[int] | None, box: Sequence[int]) -> str:
    return f"the box {', '.join(map(str, box))}" if at is None else f"the pixel {at[0]}, {at[1]}"


def _seen(geometry: Geometry, box: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Model-input coordinates of the box's rows and columns, without those that a crop cut off."""
    x0, y0, x1, y1 = box
    axes = geometry.to_input(np.arange(y0, y1), np.arange(x0, x1))
    rows, columns = (p[(p >= -0.5) & (p <= n - 0.5)] for p, n in zip(axes, geometry.input, strict=True))
    return rows, columns


def _ask(layer: LayerMaps, rows: np.ndarray, columns: np.ndarray) -> LayerQuery:
    height, width = layer.coefficients.shape[2:]
    # the mean over a rectangle of bilinear values is one product with the mean weights of its rows and columns
    down = interpolation(rows / layer.stride, height).mean(axis=0)
    across = interpolation(columns / layer.stride, width).mean(axis=0)
    read_by = down @ (layer.coefficients * np.float32(height * width)) @ across
    reads = None if layer.projector is None else down @ layer.projector @ across
    return LayerQuery(layer.name, layer.kept, read_by, reads)


def _plain(values: np.ndarray | None) -> dict[str, Any] | None:
    return None if values is None else {"mean": values.mean(axis=0).tolist(), "heads": values.tolist()}
