"""Films of token maps: every token in its place on one scale, as WebM or animated WebP."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from vtviz import render
from vtviz.errors import ConfigError, DataError
from vtviz.geometry import Geometry, upsample
from vtviz.images import hushed
from vtviz.lettering import line_height, shorten, write

GAP, TEXT = 6, 13
"""Pixels between two maps, and of the font."""


class Sheet:
    """A page on which each token has its place: the frame at the left, the maps over it beside, a colour bar.

    Args:
        title: what is above.
        shape: (H, W) of the first frame, which the pictures' shape follows. Frames of other shapes are fitted in.
        tokens: their numbers, in the order of the maps.
        stride: of their layer, in model-input pixels per cell.
        limits: the values of the first and the last colour, in x uniform.
        cmap: a key of :data:`vtviz.render.COLORMAPS`.
        cell: longer side of a map in pixels.
        columns: maps side by side.

    Attributes:
        size: (height, width) of a drawn sheet in pixels, both even, as video codecs want them.
    """

    def __init__(
        self,
        title: str,
        shape: tuple[int, int],
        tokens: Sequence[int],
        *,
        stride: int,
        limits: tuple[float, float],
        cmap: str = "jet",
        cell: int = 160,
        columns: int = 8,
    ) -> None:
        self._stride, self._limits, self._cmap = stride, limits, cmap
        longer = max(shape)
        height, width = (max(round(side * cell / longer), cell // 4) for side in shape)
        self._cell = (height, width)
        line, lines = line_height(TEXT), -(-len(tokens) // columns)
        large = min(lines, 2)  # the frame is as high as the first two lines of maps
        self._frame = (GAP, line + GAP, height * large + (large - 1) * (line + GAP), width * large + (large - 1) * GAP)
        left = GAP + self._frame[3] + 2 * GAP
        self._places = [
            (left + token % columns * (width + GAP), line + GAP + token // columns * (height + line + GAP))
            for token in range(len(tokens))
        ]
        right = left + min(columns, len(tokens)) * (width + GAP)
        bottom = line + GAP + lines * (height + line + GAP)
        bar = Image.fromarray(render.colorbar(cmap, limits, height=max(5 * TEXT, bottom - 3 * line), text=TEXT))
        bottom = max(bottom, bar.height + GAP)
        self.size = (bottom + bottom % 2, (wide := right + GAP + bar.width + GAP) + wide % 2)
        page = Image.new("RGB", self.size[::-1], "white")
        write(page, (GAP, GAP // 2), shorten(title, TEXT, right), TEXT, render.INK)
        page.paste(bar, (right + GAP, GAP))
        for token, (x, y) in zip(tokens, self._places, strict=True):
            write(page, (x, y + height), f"{token}", TEXT, render.INK)
        self._page = np.array(page)

    def draw(self, image: np.ndarray, coefficients: np.ndarray, geometry: Geometry, caption: str) -> np.ndarray:
        """One frame.

        Args:
            image: (H, W, 3) uint8 RGB.
            coefficients: (tokens, h, w), each map summing to 1.
            geometry: how the frame became the model's input.
            caption: below the frame.

        Returns:
            (height, width, 3) uint8 RGB, of :attr:`size`.
        """
        page = self._page.copy()
        x, y, height, width = self._frame
        _paste(page, _fit(image, height, width), (x, y), (height, width))
        photo = _fit(image, *self._cell)
        where = replace(geometry, original=photo.shape[:2])
        values = coefficients * np.float32(coefficients[0].size)
        for place, drawn in zip(self._places, upsample(values, where, stride=self._stride), strict=True):
            _paste(page, render.blend(photo, drawn, self._limits, cmap=self._cmap), place, self._cell)
        if caption:
            line = Image.fromarray(page[y + height : y + height + line_height(TEXT)])
            write(line, (x, 0), shorten(caption, TEXT, width), TEXT, render.MUTED)
            page[y + height : y + height + line.height] = np.array(line)
        return page


def _fit(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The image as large as it can be within a box."""
    scale = min(height / image.shape[0], width / image.shape[1])
    h, w = (max(1, round(side * scale)) for side in image.shape[:2])
    return cv2.resize(image, (w, h), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def _paste(page: np.ndarray, picture: np.ndarray, place: tuple[int, int], box: tuple[int, int]) -> None:
    """Put a picture into the middle of a box (height, width) at (x, y)."""
    top = place[1] + (box[0] - picture.shape[0]) // 2
    left = place[0] + (box[1] - picture.shape[1]) // 2
    page[top : top + picture.shape[0], left : left + picture.shape[1]] = picture


def write_webm(path: Path, pictures: Iterator[np.ndarray], size: tuple[int, int], fps: float) -> None:
    """Write pictures, (height, width, 3) uint8 RGB of even size, as VP8 in WebM: what every browser plays.

    Raises:
        ConfigError: where this OpenCV has no encoder for it, or no folder whose name it can bear.
        DataError: where it wrote nothing.
    """
    with tempfile.TemporaryDirectory() as elsewhere:
        made = _plain(path.absolute(), Path(elsewhere).absolute() / "film.webm")
        with hushed():  # it says that WebM has no tags for codecs, which is so
            writer = cv2.VideoWriter(str(made), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"VP80"), fps, size[::-1])
        try:
            if not writer.isOpened():
                raise ConfigError("this OpenCV cannot write WebM; write an animated WebP instead")
            for picture in pictures:
                writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        finally:
            writer.release()
        if not made.is_file() or not made.stat().st_size:
            raise DataError(f"{path}: nothing was written; is the disk full?")
        if made != path.absolute():
            shutil.move(made, path)


def _plain(*paths: Path) -> Path:
    """The first path that OpenCV can write to: it dies of one that is not UTF-8.

    They must be absolute: FFmpeg takes what a relative one has before a colon for the name of a protocol.
    """
    for path in paths:
        with suppress(UnicodeEncodeError):
            str(path).encode()
            return path
    raise ConfigError(f"{str(paths[-1].parent)!a} is not UTF-8, as WebM needs it; write an animated WebP instead")


def write_webp(path: Path, pictures: Iterator[np.ndarray], count: int, fps: float) -> None:
    """Write so many pictures, (height, width, 3) uint8 RGB, as an animated WebP that goes round and round."""
    _Reel(pictures, count).save(path, "WEBP", save_all=True, duration=1000 / fps, loop=0, quality=80, method=2)


class _Reel(Image.Image):
    """Pictures one after the other, drawn when Pillow turns to them: a list of them it would hold in memory."""

    def __init__(self, pictures: Iterator[np.ndarray], count: int) -> None:
        super().__init__()
        self.n_frames = count
        self._pictures, self._next = pictures, 0
        self.seek(0)

    def seek(self, frame: int) -> None:
        """Go on to the next picture; to an earlier one there is no way back, and none is needed."""
        while self._next <= frame:
            picture = Image.fromarray(next(self._pictures))
            self.im, self._mode, self._size = picture.im, picture.mode, picture.size
            self._next += 1
