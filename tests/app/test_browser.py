"""The page in a real browser, as a person uses it."""

import base64
import io
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from app.examples import load_examples
from vtviz import render
from vtviz.geometry import Geometry, upsample
from vtviz.shortcuts import extract_tokens

pytestmark = pytest.mark.browser


@pytest.fixture
def page(browser, address):
    """The page as a new visitor has it; no request may leave this machine, and no script may fail."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)
    page = context.new_page()
    page.requests, page.faults = [], []
    page.on("request", lambda request: page.requests.append(request.url))
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.on("console", lambda entry: page.faults.append(entry.text) if entry.type == "error" else None)
    page.goto(address)
    page.wait_for_selector(".vtx[data-ready]")
    yield page
    hosts = {urlsplit(url).hostname for url in page.requests if not url.startswith(("data:", "blob:"))}
    assert hosts == {urlsplit(address).hostname}
    assert page.faults == []
    context.close()


def shown(page) -> str:
    return page.get_attribute(".vtx", "data-ready")


def wait_for_another(page, before: str) -> None:
    page.wait_for_function("(before) => document.querySelector('.vtx').dataset.ready !== before", arg=before)


def upload(page, path) -> None:
    """Upload a photo and choose its first token."""
    before = shown(page)
    page.set_input_files("#photo input[type=file]", path)
    wait_for_another(page, before)
    page.get_by_role("option", name="Layer 0, token 0").click()


def frame(page) -> None:
    """Let a scheduled drawing happen."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def canvas(page) -> np.ndarray:
    """What the large canvas shows, (H, W, 3)."""
    frame(page)
    data = page.evaluate("document.querySelector('.vtx-photo').toDataURL('image/png').split(',')[1]")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def option(page, label: str):
    return page.get_by_label(label, exact=True)


def expected_canvas(maps, size, layer, token, *, head=None, cmap="jet", high=None, align="receptive_field"):
    """What the raw maps say the canvas must show at opacity 1, made by Python alone."""
    fitted = maps.geometry
    at_size = Geometry(size, fitted.resized, fitted.offset, fitted.input)
    values = maps.times_uniform(layer, head)[token]
    drawn = upsample(values, at_size, stride=maps.layers[layer].stride, align=align)
    if high is None:
        peaks = np.concatenate([each.times_uniform().max(axis=(1, 2)) for each in maps.layers])
        high = render.value_range(peaks, "shared")[1]
    return render.colorize(drawn, cmap, 0, high)


def assert_alike(got, expected) -> None:
    """Equal but for values at the border of two of the 256 colours."""
    far = np.abs(got.astype(int) - expected).max(axis=2)
    assert far.max() <= 8
    assert (far > 0).mean() < 0.02
    assert got.std() > 1


def test_the_first_paint_is_an_explained_example(page, models):
    assert page.locator(".vtx-token").count() == 16 + 8
    maps = extract_tokens(load_examples()["cat"].image, str(models / "own.safetensors"))
    inner = np.stack([m if m[1:-1, 1:-1].max() == m.max() else 0 * m for m in maps.times_uniform(0)])
    strongest = int((inner if inner.any() else maps.times_uniform(0)).max(axis=(1, 2)).argmax())
    assert page.inner_text(".vtx-caption") == f"Layer 0, token {strongest}"
    assert page.locator(".vtx-guess li").count() == 5
    assert page.locator(".vtx-warning").is_hidden()
    assert canvas(page).std() > 10
    line = page.locator(".vtx-line").first.inner_text()
    assert "mean peak" in line
    assert "correlation" in line
    assert "max |AᵀV − T|" in line


