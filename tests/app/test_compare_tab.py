"""The tab Compare: sides of models and epochs, what is sent, and the two linked views in a browser."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app.canvas import SCRIPTS, STATIC, STYLES
from app.compare import SAME, UPLOAD, CompareTab, describe, offer_upload
from app.examples import load_examples
from app.page import build_page
from app.payload import decode_layer, encode_array
from app.shelf import Shelf
from vtviz.errors import VtvizError
from vtviz.explain.compare import compare, side_of_maps
from vtviz.render import COLORMAPS

SCRIPT = "<script>alert(1)</script>"
CAT = load_examples()["cat"].image


@pytest.fixture(scope="module")
def shelf(models, tmp_path_factory, chelsea) -> Shelf:
    """The models of the page, and a run and its copy, with the maps of two epochs on their photo."""
    run = tmp_path_factory.mktemp("runs") / "mine"
    (run / "probe").mkdir(parents=True)
    for suffix in (".safetensors", ".json"):
        shutil.copy(models / f"own{suffix}", run / f"best{suffix}")
    shelf = Shelf(str(models / "own.safetensors"), device="cpu")
    Image.fromarray(chelsea[:224, :224]).save(run / "probe" / "image.png")
    random = np.random.default_rng(0)
    for epoch in (1, 12):
        maps = {f"block{i}": random.uniform(0, 3, (n, 14, 14)).astype(np.float16) for i, n in enumerate((16, 8))}
        np.savez(run / "probe" / f"epoch{epoch:04d}.npz", **maps)
    shutil.copytree(run, run.parent / "twin")
    shelf.offer_runs({f"runs/{name}": run.parent / name for name in ("mine", "twin")})
    return shelf


@pytest.fixture(scope="module")
def tab(shelf) -> CompareTab:
    return CompareTab(shelf)


def test_models_with_tokens_and_epochs_can_be_chosen(tab):
    values = [value for _, value in tab.choices()]
    assert values[0] == "own"
    assert "blank" in values
    assert "plain" not in values  # has no tokens
    assert values[-5:] == [
        "runs/twin",
        *(f"runs/{name}@epoch{epoch}" for name in ("mine", "twin") for epoch in (1, 12)),
    ]


def test_two_models_are_sent_with_the_maps_and_the_matching_of_the_api(tab, shelf):
    view, problem = tab.run("own", "cat", None, "blank", SAME, None)
    assert problem == ""
    json.dumps(view, allow_nan=False)
    maps = [shelf.get(name).extract(CAT) for name in ("own", "blank")]
    expected = compare(*(side_of_maps(each) for each in maps)).to_dict()
    for sent, found in zip(view["match"]["layers"], expected["layers"], strict=True):
        assert sent == {key: value for key, value in found.items() if key != "overlap"}
    for side, each in zip(view["sides"], maps, strict=True):
        for layer, drawn in zip(side["layers"], each.layers, strict=True):
            heads = decode_layer(layer)
            assert heads.shape == (1, *drawn.coefficients.shape[1:])
            np.testing.assert_allclose(heads[0], drawn.of_head(), rtol=1e-6)
            assert layer["statistics"][0] == layer["statistics"][1]
            assert layer["statistics"][0]["peak"] == pytest.approx(drawn.statistics().peak, rel=1e-5)
        assert [p["label"] for p in side["prediction"]] == [p.label for p in each.topk(5)]
    assert [side["trained"] for side in view["sides"]] == [True, False]
    peaks = [layer.times_uniform().max(axis=(1, 2)) for each in maps for layer in each.layers]
    assert view["high"] == pytest.approx(max(2, np.median(np.concatenate(peaks))))


def test_two_epochs_are_those_of_the_run_on_its_photo(tab, shelf):
    view, problem = tab.run("runs/mine@epoch1", "cat", None, "runs/mine@epoch12", SAME, None)
    assert problem == ""
    assert view["match"]["labels"] == ["runs/mine, epoch 1", "runs/mine, epoch 12"]
    assert view["same"] == {"model": False, "photo": True}
    assert str(Path(shelf.source("runs/mine")).parent) not in json.dumps(view)  # where the server keeps its runs
    with np.load(Path(shelf.source("runs/mine")) / "probe" / "epoch0012.npz") as stored:
        np.testing.assert_allclose(
            decode_layer(view["sides"][1]["layers"][1])[0] * 196, stored["block1"].astype(np.float32), rtol=1e-6
        )
    assert view["sides"][0]["geometry"]["original"] == [224, 224]
    assert view["sides"][0]["prediction"] == []


def test_two_photos_can_be_compared_and_one_be_uploaded(tab, photo, shelf):
    file = {"path": str(photo), "orig_name": "my coffee.jpg"}
    choice = offer_upload(file, [("Cat", "cat")])
    assert choice.choices[-1] == ("my coffee.jpg", choice.value)
    assert choice.value.startswith(UPLOAD)
    assert choice.value != offer_upload(file, []).value
    view, problem = tab.run("own", "astronaut", None, "own", choice.value, file)
    assert problem == ""
    assert [side["geometry"]["original"] for side in view["sides"]] == [[512, 512], [400, 600]]


@pytest.mark.parametrize(
    ("form", "line"),
    [
        ((SCRIPT, "cat", None, "own", SAME, None), "this page has no model &#x27;&lt;script&gt;"),
        (("plain", "cat", None, "own", SAME, None), "without tokens"),
        (("own", SCRIPT, None, "own", SAME, None), "there is no example &#x27;&lt;script&gt;"),
        (("own", SAME, None, "own", SAME, None), "there is no example"),
        (("own", f"{UPLOAD}x", None, "own", SAME, None), "no longer on the server"),
        (("own", f"{UPLOAD}x", {"path": __file__}, "own", SAME, None), "is not a JPEG, PNG"),
        (("runs/mine@epoch2", "cat", None, "own", SAME, None), "no token maps of &#x27;runs/mine@epoch2"),
        (("runs/mine@epoch../1", "cat", None, "own", SAME, None), "no token maps"),
        (("runs/mine@epoch" + "9" * 5000, "cat", None, "own", SAME, None), "no token maps"),
        (("own@epoch1", "cat", None, "own", SAME, None), "no token maps"),
        ((None, None, None, None, None, None), "there is no example"),
    ],
)
def test_a_wrong_choice_is_one_escaped_line(tab, form, line):
    _, problem = tab.run(*form)
    assert line in problem
    assert "<script>" not in problem
    assert str(Path(__file__).parent) not in problem
    with pytest.raises(VtvizError):
        tab.look(form[0], None)


def test_what_is_sent_is_small(tab, shelf):
    view = describe([tab.look("own", CAT)] * 2, compare(*[tab.look("own", CAT).side] * 2))
    assert len(json.dumps(view)) < 600_000
    assert all(layer["mean"] == pytest.approx(1) for layer in view["match"]["layers"])


# --- in a browser


@pytest.fixture
def bare(browser) -> Iterator[Any]:
    """A page with the scripts alone, and ``load``, which shows a comparison in it."""
    page = browser.new_page()
    for script in SCRIPTS:
        page.add_script_tag(content=script.read_text())
    page.evaluate(
        """(colormaps) => {
            const root = vtviz.make("div", { class: "vtx-compare" }), props = { colormaps };
            document.body.append(vtviz.make("div", {}, root));
            let changed;
            vtviz.compare(root.parentElement, props, (name, call) => (changed = call));
            window.load = async (value) => {
                props.value = value;
                changed();
                const drawn = () => document.querySelector(".vtx-compare-top").dataset.ready === value.id;
                while (!drawn()) await new Promise(requestAnimationFrame);
            };
        }""",
        {name: encode_array(table) for name, table in COLORMAPS.items()},
    )
    yield page
    page.close()


@pytest.mark.browser
@pytest.mark.parametrize(
    ("form", "same", "line"),
    [
        (("own", "cat", None, "blank", SAME, None), (False, True), "Beside each token of own stands the one of blank"),
        (("own", "cat", None, "own", "coffee", None), (True, False), "One model, two photos: .* from photo to photo"),
        (("own", "cat", None, "own", SAME, None), (True, True), "One model, one photo: both sides show the same"),
        (("own", "cat", None, "own", "cat", None), (True, True), "One model, one photo: both sides show the same"),
        (
            ("runs/mine@epoch1", "cat", None, "runs/twin@epoch1", SAME, None),
            (False, True),
            "Beside each token of runs/mine, epoch 1 stands the one of runs/twin, epoch 1 that",
        ),
    ],
)
def test_the_line_says_what_is_compared(bare, tab, form, same, line):
    view, _ = tab.run(*form)
    assert tuple(view["same"].values()) == same
    bare.evaluate("(view) => load(view)", view)
    assert re.match(line, bare.locator(".vtx-pairs .vtx-lead").inner_text())
    assert bare.locator(".vtx-sides > section > h3").all_inner_texts() == view["match"]["labels"]


@pytest.mark.browser
def test_a_layer_that_one_side_alone_has_is_matched_with_none(bare, shelf):
    whole = CompareTab(shelf).look("own", CAT)
    short = whole._replace(who="short", side=replace(whole.side, label="short", layers=whole.side.layers[:1]))
    for sides in ((short, whole), (whole, short)):
        bare.evaluate("(view) => load(view)", describe(sides, compare(*(each.side for each in sides))))
        longer = bare.locator(".vtx-sides > section").nth(sides.index(whole))
        longer.get_by_role("option", name=re.compile("^Layer 1, token 3,")).click()
        assert bare.locator(".vtx-pairs").inner_text() == "short has no layer 1: nothing to match."
        longer.get_by_role("option", name=re.compile("^Layer 0, token 3,")).click()
        assert bare.locator(".vtx-pairs [aria-pressed=true]").inner_text().split()[:3] == ["3", "↔", "3"]


@pytest.mark.browser
def test_the_keyboard_stays_at_the_pair_that_it_chose(bare, tab):
    view, _ = tab.run("own", "cat", None, "blank", SAME, None)
    bare.evaluate("(view) => load(view)", view)
    for number in (4, 7):
        bare.locator(".vtx-pairs .vtx-chip").nth(number).press("Enter")
        chosen = bare.locator(".vtx-pairs [aria-pressed=true]")
        assert chosen.evaluate("(chip) => chip === document.activeElement")
        pair = view["match"]["layers"][0]["pairs"][number]
        assert chosen.inner_text().startswith(f"{pair['first']} ↔ {pair['second']} ")


@pytest.mark.browser
def test_on_a_phone_the_chosen_pair_is_in_sight(bare, tab):
    bare.set_viewport_size({"width": 390, "height": 844})
    for style in STYLES:
        bare.add_style_tag(path=STATIC / style)
    view, _ = tab.run("own", "cat", None, "blank", SAME, None)
    bare.evaluate("(view) => load(view)", view)
    for number in (15, 0, 12):
        first, second = (view["match"]["layers"][0]["pairs"][number][side] for side in ("first", "second"))
        bare.evaluate("(token) => document.querySelector('.vtx-sides .vtx').view.set({ layer: 0, token })", first)
        chosen = bare.locator(".vtx-pairs [aria-pressed=true]")
        bare.wait_for_function(
            "(text) => document.querySelector('.vtx-pairs [aria-pressed=true]')?.textContent.startsWith(text)",
            arg=f"{first} ↔ {second} ",
        )
        place = chosen.bounding_box()
        assert place["x"] >= 0
        assert place["x"] + place["width"] <= 390


@pytest.mark.browser
@pytest.mark.slow
def test_the_two_sides_are_linked(browser, serving, shelf, photo):
    url = serving(build_page(shelf))
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(60_000)
    faults, hosts = [], set()
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda entry: faults.append(entry.text) if entry.type == "error" else None)
    page.on("request", lambda request: hosts.add(re.match(r"\w+:(//[^:/]+)?", request.url)[0]))

    def state(side: int) -> dict:
        return page.evaluate(f"document.querySelectorAll('.vtx-sides .vtx')[{side}].view.state")

    def ready() -> str:
        return page.get_attribute(".vtx-compare-top", "data-ready")

    def choose(side: int, name: str) -> None:
        before = ready()
        page.locator(f"#compare-who-{side} input").click()
        page.get_by_role("option", name=name).click()
        page.wait_for_function("(old) => document.querySelector('.vtx-compare-top').dataset.ready !== old", arg=before)

    page.goto(url)
    page.get_by_role("tab", name="Compare").click()
    page.locator(".vtx-compare-top[data-ready]").wait_for()
    # first one model on two photos
    assert page.locator(".vtx-sides > section > h3").all_inner_texts() == ["own", "own"]
    photos = [load_examples()[key].image for key in ("cat", "coffee")]
    pairs = compare(*(side_of_maps(shelf.get("own").extract(image)) for image in photos)).layers[0].pairs
    own = sum(pair.first == pair.second for pair in pairs)
    assert f" {own} of 16 find the token of their own number" in page.locator(".vtx-pairs .vtx-lead").inner_text()
    assert (
        page.evaluate(
            "(() => { const ids = [...document.querySelectorAll('[id]')].map((each) => each.id).filter(Boolean);"
            " return ids.filter((id, i) => ids.indexOf(id) !== i); })()"
        )
        == []
    )
    choose(1, "blank")
    photo_choice = page.locator("#compare-photo-1 input")
    before = ready()
    photo_choice.click()
    page.get_by_role("option", name="The left's photo").click()
    page.wait_for_function("(old) => document.querySelector('.vtx-compare-top').dataset.ready !== old", arg=before)
    assert page.locator(".vtx-sides > section > h3").all_inner_texts() == ["own", "blank"]
    expected = compare(*(side_of_maps(shelf.get(name).extract(CAT)) for name in ("own", "blank")))

    # a token chosen on one side chooses its match on the other, in either direction
    sides = page.locator(".vtx-sides > section")
    for side, layer in ((0, 0), (1, 1), (1, 0)):
        for pair in expected.layers[layer].pairs[:3]:
            token = (pair.first, pair.second)[side]
            sides.nth(side).get_by_role("option", name=re.compile(f"^Layer {layer}, token {token},")).click()
            assert (state(0)["layer"], state(0)["token"]) == (layer, pair.first)
            assert (state(1)["layer"], state(1)["token"]) == (layer, pair.second)
            chosen = page.locator(".vtx-pairs [aria-pressed=true]")
            assert chosen.inner_text().split() == f"{pair.first} ↔ {pair.second} {pair.overlap * 100:.0f} %".split()
    words = page.locator(".vtx-pairs p:not(.vtx-lead)").inner_text()
    assert f"share {expected.layers[0].mean * 100:.0f} % of their weight" in words
    assert f"by chance {expected.layers[0].chance * 100:.0f} %" in words

    options = page.locator(".vtx-compare-top")
    # one scale, one set of options, one pointer
    assert state(0)["scale"] == state(1)["scale"] == "fixed"
    sent, _ = CompareTab(shelf).run("own", "cat", None, "blank", SAME, None)
    assert state(0)["fixed"] == state(1)["fixed"] == pytest.approx(sent["high"], abs=0.06)
    options.get_by_label("Colours", exact=True).select_option("viridis")
    options.get_by_label("Scale", exact=True).select_option("map")
    assert [state(i)["colormap"] for i in (0, 1)] == ["viridis"] * 2
    assert [state(i)["scale"] for i in (0, 1)] == ["map"] * 2
    options.get_by_label("Scale", exact=True).select_option("shared")
    assert [state(i)["scale"] for i in (0, 1)] == ["fixed"] * 2
    box = sides.nth(0).locator(".vtx-photo").bounding_box()
    page.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 0.5 * box["height"])
    assert page.evaluate("document.querySelectorAll('.vtx-sides .vtx')[1].view.pointer") == pytest.approx(
        [0.5, 0.25], abs=0.01
    )
    assert sides.nth(1).locator(".vtx-cross").is_visible()

    # another photo, then two epochs
    before = ready()
    with page.expect_file_chooser() as chooser:
        page.locator("#compare-upload-1").click()
    chooser.value.set_files(photo)
    page.wait_for_function("(old) => document.querySelector('.vtx-compare-top').dataset.ready !== old", arg=before)
    assert page.input_value("#compare-photo-1 input") == "my coffee.jpg"
    for side, epoch in ((0, 1), (1, 12)):
        choose(side, f"runs/mine, epoch {epoch} (on its own photo)")
    sides.nth(1).get_by_role("heading", name="runs/mine, epoch 12", exact=True).wait_for()
    assert page.locator(".vtx-sides > section > h3").all_inner_texts() == ["runs/mine, epoch 1", "runs/mine, epoch 12"]
    assert [fault for fault in faults if not fault.startswith("AbortError")] == []
    assert hosts <= {"http://127.0.0.1", "data:", "blob:"}
    page.close()
