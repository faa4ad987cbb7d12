"""The views beside the photo, in a real browser, as a person uses them."""

import json
import re
import zipfile
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

from app.examples import load_examples
from vtviz.explain.ablation import ablate
from vtviz.explain.attribution import attribute
from vtviz.explain.lineage import lineage
from vtviz.explain.query import query
from vtviz.shortcuts import extract_tokens

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def maps(models):
    return extract_tokens(load_examples()["cat"].image, str(models / "own.safetensors"))


def frame(page) -> None:
    """Let a scheduled drawing happen."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def tab(page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()
    frame(page)


def state(page) -> dict:
    return page.evaluate("document.querySelector('.vtx').view.state")


def numbers(texts: list[str]) -> list[float]:
    return [float(text.rstrip("×").replace("−", "-")) for text in texts]


def asked(page) -> list[str]:
    return [url for url in page.requests if not url.startswith(("data:", "blob:"))]


def test_views_change_below_while_photo_and_token_stay_and_no_server_is_asked(visit, settle):
    page = visit("/?layer=1&token=3")
    settle(page)
    before, box = len(asked(page)), page.locator(".vtx-photo").bounding_box()
    shown = {
        "Lineage": ".vtx-step",
        "Pixel": ".vtx-lead",
        "Does it matter?": ".vtx-go",
        "Attribution": ".vtx-go",
        "Tokens": ".vtx-token",
    }
    for name, part in shown.items():
        tab(page, name)
        assert page.locator(f".vtx-sheet:visible {part}").first.is_visible()
        assert page.locator(".vtx-sheet:visible").count() == 1
        assert page.locator(".vtx-photo").bounding_box() == box
        assert page.inner_text(".vtx-caption").startswith("Layer 1, token 3")
    page.get_by_role("tab", name="Tokens", exact=True).focus()
    page.keyboard.press("ArrowRight")
    frame(page)
    assert page.evaluate("document.activeElement.textContent") == "Lineage"
    assert (state(page)["view"], state(page)["token"]) == ("lineage", 3)  # the arrows walk the views here
    assert asked(page)[before:] == []


def test_a_click_asks_a_pixel_both_ways(visit, maps):
    page = visit("/?view=pixel")
    assert "Click a pixel of the photo" in page.inner_text(".vtx-sheet:visible")
    box = page.locator(".vtx-photo").bounding_box()
    page.mouse.click(box["x"] + 0.7 * box["width"], box["y"] + 0.4 * box["height"])
    frame(page)
    x, y = state(page)["place"][:2]
    answer = query(maps, at=(x, y))
    charts = page.locator(".vtx-chart")
    assert charts.count() == 2
    by = numbers(charts.nth(0).locator(".vtx-grow-left span").all_inner_texts())
    np.testing.assert_allclose(by, answer.layers[0].read_by[0], atol=0.051)
    reads = numbers(charts.nth(0).locator(".vtx-grow-right span").all_inner_texts())
    np.testing.assert_allclose(reads, 16 * answer.layers[0].reads.mean(axis=0), atol=0.051)
    second = charts.nth(1).locator(".vtx-grow-left span").all_inner_texts()
    assert second[:8] == ["–"] * 8  # kept tokens read nothing here
    np.testing.assert_allclose(numbers(second[8:]), answer.layers[1].read_by.mean(axis=0), atol=0.051)
    assert page.locator(".vtx-region:visible").count() == 1
    page.get_by_label("Order", exact=True).select_option("sorted")
    frame(page)
    by = numbers(charts.nth(0).locator(".vtx-grow-left span").all_inner_texts())
    assert by == sorted(by, reverse=True)
    charts.nth(0).locator(".vtx-node").first.click()
    frame(page)
    assert page.inner_text(".vtx-caption") == f"Layer 0, token {int(answer.layers[0].read_by[0].argmax())}"


def test_a_drag_asks_a_region_and_a_crop_may_have_cut_it_off(visit, maps):
    page = visit("/?view=pixel")
    box = page.locator(".vtx-photo").bounding_box()
    page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 0.7 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.2 * box["height"], steps=4)
    page.mouse.up()
    frame(page)
    place = state(page)["place"]
    height, width = maps.geometry.original
    np.testing.assert_allclose(np.array(place) / [width, height, width, height], [0.3, 0.2, 0.6, 0.7], atol=0.01)
    answer = query(maps, box=tuple(place))
    by = numbers(page.locator(".vtx-chart").nth(0).locator(".vtx-grow-left span").all_inner_texts())
    np.testing.assert_allclose(by, answer.layers[0].read_by[0], atol=0.051)
    page.evaluate("document.querySelector('.vtx').view.set({ place: [0, 0, 3, 3] })")
    ready = page.get_attribute(".vtx", "data-ready")
    page.get_by_label("Crop").click()
    page.get_by_role("option", name="Centre 224").click()
    page.wait_for_function("(before) => document.querySelector('.vtx').dataset.ready !== before", arg=ready)
    assert "(from the top left). The crop cut it off: " in page.inner_text(".vtx-sheet:visible")
    assert page.locator(".vtx-chart:visible").count() == 0


def test_a_pixel_is_asked_by_keyboard_and_the_focus_says_what_arrows_walk(visit, maps):
    page = visit("/?view=pixel&layer=0&token=3")
    height, width = maps.geometry.original
    page.evaluate("document.querySelector('.vtx').view.set({ place: [40, 9, 60, 30] })")
    frame(page)
    page.locator(".vtx-photo").focus()
    for key in ("ArrowRight", "Shift+ArrowRight", "Shift+ArrowUp", "ArrowDown"):  # from the corner of what was asked
        page.keyboard.press(key)
    assert page.inner_text(".vtx-flag") == "51, 1"  # not above the top
    assert state(page)["place"] == [40, 9, 60, 30]  # only pointed at yet
    page.keyboard.press("Enter")
    frame(page)
    assert state(page)["place"] == [51, 1, 52, 2]
    by = numbers(page.locator(".vtx-chart").nth(0).locator(".vtx-grow-left span").all_inner_texts())
    np.testing.assert_allclose(by, query(maps, at=(51, 1)).layers[0].read_by[0], atol=0.051)
    assert (state(page)["layer"], state(page)["token"]) == (0, 3)
    page.locator(".vtx-node").nth(5).focus()
    assert page.locator(".vtx-flag").is_hidden()
    page.keyboard.press("ArrowRight")
    assert (state(page)["token"], state(page)["place"]) == (4, [51, 1, 52, 2])
    tab(page, "Tokens")
    page.locator(".vtx-photo").focus()
    page.keyboard.press("ArrowRight")
    assert (state(page)["token"], state(page)["place"]) == (5, [51, 1, 52, 2])
    page.mouse.click(*(page.locator(".vtx-photo").bounding_box()[side] + 5 for side in "xy"))
    tab(page, "Pixel")
    page.evaluate("document.querySelector('.vtx').view.set({ place: null })")
    page.locator(".vtx-photo").focus()
    page.mouse.move(1, 1)
    page.keyboard.press("Enter")
    assert state(page)["place"] == [width // 2, height // 2, width // 2 + 1, height // 2 + 1]


def test_lineage_follows_a_token_and_says_what_it_reads(visit, maps):
    page = visit("/?view=lineage&layer=1&token=2")
    descent = lineage(maps)
    chosen = descent.tokens[1][10]
    assert page.locator(".vtx-step").count() == 32
    lit = page.locator(".vtx-step.vtx-lit").evaluate_all("(all) => all.map((each) => each.getAttribute('aria-label'))")
    assert len(lit) == 2
    wires = page.locator(".vtx-step").evaluate_all("(all) => all.map((e) => getComputedStyle(e, '::before'))")
    assert [wire["content"] != "none" for wire in wires] == [False] * 16 + [True] * 16  # to every token of layer 1
    assert lit[0].startswith(f"Layer 0, token {chosen.origin}, gathered")
    assert lit[1].startswith(f"Layer 1, token 2, token {chosen.origin} of layer 0 became its filter")
    attention = maps.layers[1].attention
    read = numbers(page.locator(".vtx-reads").all_inner_texts())
    np.testing.assert_allclose(read[16:], 16 * attention.mean(axis=0)[10], atol=0.051)
    page.get_by_label("Attention", exact=True).select_option("3")
    frame(page)
    read = numbers(page.locator(".vtx-reads").all_inner_texts())
    np.testing.assert_allclose(read[16:], 16 * attention[3][10], atol=0.051)
    page.get_by_role("button", name=re.compile("^Layer 1, token 9 of layer 0, kept")).click()
    frame(page)
    assert page.inner_text(".vtx-caption") == "Layer 0, token 9"  # whose map a kept token has
    matrix = page.locator(".vtx-attention canvas").nth(1)
    box = matrix.bounding_box()
    matrix.hover(position={"x": box["width"] * 5.5 / 16, "y": box["height"] * 12.5 / 16})
    said = page.locator(".vtx-attention p").nth(1).inner_text()
    assert said.startswith("Token 4 reads token 13 of layer 0: ")
    assert float(said.split()[-1].rstrip("×")) == pytest.approx(16 * attention[3][12, 5], abs=0.051)


def test_every_token_is_tried_beside_its_baselines(visit, settle, shelf):
    page = visit("/?view=ablation")
    settle(page)
    cat = load_examples()["cat"].image
    expected = ablate(shelf.get("own"), cat)
    page.get_by_role("button", name="Try every token").click()
    page.locator(".vtx-change").first.wait_for()
    page.get_by_label("Measure", exact=True).select_option("logit")
    frame(page)
    effects = expected.layers[0].effects
    for mode in ("absent", "random", "gaussian"):
        got = numbers(page.locator(f".vtx-effect[data-mode={mode}] span").all_inner_texts())
        np.testing.assert_allclose(got, effects[mode].logit, atol=0.051)
    assert expected.classes[expected.target] in page.inner_text(".vtx-told")
    before = len(asked(page))
    page.keyboard.press("Escape")
    page.locator(".vtx-photo").focus()
    page.keyboard.press("ArrowDown")
    frame(page)
    assert page.locator(".vtx-change").count() == 16
    kept = page.locator(".vtx-change").first.locator(".vtx-effect span").all_inner_texts()
    assert kept[1:] == ["does not apply"] * 2
    page.get_by_label("Order", exact=True).select_option("sorted")
    frame(page)
    sizes = np.abs(numbers(page.locator(".vtx-effect[data-mode=absent] span").all_inner_texts()))
    assert (np.diff(sizes) <= 0.051).all()
    assert asked(page)[before:] == []
    other = ablate(shelf.get("own"), cat, target=(expected.target + 1) % 5)
    page.locator(".vtx-sheet:visible").get_by_label("Class", exact=True).select_option(str(other.target))
    label = other.classes[other.target]
    page.wait_for_function("(label) => document.querySelector('.vtx-told').textContent.startsWith(label)", arg=label)


@pytest.mark.slow
def test_methods_stand_side_by_side_and_the_report_holds_them(visit, settle, shelf):
    pytest.importorskip("captum")
    page = visit("/?view=attribution")
    settle(page)
    page.get_by_role("button", name="Ask all methods").click()
    page.locator(".vtx-methods figure").first.wait_for(timeout=90_000)
    frame(page)
    boxes = [each.bounding_box() for each in page.locator(".vtx-methods canvas").all()]
    assert len(boxes) == 5
    assert len({(box["width"], box["height"]) for box in boxes}) == 1  # one geometry
    drawn = page.locator(".vtx-methods canvas").evaluate_all("(all) => all.map((each) => each.toDataURL())")
    assert len(set(drawn)) == 5
    cells = page.locator(".vtx-agreement tbody td").all_inner_texts()
    assert len(cells) == 25
    assert cells[::6] == ["1.00"] * 5
    page.locator(".vtx-photo").hover()
    assert page.locator(".vtx-methods .vtx-dot:visible").count() == 5
    found = attribute(
        shelf.get("own"), load_examples()["cat"].image, ["token_integrated_gradients", "gradient_x_token"]
    )
    shares = page.locator(".vtx-share")
    assert shares.count() == 32
    for item, place in zip(found.items, (".vtx-added", ".vtx-tag:last-child"), strict=True):
        expected = np.concatenate(list(item.tokens.values()))
        np.testing.assert_allclose(numbers(shares.locator(place).all_inner_texts()), expected, rtol=0.006, atol=0.006)
    shares.nth(16 + 3).click()  # kept: its map is in layer 0
    frame(page)
    assert page.inner_text(".vtx-caption") == "Layer 0, token 11"
    assert page.locator(".vtx-share[aria-current=true]").count() == 2
    with page.expect_download(timeout=90_000) as download:
        page.get_by_role("button", name="Report (ZIP)").click()
    assert download.value.suggested_filename == "cat_own_report.zip"
    with zipfile.ZipFile(download.value.path()) as archive:
        report = archive.read("report.html").decode()
        assert json.loads(archive.read("manifest.json"))["source"] == "Chelsea the cat"
    assert "Attribution: " in report
    assert "Does a token matter?" not in report  # it was not asked


def test_what_runs_can_be_cancelled_and_what_fails_is_one_line(visit, settle, shelf):
    page = visit("/?view=ablation")
    settle(page)
    page.evaluate("""() => { // at once: this small model is done in a second
        const sheet = document.querySelector('.vtx-sheet:not([hidden])');
        sheet.querySelector('.vtx-go').click();
        sheet.querySelector('.vtx-busy button').click();
    }""")
    assert page.inner_text(".vtx-sheet:visible .vtx-fault") == "Cancelled."
    assert page.get_by_role("button", name="Try every token").is_visible()
    page.get_by_role("button", name="Try every token").click()
    page.locator(".vtx-change").first.wait_for(timeout=90_000)
    page.evaluate("document.querySelector('.vtx').view.views.list[3].part.job.ask({ kind: 'ablation', label: 99 })")
    line = page.locator(".vtx-sheet:visible .vtx-fault")
    line.wait_for()
    assert line.inner_text().startswith("there is no class 99")
    assert page.locator(".vtx-change").count() == 16  # the last good answer stays


def test_links_open_what_they_say_and_follow_what_is_shown(visit):
    page = visit("/?photo=coffee&model=blank&crop=center&layer=1&token=3&view=pixel")
    page.wait_for_function("document.querySelector('.vtx').view.scene.payload.model === 'blank'")
    frame(page)
    assert (state(page)["layer"], state(page)["token"], state(page)["view"]) == (1, 3, "pixel")
    assert page.evaluate("document.querySelector('.vtx').view.scene.payload.link.photo") == "coffee"
    assert page.get_by_label("Model").input_value() == "blank"
    assert page.get_by_label("Crop").input_value().startswith("Centre")
    tab(page, "Lineage")
    page.locator(".vtx-photo").focus()
    page.keyboard.press("ArrowLeft")
    frame(page)
    found = parse_qs(urlsplit(page.url).query)
    assert {key: value[0] for key, value in found.items()} == {
        "photo": "coffee", "model": "blank", "crop": "center", "layer": "1", "token": "2", "view": "lineage",
    }  # fmt: skip
    history = page.evaluate("history.length")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("history.length") == history


def test_a_link_that_leads_nowhere_falls_back_with_a_line(visit, photo):
    page = visit("/?photo=unicorn&layer=7&view=tokens")
    line = page.locator("#message .vtx-message")
    line.wait_for()
    assert line.inner_text() == "This page does not have what the link asks for: photo 'unicorn'."
    assert page.evaluate("document.querySelector('.vtx').view.scene.payload.link.photo") == "cat"
    other = visit("/?layer=7&token=1")
    assert other.inner_text(".vtx-notice:visible") == ('There is no layer "7" here, which the link asks for.')
    ready = other.get_attribute(".vtx", "data-ready")
    other.set_input_files("#photo input[type=file]", photo)
    other.wait_for_function("(before) => document.querySelector('.vtx').dataset.ready !== before", arg=ready)
    assert urlsplit(other.url).query == ""  # nobody else may see an upload
    assert other.locator(".vtx-notice:visible").count() == 0


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_every_view_fits_and_every_control_has_a_name(visit, segment_address, width, scheme):
    page = visit("/?view=pixel", width=width, at=segment_address, scheme=scheme)
    page.evaluate("document.querySelector('.vtx').view.set({ place: [100, 100, 160, 150] })")
    for name in ("lineage", "pixel", "ablation", "attribution"):
        page.evaluate("(view) => document.querySelector('.vtx').view.set({ view })", name)
        frame(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        nameless = page.evaluate("""() => [...document.querySelectorAll('.vtx button, .vtx select, .vtx input')]
            .filter((e) => !(e.getAttribute('aria-label') || e.textContent.trim() || (e.labels && e.labels.length)))
            .map((e) => e.outerHTML)""")
        assert nameless == []
        if name != "attribution":
            sheet = page.locator(".vtx-sheet:visible")
            assert sheet.evaluate("(e) => getComputedStyle(e).backgroundColor") == "rgba(0, 0, 0, 0)"


@pytest.mark.slow
def test_tokens_of_all_levels_read_each_other(visit, settle, segment_address, segment_shelf):
    page = visit("/?view=lineage&layer=2&token=5", at=segment_address)
    maps = extract_tokens(load_examples()["cat"].image, segment_shelf.get("scene"))
    read = numbers(page.locator(".vtx-reads").all_inner_texts())
    np.testing.assert_allclose(read, 32 * maps.layers[2].attention.mean(axis=0)[5], atol=0.051)
    assert page.locator(".vtx-attention").count() == 1
    tab(page, "Does it matter?")
    settle(page)
    page.get_by_role("button", name="Try every token").click()
    page.locator(".vtx-change").first.wait_for(timeout=90_000)
    expected = ablate(segment_shelf.get("scene"), load_examples()["cat"].image).layers[2].effects["absent"]
    got = numbers(page.locator(".vtx-effect[data-mode=absent] span").all_inner_texts())
    np.testing.assert_allclose(got, 100 * expected.changed, atol=0.51)
    page.get_by_label("Measure", exact=True).select_option("area")
    page.get_by_label("Of class", exact=True).select_option(label="car")
    frame(page)
    got = numbers(page.locator(".vtx-effect[data-mode=absent] span").all_inner_texts())
    np.testing.assert_allclose(got, 100 * expected.areas[:, 2], atol=0.51)
