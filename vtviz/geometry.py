"""Where things are: pixels of the original image, pixels of the model's input, cells of a token map.

Coordinates are (y, x) and name pixel centres: index i is the centre of pixel i, and an image of H rows reaches from
-0.5 to H - 0.5.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from PIL import Image

from vtviz.errors import ConfigError, did_you_mean

MIN_SIDE, MAX_SIDE = 32, 1024
"""Each side of a model input lies between these, in pixels."""
ALIGNMENTS = ("receptive_field", "resize")
"""Where :func:`upsample` puts the cells."""


@dataclass(frozen=True)
class Geometry:
    """How an image became a model's input: resized as a whole, then cropped.

    Attributes:
        original: (H, W) of the image.
        resized: (h, w) that the whole image is resized to. The exact scales are resized / original, one an axis.
        offset: (top, left) of the crop in resized pixels; (0, 0) without a crop.
        input: (h, w) that the model gets.

    Raises:
        ConfigError: for sizes that are not positive integers, or a crop that leaves the resized image.
    """

    original: tuple[int, int]
    resized: tuple[int, int]
    offset: tuple[int, int]
    input: tuple[int, int]

    def __post_init__(self) -> None:
        for field in fields(self):
            _check_pair(field.name, getattr(self, field.name), least=0 if field.name == "offset" else 1)
        if any(o + n > r for o, n, r in zip(self.offset, self.input, self.resized, strict=True)):
            raise ConfigError(
                f"geometry: a crop of {self.input} at {self.offset} leaves the resized image of {self.resized}"
            )

    @property
    def scale(self) -> tuple[float, float]:
        """(y, x): model-input pixels per original pixel."""
        return self.resized[0] / self.original[0], self.resized[1] / self.original[1]

    def to_input(self, y: Any, x: Any) -> tuple[Any, Any]:
        """Original pixel coordinates (numbers or arrays) -> model-input pixel coordinates (floats)."""
        (sy, sx), (top, left) = self.scale, self.offset
        return (y + 0.5) * sy - 0.5 - top, (x + 0.5) * sx - 0.5 - left

    def to_original(self, y: Any, x: Any) -> tuple[Any, Any]:
        """Model-input pixel coordinates (numbers or arrays) -> original pixel coordinates (floats)."""
        (sy, sx), (top, left) = self.scale, self.offset
        return (y + 0.5 + top) / sy - 0.5, (x + 0.5 + left) / sx - 0.5

    def to_dict(self) -> dict[str, list[int]]:
        """Plain JSON data."""
        return {name: list(pair) for name, pair in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Geometry:
        """Rebuild from :meth:`to_dict`'s data. Raises ConfigError where it does not hold a geometry."""
        names = {field.name for field in fields(cls)}
        if not isinstance(data, Mapping) or set(data) != names:
            raise ConfigError(f"a geometry has the fields {', '.join(sorted(names))}, got {data!r:.100}")
        return cls(**{key: tuple(value) if isinstance(value, list | tuple) else value for key, value in data.items()})


def _check_pair(name: str, pair: object, *, least: int) -> None:
    """Raise ConfigError unless ``pair`` is two integers of at least ``least``."""
    integers = isinstance(pair, tuple) and len(pair) == 2 and all(type(n) is int for n in pair)
    if not integers or min(pair) < least:  # type: ignore[call-overload]
        raise ConfigError(f"geometry: {name} must be two integers of at least {least}, got {pair!r:.100}")


