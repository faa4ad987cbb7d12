"""The photos that the tokens of a layer peak on most, with their maps, from the user's own copy of the data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from vtviz import images, render
from vtviz.errors import DataError, ImageError
from vtviz.explain.atlas import Atlas
from vtviz.panels import panel
from vtviz.predictor import Predictor
from vtviz.thumbnails import shrink
from vtviz.tokens import check_index


def contact_sheet(
    atlas: Atlas,
    predictor: Predictor,
    data: str | Path,
    layer: int = 0,
    *,
    photos: int = 4,
    side: int = 128,
    cmap: str = "jet",
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Image.Image:
    """Draw a column for each token: the photos that it peaks on most, the highest peak first, its map over them.

    Args:
        atlas: of the model.
        predictor: of the same model; it looks at the photos again, for an atlas has no maps.
        data: the folder that the atlas was made of, or a copy.
        layer: by index, negative from the end.
        photos: at most so many of a token.
        side: longer side of a picture in pixels.
        cmap: a key of :data:`vtviz.render.COLORMAPS`.
        progress: called with (photos done, photos in all).

    Raises:
        DataError: for a photo that is not there or cannot be read.
        ConfigError: for a layer that is not there or another model's atlas.
    """
    chosen = atlas.layers[check_index("layer", layer, len(atlas.layers))]
    wanted = [peaks[:photos] for peaks in chosen.photos]
    limits = render.value_range(np.array([peak.peak for peaks in wanted for peak in peaks]), "shared")
    pictures: dict[tuple[int, str], np.ndarray] = {}
    tokens_of: dict[str, list[int]] = {}
    for token, peaks in enumerate(wanted):
        for peak in peaks:
            tokens_of.setdefault(peak.file, []).append(token)
    index = check_index("layer", layer, len(predictor.strides))
    for done, (file, tokens) in enumerate(tokens_of.items(), start=1):
        try:
            image = images.load(Path(data).expanduser() / file)
        except ImageError as error:
            raise DataError(f"{error}; is {data} the folder {atlas.data.name} that the atlas was made of?") from None
        maps = shrink(predictor.extract(image, layers=[index], size=atlas.size), side)
        for token in tokens:
            pictures[token, file] = render.overlay(maps, 0, token, cmap=cmap, scale=limits)
        progress(done, len(tokens_of))

    height, width = (max(picture.shape[axis] for picture in pictures.values()) for axis in (0, 1))
    blank = np.full((height, width, 3), 255, np.uint8)
    rows, captions = [], []
    for rank in range(max(map(len, wanted))):
        here = [peaks[rank] if rank < len(peaks) else None for peaks in wanted]
        row = [blank if p is None else pictures[token, p.file] for token, p in enumerate(here)]
        rows.append([_pad(picture, height, width) for picture in row])
        captions.append(["" if p is None else f"{p.peak:.1f}×" for p in here])
    headings = [f"token {token}" + (f": {name}" if name else "") for token, name in enumerate(atlas.token_names(layer))]
    return panel(rows, headings, captions=captions, scale=limits, cmap=cmap, apart=0, width=width)


def _pad(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """The picture in the middle of white."""
    box = np.full((height, width, 3), 255, np.uint8)
    top, left = (height - picture.shape[0]) // 2, (width - picture.shape[1]) // 2
    box[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return box
