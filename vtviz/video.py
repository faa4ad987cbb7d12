"""Token maps of moving pictures: arrays, and a film of every token in its place on one fixed scale."""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from vtviz import render
from vtviz.errors import ConfigError, did_you_mean
from vtviz.export import publish, staged
from vtviz.files import spare
from vtviz.film import Sheet, write_webm, write_webp
from vtviz.footage import Footage, open_footage
from vtviz.geometry import Geometry
from vtviz.predictor import Predictor
from vtviz.tokens import UNITS, TokenMaps, check_index

KINDS = ("webm", "webp")
"""Films that browsers play: VP8 in WebM, or an animated WebP picture."""
MOST = 300
"""Frames that are looked at unless more are asked for."""
FOLDER_FPS = 10.0
"""Frames a second of a film of a folder's frames."""
MIN_FPS, MAX_FPS = 0.1, 60.0


@dataclass(frozen=True)
class FilmFrame:
    """One frame of a film.

    Attributes:
        number: its place in the footage, from 0.
        name: of its file; of a video empty.
        array: its name in the npz file.
        geometry: how it became the model's input.
    """

    number: int
    name: str
    array: str
    geometry: Geometry


@dataclass(frozen=True)
class Film:
    """What :func:`write_film` wrote.

    Attributes:
        source: the video file or folder.
        available: how many frames that has, as it states; None where it does not.
        model: name of the checkpoint.
        weights: sha256 of its weights; empty for a model that came from none.
        layer: its name.
        stride: model-input pixels per cell.
        tokens: whose maps these are, in the order of the arrays' first axis.
        frames: that were looked at.
        every: one of so many was.
        fps: frames a second of the film.
        size: (height, width) of the film in pixels.
        scale: ends of the colours in x uniform, the same in every frame.
        cmap: name of the colours.
        files: file name -> path.
    """

    source: str
    available: int | None
    model: str
    weights: str
    layer: str
    stride: int
    tokens: tuple[int, ...]
    frames: tuple[FilmFrame, ...]
    every: int
    fps: float
    size: tuple[int, int]
    scale: tuple[float, float]
    cmap: str
    files: dict[str, Path]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        files = {name: str(path) for name, path in self.files.items()}
        return {**asdict(self), "files": files, "unit": UNITS["coefficients"]}


