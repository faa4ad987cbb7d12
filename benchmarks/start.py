"""Starting, memory, and what the browser does: seen from outside, in processes of their own."""

from __future__ import annotations

import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.measure import Row, quantiles

CLONE = Path(__file__).resolve().parents[1]
IMPORT = "import time; t = time.perf_counter(); import vtviz; print(1e3 * (time.perf_counter() - t))"
LIBRARIES = "import torch, gradio"
LONGEST = 120
"""Seconds that the page is waited for."""
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def find_chromium() -> str | None:
    """Chromium: $VTVIZ_CHROMIUM, else what PATH has."""
    return os.environ.get("VTVIZ_CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUM)), None)


def start() -> Iterator[Row]:
    """``import vtviz``, and the page from its command to its first answer, and its memory then."""
    times = [float(_python(IMPORT)) for _ in range(7)]
    median = statistics.median(times)
    yield Row(
        "start.import",
        "import vtviz ÷ 50 ms",
        median / 50,
        goal="<= 1.00",
        first=median,
        rounds=len(times),
        note="a time, not a pair",
    )
    ratios, controls, pages, libraries, memory = [], [], [], [], []
    for _ in range(3):
        (a, peak), b, c = _page(), _timed(LIBRARIES), _timed(LIBRARIES)
        d, _ = _page()
        ratios.append((a + d) / (b + c))
        controls.append(b / c)
        pages += [a, d]
        libraries += [b, c]
        memory.append(peak)
    yield Row(
        "start.page",
        "python app.py, to its first answer ÷ importing torch and gradio",
        statistics.median(ratios),
        None,  # the least and the largest of three enclose the median in 75 % of cases: no 95 % are to be had
        statistics.median(controls),
        quantiles(controls),
        "<= 1.50",
        1e3 * statistics.median(pages),
        1e3 * statistics.median(libraries),
        len(ratios),
    )
    alone = float(_python(f"{LIBRARIES}; {PEAK}"))
    yield Row(
        "start.memory",
        "peak memory of the page with one model ÷ of torch and gradio imported",
        statistics.median(memory) / alone,
        rounds=len(memory),
        note=f"{statistics.median(memory):.0f} MB and {alone:.0f} MB",
    )


PEAK = "print(next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmHWM')) / 1024)"


PHOTOS = sorted((CLONE / "app" / "photos").glob("*.jpg"))
UPLOADS = 12
CHANGES = (
    ("Colours", "viridis"),
    ("Opacity", "0.8"),
    ("Scale", "map"),
    ("Alignment", "resize"),
    ("Heads", "2"),
    ("Scale", "fixed"),
    ("Top of the fixed scale, × uniform", "3"),
    ("Colours", "jet"),
    ("Opacity", "0.4"),
    ("Top of the fixed scale, × uniform", "10"),
    ("Alignment", "receptive_field"),
    ("Heads", "-1"),
    ("Scale", "shared"),
) * 2
"""Display options by their labels, each with a value that it does not have then."""
IN_BROWSER = (
    Row(
        "canvas.first",
        "an uploaded photo, from its maps' arrival in the browser until all are drawn ÷ 100 ms",
        goal="<= 1.00",
    ),
    Row("canvas.draw", "a display option, from its change until all maps are drawn ÷ 100 ms", goal="<= 1.00"),
    Row("canvas.requests", f"requests to the server of {len(CHANGES)} changed display options", goal="<= 0"),
)


def canvas() -> Iterator[Row]:
    """In the browser: the time until a photo's maps are drawn, and a display option, and what that asks the server."""
    found = find_chromium()
    if found is None or find_spec("playwright") is None:
        for row in IN_BROWSER:
            yield replace(row, note="not measured: no Chromium, or no playwright")
        return
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - optional

    from app.page import build_page, launch_options  # noqa: PLC0415
    from app.shelf import Shelf  # noqa: PLC0415

    page = build_page(Shelf(device="cpu"))
    options = launch_options() | {"server_name": "127.0.0.1", "server_port": None, "quiet": True}
    _, address, _ = page.launch(prevent_thread_lock=True, **options)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, headless=True, args=FLAGS)
        tab = browser.new_page(viewport={"width": 1280, "height": 900})
        tab.goto(address)
        tab.wait_for_selector("#explore .vtx[data-ready]")
        tab.wait_for_timeout(3000)  # the page loads what it shows first, and keeps a connection open
        tab.evaluate(WATCH)
        first = [_upload(tab, PHOTOS[i % len(PHOTOS)], i) for i in range(UPLOADS)]
        tab.wait_for_timeout(1000)  # what Gradio still asks after an answer
        asked: list[str] = []
        tab.on("request", lambda request: asked.append(request.url))
        explore = tab.locator("#explore")
        drawn = [float(explore.get_by_label(name, exact=True).evaluate(CHANGE, value)) for name, value in CHANGES]
        browser.close()
    page.close(verbose=False)
    for row, times in zip(IN_BROWSER, (first, drawn), strict=False):
        median = statistics.median(times)
        note = f"a time, not a pair; the slowest took {max(times):.0f} ms"
        yield replace(row, ratio=median / 100, first=median, rounds=len(times), note=note)
    calls = [url for url in asked if not url.startswith(("data:", "blob:"))]
    yield replace(IN_BROWSER[-1], ratio=float(len(calls)), rounds=1, note="a count")


WATCH = """() => {
  const { view } = document.querySelector("#explore .vtx"), { load } = view;
  window.drawn = [];
  view.load = async (payload) => { // what the component calls when its value is set
    const began = performance.now(), another = view.scene.payload.id !== payload.id;
    await load.call(view, payload);
    const done = () => another && window.drawn.push(performance.now() - began);
    requestAnimationFrame(() => requestAnimationFrame(done));
  };
}"""
CHANGE = """(control, value) => new Promise((done, fail) => {
  if (control.value === value) fail(new Error(`it is ${value} already`));
  requestAnimationFrame(() => {
    const began = performance.now();
    control.value = value;
    for (const event of ["input", "change"]) control.dispatchEvent(new Event(event, { bubbles: true }));
    requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - began)));
  });
})"""
"""The canvas draws in the next frame; the one after it begins when that is done."""


def _upload(tab: Any, photo: Path, before: int) -> float:
    """Milliseconds in the browser from the maps of an uploaded photo until they are drawn; there were some before."""
    tab.set_input_files("#photo input[type=file]", photo)
    tab.wait_for_function("(before) => window.drawn.length > before", arg=before)
    return float(tab.evaluate("window.drawn.at(-1)"))


def _python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], cwd=CLONE, check=True, capture_output=True, text=True).stdout


def _timed(code: str) -> float:
    began = time.perf_counter()
    _python(code)
    return time.perf_counter() - began


def _page() -> tuple[float, float]:
    """Seconds until the page answers, and its peak memory in MB then (0 where the system does not tell)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "app.py", "--port", str(port)], cwd=CLONE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30):
                    break
            except OSError as error:  # no connection yet, or an answer that is an HTTP error
                if process.poll() is not None:
                    raise RuntimeError("python app.py ended before it answered") from None
                if time.perf_counter() - began > LONGEST:
                    raise RuntimeError(f"python app.py gave no page within {LONGEST} s: {error}") from None
                time.sleep(0.02)
        taken = time.perf_counter() - began
        status = Path(f"/proc/{process.pid}/status")
        lines = status.read_text().splitlines() if status.exists() else []
        return taken, next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)
    finally:
        process.terminate()
        process.wait()
