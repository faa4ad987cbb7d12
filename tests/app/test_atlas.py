"""The tab Atlas: what is read beside the weights, which photos are shown, and a dissection started and cancelled."""

import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app.atlas import MOST_PHOTOS, NO_MASKS, OPENED_SIDE, AtlasTab, encode_jpeg, encode_thumbnail
from app.canvas import SCRIPTS
from app.datasets import DataRoot, has_masks, has_photos
from app.page import build_page
from app.shelf import Shelf
from vtviz.errors import ConfigError, VtvizError
from vtviz.explain.atlas import Atlas
from vtviz.explain.atlas_file import read_atlas, save_atlas
from vtviz.explain.dissection import dissect
from vtviz.render import overlay
from vtviz.thumbnails import shrink

SCRIPT = "<script>alert(1)</script>"
NOBODY = SimpleNamespace(session_hash="nobody")


def silent(*_: object, **__: object) -> None:
    """A progress bar that nobody looks at."""


@pytest.fixture(scope="module")
def data(tmp_path_factory, chelsea, coffee, astronaut) -> Path:
    """A data root: photos by class, photos with masks, loose photos, and a link that leads out of it."""
    top = tmp_path_factory.mktemp("atlas")
    root = top / "data"
    photos = {"cat": chelsea, "cup": coffee, "person": astronaut}
    for name, image in photos.items():
        for split in ("train", "val"):
            folder = root / "pets" / split / name
            folder.mkdir(parents=True)
            for i in range(2):
                Image.fromarray(image[40 * i :, 30 * i :]).save(folder / f"{name} {i}.jpg", quality=90)
    for kind in ("images", "masks"):
        (root / "scenes" / "val" / kind).mkdir(parents=True)
    (root / "scenes" / "classes.txt").write_text(f"ground\n{SCRIPT}\n")
    for i, image in enumerate(photos.values()):
        Image.fromarray(image).save(root / "scenes" / "val" / "images" / f"{i}.jpg")
        labels = np.zeros(image.shape[:2], np.uint8)
        labels[100:, : 90 * (i + 1)] = 1
        Image.fromarray(labels).save(root / "scenes" / "val" / "masks" / f"{i}.png")
    (root / "loose").mkdir()
    Image.fromarray(coffee).save(root / "loose" / "x.png")
    (top / "secret").mkdir()
    Image.fromarray(coffee).save(top / "secret" / "y.png")
    (root / "loose" / "out.png").symlink_to(top / "secret" / "y.png")
    return root


@pytest.fixture(scope="module")
def shelf(tmp_path_factory, models) -> Shelf:
    """The models in a folder of their own, so that atlases can be put beside them."""
    folder = tmp_path_factory.mktemp("with atlas")
    for file in models.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VTVIZ_CHECKPOINTS", str(folder))
        yield Shelf(str(folder / "own.safetensors"), device="cpu")


@pytest.fixture(scope="module")
def atlas(shelf, data):
    """Of the model "own" on "pets" with the masks of "scenes", beside its weights."""
    made = dissect(shelf.get("own"), data / "pets", masks=data / "scenes")
    save_atlas(Path(shelf.source("own")).with_suffix(".atlas.json"), made)
    return made


# --- what is shown


def test_a_shipped_atlas_is_shown_with_file_names_alone_where_there_are_no_photos(shelf, atlas):
    view, opened, problem = AtlasTab(shelf).open("own")
    assert problem == ""
    assert opened.copy is None
    told = view.value
    assert told["data"] == {"name": "pets", "split": "val", "n": 6}
    assert "--data-root DIR" in told["note"]
    assert "copy of the data set pets" in told["note"]
    photos = [photo for layer in told["layers"] for token in layer["tokens"] for photo in token["photos"]]
    assert all(photo["photo"] is None and photo["file"].startswith("val/") for photo in photos)
    json.dumps(told, allow_nan=False)