def fit(original: tuple[int, int], *, size: int = 224, crop: str | None = None, multiple: int = 16) -> Geometry:
    """Choose the model's input for an image.

    Args:
        original: (H, W) of the image, any from 1 x 1.
        size: the input has about size x size pixels, MIN_SIDE to MAX_SIDE.
        crop: None takes the whole image: its aspect ratio is kept and its area becomes about size², each side rounded
            to a multiple of ``multiple`` and held within MIN_SIDE and MAX_SIDE. "center" is the paper's evaluation
            and torchvision's: the short side becomes size * 256 / 224, and the central size x size is cut out.
        multiple: the coarsest stride of the model, in pixels, so that cells are whole. 1 to MAX_SIDE.

    Returns:
        The geometry, with exact scales for each axis.

    Raises:
        ConfigError: for a size, multiple or crop that is none.
    """
    size, multiple = _whole("size", size, MIN_SIDE), _whole("multiple", multiple, 1)
    _check_pair("original", original, least=1)
    height, width = original
    if crop == "center":
        short = round(size * 256 / 224)
        long = int(short * max(original) / min(original))  # cut off, not rounded, as torchvision's Resize does
        resized = (short, long) if height <= width else (long, short)
        top, left = (round((side - size) / 2) for side in resized)
        return Geometry((height, width), resized, (top, left), (size, size))
    if crop is not None:
        raise ConfigError(f"crop must be None (the whole image) or 'center', got {crop!r}")
    scale = size / math.sqrt(height * width)
    least, most = -(-MIN_SIDE // multiple), MAX_SIDE // multiple
    h, w = (min(max(round(side * scale / multiple), least), most) * multiple for side in (height, width))
    return Geometry((height, width), (h, w), (0, 0), (h, w))


def _whole(name: str, number: Any, least: int) -> int:
    """``number`` of pixels as a Python integer; raises ConfigError unless it is one from ``least`` to MAX_SIDE."""
    with suppress(TypeError):
        if not isinstance(number, bool) and least <= (value := operator.index(number)) <= MAX_SIDE:
            return value
    raise ConfigError(f"{name} must be a whole number of pixels from {least} to {MAX_SIDE}, got {number!r}")


def to_tensor(image: np.ndarray, geometry: Geometry) -> torch.Tensor:
    """Resize (antialiased bilinear, in uint8 as torchvision does) and crop an image for the model.

    Args:
        image: (H, W, 3) uint8, as :func:`vtviz.images.load` gives it.
        geometry: its geometry; ``geometry.original`` must be (H, W).

    Returns:
        (3, h, w) float32 in [0, 1], not yet normalised, with (h, w) = ``geometry.input``.

    Raises:
        ConfigError: if the geometry belongs to an image of another size.
    """
    if image.shape[:2] != geometry.original:
        raise ConfigError(f"the geometry is for an image of {geometry.original}, got one of {image.shape[:2]}")
    # Pillow computes the crop alone, exactly as if it had resized everything: a 1 x 5000 image costs nothing then.
    edges = [geometry.to_original(y - 0.5, x - 0.5) for y, x in ((0, 0), geometry.input)]
    (top, left), (bottom, right) = [(y + 0.5, x + 0.5) for y, x in edges]
    box = (max(left, 0), max(top, 0), min(right, image.shape[1]), min(bottom, image.shape[0]))
    h, w = geometry.input
    resized = Image.fromarray(image).resize((w, h), Image.Resampling.BILINEAR, box=box)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous().float().div_(255)


def upsample(values: np.ndarray, geometry: Geometry, *, stride: float, align: str = "receptive_field") -> np.ndarray:
    """Draw maps of cells at the size of the original image, by bilinear interpolation between the cells' centres.

    Args:
        values: (..., h, w), one value a cell.
        geometry: how the image became the input that the cells belong to.
        stride: model-input pixels per cell.
        align: "receptive_field" puts cell i where a ResNet sees it, at model-input pixel stride * i. "resize" is the
            ordinary resize of other tools, half a cell further down and right: stride * i + (stride - 1) / 2.

    Returns:
        (..., H, W) float32. Beyond the outermost centres the edge values go on; pixels whose centres a crop has cut
        off are NaN.

    Raises:
        ConfigError: for an unknown alignment.
    """
    if align not in ALIGNMENTS:
        raise ConfigError(f"unknown alignment {align!r}{did_you_mean(align, ALIGNMENTS)}")
    shift = 0.0 if align == "receptive_field" else (stride - 1) / 2
    height, width = geometry.original
    y, x = geometry.to_input(np.arange(height), np.arange(width))
    columns = interpolation((x - shift) / stride, values.shape[-1])
    # Exact, where OpenCV's warps round the positions to 1/32 cell: a thin matrix product, and between its rows, which
    # are many more, two steps that run at the memory's speed.
    wide = values.astype(np.float32, copy=False) @ columns.T
    ahead = np.diff(wide, axis=-2, append=wide[..., -1:, :])
    position = np.clip((y - shift) / stride, 0, values.shape[-2] - 1)
    above = position.astype(int)
    drawn = ahead[..., above, :]
    drawn *= (position - above).astype(np.float32)[:, None]
    drawn += wide[..., above, :]
    if geometry.input != geometry.resized:
        drawn[..., (y < -0.5) | (y > geometry.input[0] - 0.5), :] = np.nan
        drawn[..., (x < -0.5) | (x > geometry.input[1] - 0.5)] = np.nan
    return drawn


def interpolation(positions: np.ndarray, cells: int) -> np.ndarray:
    """Weights of bilinear interpolation along one axis.

    Args:
        positions: (n,) in cells; whole numbers are their centres.
        cells: how many there are.

    Returns:
        (n, cells) float32: row i weights the two cells around position i, clamped to the outermost centres.
    """
    positions = np.clip(positions, 0, cells - 1)
    return np.maximum(0, 1 - np.abs(positions[:, None] - np.arange(cells))).astype(np.float32)