def test_an_upload_is_drawn_as_the_raw_maps_say_and_options_ask_no_server(page, photo, models):
    upload(page, photo)
    maps = extract_tokens(photo, str(models / "own.safetensors"))
    page.wait_for_timeout(500)  # what Gradio still asks after an answer
    asked = len(page.requests)
    option(page, "Opacity").fill("1")
    got = canvas(page)
    size = got.shape[:2]
    assert size[1] / size[0] == pytest.approx(600 / 400, rel=0.01)  # upright
    assert_alike(got, expected_canvas(maps, size, 0, 0))

    page.get_by_role("option", name="Layer 1, token 3").click()
    option(page, "Colours").select_option("viridis")
    option(page, "Alignment").select_option("resize")
    option(page, "Scale").select_option("fixed")
    option(page, "Top of the fixed scale, × uniform").fill("3")
    assert_alike(canvas(page), expected_canvas(maps, size, 1, 3, cmap="viridis", high=3, align="resize"))
    assert page.inner_text(".vtx-caption") == "Layer 1, token 3, mean of 4 heads"
    option(page, "Heads").select_option("2")
    expected = expected_canvas(maps, size, 1, 3, head=2, cmap="viridis", high=3, align="resize")
    assert_alike(canvas(page), expected)
    peak = maps.times_uniform(1, 2)[3].max()
    assert float(page.locator(".vtx-numbers dd").first.inner_text().rstrip("×")) == pytest.approx(peak, abs=0.06)
    option(page, "Opacity").fill("0")
    picture = np.asarray(Image.fromarray(maps.image).resize(size[::-1])).astype(int)
    assert np.abs(canvas(page) - picture).mean() < 6  # the photo alone
    assert [url for url in page.requests[asked:] if not url.startswith(("data:", "blob:"))] == []


def test_the_value_under_the_pointer_is_the_map_s(page, photo, models):
    upload(page, photo)
    maps = extract_tokens(photo, str(models / "own.safetensors"))
    box = page.locator(".vtx-photo").bounding_box()
    page.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 0.4 * box["height"])
    here = float(page.locator(".vtx-numbers dd").last.inner_text().rstrip("×"))
    assert here == pytest.approx(maps.at_image_size(0, 0)[160, 420], abs=0.05)
    assert page.locator(".vtx-dot:visible").count() == 24  # linked in every token
    page.mouse.move(0, 0)
    assert page.locator(".vtx-numbers dd").last.inner_text() == "–"


def test_arrow_keys_walk_tokens_and_layers(page):
    page.locator(".vtx-token[aria-selected=true]").focus()
    for key, caption in (
        ("Home", "Layer 0, token 0"),
        ("ArrowRight", "Layer 0, token 1"),
        ("End", "Layer 0, token 15"),
        ("ArrowRight", "Layer 0, token 15"),
        ("ArrowDown", "Layer 1, token 7, mean of 4 heads"),
        ("Home", "Layer 1, token 0, mean of 4 heads"),
        ("ArrowUp", "Layer 0, token 0"),
    ):
        page.keyboard.press(key)
        frame(page)
        assert page.inner_text(".vtx-caption") == caption
        focused = page.evaluate("document.activeElement.getAttribute('aria-label')")
        assert focused.startswith(caption.removesuffix(", mean of 4 heads"))


def test_arrays_and_panel_are_downloaded(page, photo, models, tmp_path):
    upload(page, photo)
    with page.expect_download() as download:
        page.get_by_role("button", name="Arrays (NPZ)").click()
    assert download.value.suggested_filename == "my_coffee_own_tokens.npz"
    maps = extract_tokens(photo, str(models / "own.safetensors"))
    with np.load(download.value.path()) as stored:
        np.testing.assert_array_equal(stored["logits"], maps.logits)
        for layer in maps.layers:
            np.testing.assert_array_equal(stored[f"{layer.name}.coefficients"], layer.coefficients)
    with page.expect_download() as download:
        page.get_by_role("button", name="Panel (PNG)").click()
    panel = np.asarray(Image.open(download.value.path()).convert("RGB"))
    assert panel.shape[1] > 16 * 200
    assert panel.std() > 10


