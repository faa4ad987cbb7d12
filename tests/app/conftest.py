"""Small models for the page, the page itself on a free port, and a browser."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app.page import build_page, launch_options
from app.shelf import Shelf
from benchmarks.start import CHROMIUM, FLAGS, find_chromium
from vtviz import checkpoints

CLASSES = ("tabby cat", "<b>cup</b>", "rocket", "person", "flag & pole")


@pytest.fixture(scope="session")
def models(tmp_path_factory, tiny_model, tiny_card) -> Iterator[Path]:
    """A folder of three models: ``own``, ``blank`` (not trained) and ``plain`` (a ResNet, without tokens)."""
    folder = tmp_path_factory.mktemp("models")
    for name, kind, fields in (
        ("own", "vt_resnet18", {"accuracy": {"top1": 0.625, "n": 5450}, "data": {"name": "<i>photos</i>"}}),
        ("blank", "vt_resnet18", {"trained": False}),
        ("plain", "resnet18", {}),
    ):
        model = tiny_model(kind)
        card = tiny_card(model, name=name, model=kind, classes=CLASSES, **fields)
        checkpoints.save(folder / f"{name}.safetensors", model, card)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VTVIZ_CHECKPOINTS", str(folder))
        yield folder


@pytest.fixture(scope="session")
def shelf(models) -> Shelf:
    return Shelf(str(models / "own.safetensors"), device="cpu")


@pytest.fixture(scope="session")
def address(shelf) -> Iterator[str]:
    """The page, served by this process."""
    page = build_page(shelf)
    options = launch_options() | {"server_name": "127.0.0.1", "server_port": None, "quiet": True}
    _, url, _ = page.launch(prevent_thread_lock=True, **options)
    yield url
    page.close(verbose=False)


@pytest.fixture(scope="session")
def photo(tmp_path_factory, coffee) -> Path:
    """A photo as a user has it: a JPEG that lies on its side, its EXIF telling so."""
    path = tmp_path_factory.mktemp("photos") / "my coffee.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(np.rot90(coffee)).save(path, quality=95, exif=exif)
    return path


@pytest.fixture(scope="session")
def browser() -> Iterator[object]:
    """Chromium: $VTVIZ_CHROMIUM, else what PATH has."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = find_chromium()
    if not found:
        pytest.skip(f"no browser: none of {', '.join(CHROMIUM)} on PATH, and $VTVIZ_CHROMIUM is not set")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, headless=True, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def segment_shelf(tmp_path_factory, models, tiny_model, tiny_card) -> Shelf:
    """Beside the models above two segmentation models: ``scene`` (VT-FPN) and ``scene_fpn`` (without tokens).

    ``scene`` has 6 classes, of which it does not predict "boat"; ``scene_fpn`` has the first 4.
    """
    folder = tmp_path_factory.mktemp("segmenters")
    classes = ("sky", "<b>road</b>", "car", "tree", "train", "boat")
    palette = ((70, 130, 180), (128, 64, 128), (0, 0, 142), (107, 142, 35), (0, 80, 100), (70, 130, 180))
    narrow = {"channels": 32, "head_channels": 64}
    for name, kind, count, options in (
        ("scene", "vt_fpn_resnet18", 6, {"groups": 8, "kqv_groups": 8}),
        ("scene_fpn", "panoptic_fpn_resnet18", 4, {}),
    ):
        model = tiny_model(kind, num_classes=count, **narrow, **options)
        card = tiny_card(
            model,
            name=name,
            model=kind,
            task="segmentation",
            classes=classes[:count],
            palette=palette[:count],
            accuracy={"miou": 0.625, "n": 101},
        )
        checkpoints.save(folder / f"{name}.safetensors", model, card)
    shelf = Shelf(str(folder / "scene.safetensors"), device="cpu")
    shelf.offer_runs({"scene_fpn": folder / "scene_fpn.safetensors"})
    return shelf


@pytest.fixture(scope="session")
def segment_address(segment_shelf) -> Iterator[str]:
    """The page with the segmentation models, served by this process."""
    page = build_page(segment_shelf)
    options = launch_options() | {"server_name": "127.0.0.1", "server_port": None, "quiet": True}
    _, url, _ = page.launch(prevent_thread_lock=True, **options)
    yield url
    page.close(verbose=False)


@pytest.fixture(scope="session")
def settle() -> Callable[[Any], None]:
    """Waits until a page has asked what Gradio asks as it opens: a reload would cut that off, with a fault.

    The page's requests have to be noted in its ``requests``.
    """

    def wait(page: Any) -> None:
        while not any("queue/data" in url for url in page.requests):
            page.wait_for_timeout(100)
        page.wait_for_timeout(700)

    return wait