def write_film(
    predictor: Predictor,
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    name: str = "film",
    *,
    layer: int = 0,
    tokens: Sequence[int] | None = None,
    every: int = 1,
    most: int = MOST,
    fps: float | None = None,
    kind: str = "webm",
    scale: render.Scale = "shared",
    cmap: str = "jet",
    cell: int = 160,
    columns: int = 8,
    size: int | None = None,
    crop: str | None = None,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Film:
    """Look at moving pictures frame by frame and write what the tokens look at.

    ``NAME.npz`` has for each frame an array (tokens, h, w) float32, the heads' mean of the token coefficients, each map
    summing to 1. ``NAME.json`` says what they are. ``NAME.webm`` or ``NAME.webp`` shows them over the frame.

    The footage is gone through twice, once for the maps and once, when the scale is known, for the film; one frame is
    held at a time.

    Args:
        predictor: of a model with tokens.
        source: a video file or a folder of frames, see :func:`vtviz.footage.open_footage`.
        folder: where the files go; it is made if it is not there.
        name: of the files.
        layer: by index, negative from the end.
        tokens: of that layer, by index, negative from the end; None for all. Each has one place in the film.
        every: take one frame of so many.
        most: frames at most; the rest is left out.
        fps: of the film; by default such that time passes as in the footage, and 10 for a folder.
        kind: of :data:`KINDS`.
        scale: "shared", 0 to the median peak of all maps of all frames, or (low, high), in x uniform.
        cmap: a key of :data:`vtviz.render.COLORMAPS`.
        cell: longer side of a map in pixels.
        columns: maps side by side.
        size: as for :meth:`Predictor.extract`.
        crop: likewise.
        progress: called with (steps done, steps in all), two for each frame.

    Raises:
        ImageError: for footage that cannot be read.
        ConfigError: for a model without tokens, an option that cannot work, or where a file would replace the footage.
        DataError: where the disk refuses.
    """
    _check_options(every, most, fps, kind, scale, cmap, cell, columns)
    footage = open_footage(source)
    names = (f"{name}.{kind}", f"{name}.npz", f"{name}.json")
    spare([footage.path, *(footage.files or ())], [Path(folder) / file for file in names])
    stated = math.inf if footage.count is None else math.ceil(footage.count / every)
    expected = int(min(most, stated))
    frames: list[FilmFrame] = []
    peaks: list[np.ndarray] = []
    with staged(folder) as stage:
        film, arrays, facts = (stage / file for file in names)
        with zipfile.ZipFile(arrays, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for frame in islice(footage.frames(every, lambda: progress(len(frames), 2 * max(1, expected))), most):
                maps: TokenMaps = predictor.extract(frame.image, layers=[layer], size=size, crop=crop)
                if not frames:
                    first = maps
                    chosen = _choose(tokens, maps.layers[0].num_tokens)
                frames.append(FilmFrame(frame.number, frame.name, f"frame{frame.number:06d}", maps.geometry))
                coefficients = maps.layers[0].of_head()[chosen]
                peaks.append(coefficients.max(axis=(1, 2)) * coefficients[0].size)
                with archive.open(f"{frames[-1].array}.npy", "w") as file:
                    np.lib.format.write_array(file, coefficients, allow_pickle=False)
                progress(len(frames), 2 * max(expected, len(frames)))
        limits = render.value_range(np.concatenate(peaks), scale)
        found = first.layers[0]
        sheet = Sheet(
            f"{predictor.name}, {found.name}",
            first.geometry.original,
            chosen,
            stride=found.stride,
            limits=limits,
            cmap=cmap,
            cell=cell,
            columns=columns,
        )
        rate = fps or min(max(footage.fps / every if footage.fps else FOLDER_FPS, MIN_FPS), MAX_FPS)
        pictures = _draw(sheet, footage, every, frames, arrays, progress)
        if kind == "webm":
            write_webm(film, pictures, sheet.size, rate)
        else:
            write_webp(film, pictures, len(frames), rate)
        result = Film(
            source=os.fspath(source),
            available=footage.count,
            model=predictor.name,
            weights=first.weights,
            layer=found.name,
            stride=found.stride,
            tokens=tuple(chosen),
            frames=tuple(frames),
            every=every,
            fps=rate,
            size=sheet.size,
            scale=limits,
            cmap=cmap,
            files={file: Path(folder) / file for file in names},
        )
        text = json.dumps(result.to_dict(), indent=1, ensure_ascii=False)
        facts.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
        publish(stage, folder, names)
    return result


def _draw(
    sheet: Sheet,
    footage: Footage,
    every: int,
    frames: Sequence[FilmFrame],
    arrays: Path,
    progress: Callable[[int, int], None],
) -> Iterator[np.ndarray]:
    """The film's pictures: the footage once more, with the maps as they were written."""
    done = 0

    def tell() -> None:
        progress(len(frames) + done, 2 * len(frames))

    with np.load(arrays, allow_pickle=False) as stored:
        for noted, frame in zip(frames, footage.frames(every, tell), strict=False):
            caption = noted.name or f"frame {noted.number}"
            yield sheet.draw(frame.image, stored[noted.array], noted.geometry, caption)
            done += 1
            tell()


def _choose(tokens: Sequence[int] | None, count: int) -> list[int]:
    if tokens is None:
        return list(range(count))
    chosen = [check_index("token", token, count) % count for token in tokens]
    if not chosen or len(set(chosen)) < len(chosen):
        raise ConfigError(f"tokens must be one or more different ones, got {list(tokens)}")
    return chosen


def _check_options(
    every: int, most: int, fps: float | None, kind: str, scale: render.Scale, cmap: str, cell: int, columns: int
) -> None:
    """Raise ConfigError before any work is done for what would fail at its end."""
    if kind not in KINDS:
        raise ConfigError(f"unknown kind of film {kind!r}{did_you_mean(kind, KINDS)}")
    if min(every, most, columns) < 1 or not 32 <= cell <= 512:
        raise ConfigError(
            "every, most and columns must be at least 1 and cell from 32 to 512, "
            f"got {every}, {most}, {columns} and {cell}"
        )
    if fps is not None and not MIN_FPS <= fps <= MAX_FPS:
        raise ConfigError(f"fps must be from {MIN_FPS:g} to {MAX_FPS:g}, got {fps}")
    if scale == "map":
        raise ConfigError("a film has one scale for all: shared, or two numbers")
    one = np.ones((1, 1))
    render.colorize(one, cmap, *render.value_range(one, scale))
