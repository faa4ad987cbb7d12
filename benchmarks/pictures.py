"""Extraction beside a plain forward pass, drawing beside copying and beside other tools, folders beside the model."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

import vtviz
from benchmarks.measure import Row, Work, compare
from vtviz import geometry
from vtviz.engines import TorchEngine, inference
from vtviz.pipeline import ahead
from vtviz.predictor import Predictor

PHOTOS = sorted((Path(__file__).resolve().parents[1] / "app" / "photos").glob("*.jpg"))
FOLDER = 64
"""Photos of a folder."""


def extraction() -> Iterator[Row]:
    """Hooks, and maps that the model returns, each beside the model alone."""
    predictor = vtviz.load_model()
    model = predictor.model
    for batch in (1, 8):
        x = torch.rand(batch, 3, 224, 224)

        def plain(x: torch.Tensor = x) -> None:
            with inference(model, torch.device("cpu")):
                model(x.contiguous(memory_format=torch.channels_last))

        for how, engine in (("hooks", TorchEngine(model)), ("returned", TorchEngine(model, hook_free=True))):
            yield compare(
                f"extraction.{how}.b{batch}",
                f"forward with its maps ({how}) ÷ plain forward, batch {batch}",
                partial(engine, x),
                plain,
                goal="<= 1.02",
                seconds=6 if batch == 1 else 20,  # a round of eight images takes more than a second
            )


def rendering() -> Iterator[Row]:
    """Eight overlays at 1024 x 768."""
    photo = cv2.resize(np.asarray(Image.open(PHOTOS[0]).convert("RGB")), (1024, 768), interpolation=cv2.INTER_AREA)
    maps = vtviz.load_model().extract(photo)
    values = maps.times_uniform(0)[:8]

    def ours() -> None:
        for token in range(8):
            vtviz.overlay(maps, layer=0, token=token)

    def copying() -> None:
        for _ in range(8):
            photo.copy()

    yield compare("rendering.copies", "8 overlays at 1024 × 768 ÷ 8 copies of the picture", ours, copying, goal="<= 15")
    for name, make in (("grad-cam", _grad_cam), ("torchcam", _torchcam)):
        what = f"8 overlays ÷ {name}'s of the same maps"
        try:
            theirs = make(photo, values)
        except ImportError as error:
            note = f"not measured: {error}; pip install --no-deps {name} {error.name or ''}".rstrip()
            yield Row(f"rendering.{name}", what, goal="<= 0.2", note=note)
        else:
            yield compare(f"rendering.{name}", what, ours, theirs, goal="<= 0.2")


def _grad_cam(photo: np.ndarray, values: np.ndarray) -> Work:
    from pytorch_grad_cam.utils.image import scale_cam_image, show_cam_on_image  # noqa: PLC0415 - optional

    def work() -> None:
        for mask in scale_cam_image(values, photo.shape[1::-1]):
            show_cam_on_image(np.float32(photo) / 255, mask, use_rgb=True)

    return work


def _torchcam(photo: np.ndarray, values: np.ndarray) -> Work:
    from torchcam.utils import overlay_mask  # noqa: PLC0415 - optional

    picture = Image.fromarray(photo)

    def work() -> None:
        for mask in values / values.max():
            overlay_mask(picture, Image.fromarray(mask), alpha=0.5)

    return work


def folders() -> Iterator[Row]:
    """A folder of photos, decoded, extracted and written, beside the model alone on the same photos."""
    predictor = vtviz.load_model()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        picture = cv2.resize(np.asarray(Image.open(PHOTOS[0]).convert("RGB")), (500, 375), interpolation=cv2.INTER_AREA)
        paths = [folder / f"{i}.jpg" for i in range(FOLDER)]
        for path in paths:
            Image.fromarray(picture).save(path, quality=90)
        prepared = [predictor.open(path).input[None] for path in paths]
        yield compare(
            "folders.throughput",
            "throughput of a folder of 500 × 375 photos, arrays written ÷ the model alone",
            lambda: [predictor.forward(x) for x in prepared],
            lambda: _whole(predictor, paths, folder),
            goal=">= 0.9",
            seconds=12,
        )


def _whole(predictor: Predictor, paths: list[Path], folder: Path) -> None:
    """What ``vtviz extract --no-pictures`` does."""

    def run() -> Iterator[tuple[Path, Any]]:
        for path, photo in zip(paths, predictor.stream(paths), strict=True):
            yield path, predictor.extract(photo)  # type: ignore[arg-type]

    with closing(ahead(lambda done: done[1].save(folder / done[0].stem), run())) as written:
        for future in written:
            future.result()


def click() -> Iterator[Row]:
    """What the page does on an upload, beside the model alone."""
    from app.explore import Explore  # noqa: PLC0415 - brings Gradio
    from app.shelf import Shelf  # noqa: PLC0415
    from app.shown import VIEWS, Shown  # noqa: PLC0415

    shelf = Shelf(device="cpu")
    explore, predictor = Explore(shelf), shelf.get(shelf.names[0])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "photo.jpg"
        picture = Image.open(PHOTOS[0]).convert("RGB").resize((1024, 768))
        picture.save(path, quality=92)
        shown = Shown(str(path), uploaded=True, model=shelf.names[0], view=next(iter(VIEWS)))
        image = np.asarray(picture)
        x = geometry.to_tensor(image, predictor.fit((768, 1024)))[None]
        yield compare(
            "page.click",
            "an upload of 1024 × 768, read, run and packed for the browser ÷ forward",
            lambda: explore._encode(shown),  # noqa: SLF001 - what the upload's handler calls
            lambda: predictor.forward(x),
            goal="<= 1.25",
        )