def test_every_number_stands_beside_its_baselines(shelf, atlas, data):
    opened = AtlasTab(shelf, DataRoot(data)).find("own")
    told = AtlasTab(shelf).describe(opened)
    for layer, ours in zip(told["layers"], opened.atlas.layers, strict=True):
        assert layer["redundancy"] == pytest.approx(ours.trained.redundancy)
        assert np.mean([token["shared"][0] for token in layer["tokens"]]) == pytest.approx(ours.trained.redundancy)
        assert np.mean([token["shared"][1] for token in layer["tokens"]]) == pytest.approx(ours.untrained.redundancy)
        others = ours.shuffled_overlap[~np.eye(len(ours.shuffled_overlap), dtype=bool)].mean()
        assert layer["untrained"] == pytest.approx(ours.untrained.redundancy)
        assert layer["shuffled"] == pytest.approx(others)
        assert np.mean([token["shared"][2] for token in layer["tokens"]]) == pytest.approx(others)
        for i, token in enumerate(layer["tokens"]):
            assert token["peak"] == [ours.trained.peak[i], ours.untrained.peak[i]]
            assert token["entropy"] == [ours.trained.entropy[i], ours.untrained.entropy[i]]
            index = ["ground", SCRIPT].index(token["best"]["class"])
            found = [x[i, index] for x in (ours.classes.iou, ours.classes.untrained, ours.classes.shuffled)]
            assert token["best"]["iou"] == found
            beyond = ours.classes.iou[i] - ours.classes.shuffled[i]
            assert beyond[index] == beyond.max()
            assert token["dead"] == (i in ours.trained.dead)


def test_photos_come_from_the_users_copy_of_the_data(shelf, atlas, data):
    tab = AtlasTab(shelf, DataRoot(data))
    told = tab.open("own")[0].value
    assert told["note"] == ""
    photos = [photo for layer in told["layers"] for token in layer["tokens"] for photo in token["photos"]]
    assert all(photo["photo"].startswith("data:image/jpeg") for photo in photos)
    detail = tab.describe_token(tab.find("own"), 1, 2)
    assert [photo["file"] for photo in detail["photos"]] == [p.file for p in atlas.layers[1].photos[2]]
    assert all(photo["photo"].startswith("data:image/jpeg") for photo in detail["photos"])
    assert detail["limits"][0] == 0 < detail["limits"][1]
    assert tab.describe_token(tab.find("own"), 1, 3)["limits"] == detail["limits"]  # one scale for a layer
    opened = tab.find("own")
    small = replace(opened, atlas=replace(opened.atlas, size=96))  # seen as the dissection saw it
    file = data / "pets" / atlas.layers[1].photos[2][0].file
    for each, size in ((opened, atlas.size), (small, 96)):
        maps = shrink(shelf.get("own").extract(file, layers=[1], size=size), OPENED_SIDE)
        drawn = encode_jpeg(overlay(maps, 0, 2, opacity=0.45, scale=detail["limits"]))
        assert tab.describe_token(each, 1, 2)["photos"][0]["photo"] == drawn
    for wrong in ((9, 0), (0, 99), ("0", 0), (None, None)):
        with pytest.raises(VtvizError):
            tab.describe_token(tab.find("own"), *wrong)


def test_a_copy_must_have_the_folders_name_and_its_files(shelf, atlas, data, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "pets").symlink_to(data / "pets")  # leads out of this root
    (tmp_path / "pets").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "pets" / "another.png")
    tab = AtlasTab(shelf, DataRoot(tmp_path))
    view, opened, _ = tab.open("own")
    assert opened.copy is None
    assert "no folder called pets" in view.value["note"]
    assert AtlasTab(shelf, DataRoot(data.parent)).find("own").copy == "data/pets"
    assert AtlasTab(shelf, DataRoot(data / "pets")).find("own").copy == "."


def test_without_an_atlas_one_line_says_what_to_do(shelf, atlas, data):
    tab = AtlasTab(shelf, DataRoot(data))
    view, opened, problem = tab.open("blank")
    assert view.value is opened is None
    assert "No atlas of blank yet" in problem
    assert "blank.atlas.json" in problem
    assert "this page has no model &#x27;&lt;script&gt;" in tab.open(SCRIPT)[2]
    path = Path(shelf.source("own")).with_suffix(".atlas.json")
    kept = path.read_bytes()
    try:
        path.write_text('{"format": "other"}')
        assert "expected the format" in tab.open("own")[2]
        path.write_bytes(kept.replace(atlas.weights.encode(), b"0" * len(atlas.weights)))
        problem = tab.open("own")[2]
        assert "own.atlas.json: made with other weights" in problem
        assert str(path.parent) not in problem
    finally:
        path.write_bytes(kept)
    assert tab.open_token(None, SimpleNamespace(layer=0, token=0))[1].startswith('<p class="vtx-message"')


