"""Example photos with a clear licence (``photos/LICENCES.txt``): the page opens with one of them explained."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from vtviz import images

_PHOTOS = (
    ("cat", "Chelsea the cat", "Stéfan van der Walt, CC0"),
    ("rocket", "Rocket launch", "SpaceX, public domain"),
    ("astronaut", "Astronaut Eileen Collins", "NASA, public domain"),
    ("coffee", "Cup of coffee", "Rachel Michetti, CC0"),
)
"""Key (and file name), title, author and licence. The page opens with the first one."""


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
    """The examples by key."""
    folder = Path(__file__).parent / "photos"
    return {key: Example(key, title, credit, images.load(folder / f"{key}.jpg")) for key, title, credit in _PHOTOS}
