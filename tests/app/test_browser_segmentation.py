"""A segmentation model on the page, in a real browser, as a person uses it."""

import base64
import io
import re
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from app.examples import load_examples
from vtviz.explain.token_classes import segmentation_scores, token_classes
from vtviz.segmentation import from_maps
from vtviz.shortcuts import extract_tokens

pytestmark = pytest.mark.browser


@pytest.fixture
def page(browser, segment_address):
    """The page as it opens, the cat explained by ``scene``; no request may leave this machine, no script may fail."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    page = context.new_page()
    page.requests, page.faults = [], []
    page.on("request", lambda request: page.requests.append(request.url))
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.on("console", lambda entry: page.faults.append(entry.text) if entry.type == "error" else None)
    page.goto(segment_address)
    page.wait_for_selector(".vtx[data-ready]")
    yield page
    hosts = {urlsplit(url).hostname for url in page.requests if not url.startswith(("data:", "blob:"))}
    assert hosts == {urlsplit(segment_address).hostname}
    assert page.faults == []
    context.close()


@pytest.fixture(scope="module")
def cat() -> np.ndarray:
    return load_examples()["cat"].image


@pytest.fixture(scope="module")
def maps(cat, segment_shelf):
    return extract_tokens(cat, segment_shelf.get("scene"))


@pytest.fixture(scope="module")
def expected(maps, segment_shelf):
    """The segmentation that the page must show."""
    return from_maps(maps, segment_shelf.get("scene").palette)


def another(page, act) -> None:
    """Do something and wait until something else is shown."""
    before = page.get_attribute(".vtx", "data-ready")
    act()
    page.wait_for_function("(before) => document.querySelector('.vtx').dataset.ready !== before", arg=before)


def upload(page, slot: str, path) -> None:
    another(page, lambda: page.set_input_files(f"{slot} input[type=file]", path))


def choose(page, model: str) -> None:
    page.get_by_label("Model").click()
    another(page, lambda: page.get_by_role("option", name=model, exact=True).click())


def frame(page) -> None:
    """Let a scheduled drawing happen."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def picture(page, shows: str) -> np.ndarray:
    """What one of the pictures shows, (H, W, 3)."""
    frame(page)
    script = "(shows) => document.querySelector(`[data-shows=${shows}] canvas`).toDataURL('image/png').split(',')[1]"
    data = page.evaluate(script, shows)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).astype(int)


