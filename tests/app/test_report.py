"""The offline report, opened from disk in a real browser that has no network."""

import base64
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vtviz.geometry import upsample
from vtviz.html_report import report
from vtviz.predictor import Predictor
from vtviz.render import COLORMAPS, value_range

pytestmark = pytest.mark.browser
HOSTILE = "</script><script>document.title = 'broken'</script><img src=https://example.com/x onerror=alert(1)>"
FILE = HOSTILE.replace("/", "") + ".jpg"


@pytest.fixture(scope="module")
def maps(tiny_model, chelsea):
    found = Predictor(tiny_model()).extract(chelsea, size=160)
    return replace(found, classes=(HOSTILE, *found.classes[1:]), model=HOSTILE, source=f"/photos/{FILE}")


@pytest.fixture
def open_report(browser, tmp_path):
    """Opens the report of maps, in a window of a width; no request may leave, nothing may fail."""
    contexts = []

    def call(maps, width=1280, **options):
        path = report(maps, tmp_path / "out", **options)["report.html"]
        context = browser.new_context(viewport={"width": width, "height": 900}, offline=True)
        contexts.append(context)
        page = context.new_page()
        page.requests, page.faults = [], []
        page.on("request", lambda request: page.requests.append(request.url))
        page.on("pageerror", lambda error: page.faults.append(str(error)))
        page.on("console", lambda entry: page.faults.append(entry.text) if entry.type == "error" else None)
        page.on("dialog", lambda dialog: page.faults.append(dialog.message))
        page.goto(Path(path).as_uri())
        page.wait_for_selector("html.ready")
        pages.append(page)
        return page

    pages = []
    yield call
    for page in pages:
        assert [url for url in page.requests if not url.startswith(("data:", "file:"))] == []
        assert sum(url.startswith("file:") for url in page.requests) == 1  # the report itself
        assert page.faults == []
    for context in contexts:
        context.close()


def canvas(page, selector="#map") -> np.ndarray:
    """What a canvas shows, (h, w, 3) uint8."""
    address = page.eval_on_selector(selector, "canvas => canvas.toDataURL('image/png')")
    return np.array(Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))).convert("RGB"))


def test_hostile_names_do_nothing(open_report, maps):
    page = open_report(maps)
    assert page.title() == f"{FILE}: visual tokens"
    assert page.inner_text("h1") == FILE
    assert page.inner_text("header p").startswith(HOSTILE)
    assert HOSTILE in page.inner_text(".answer")
    assert page.locator("img").count() == 1  # the photo
    assert page.inner_text("#caption").startswith("Layer 0, token ")


def test_every_toggle_changes_the_picture(open_report, maps):
    page = open_report(maps)
    seen = [canvas(page)]

    def changed() -> bool:
        seen.append(canvas(page))
        return not np.array_equal(seen[-1], seen[-2])

    page.locator(".tokens button").nth(20).click()
    assert changed()
    assert page.inner_text("#caption").startswith("Layer 1, token 4, mean of 4 heads: peak ")
    page.select_option("#head", "2")
    assert changed()
    page.select_option("#colormap", "viridis")
    assert changed()
    page.select_option("#scale", "map")
    assert changed()
    page.fill("#opacity", "0")
    assert changed()
    photo = Image.fromarray(maps.image).resize(seen[-1].shape[1::-1])
    assert np.abs(seen[-1].astype(int) - np.array(photo)).mean() < 4  # nothing but the photo
    page.keyboard.press("Tab")
    page.locator(".tokens button").nth(20).focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator(".tokens button[aria-pressed=true]").get_attribute("title") == "Layer 1, token 3"


@pytest.mark.parametrize("scale", ["shared", "map"])
@pytest.mark.parametrize("crop", [None, "center"])
def test_colours_are_those_of_the_library(open_report, tiny_model, chelsea, scale, crop):
    maps = Predictor(tiny_model()).extract(chelsea, size=160, crop=crop)
    page = open_report(maps)
    page.locator(".tokens button").nth(18).click()
    page.select_option("#scale", scale)
    page.fill("#opacity", "1")
    shown = canvas(page)
    geometry = replace(maps.geometry, original=shown.shape[:2])
    map_ = maps.times_uniform(1)[2]
    peaks = np.concatenate([layer.times_uniform().max(axis=(1, 2)) for layer in maps.layers])
    low, high = value_range(peaks if scale == "shared" else map_, scale)
    values = upsample(map_, geometry, stride=16)
    seen = ~np.isnan(values)
    assert seen.all() == (crop is None)
    levels = np.clip(np.rint((values[seen] - low) / (high - low) * 255), 0, 255).astype(int)
    assert np.abs(shown[seen].astype(int) - COLORMAPS["jet"][levels]).max() <= 5  # a level, where rounding differs
    if crop:
        photo = np.array(Image.fromarray(maps.image).resize(shown.shape[1::-1]))
        assert np.abs(shown[~seen] - 0.35 * photo[~seen]).mean() < 4


def test_the_pointer_reads_the_map(open_report, maps):
    page = open_report(maps)
    page.locator(".tokens button").nth(3).click()
    box = page.locator("#map").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 100.5 / 451, box["y"] + box["height"] * 200.5 / 300)
    value = maps.at_image_size(0, 3)[200, 100]
    assert page.inner_text("#here") == f"at 100, 200: {value:.2f}×"


def test_a_line_of_descent_lights_up_under_the_pointer(open_report, maps):
    page = open_report(maps)
    opacity = "element => getComputedStyle(element).opacity"
    line, other = page.locator(".vl-line.vl-12"), page.locator(".vl-line.vl-3")
    assert (line.count(), other.count()) == (3, 3)  # two tokens and the band between them
    assert {other.nth(i).evaluate(opacity) for i in range(3)} == {"1"}
    page.locator(".vl-token.vl-12").first.hover()
    assert {line.nth(i).evaluate(opacity) for i in range(3)} == {"1"}
    assert {other.nth(i).evaluate(opacity) for i in range(3)} == {"0.15"}


@pytest.mark.parametrize("width", [390, 1280])
def test_a_segmentation_models_report_fits_the_window(open_report, tiny_model, chelsea, width):
    maps = Predictor(tiny_model("vt_fpn_resnet18")).extract(chelsea, size=96)
    page = open_report(maps, width)
    assert page.locator(".tokens button").count() == 32
    assert page.locator("#head").is_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.locator("h2").all_inner_texts() == ["Classes", "Lineage", "Arrays", "How this was made"]
    before = canvas(page)
    page.locator(".tokens button").nth(30).click()
    assert not np.array_equal(canvas(page), before)