# --- what may be read


def test_photo_sets_are_found_below_the_root_and_nothing_outside_of_it(data):
    root = DataRoot(data)
    assert root.names() == ["pets"]  # what a classifier can be trained on
    assert root.names(has_photos) == ["loose", "pets", "scenes"]
    assert root.names(has_masks) == ["scenes"]
    assert root.file("loose", "x.png") == data / "loose" / "x.png"
    for name, file in (
        ("loose", "out.png"),
        ("loose", "../../secret/y.png"),
        ("..", "secret/y.png"),
        ("loose", str(data.parent / "secret" / "y.png")),
        ("loose", "nothing.png"),
        ("loose", "a\0b"),
        ("loose", "a" * 5000),
    ):
        assert root.file(name, file) is None


def test_what_is_no_image_has_no_thumbnail(tmp_path, coffee):
    (tmp_path / "a.jpg").write_text(SCRIPT)
    assert encode_thumbnail(tmp_path / "a.jpg") is None
    Image.fromarray(coffee[:, :3]).save(tmp_path / "sliver.png")
    assert encode_thumbnail(tmp_path / "sliver.png").startswith("data:image/jpeg")


# --- a dissection


def test_a_dissection_of_ones_own_photos_can_be_kept(shelf, data):
    page = build_page(shelf, data=DataRoot(data))
    tab = next(fn.fn.__self__ for fn in page.fns.values() if fn.api_name == "atlas")
    steps = []
    model, view, opened, problem, file = tab.run("own", "pets", "scenes", 4, NOBODY, lambda at, **_: steps.append(at))
    assert (model, problem) == ("own", "")
    assert view.value["data"]["n"] == 4
    assert opened.copy == "pets"
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert steps[-1][0] == steps[-1][1]
    path = Path(file.value["path"])
    assert path.name == "own.atlas.json"
    again = read_atlas(path)
    assert again.to_dict() == opened.atlas.to_dict()


@pytest.mark.parametrize(
    ("form", "line"),
    [
        ((SCRIPT, "pets", NO_MASKS, 4), "this page has no model &#x27;&lt;script&gt;"),
        (("plain", "pets", NO_MASKS, 4), "a model without tokens"),
        (("own", "../secret", NO_MASKS, 4), "there is no data set"),
        (("own", "loose", NO_MASKS, 4), "^(?!.*/).*loose/out.png is a link to outside"),
        (("own", "pets", "pets", 4), "there is no data set"),
        (("own", "pets", NO_MASKS, 1), "whole number from 2"),
        (("own", "pets", NO_MASKS, 2.5), "whole number from 2"),
        (("own", "pets", NO_MASKS, float("nan")), "whole number from 2"),
        (("own", "pets", NO_MASKS, None), "whole number from 2"),
        (("own", "pets", NO_MASKS, MOST_PHOTOS + 1), "whole number from 2"),
    ],
)
def test_a_wrong_field_is_one_escaped_line(shelf, data, form, line):
    *_, problem, _ = AtlasTab(shelf, DataRoot(data)).run(*form, NOBODY, silent)
    assert re.search(line.removeprefix("^(?!.*/).*"), problem)
    assert "<script>" not in problem
    assert str(data) not in problem


def test_a_dissection_stops_at_the_next_photo(shelf, data):
    tab = AtlasTab(shelf, DataRoot(data))
    seen = []

    def watch(at: tuple[int, int], **_: object) -> None:
        seen.append(at)
        tab.stops.cancel(SimpleNamespace(session_hash="another"))
        if len(seen) == 2:
            tab.stops.cancel(NOBODY)

    *_, problem, _ = tab.run("own", "pets", NO_MASKS, 6, NOBODY, watch)
    assert "Cancelled" in problem
    assert seen == [(1, 6), (2, 6)]
    with pytest.raises(ConfigError, match="no data root was given"):
        AtlasTab(shelf).examine("own", "pets", NO_MASKS, 4, NOBODY, silent)


