"""The token maps of one image after each epoch of a run: one can watch the tokens form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vtviz import token_grid
from vtviz.files import replacing
from vtviz.predictor import Predictor
from vtviz.tokens import TokenMaps

PROBE = "probe"
"""Folder in a run folder."""
ANIMATION = "tokens.webp"
SCALE = (0.0, 8.0)
"""Ends of the colours in × uniform: the same in every epoch, or growing peaks would not be seen to grow."""
CELL = 96
"""Longer side of a map in a panel, in pixels."""
SECONDS = 8.0
"""Length of the animation, unless that made an epoch shorter than 0.05 s or longer than 0.5 s."""


def write_probe(run: Path, predictor: Predictor, image: np.ndarray, epoch: int) -> None:
    """Write what a model's tokens look at after an epoch, below ``run/probe``.

    ``image.png``, once; ``epoch0001.npz``: for each block (tokens, h, w) float16 in × uniform, the heads' mean; and
    ``epoch0001.png``, the same as a panel. Nothing for a model without tokens.

    Args:
        run: the run folder.
        predictor: with the weights of that epoch.
        image: (H, W, 3) uint8, the same in every epoch.
        epoch: from 1.

    Raises:
        OSError: where the disk refuses.
    """
    if not predictor.strides:
        return
    folder = run / PROBE
    folder.mkdir(exist_ok=True)
    if not (folder / "image.png").is_file():
        _write_image(folder / "image.png", image)
    maps: TokenMaps = predictor.extract(image)
    arrays: dict[str, Any] = {layer.name: layer.times_uniform().astype(np.float16) for layer in maps.layers}
    with replacing(folder / f"epoch{epoch:04d}.npz") as file:
        np.savez_compressed(file, **arrays)
    _write_image(folder / f"epoch{epoch:04d}.png", token_grid.grid(maps, cell=CELL, scale=SCALE))


def list_panels(run: str | Path) -> dict[int, Path]:
    """A run's panels: epoch -> PNG file, in their order; empty for a model without tokens."""
    return {int(file.stem[5:]): file for file in sorted((Path(run) / PROBE).glob("epoch[0-9]*.png"))}


def animate(run: str | Path) -> Path | None:
    """Make the run's panels, one an epoch, into an animation.

    Returns:
        The WebP file ``run/probe/tokens.webp``; None where the run has no panels.
    """
    folder = Path(run) / PROBE
    frames = [_read_image(file) for file in list_panels(run).values()]
    if not frames:
        return None
    each = round(1000 * min(0.5, max(0.05, SECONDS / len(frames))))
    durations = [each] * (len(frames) - 1) + [4 * each]  # rest on the last
    with replacing(folder / ANIMATION) as file:
        frames[0].save(
            file, "webp", save_all=True, append_images=frames[1:], duration=durations, loop=0, quality=80, method=2
        )
    return folder / ANIMATION


def _read_image(path: Path) -> Image.Image:
    with Image.open(path) as image:  # closed at once: a run may have more panels than a process may open files
        return image.copy()


def _write_image(path: Path, image: np.ndarray) -> None:
    with replacing(path) as file:
        Image.fromarray(image).save(file, "png")
