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
from importlib.util import find_spec
from pathlib import Path

from benchmarks.measure import Row, interval_of_median, quantiles

CLONE = Path(__file__).resolve().parents[1]
IMPORT = "import time; t = time.perf_counter(); import vtviz; print(1e3 * (time.perf_counter() - t))"
LIBRARIES = "import torch, gradio"
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
        interval_of_median(ratios),
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


def canvas() -> Iterator[Row]:
    """What a display option costs in the browser: the time until it is drawn, and calls of the server."""
    wanted = "canvas.draw", "canvas.requests"
    found = find_chromium()
    if found is None or find_spec("playwright") is None:
        for name in wanted:
            yield Row(name, "in Chromium", note="not measured: no Chromium, or no playwright")
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
        slider = "#explore input[type=range]"
        tab.wait_for_selector(slider)
        tab.wait_for_timeout(3000)  # the page loads what it shows first, and keeps a connection open
        asked: list[str] = []
        tab.on("request", lambda request: asked.append(request.url))
        times = [float(tab.evaluate(REDRAW, [slider, 0.2 + 0.03 * i])) for i in range(20)]
        browser.close()
    page.close(verbose=False)
    median = statistics.median(times)
    yield Row(
        "canvas.draw",
        "a display option, from its change until all maps are drawn ÷ 100 ms",
        median / 100,
        goal="<= 1.00",
        first=median,
        rounds=len(times),
        note=f"a time, not a pair; the slowest took {max(times):.0f} ms",
    )
    calls = [url for url in asked if not url.startswith(("data:", "blob:"))]
    yield Row(
        "canvas.requests",
        "requests to the server of 20 changed display options",
        float(len(calls)),
        goal="<= 0",
        rounds=1,
        note="a count",
    )


REDRAW = """([selector, value]) => new Promise((done) => {
  const slider = document.querySelector(selector);
  requestAnimationFrame(() => {
    const began = performance.now();
    slider.value = value;
    slider.dispatchEvent(new Event("input", { bubbles: true }));
    requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - began)));
  });
})"""
"""The canvas draws in the next frame; the one after it begins when that is done."""


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
            except OSError:
                if process.poll() is not None:
                    raise RuntimeError("python app.py ended before it answered") from None
                time.sleep(0.02)
        taken = time.perf_counter() - began
        status = Path(f"/proc/{process.pid}/status")
        lines = status.read_text().splitlines() if status.exists() else []
        return taken, next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)
    finally:
        process.terminate()
        process.wait()
