"""Small models and data sets for the page, the page itself on a free port, and a browser."""

import asyncio
import json
import os
import signal
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from app.datasets import DataRoot
from app.page import build_page, launch_options
from app.shelf import Shelf
from app.train import Train
from benchmarks.start import CHROMIUM, FLAGS, find_chromium
from vtviz import checkpoints
from vtviz.train.jobs import REQUEST

Serve = Callable[..., AbstractContextManager[str]]
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
def serve() -> Serve:
    """``with serve(page) as url``: a page, served by this process on a port that is free."""

    @contextmanager
    def run(page: gr.Blocks, **more: Any) -> Iterator[str]:
        options = launch_options() | more | {"server_name": "127.0.0.1", "server_port": None, "quiet": True}
        _, url, _ = page.launch(prevent_thread_lock=True, **options)
        try:
            yield url
        finally:
            page.close(verbose=False)

    return run


@pytest.fixture
def serving(serve) -> Iterator[Callable[..., str]]:
    """``url = serving(page)``: the same until the test ends."""
    with ExitStack() as open_ones:
        yield lambda page, **more: open_ones.enter_context(serve(page, **more))


@pytest.fixture(scope="session")
def address(serve, shelf) -> Iterator[str]:
    """The page, served by this process."""
    with serve(build_page(shelf)) as url:
        yield url


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
def awaited() -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """``awaited(coroutine)``: what it returns."""

    def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
        with ThreadPoolExecutor(1) as pool:  # once a browser was driven, this thread has a loop that runs
            return pool.submit(asyncio.run, coroutine).result()  # noqa: TID251

    return run


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
def segment_address(serve, segment_shelf) -> Iterator[str]:
    """The page with the segmentation models, served by this process."""
    with serve(build_page(segment_shelf)) as url:
        yield url


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


def write_pictures(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    random = np.random.default_rng(len(folder.name))
    for i in range(count):
        Image.fromarray(random.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(folder / f"{i}.png")


@pytest.fixture(scope="session")
def data_root(tmp_path_factory) -> Path:
    """A data root: a set with splits, one without, one for segmentation, links, and pictures that are no set."""
    top = tmp_path_factory.mktemp("page")
    root = top / "data"
    for name in ("red", "blue"):
        write_pictures(root / "colours" / "train" / name, 6)
        write_pictures(root / "colours" / "val" / name, 2)
        write_pictures(root / "group" / "flat" / name, 2)
        write_pictures(root / "group" / "too" / "deep" / name, 1)
        write_pictures(top / "secret" / name, 1)
        write_pictures(root / "linking" / name, 1)
    write_pictures(root / "masks" / "train" / "images", 1)
    write_pictures(root / "masks" / "train" / "masks", 1)
    write_pictures(root / "loose", 2)
    write_pictures(root / ".hidden" / "a", 1)
    (root / "escape").symlink_to(top / "secret")
    (root / "inner").symlink_to(root / "group" / "flat")
    (root / "linking" / "red" / "x.png").symlink_to(top / "secret" / "red" / "0.png")
    return root


@pytest.fixture
def train(models, data_root, tmp_path) -> Iterator[Train]:
    """The tab of Train; what it started is killed when the test ends."""
    made = Train(Shelf("own", device="cpu"), tmp_path / "runs", DataRoot(data_root))
    yield made
    for job in made.jobs.all():
        if job.active:
            os.killpg(json.loads((job.folder / REQUEST).read_text())["pid"], signal.SIGKILL)


@pytest.fixture
def visit(browser, address):
    """Opens the page at a link; no request may leave this machine, and no script may fail."""
    contexts = []

    def open_at(link: str = "", width: int = 1280, at: str = address, scheme: str = "light"):
        context = browser.new_context(
            viewport={"width": width, "height": 844}, color_scheme=scheme, accept_downloads=True
        )
        page = context.new_page()
        page.requests, page.faults = [], []
        page.on("request", lambda request: page.requests.append(request.url))
        page.on("pageerror", lambda error: page.faults.append(str(error)))
        page.on("console", lambda entry: page.faults.append(entry.text) if entry.type == "error" else None)
        page.goto(at.rstrip("/") + link)
        page.wait_for_selector(".vtx[data-ready]")
        contexts.append((context, page))
        return page

    yield open_at
    for context, page in contexts:
        hosts = {urlsplit(url).hostname for url in page.requests if not url.startswith(("data:", "blob:"))}
        assert hosts == {"127.0.0.1"}
        assert page.faults == []
        context.close()