def nearest(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    rows, columns = (((np.arange(n) + 0.5) * side / n).astype(int) for n, side in zip(size, values.shape, strict=True))
    return values[np.ix_(rows, columns)]


def chip(page, name: str):
    return page.locator(".vtx-chip", has_text=name)


def option(page, label: str):
    return page.get_by_label(label, exact=True)


def write_mask(path, values: np.ndarray):
    Image.fromarray(values.astype(np.uint8)).save(path)
    return path


def test_photo_classes_and_token_stand_side_by_side(page, expected):
    frames = [page.locator(f"[data-shows={shows}] canvas").bounding_box() for shows in ("photo", "classes", "map")]
    assert len({(box["y"], box["width"], box["height"]) for box in frames}) == 1
    assert frames[0]["x"] < frames[1]["x"] < frames[2]["x"]
    option(page, "Opacity").fill("1")
    option(page, "Outlines").uncheck()
    got = picture(page, "classes")
    labels = nearest(expected.labels, got.shape[:2])
    np.testing.assert_array_equal(got, np.array(expected.palette)[labels])  # crisp, and the palette's own colours
    assert np.abs(picture(page, "photo") - got).mean() > 20
    assert page.locator(".vtx-guess li").count() == 0


def test_the_legend_has_the_areas_and_folds_away_what_is_not_seen(page, expected):
    areas = expected.areas()
    order = [i for i in np.argsort(-areas, kind="stable") if areas[i] > 0]
    texts = page.locator(".vtx-chip").all_inner_texts()
    assert [text.split("\n")[0].split(" ")[0] for text in texts] == [expected.classes[i] for i in order]
    for text, i in zip(texts, order, strict=True):
        assert float(re.search(r"([\d.]+) %", text)[1]) == pytest.approx(100 * areas[i], abs=0.51)
    assert page.locator(".vtx-chip b").count() == len(order)  # "<b>road</b>" is text
    assert areas[5] == 0
    assert (areas[:5] > 0).all()
    rest = page.locator(".vtx-rest")
    assert rest.locator("summary").inner_text() == "1 class not seen"
    assert rest.locator("p").is_hidden()
    rest.locator("summary").click()
    assert rest.locator("p").inner_text() == "boat"


def test_classes_are_switched_off_and_on_without_the_server(page, settle, expected):
    option(page, "Opacity").fill("1")
    option(page, "Outlines").uncheck()
    full = picture(page, "classes")
    photo = picture(page, "photo")
    labels = nearest(expected.labels, full.shape[:2])
    settle(page)
    asked = len(page.requests)
    road = chip(page, "road")
    assert road.get_attribute("aria-pressed") == "true"
    road.click()
    page.mouse.move(1, 1)
    got = picture(page, "classes")
    assert road.get_attribute("aria-pressed") == "false"
    assert np.abs(got - photo)[labels == 1].max() <= 2
    np.testing.assert_array_equal(got[labels != 1], full[labels != 1])
    road.focus()
    page.keyboard.press("Space")
    np.testing.assert_array_equal(picture(page, "classes"), full)
    page.get_by_role("button", name="None", exact=True).click()
    assert np.abs(picture(page, "classes") - photo).max() <= 2
    assert set(page.locator(".vtx-chip").evaluate_all("(all) => all.map((e) => e.ariaPressed)")) == {"false"}
    page.get_by_role("button", name="All", exact=True).click()
    option(page, "Opacity").fill("0")
    option(page, "Outlines").check()
    outlined = picture(page, "classes")
    drawn = np.abs(outlined - photo).max(axis=2) > 2
    assert 0 < drawn.mean() < 0.5
    np.testing.assert_array_equal(outlined[drawn], full[drawn])  # each border in its class's colour
    assert [url for url in page.requests[asked:] if not url.startswith(("data:", "blob:"))] == []


def test_pointing_at_a_class_shows_it_alone(page, expected):
    option(page, "Opacity").fill("1")
    option(page, "Outlines").uncheck()
    full, photo = picture(page, "classes"), picture(page, "photo")
    labels = nearest(expected.labels, full.shape[:2])
    chip(page, "car").hover()
    got = picture(page, "classes")
    np.testing.assert_array_equal(got[labels == 2], full[labels == 2])
    faded = 0.15 * full + 0.85 * photo
    assert np.abs(got - faded)[labels != 2].max() < 4
    page.mouse.move(1, 1)
    np.testing.assert_array_equal(picture(page, "classes"), full)


def test_the_pointer_tells_class_and_probability_in_every_picture(page, expected):
    confidence = expected.confidence()
    for shows, y, x in (("classes", 0.25, 0.7), ("photo", 0.6, 0.2), ("map", 0.8, 0.9)):
        box = page.locator(f"[data-shows={shows}] canvas").bounding_box()
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
        row, column = (int(share * side) for share, side in zip((y, x), confidence.shape, strict=True))
        name, percent = page.inner_text(".vtx-flag:visible").removesuffix(" %").rsplit(", ", 1)
        area = np.s_[row - 2 : row + 3, column - 2 : column + 3]  # the pointer stops at whole screen pixels
        assert name in {expected.classes[i] for i in expected.labels[area].ravel()}
        low, high = 100 * confidence[area].min(), 100 * confidence[area].max()
        assert low - 2 <= float(percent) <= high + 2
        assert page.locator(".vtx-cross:visible").count() == 3
        assert page.locator(".vtx-dot:visible").count() == 32
        assert name in page.inner_text(".vtx-chip.vtx-here")
    page.mouse.move(0, 0)
    assert page.locator(".vtx-flag:visible").count() == 0


def cells(page) -> np.ndarray:
    """What the table says, (tokens, classes), in its order of columns."""
    rows = page.locator("tr[data-token]").evaluate_all(
        "(rows) => rows.map((row) => [...row.cells].slice(1).map((c) => c.innerText))"
    )
    return np.array([[float(text.replace("−", "-") or 0) for text in row] for row in rows])


def test_the_matrix_shows_what_each_token_has_of_each_class(page, maps, expected):
    areas = expected.areas()
    order = [i for i in np.argsort(-areas, kind="stable") if areas[i] > 0]
    mass = np.concatenate([token_classes(maps, expected.labels, layer=i).mass for i in range(4)])[:, order]
    np.testing.assert_allclose(cells(page), 100 * mass, atol=0.51)
    assert page.locator(".vtx-box thead th").all_inner_texts()[1:] == [expected.classes[i] for i in order]
    np.testing.assert_allclose(
        [float(text or 0) for text in page.locator(".vtx-areas td").all_inner_texts()], 100 * areas[order], atol=0.51
    )
    option(page, "Cells").select_option("beyond")
    frame(page)
    np.testing.assert_allclose(cells(page), 100 * (mass - areas[order]), atol=0.51)


def test_a_row_of_the_matrix_chooses_its_token(page):
    row = page.locator("tr[data-layer='2'][data-token='5']")
    page.get_by_role("option", name="Layer 0, token 1,").click()
    row.locator("td").first.hover()
    frame(page)
    caption = page.locator("[data-shows=map] .vtx-caption")
    assert caption.inner_text().startswith("Layer 2, token 5")
    page.mouse.move(1, 1)
    frame(page)
    assert caption.inner_text().startswith("Layer 0, token 1")  # looked at, not chosen
    row.locator("td").nth(1).click()
    page.mouse.move(1, 1)
    frame(page)
    assert caption.inner_text().startswith("Layer 2, token 5")
    assert page.get_by_role("option", name="Layer 2, token 5,").get_attribute("aria-selected") == "true"
    row.locator("button").focus()
    for key, expected in (
        ("ArrowDown", "Layer 2, token 6"),
        ("ArrowDown", "Layer 2, token 7"),
        ("ArrowDown", "Layer 3, token 0"),
    ):
        page.keyboard.press(key)
        frame(page)
        assert caption.inner_text().startswith(expected)
        assert page.evaluate("document.activeElement.ariaLabel").startswith(expected)


def test_a_mask_gives_scores_names_tokens_and_goes_again(page, maps, expected, tmp_path):
    drawn = maps.at_image_size(1, 4)
    truth = np.where(drawn > np.quantile(drawn, 0.85), 5, 1)  # a class of the token's own
    upload(page, "#mask", write_mask(tmp_path / "truth.png", truth))
    scores = segmentation_scores(expected.labels, truth.astype(np.uint8), 6)
    assert page.inner_text(".vtx-score") == f"mean IoU {scores.miou:.3f}"
    assert page.locator(".vtx-chip").count() == 6  # those predicted, and "boat" of the mask
    for i in (1, 5):
        assert f"IoU {scores.iou[i]:.2f}" in chip(page, expected.classes[i]).inner_text()
    box = page.locator("[data-shows=classes] canvas").bounding_box()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"])
    assert " · mask: " in page.inner_text(".vtx-flag:visible")

    option(page, "Classes from").select_option("given")
    option(page, "Opacity").fill("1")
    option(page, "Outlines").uncheck()
    page.mouse.move(1, 1)
    got = picture(page, "classes")
    np.testing.assert_array_equal(got, np.array(expected.palette)[nearest(truth, got.shape[:2])])
    named = page.get_by_role("option", name="Layer 1, token 4,")
    assert named.get_attribute("aria-label").endswith(", boat")
    assert "boat" in named.inner_text()
    named.click()
    frame(page)
    assert page.inner_text("[data-shows=map] .vtx-caption") == "Layer 1, token 4: boat"
    assert page.locator("tr[data-layer='1'][data-token='4'] .vtx-namer").count() == 1

    another(page, lambda: page.get_by_role("button", name="Remove the mask").click())
    assert page.locator(".vtx-chip small").count() == 0
    assert option(page, "Classes from").is_hidden()
    assert page.inner_text("[data-shows=classes] .vtx-caption") == "Predicted classes"


def test_a_wrong_mask_is_one_line_and_the_view_stays(page, cat, tmp_path):
    ready = page.get_attribute(".vtx", "data-ready")
    page.set_input_files("#mask input[type=file]", write_mask(tmp_path / "small.png", np.zeros((40, 60))))
    line = page.locator(".vtx-message")
    line.wait_for()
    height, width, _ = cat.shape
    assert line.inner_text() == (
        f"small.png has 60 x 40 pixels, but the photo has {width} x {height}; a mask needs the photo's own size"
    )
    assert page.get_attribute(".vtx", "data-ready") == ready
    good = write_mask(tmp_path / "small.png", np.zeros(cat.shape[:2]))  # mended, under the same name
    upload(page, "#mask", good)
    assert line.is_hidden()
    assert page.locator(".vtx-score").inner_text() != ""


def test_a_model_without_tokens_shows_its_classes_alone(page, segment_shelf, cat):
    runs = []
    handle = segment_shelf.get("scene_fpn").model.register_forward_hook(lambda *_: runs.append(1))
    choose(page, "scene_fpn")
    page.wait_for_timeout(300)
    handle.remove()
    assert len(runs) == 1  # a choice runs the model once
    assert page.locator(".vtx-frame:visible").count() == 2
    assert page.locator(".vtx-matrix").is_hidden()
    assert "no tokens" in page.inner_text(".vtx-rows")
    option(page, "Opacity").fill("1")
    option(page, "Outlines").uncheck()
    got = picture(page, "classes")
    result = segment_shelf.get("scene_fpn").segment(cat)
    np.testing.assert_array_equal(got, np.array(result.palette)[nearest(result.labels, got.shape[:2])])
    with page.expect_download() as download:
        page.get_by_role("button", name="Panel (PNG)").click()
    assert np.asarray(Image.open(download.value.path()).convert("RGB")).std() > 10


def test_a_classifier_s_view_is_what_it_was(page):
    choose(page, "own")
    assert page.locator(".vtx-frame").count() == 1
    for part in (".vtx-legend", ".vtx-matrix"):
        assert page.locator(part).is_hidden()
    assert option(page, "Outlines").is_hidden()
    assert page.locator(".vtx-guess li").count() == 5
    choose(page, "scene")
    assert page.locator(".vtx-frame").count() == 3
    assert chip(page, "road").is_visible()


def test_what_a_crop_cuts_off_has_no_class(page):
    page.get_by_label("Crop").click()
    another(page, lambda: page.get_by_role("option", name="Centre 224").click())
    page.locator("[data-shows=classes] canvas").hover(position={"x": 3, "y": 100})
    assert page.inner_text(".vtx-flag:visible") == "cut off"
    got, photo = picture(page, "classes"), picture(page, "photo")
    edge = got[:, : got.shape[1] // 12]
    assert np.abs(edge - 0.35 * photo[:, : got.shape[1] // 12]).max() < 3  # the photo, dimmed


def test_the_panel_holds_the_classes_and_the_arrays_the_labels(page, expected):
    with page.expect_download() as download:
        page.get_by_role("button", name="Panel (PNG)").click()
    panel = np.asarray(Image.open(download.value.path()).convert("RGB")).astype(int)
    swatch = (np.abs(panel - np.array(expected.palette[2])).max(axis=2) == 0).sum()
    assert swatch >= 14 * 14  # the legend's
    with page.expect_download() as download:
        page.get_by_role("button", name="Arrays (NPZ)").click()
    with np.load(download.value.path()) as stored:
        np.testing.assert_array_equal(stored["labels"], expected.labels)
        assert stored["p3.coefficients"].shape[:2] == (1, 8)


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_the_view_fits_and_every_control_has_a_name(page, settle, width, scheme, cat, tmp_path):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 844})
    settle(page)
    page.reload()
    page.wait_for_selector(".vtx[data-ready]")
    upload(page, "#mask", write_mask(tmp_path / "mask.png", np.arange(cat[..., 0].size).reshape(cat.shape[:2]) % 6))
    page.evaluate("document.querySelector('.vtx').view.set({ source: 'given' })")
    frame(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    nameless = page.evaluate("""() => [...document.querySelectorAll('.vtx button, .vtx select, .vtx input')]
        .filter((e) => !(e.getAttribute('aria-label') || e.textContent.trim() || (e.labels && e.labels.length)))
        .map((e) => e.outerHTML)""")
    assert nameless == []
    page.locator(".vtx-box").first.scroll_into_view_if_needed()
    measure = "(({ scrollWidth, clientWidth }) => scrollWidth - clientWidth)"
    assert page.evaluate(f"{measure}(document.querySelector('.vtx-box'))") == 0
    seen = page.locator("[data-shows=classes] canvas").bounding_box()
    assert 0 <= seen["y"] < 844  # stays in sight
    assert seen["width"] > (130 if width == 390 else 350)
    swatch = page.locator(".vtx-chip .vtx-swatch").first
    assert swatch.evaluate("(e) => getComputedStyle(e).boxShadow") != "none"  # a rim: colours may be the page's own
    page.set_viewport_size({"width": 320, "height": 844})
    frame(page)
    assert page.evaluate(f"{measure}(document.querySelector('.vtx-box'))") > 0  # it scrolls in its own box
    assert page.evaluate(f"{measure}(document.documentElement)") <= 0