def test_a_bad_upload_is_one_line_and_the_view_stays(page, tmp_path):
    before, caption = shown(page), page.inner_text(".vtx-caption")
    bad = tmp_path / "bad <b>.png"
    bad.write_bytes(b"this is no picture")
    page.set_input_files("#photo input[type=file]", bad)
    line = page.locator(".vtx-message")
    line.wait_for()
    assert "is not a JPEG, PNG, WebP, BMP, GIF or TIFF image" in line.inner_text()
    assert "\n" not in line.inner_text()
    assert (shown(page), page.inner_text(".vtx-caption")) == (before, caption)
    page.locator(".vtx-thumb").nth(3).click()
    wait_for_another(page, before)
    assert line.is_hidden()


def test_a_crop_shows_what_it_cuts_off(page):
    option(page, "Opacity").fill("1")
    page.get_by_label("Crop").click()
    before = shown(page)
    page.get_by_role("option", name="Centre 224").click()
    wait_for_another(page, before)
    got = canvas(page)
    edge, middle = got[:, : got.shape[1] // 12], got[:, got.shape[1] // 3 : -got.shape[1] // 3]
    assert edge.mean() < 70  # the photo, dimmed
    assert middle[..., 2].mean() > 100  # the map, in blue
    page.locator(".vtx-photo").hover(position={"x": 3, "y": 100})
    assert page.locator(".vtx-numbers dd").last.inner_text() == "cut off"


def test_other_models_are_shown_for_what_they_are(page):
    def choose(name):
        before = shown(page)
        page.get_by_label("Model").click()
        page.get_by_role("option", name=name, exact=True).click()
        wait_for_another(page, before)

    choose("blank")
    assert page.locator(".vtx-warning").first.inner_text().startswith("Not trained.")
    choose("plain")
    assert "no tokens" in page.inner_text(".vtx-rows")
    assert page.locator(".vtx-guess li").count() == 5
    assert canvas(page).std() > 10
    page.get_by_role("tab", name="About").click()
    page.get_by_role("heading", name="plain").wait_for()
    choose_again = page.get_by_role("tab", name="Explore")
    choose_again.click()
    choose("own")
    assert page.locator(".vtx-warning").first.is_hidden()
    assert page.locator(".vtx-token").count() == 24


def test_names_from_a_card_are_text(page):
    assert "<b>cup</b>" in page.locator(".vtx-guess").inner_text()
    assert page.locator(".vtx-guess li b").count() == 0


def test_a_photo_can_be_pasted_anywhere(page):
    before = shown(page)
    page.evaluate("""async () => {
        const canvas = new OffscreenCanvas(90, 60);
        canvas.getContext('2d').fillRect(0, 0, 40, 60);
        const data = new DataTransfer();
        data.items.add(new File([await canvas.convertToBlob()], 'pasted.png', { type: 'image/png' }));
        document.dispatchEvent(new ClipboardEvent('paste', { clipboardData: data, bubbles: true }));
    }""")
    wait_for_another(page, before)
    assert page.evaluate("document.querySelector('.vtx').view.scene.payload.geometry.original") == [60, 90]


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_and_every_control_has_a_name(page, settle, width, scheme):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 844})
    settle(page)
    page.reload()
    page.wait_for_selector(".vtx[data-ready]")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator(".vtx-tools").get_attribute("open") == ("" if width > 900 else None)
    nameless = page.evaluate("""() => [...document.querySelectorAll('.vtx button, .vtx select, .vtx input, .vtx-thumb')]
        .filter((e) => !(e.getAttribute('aria-label') || e.textContent.trim() || (e.labels && e.labels.length)))
        .map((e) => e.outerHTML)""")
    assert nameless == []
    box = page.locator(".vtx-photo").bounding_box()
    assert box["y"] + box["height"] < 844  # seen without scrolling


def test_two_visitors_do_not_see_each_other_s_photos(page, browser, address, photo):
    upload(page, photo)
    with browser.new_context() as other:
        second = other.new_page()
        second.goto(address)
        second.wait_for_selector(".vtx[data-ready]")
        with second.expect_download() as download:
            second.get_by_role("button", name="Arrays (NPZ)").click()
        assert download.value.suggested_filename == "cat_own_tokens.npz"
    with page.expect_download() as download:
        page.get_by_role("button", name="Arrays (NPZ)").click()
    assert download.value.suggested_filename == "my_coffee_own_tokens.npz"
