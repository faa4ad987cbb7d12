"""Hostile text through every door of the page, in a real browser: nothing of it becomes an element or runs."""

import io
import json
import shutil
from collections.abc import Iterator
from types import SimpleNamespace
from urllib.parse import urlencode

import numpy as np
import pytest
from PIL import Image

from app.datasets import DataRoot
from app.page import build_page
from app.shelf import Shelf
from app.train import Train
from vtviz import checkpoints
from vtviz.explain.atlas_file import save_atlas
from vtviz.explain.dissection import dissect

pytestmark = pytest.mark.browser

WATCH = """
window.hacked = [];
window.hack = (where) => window.hacked.push(where);
for (const name of ["alert", "confirm", "prompt"]) window[name] = (text) => window.hacked.push(text);
"""
ELEMENTS = "[onerror], [onload], [onfocus], iframe[src^=javascript], a[href^='javascript:'], script[data-evil], evil"


def evil(where: str) -> str:
    """Text that runs wherever it is taken for HTML, in an element or in an attribute."""
    return f"{where}'\"><img src=x onerror=hack('{where}')><evil>&lt;evil&gt;<script data-evil>hack('{where}')</script>"


def evil_name(where: str) -> str:
    """The same as a file's name, which has no slash."""
    return f"{where}'\"><img src=x onerror=hack('{where}')><evil>"


@pytest.fixture(scope="module")
def hostile(serve, tmp_path_factory, tiny_model, tiny_card, coffee, chelsea) -> Iterator[SimpleNamespace]:
    """A page whose models, cards, atlas, data sets and runs are all named by somebody bad, and such files to upload."""
    folder = tmp_path_factory.mktemp("hostile")
    classes = tuple(evil(f"class {i}") for i in range(5))
    model = tiny_model("vt_resnet18")
    fields = {"data": {"name": evil("data")}, "accuracy": {"top1": 0.5, "n": 10, "by": evil("accuracy")}}
    fields |= {"notes": evil("notes"), "licence": evil("licence"), "recipe": {evil("key"): evil("recipe")}}
    path = folder / f"{evil_name('model')}.safetensors"
    checkpoints.save(path, model, tiny_card(model, name=evil("card"), classes=classes, **fields))
    scene = tiny_model("vt_fpn_resnet18", channels=32, head_channels=64, groups=8, kqv_groups=8)
    palette = ((70, 130, 180), (128, 64, 128), (0, 0, 142), (107, 142, 35), (0, 80, 100))
    card = tiny_card(
        scene, name=evil("scene"), model="vt_fpn_resnet18", task="segmentation", classes=classes, palette=palette
    )
    other = folder / f"{evil_name('scene')}.safetensors"
    checkpoints.save(other, scene, card)
    data = folder / "root" / evil_name("set")
    for number, image in enumerate((coffee, chelsea) * 2):
        for split in ("train", "val"):
            place = data / split / evil_name(f"kind {number % 2}")
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[::4, ::4]).save(place / f"{evil_name(str(number))}.png")
    patch = pytest.MonkeyPatch()
    patch.setenv("VTVIZ_CHECKPOINTS", str(folder))
    shelf = Shelf(path.stem, device="cpu")
    assert shelf.names[0] == evil_name("model")
    save_atlas(path.with_suffix(".atlas.json"), dissect(shelf.get(shelf.names[0]), data))
    train = Train(shelf, folder / "runs", DataRoot(data.parent))
    page = build_page(shelf, train, DataRoot(data.parent))
    exif = Image.Exif()
    exif[0x010E] = exif[0x9286] = exif[0x013B] = evil("exif")
    photo, text = folder / f"{evil_name('photo')}.jpg", folder / f"{evil_name('text')}.png"
    Image.fromarray(coffee[::2, ::2]).save(photo, exif=exif, comment=evil("comment").encode())
    text.write_text(evil("content"))
    clip = folder / f"{evil_name('clip')}.mp4"
    clip.write_text(evil("content"))
    mask = folder / f"{evil_name('mask')}.png"
    Image.fromarray(np.full((200, 300), 200, np.uint8)).save(mask)
    with serve(page) as url:
        yield SimpleNamespace(url=url, photo=photo, text=text, clip=clip, mask=mask, shelf=shelf)
    patch.undo()
    shutil.rmtree(folder)


@pytest.fixture
def page(browser, hostile) -> Iterator[object]:
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    page = context.new_page()
    page.faults = []
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.on("console", lambda entry: page.faults.append(entry.text) if entry.type == "error" else None)
    page.add_init_script(WATCH)
    yield page
    check(page)
    assert page.faults == []  # not one breach of the page's own policy either
    context.close()


