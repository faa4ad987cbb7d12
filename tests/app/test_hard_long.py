"""Long runs: what a page holds on to does not grow with what it has done."""

import ctypes
import gc
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
import torch
from gradio.utils import get_upload_folder
from PIL import Image

from app.explore import VIEWS
from app.page import build_page
from app.shelf import LOADED, Shelf
from vtviz.explain.atlas_file import save_atlas
from vtviz.explain.dissection import dissect

WHOLE, CENTRE = VIEWS
WARM = 6
"""Switches after which each of five models was loaded, and some were dropped."""


class MallInfo2(ctypes.Structure):
    """What glibc's ``mallinfo2()`` returns: bytes, of all arenas."""

    _fields_ = [
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks")),
        *((name, ctypes.c_size_t) for name in ("uordblks", "fordblks", "keepcost")),
    ]


class Held(NamedTuple):
    """What this process holds."""

    megabytes: float
    """Given out by the C allocator: arrays, tensors, and Python's objects of over half a kilobyte."""
    objects: int
    """Python's smaller ones."""
    tensors: int
    threads: int
    files: int


def held() -> Held:
    """What is held now.

    What the process has of the machine is no measure: how many freed blocks the allocator keeps, between others that
    are in use, depends on which thread asked when, and moved by up to 60 MB on a busy machine.
    """
    gc.collect()
    given = mallinfo2()
    return Held(
        (given.uordblks + given.hblkhd) / 2**20,
        sys.getallocatedblocks(),
        sum(isinstance(each, torch.Tensor) for each in gc.get_objects()),
        threading.active_count(),
        sum(1 for _ in Path("/proc/self/fd").iterdir()),
    )


def steady(values: list[float]) -> float:
    """Growth from sample to sample, the median: what each call leaves, and not what happened once."""
    return float(np.median(np.diff(values)))


def growth(values: list[float]) -> float:
    """How far the later half is above the earlier one; what goes down again is none."""
    half = len(values) // 2
    return max(values[half:]) - min(values[:half])


mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None)
if mallinfo2 is not None:
    mallinfo2.restype = MallInfo2
needs_glibc = pytest.mark.skipif(mallinfo2 is None, reason="only glibc since 2.33 tells what it has given out")


@pytest.fixture
def url(serve, shelf, monkeypatch, tmp_path, coffee, kept) -> Iterator[str]:
    """A page that deletes what was uploaded after so many seconds, to a folder of its own."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    atlas = Path(shelf.source("own")).with_suffix(".atlas.json")
    Image.fromarray(coffee[::4, ::4]).save(tmp_path / "0.png")
    Image.fromarray(coffee[::3, ::3]).save(tmp_path / "1.png")
    save_atlas(atlas, dissect(shelf.get("own"), tmp_path))
    page = build_page(shelf)
    page.delete_cache = (1, kept)
    with serve(page) as url:
        yield url
    atlas.unlink()


def visit(http: httpx.Client, photo: bytes, number: int) -> None:
    """Make a call, with a new photo where it takes one. Three in eight ask a model, half are wrong and told so."""
    file, kind = None, number % 8
    if kind < 5 and kind != 3:
        [path] = http.post("upload", files={"files": ("photo.jpg", photo + number.to_bytes(4, "big"))}).json()
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    calls: list[tuple[str, list[Any]]] = [
        ("extract", [file, "own" if number % 64 else "blank", CENTRE]),
        ("extract", [file, "nobody", CENTRE]),
        ("lineage", [file, "own", CENTRE]),
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


@needs_glibc
@pytest.mark.parametrize(
    # kept: shorter than the calls take together, longer than one does on a busy machine; most: each call is a session,
    # and the page keeps 500 of those, so that small objects gather up to there
    ("calls", "kept", "most"),
    [(80, 5, 250_000), pytest.param(2000, 20, 40_000, marks=pytest.mark.slow)],
    ids=["short", "long"],
)
def test_two_thousand_calls_leave_nothing_behind(calls, most, url, coffee, tmp_path, tally):
    Image.fromarray(coffee[:96, :96]).save(tmp_path / "small.jpg")
    photo, uploads = (tmp_path / "small.jpg").read_bytes(), Path(get_upload_folder())
    samples: list[Held] = []
    with httpx.Client(base_url=f"{url}gradio_api/", timeout=60) as http, ThreadPoolExecutor(4) as pool:
        for start in range(0, calls, step := calls // 10):
            list(pool.map(lambda number: visit(http, photo, number), range(start, start + step)))
            if start >= 3 * step:  # warm by then
                samples.append(held())
        end = time.monotonic() + 60
        while (left := [path for path in uploads.rglob("*") if path.is_file()]) and time.monotonic() < end:
            time.sleep(0.2)
    megabytes, objects, alive, threads, opened = map(list, zip(*samples, strict=True))
    # in two thirds of the calls, of which Gradio keeps 2 KB and 15 objects each for the last 2,000
    assert steady(megabytes) * len(samples) < 8, megabytes
    assert steady(objects) * len(samples) < most, objects
    assert growth(megabytes) < 40, megabytes  # a thread that is new to PyTorch takes 8 for good, and three may come
    assert growth(alive) <= 8, alive
    assert growth(threads) <= 3, threads
    assert growth(opened) <= 8, opened
    assert left == []
    tally("page calls in one long run", calls)
    tally("files that they left behind", len(left))


@needs_glibc
@pytest.mark.parametrize("switches", [6, pytest.param(100, marks=pytest.mark.slow)], ids=["few", "many"])
def test_a_model_switched_often_does_not_pile_up(switches, models, tmp_path, monkeypatch, chelsea, tally):
    for number in range(5):
        for suffix in (".safetensors", ".json"):
            shutil.copy(models / f"own{suffix}", tmp_path / f"m{number}{suffix}")
    monkeypatch.setenv("VTVIZ_CHECKPOINTS", str(tmp_path))
    shelf = Shelf(device="cpu")
    samples, small = [], chelsea[::3, ::3]
    for number in range(switches + WARM):
        shelf.get(f"m{number % 5}").extract(small)
        if number >= WARM and number % 3 == 0:
            samples.append(held())
    megabytes, _, alive, *_ = map(list, zip(*samples, strict=True))
    one = sum(p.numel() * p.element_size() for p in shelf.get("m0").model.state_dict().values()) / 2**20
    assert len(shelf._loaded) == LOADED
    assert max(alive) - min(alive) <= 8, alive
    # where every model stayed it were as many as switches
    assert max(megabytes) - megabytes[0] < one, (one, megabytes)
    tally("models switched", switches)