# --- in a browser


def start_dissection(page: Any, count: int) -> None:
    """Fill in the form for so many photos of "pets", and press its button."""
    page.get_by_role("button", name="Dissect photos of your own").click()
    page.get_by_label("Photos", exact=True).click()
    page.get_by_role("option", name="pets").click()
    page.get_by_label("How many").fill(str(count))
    page.get_by_role("button", name="Dissect", exact=True).click()


@pytest.fixture
def shown(browser, serving, shelf, atlas, data) -> Iterator[tuple[Any, AtlasTab]]:
    """The tab in a browser, with the atlas of "own" open, and its handlers."""
    made = build_page(shelf, data=DataRoot(data))
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(60_000)
    page.goto(serving(made))
    page.get_by_role("tab", name="Atlas").click()
    page.locator(".vtx-card").first.wait_for()
    yield page, next(fn.fn.__self__ for fn in made.fns.values() if fn.api_name == "atlas")
    page.close()


@pytest.mark.browser
def test_a_token_s_photos_come_however_it_is_clicked(shown, monkeypatch):
    page, tab = shown
    head = page.locator(".vtx-card-head")
    for _ in range(2):  # the second answer says what the first did
        head.nth(2).click()
        page.locator(".vtx-opened img").first.wait_for()
        head.nth(2).click()
    describe_token = tab.describe_token

    def slowly(*arguments: object) -> dict[str, Any]:
        time.sleep(0.5)
        return describe_token(*arguments)

    monkeypatch.setattr(tab, "describe_token", slowly)
    head.nth(2).click()
    page.wait_for_timeout(150)
    head.nth(5).click()  # before the answer to the last click
    page.locator(".vtx-opened img").first.wait_for()
    assert page.locator(".vtx-opened h4").inner_text().startswith("The photos that token 5 peaks on most")


@pytest.mark.browser
def test_the_control_names_the_model_that_was_dissected(shown, monkeypatch):
    page, _ = shown
    gate = threading.Event()

    def wait(*arguments: object, **options: Any) -> Atlas:
        options["progress"](1, 2)
        assert gate.wait(60)
        return dissect(*arguments, **options)

    monkeypatch.setattr("app.atlas.dissect", wait)
    start_dissection(page, 2)
    page.locator("#atlas-model input").click()
    page.get_by_role("option", name="blank").click()
    page.get_by_text("No atlas of blank yet").wait_for()
    page.locator("#atlas-progress .progress-level-inner", has_text="Photos looked at - 50.0%").wait_for()
    assert page.locator("#atlas-progress .progress-text").is_hidden()  # would lie across the bar's edge
    gate.set()
    page.get_by_text("stood for over 2 photos of pets").wait_for()
    page.wait_for_timeout(1000)  # the control that was set would open the model's own atlas, of 6 photos
    assert page.locator("#atlas-model input").input_value() == "own"
    assert "over 2 photos" in page.locator(".vtx-atlas .vtx-lead").inner_text()
    assert page.locator("#atlas-message").inner_text() == ""


MOUNT = """
    const root = vtviz.make("div", { class: "vtx-atlas" }), props = {}, changed = {};
    document.body.replaceChildren(vtviz.make("div", {}, root));
    vtviz.atlas(root.parentElement, props, () => {}, (name, call) => (changed[name] = call));
    const set = (name, value) => { props[name] = value; changed[name](); };
"""


@pytest.fixture
def bare(browser) -> Iterator[Any]:
    """A page with the scripts alone."""
    page = browser.new_page()
    for script in SCRIPTS:
        page.add_script_tag(content=script.read_text())
    yield page
    page.close()


