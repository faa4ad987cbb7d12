"""Example photos with a clear licence, read from packages that are installed anyway; nothing is redistributed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np

from vtviz import images

_PHOTOS = (
    ("cat", "Chelsea the cat", "Stéfan van der Walt, CC0", "skimage", "data/chelsea.png"),
    ("rocket", "Rocket launch", "SpaceX, public domain", "skimage", "data/rocket.jpg"),
    ("astronaut", "Astronaut Eileen Collins", "NASA, public domain", "skimage", "data/astronaut.png"),
    ("coffee", "Cup of coffee", "Rachel Michetti, CC0", "skimage", "data/coffee.png"),
    ("hopper", "Grace Hopper", "US Navy, public domain", "matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
)
"""Key, title, author and licence, package, file within it. scikit-image is installed for development only, Matplotlib
comes with Captum."""
SHOWN = 4
"""How many examples the page offers."""


@dataclass(frozen=True, eq=False)
class Example:
    """A picture that the page offers.

    Attributes:
        key: what the browser calls it by.
        title: shown below its thumbnail.
        credit: author and licence.
        image: (H, W, 3) uint8 RGB.
    """

    key: str
    title: str
    credit: str
    image: np.ndarray


@lru_cache(maxsize=1)
def load_examples() -> dict[str, Example]:
    """The examples that can be had here, by key; never empty, because the last resort is drawn."""
    found: dict[str, Example] = {}
    for key, title, credit, package, name in _PHOTOS:
        spec = find_spec(package)
        folders = spec.submodule_search_locations if spec else None
        path = Path(folders[0]) / name if folders else None
        if path and path.is_file() and len(found) < SHOWN:
            found[key] = Example(key, title, credit, images.load(path))
    if len(found) < 2:
        found["shapes"] = Example("shapes", "Drawn shapes", "drawn, not a photo", draw_shapes())
    return found


def draw_shapes(height: int = 360, width: int = 480) -> np.ndarray:
    """Plain shapes over a gradient, (height, width, 3) uint8 RGB: an example where no photo is installed."""
    down, right = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    canvas = np.stack((120 + 60 * right, 160 + 50 * (1 - down), 225 - 60 * down), axis=2).astype(np.uint8)
    canvas = np.ascontiguousarray(canvas)

    def at(y: float, x: float) -> tuple[int, int]:
        return int(x * width), int(y * height)

    cv2.rectangle(canvas, at(0.72, 0), at(1, 1), (96, 128, 72), cv2.FILLED)
    cv2.rectangle(canvas, at(0.42, 0.12), at(0.8, 0.4), (178, 70, 52), cv2.FILLED)
    roof = np.array([at(0.42, 0.08), at(0.42, 0.44), at(0.2, 0.26)], np.int32)
    cv2.fillConvexPoly(canvas, roof, (84, 44, 40), cv2.LINE_AA)
    cv2.circle(canvas, at(0.24, 0.78), height // 9, (250, 214, 80), cv2.FILLED, cv2.LINE_AA)
    cv2.ellipse(canvas, at(0.84, 0.7), (width // 7, height // 14), 0, 0, 360, (52, 92, 150), cv2.FILLED, cv2.LINE_AA)
    return canvas