def check(page) -> None:
    page.wait_for_timeout(300)
    assert page.evaluate("window.hacked") == []
    assert page.evaluate(f"document.querySelectorAll({json.dumps(ELEMENTS)}).length") == 0


def opened(page, url: str) -> None:
    page.goto(url)
    page.wait_for_selector(".vtx[data-ready]")


def test_links(page, hostile, tally):
    keys = ("photo", "model", "crop", "layer", "token", "view", "__theme", "deep_link")
    opened(page, f"{hostile.url}?{urlencode({key: evil(key) for key in keys if key not in ('__theme', 'deep_link')})}")
    page.get_by_text("This page does not have what the link asks for").wait_for()
    check(page)
    tally("doors tried with hostile text (nothing ran)", len(keys) - 2)


def test_explore_and_its_views(page, hostile, tally):
    opened(page, hostile.url)
    before = page.get_attribute(".vtx", "data-ready")
    page.set_input_files("#photo input[type=file]", hostile.text)
    page.locator("#message").get_by_text("is not a JPEG").wait_for()
    check(page)
    page.set_input_files("#photo input[type=file]", hostile.photo)
    page.wait_for_function("(before) => document.querySelector('.vtx').dataset.ready !== before", arg=before)
    for name in ("Lineage", "Pixel", "Does it matter?", "Attribution", "Tokens"):
        page.get_by_role("tab", name=name, exact=True).click()
        check(page)
    page.get_by_role("tab", name="Does it matter?", exact=True).click()
    page.locator(".vtx-go:visible").first.click()
    page.locator("progress:visible").wait_for(state="detached", timeout=60_000)
    check(page)
    tally("doors tried with hostile text (nothing ran)", 12)


def test_a_segmentation_and_its_mask(page, hostile, tally):
    opened(page, f"{hostile.url}?{urlencode({'model': evil_name('scene'), 'photo': 'coffee'})}")
    page.wait_for_selector(".vtx-legend, .vtx-classes", state="attached")
    page.set_input_files("#mask input[type=file]", hostile.mask)
    page.locator("#message").get_by_text("a mask needs the photo's own size").wait_for()
    check(page)
    tally("doors tried with hostile text (nothing ran)", 3)


def test_the_other_tabs(page, hostile, tally):
    opened(page, hostile.url)
    page.get_by_role("tab", name="Compare", exact=True).click()
    page.wait_for_selector("#compare canvas", state="attached")
    with page.expect_file_chooser() as chooser:
        page.locator("#compare-upload-1").click()
    chooser.value.set_files(hostile.photo)
    page.wait_for_timeout(1500)
    check(page)
    page.get_by_role("tab", name="Atlas", exact=True).click()
    page.wait_for_selector("#atlas button", state="attached")
    check(page)
    page.get_by_role("tab", name="Video", exact=True).click()
    page.set_input_files("#video-files input[type=file]", [hostile.clip])
    page.wait_for_function("document.querySelector('#video-told').innerText.includes('clip')")
    check(page)
    page.get_by_role("tab", name="Train", exact=True).click()
    page.get_by_label("Name", exact=True).fill(evil_name("run")[:60])
    page.locator("#train-sizes input, #train-sizes textarea").first.fill(evil("sizes"))
    page.locator("#train-go").click()
    page.locator("#train-message, #train-jobs-message").get_by_role("alert").first.wait_for()
    check(page)
    page.get_by_role("tab", name="About", exact=True).click()
    page.get_by_text("Model card").wait_for()
    page.locator("details summary").filter(has_text="classes").last.click()
    check(page)
    tally("doors tried with hostile text (nothing ran)", 14)


def test_a_report_holds_it_as_text(browser, hostile, tmp_path):
    from vtviz.html_report import report

    maps = hostile.shelf.get(hostile.shelf.names[0]).extract(hostile.photo)
    made = report(maps, tmp_path, card=hostile.shelf.get(hostile.shelf.names[0]).card)
    page = browser.new_page()
    page.add_init_script(WATCH)
    page.goto(next(path for path in made.values() if path.suffix == ".html").as_uri())
    check(page)
    assert "onerror" in page.inner_text("body")
    page.close()


def test_what_leaves_the_server_says_nothing_of_the_photo_but_the_photo(hostile):
    """A photo's EXIF and comment stay where they are."""
    from app.explore import VIEWS, Explore
    from app.shown import Shown

    explore = Explore(hostile.shelf)
    shown = Shown(str(hostile.photo), uploaded=True, model=hostile.shelf.names[0], view=next(iter(VIEWS)))
    payload = json.dumps(explore._encode(shown))
    assert "hack('exif')" not in payload
    assert "hack('comment')" not in payload
    assert "hack('class 1')" in payload  # which the browser shows as text
    data = io.BytesIO(hostile.photo.read_bytes())
    assert b"hack('exif')" in data.getvalue()