@pytest.mark.browser
def test_a_late_answer_of_another_atlas_is_not_shown(bare, shelf, atlas, data):
    tab = AtlasTab(shelf, DataRoot(data))
    opened = [tab.find("own") for _ in range(2)]
    values, details = [tab.describe(each) for each in opened], [tab.describe_token(each, 0, 2) for each in opened]
    counts = bare.evaluate(
        f"""([values, details]) => {{
            {MOUNT}
            const count = () => root.querySelectorAll(".vtx-opened img").length;
            for (const value of values) {{
                set("value", value);
                root.querySelectorAll(".vtx-card-head")[2].click();
            }}
            return details.map((detail) => {{ set("token", detail); return count(); }});
        }}""",
        [values, details],
    )
    assert counts == [0, len(details[1]["photos"])]


@pytest.mark.browser
def test_the_keyboard_stays_where_it_is(bare, shelf, atlas):
    told = AtlasTab(shelf).describe(AtlasTab(shelf).find("own"))
    bare.evaluate(f"(value) => {{ {MOUNT} set('value', value); }}", told)
    cards = bare.locator(".vtx-card")
    cards.nth(5).get_by_role("button").click()
    bare.get_by_label("Sort by").focus()
    for order in ("peak", "entropy"):
        bare.keyboard.press("ArrowDown")
        assert bare.evaluate("document.activeElement.value") == order
    spread = [token["entropy"][0] for token in told["layers"][0]["tokens"]]
    order = [int(card.get_attribute("data-token")) for card in cards.all()]
    assert order == list(np.argsort(spread, kind="stable"))
    assert bare.locator(".vtx-opened h4").inner_text().startswith("The photos that token 5 peaks on")  # stays open
    layer = bare.get_by_role("button", name="Layer 1: block1")
    layer.press("Enter")
    assert cards.count() == 8
    assert layer.get_attribute("aria-pressed") == "true"
    assert bare.evaluate("document.activeElement.textContent") == "Layer 1: block1"
    assert f"share {100 * told['layers'][1]['redundancy']:.0f} %" in bare.locator(".vtx-line").inner_text()


@pytest.mark.browser
def test_an_atlas_is_opened_sorted_looked_into_and_made_anew(browser, serving, shelf, atlas, data):
    url = serving(build_page(shelf, data=DataRoot(data)))
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(60_000)
    faults, hosts = [], set()
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda entry: faults.append(entry.text) if entry.type == "error" else None)
    page.on("request", lambda request: hosts.add(re.match(r"\w+:(//[^:/]+)?", request.url)[0]))
    page.goto(url)
    page.get_by_role("tab", name="Atlas").click()
    cards = page.locator(".vtx-card")
    cards.first.wait_for()
    assert cards.count() == 16
    assert page.locator(".vtx-card img").count() == 16 * 3
    assert "6 photos of pets" in page.locator(".vtx-lead").last.inner_text()
    ours = atlas.layers[0]
    name, *peaks = cards.first.locator("tbody tr").first.inner_text().split()
    assert name == "Peak"
    expected = [ours.trained.peak[0], ours.untrained.peak[0]]
    np.testing.assert_allclose([float(peak.rstrip("×")) for peak in peaks], expected, rtol=0.01)
    assert page.locator("#atlas script").count() == 0  # the class's name is text

    page.get_by_label("Sort by").select_option("peak")
    order = [int(card.get_attribute("data-token")) for card in cards.all()]
    np.testing.assert_array_equal(order, np.argsort(-ours.trained.peak.round(4), kind="stable"))
    page.get_by_role("button", name="Layer 1: block1").click()
    assert cards.count() == 8
    card = cards.nth(2).get_by_role("button")
    token = int(cards.nth(2).get_attribute("data-token"))
    card.click()
    page.locator(".vtx-opened img").first.wait_for()
    names = [text.split(" ", 1)[1] for text in page.locator(".vtx-opened figcaption").all_inner_texts()]
    assert names == [peak.file for peak in atlas.layers[1].photos[token]]
    card.click()
    assert page.locator(".vtx-opened").count() == 0

    start_dissection(page, 3)
    page.get_by_text("3 photos of pets").wait_for()
    with page.expect_download() as download:
        page.get_by_role("button", name="Save atlas").click()
    assert read_atlas(download.value.path()).data.n == 3
    assert [fault for fault in faults if not fault.startswith("AbortError")] == []
    assert hosts <= {"http://127.0.0.1", "data:", "blob:"}
    page.close()
