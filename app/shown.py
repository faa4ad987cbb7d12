"""What a session looks at: a photo, a model, a crop and perhaps a mask, and how they are opened."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from app.examples import load_examples
from vtviz import images
from vtviz.data.segmentation import IGNORE, read_mask
from vtviz.errors import ConfigError, DataError, ImageError, VtvizError, did_you_mean

VIEWS = {"Whole photo": None, "Centre 224 px, as in the paper": "center"}
"""What is shown -> ``crop`` of :meth:`vtviz.Predictor.extract`."""
EXPIRED = "This photo is no longer on the server; choose it again."


@dataclass(frozen=True)
class Shown:
    """What a session looks at: enough to compute it again, so that no maps stay on the server."""

    photo: str
    """Key of an example, or path of an upload."""
    uploaded: bool
    model: str
    view: str
    mask: str = ""
    """Path of an uploaded mask of the photo's classes; empty without one."""
    mask_of: str = ""
    """The model whose classes the mask's numbers are."""

    @classmethod
    def upload(cls, photo: dict[str, Any], model: Any, view: Any) -> Shown:
        """From what the browser sent, whatever that is; Gradio has checked that the path is one of its uploads."""
        return cls(str(photo.get("path") or ""), uploaded=True, model=str(model), view=str(view))

    @property
    def name(self) -> str:
        """The photo's name for people: an example's title, an upload's file name."""
        return Path(self.photo).name if self.uploaded else load_examples()[self.photo].title

    @property
    def link(self) -> dict[str, str] | None:
        """What an address needs to show this again; None for an upload, which nobody else may see."""
        if self.uploaded:
            return None
        return {"photo": self.photo, "model": self.model, "crop": VIEWS.get(self.view) or ""}


def crop_of(shown: Shown) -> str | None:
    """``crop`` of the shown view. Raises ConfigError for a view that there is not."""
    if shown.view not in VIEWS:
        raise ConfigError(f"unknown view {shown.view!r}{did_you_mean(str(shown.view), VIEWS)}")
    return VIEWS[shown.view]


def open_photo(shown: Shown) -> np.ndarray:
    """The photo, (H, W, 3) uint8 RGB. Raises ImageError, which names an upload but does not tell where it lies."""
    return open_upload(Path(shown.photo)) if shown.uploaded else open_example(shown.photo)


def open_example(key: str) -> np.ndarray:
    """An example's photo, (H, W, 3) uint8 RGB. Raises ConfigError for one that there is not."""
    examples = load_examples()
    if key not in examples:
        raise ConfigError(f"there is no example {key[:80]!r}{did_you_mean(key, examples)}")
    return examples[key].image


def path_of(file: Any) -> Path:
    """Where Gradio keeps an uploaded file, which it has checked to be one; no file's path for anything else."""
    return Path(str((file or {}).get("path") or ""))


def open_upload(path: Path) -> np.ndarray:
    """An uploaded photo, (H, W, 3) uint8 RGB. Raises ImageError, which does not tell where it lies."""
    if not path.is_file():
        raise ImageError(EXPIRED)
    with hidden(path):
        return images.load(path)


@contextmanager
def hidden(path: Path) -> Iterator[None]:
    """Errors from here do not tell where a file or folder lies on the server."""
    try:
        yield
    except VtvizError as error:
        raise type(error)(str(error).replace(f"{path}/", "").replace(f"{path.parent}/", "")) from None


def open_truth(path: Path, shape: tuple[int, ...], num_classes: int) -> np.ndarray:
    """An uploaded mask, (H, W) = ``shape`` uint8. Raises DataError, which does not tell where it lies."""
    with hidden(path):
        mask = read_mask(path)
    if mask.shape != shape:
        size, photo = (f"{width} x {height}" for height, width in (mask.shape, shape))
        raise DataError(f"{path.name} has {size} pixels, but the photo has {photo}; a mask needs the photo's own size")
    wrong = (mask >= num_classes) & (mask != IGNORE)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise DataError(
            f"{path.name} has value {mask[row, column]} at row {row}, column {column}, which is none of the model's "
            f"{num_classes} classes (0 to {num_classes - 1}) nor {IGNORE} (left out)"
        )
    return mask


@contextmanager
def refusing(line: Callable[[VtvizError], str] = str) -> Iterator[None]:
    """Errors from here that a caller can put right reach the caller as one line, which a browser takes for HTML."""
    try:
        yield
    except VtvizError as error:
        raise gr.Error(escape(line(error), quote=False), print_exception=False) from None
