"""Long runs: what a page holds on to does not grow with what it has done."""

import gc
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from gradio.utils import get_upload_folder
from PIL import Image

from app.explore import VIEWS
from app.page import build_page, launch_options
from app.shelf import LOADED, Shelf
from vtviz.explain.atlas_file import save_atlas
from vtviz.explain.dissection import dissect

WHOLE, CENTRE = VIEWS
WARM = 6
"""Switches after which each of five models was loaded, and some were dropped."""
KEPT = 3
"""Seconds that the page of these tests keeps files, so that they are deleted while it is looked at."""


def memory() -> float:
    """What this process holds of the machine's memory, MB."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) / 1024


def tensors() -> int:
    gc.collect()
    return sum(isinstance(each, torch.Tensor) for each in gc.get_objects())


def files_open() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def slope(values: list[float]) -> float:
    """Growth from sample to sample, by least squares."""
    return float(np.polyfit(np.arange(len(values)), values, 1)[0])


needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc to measure memory with")


@pytest.fixture
def url(shelf, monkeypatch, tmp_path, coffee) -> Iterator[str]:
    """A page that soon deletes what was uploaded, to a folder of its own."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    atlas = Path(shelf.source("own")).with_suffix(".atlas.json")
    Image.fromarray(coffee[::4, ::4]).save(tmp_path / "0.png")
    Image.fromarray(coffee[::3, ::3]).save(tmp_path / "1.png")
    save_atlas(atlas, dissect(shelf.get("own"), tmp_path))
    page = build_page(shelf)
    page.delete_cache = (1, KEPT)
    options = launch_options() | {"server_name": "127.0.0.1", "server_port": None, "quiet": True}
    _, url, _ = page.launch(prevent_thread_lock=True, **options)
    yield url
    page.close(verbose=False)
    atlas.unlink()


def visit(http: httpx.Client, photo: bytes, number: int) -> None:
    """Make a call, with a new photo where it takes one. One in sixteen asks a model, half are wrong and told so."""
    file, kind = None, number % 8
    if number % 32 >= 8 and kind in {0, 4}:
        kind = 2
    if kind in {0, 1, 4}:
        [path] = http.post("upload", files={"files": ("photo.jpg", photo + number.to_bytes(4, "big"))}).json()
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    calls: list[tuple[str, list[Any]]] = [
        ("extract", [file, "own" if number % 64 else "blank", CENTRE]),
        ("extract", [file, "nobody", CENTRE]),
        ("atlas", ["own"]),
        ("query", [None, "own", WHOLE, 40, 40, None, None]),
        ("query", [file, "own", WHOLE, 40, 40, None, None]),
        ("extract", [{"path": "/etc/passwd"}, "own", CENTRE]),
        ("atlas", ["own"]),
        ("atlas", ["blank"]),
    ]
    name, data = calls[kind]
    event = http.post(f"call/{name}", json={"data": data}).json()["event_id"]
    answer = http.get(f"call/{name}/{event}").text
    assert ("event: complete" in answer) == (number % 2 == 0), answer[:500]


@needs_proc
@pytest.mark.parametrize(
    ("calls", "most"), [(80, 60.0), pytest.param(2000, 40.0, marks=pytest.mark.soak)], ids=["short", "long"]
)
def test_two_thousand_calls_leave_nothing_behind(calls, most, url, coffee, tmp_path, tally):
    Image.fromarray(coffee[:96, :96]).save(tmp_path / "small.jpg")
    photo, uploads = (tmp_path / "small.jpg").read_bytes(), Path(get_upload_folder())
    samples: list[tuple[float, ...]] = []
    with httpx.Client(base_url=f"{url}gradio_api/", timeout=60) as http, ThreadPoolExecutor(4) as pool:
        for start in range(0, calls, step := calls // 10):
            list(pool.map(lambda number: visit(http, photo, number), range(start, start + step)))
            if start >= 3 * step:  # warm by then
                samples.append((memory(), tensors(), threading.active_count(), files_open()))
        end = time.monotonic() + 60
        while (left := [path for path in uploads.rglob("*") if path.is_file()]) and time.monotonic() < end:
            time.sleep(0.2)
    resident, alive, threads, opened = map(list, zip(*samples, strict=True))
    assert slope(resident) * len(samples) < most, resident  # MB, in two thirds of the calls
    assert max(alive) - min(alive) <= 8, alive
    assert max(threads) - min(threads) <= 3, threads
    assert max(opened) - min(opened) <= 8, opened
    assert left == []
    tally("page calls in one long run", calls)
    tally("files that they left behind", len(left))


@needs_proc
@pytest.mark.parametrize("switches", [6, pytest.param(100, marks=pytest.mark.soak)], ids=["few", "many"])
def test_a_model_switched_often_does_not_pile_up(switches, models, tmp_path, monkeypatch, chelsea, tally):
    for number in range(5):
        for suffix in (".safetensors", ".json"):
            shutil.copy(models / f"own{suffix}", tmp_path / f"m{number}{suffix}")
    monkeypatch.setenv("VTVIZ_CHECKPOINTS", str(tmp_path))
    shelf = Shelf(device="cpu")
    resident, alive, small = [], [], chelsea[::3, ::3]
    for number in range(switches + WARM):
        shelf.get(f"m{number % 5}").extract(small)
        if number >= WARM and number % 3 == 0:
            resident.append(memory())
            alive.append(tensors())
    one = sum(p.numel() * p.element_size() for p in shelf.get("m0").model.state_dict().values()) / 2**20
    assert len(shelf._loaded) == LOADED
    assert max(alive) - min(alive) <= 8, alive
    assert max(resident) - resident[0] < 3 * one, (
        one,
        resident,
    )  # where every model stayed it were as many as switches
    tally("models switched", switches)
