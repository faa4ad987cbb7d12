import os
import shutil
from dataclasses import replace
from html import unescape
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from app.examples import load_examples
from app.explore import Explore, message
from app.page import build_page, launch_options
from app.payload import decode_layer
from app.shelf import Shelf
from app.shown import EXPIRED, VIEWS, Shown, open_photo
from vtviz.explain.token_classes import segmentation_scores
from vtviz.shortcuts import extract_tokens

WHOLE, CENTRE = VIEWS


@pytest.fixture(scope="module")
def explore(shelf) -> Explore:
    explore = Explore(shelf)
    with gr.Blocks():
        explore.build()
    return explore


def skipped(value) -> bool:
    return value == gr.skip()


def test_the_first_example_is_explained_before_anybody_asks(explore):
    payload, problem = explore.first()
    assert problem == ""
    assert [len(layer["statistics"][0]["tokens"]) for layer in payload["layers"]] == [16, 8]
    assert explore.first()[0] is payload  # computed once for all visitors
    assert explore.remember() == Shown("cat", uploaded=False, model="own", view=WHOLE)


def test_an_upload_gives_its_maps_and_empties_the_slot(explore, photo, models):
    payload, shown, problem, slot = explore.open_upload({"path": str(photo)}, "own", CENTRE)
    assert (problem, slot) == ("", None)
    assert shown == Shown(str(photo), uploaded=True, model="own", view=CENTRE)
    expected = extract_tokens(photo, str(models / "own.safetensors"), crop="center")
    assert payload["geometry"] == expected.geometry.to_dict()
    assert payload["geometry"]["original"] == [400, 600]  # upright
    for got, layer in zip(payload["layers"], expected.layers, strict=True):
        np.testing.assert_array_equal(decode_layer(got), layer.coefficients)


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("<b>.png", b"<svg>", "&#x27;&lt;b&gt;.png&#x27; is not a JPEG, PNG, WebP, BMP, GIF or TIFF image"),
        ("empty.jpg", b"", "it is empty"),
        ("half.png", b"\x89PNG\r\n\x1a\n0000", "is damaged"),
    ],
)
def test_a_bad_upload_is_one_line_and_loses_nothing(explore, tmp_path, name, content, line):
    path = tmp_path / name
    path.write_bytes(content)
    canvas, shown, problem, slot = explore.open_upload({"path": str(path)}, "own", WHOLE)
    assert skipped(canvas)
    assert skipped(shown)
    assert slot is None
    assert line in problem
    assert str(tmp_path) not in problem  # where the server keeps its files is nobody's business
    assert problem.count("<") == 2  # the line's own paragraph
    assert "\n" not in problem


@pytest.mark.parametrize(
    ("photo", "model", "view", "line"),
    [
        ({"path": "/nowhere/photo.png"}, "own", WHOLE, EXPIRED),
        ({}, "own", WHOLE, EXPIRED),
        ({"path": ""}, "own", WHOLE, EXPIRED),
        ({"path": "/etc"}, "own", WHOLE, EXPIRED),
        ({"path": __file__}, "bonsai", WHOLE, "this page has no model"),
        ({"path": __file__}, "own", "Left half", "unknown view"),
        ({"path": __file__}, "own", ["Whole photo"], "unknown view"),
        ({"path": __file__}, None, WHOLE, "this page has no model"),
    ],
)
def test_whatever_the_browser_sends_is_checked(explore, photo, model, view, line):
    canvas, _, problem, _ = explore.open_upload(photo, model, view)
    assert skipped(canvas)
    assert line in problem


def test_clearing_the_slot_changes_nothing(explore):
    canvas, shown, problem, slot = explore.open_upload(None, "own", WHOLE)
    assert (skipped(canvas), skipped(shown), problem, slot) == (True, True, "", None)


def test_an_example_is_picked_by_its_key(explore):
    payload, shown, problem = explore.open_example("own", WHOLE, SimpleNamespace(key="coffee"))
    assert (shown.photo, shown.uploaded, problem) == ("coffee", False, "")
    assert payload["geometry"]["original"] == list(load_examples()["coffee"].image.shape[:2])
    canvas, _, problem = explore.open_example("own", WHOLE, SimpleNamespace(key="cofee"))
    assert skipped(canvas)
    assert "did you mean &#x27;coffee&#x27;?" in problem


def arrived(explore, **query) -> tuple[Shown | None, str]:
    return explore.arrive(SimpleNamespace(query_params=query))


def test_a_link_opens_what_it_names_and_tells_what_there_is_not(explore):
    first = explore.remember()
    assert arrived(explore) == (first, "")
    assert arrived(explore, layer="9", view="pixel", __theme="dark") == (first, "")  # the browser's business
    shown, problem = arrived(explore, photo="coffee", model="blank", crop="center")
    assert (shown, problem) == (Shown("coffee", uploaded=False, model="blank", view=CENTRE), "")
    payload, state, problem, model, view = explore.open_link(shown)
    assert payload["link"] == {"photo": "coffee", "model": "blank", "crop": "center"}
    assert (state, model, view) == (shown, "blank", CENTRE)
    assert skipped(problem)  # one of before stays
    assert all(map(skipped, explore.reopen(shown, "blank", CENTRE)))  # what the controls then say is no new choice
    assert all(map(skipped, explore.open_link(first)))  # which everybody has already
    assert all(map(skipped, explore.open_link(None)))
    shown, problem = arrived(explore, photo="../../etc/<b>", model="blank", crop="left")
    assert shown == replace(first, model="blank")
    assert unescape(problem).count("photo '../../etc/<b>', crop 'left'") == 1
    assert problem.count("<") == 2


def test_only_examples_have_a_link(explore, photo):
    assert explore.first()[0]["link"] == {"photo": "cat", "model": "own", "crop": ""}
    assert explore.open_upload({"path": str(photo)}, "own", WHOLE)[0]["link"] is None


def test_another_model_or_crop_shows_the_same_photo(explore, photo):
    _, shown, *_ = explore.open_upload({"path": str(photo)}, "own", WHOLE)
    payload, again, problem = explore.reopen(shown, "blank", CENTRE)
    assert problem == ""
    assert (again.photo, again.model, again.view) == (str(photo), "blank", CENTRE)
    assert payload["trained"] is False
    assert payload["geometry"]["input"] == [224, 224]
    payload, *_ = explore.reopen(shown, "plain", WHOLE)
    assert payload["layers"] == []
    assert len(payload["prediction"]) == 5


def test_an_expired_session_is_told_so(explore, photo, tmp_path):
    assert explore.reopen(None, "own", WHOLE)[2] == message(EXPIRED)
    assert explore.arrays(None) == (None, message(EXPIRED))
    gone = Path(shutil.copy(photo, tmp_path / "gone.jpg"))
    _, shown, *_ = explore.open_upload({"path": str(gone)}, "own", WHOLE)
    gone.unlink()
    assert explore.reopen(shown, "own", CENTRE)[2] == message(EXPIRED)


def test_the_arrays_are_those_of_the_api(explore, photo, models):
    _, shown, *_ = explore.open_upload({"path": str(photo)}, "own", WHOLE)
    path, problem = explore.arrays(shown)
    assert problem == ""
    assert Path(path).name == "my_coffee_own_tokens.npz"
    assert Path(path).is_relative_to(explore.file.GRADIO_CACHE)  # served from there, deleted from there
    expected = extract_tokens(photo, str(models / "own.safetensors"))
    with np.load(path) as stored:
        np.testing.assert_array_equal(stored["logits"], expected.logits)
        for layer in expected.layers:
            np.testing.assert_array_equal(stored[f"{layer.name}.coefficients"], layer.coefficients)
            np.testing.assert_array_equal(stored[f"{layer.name}.tokens_out"], layer.tokens_out)
    assert "without tokens" in explore.arrays(Shown(str(photo), uploaded=True, model="plain", view=WHOLE))[1]


def test_the_endpoint_raises_what_the_page_says(explore, photo):
    with pytest.raises(gr.Error, match="a photo is needed"):
        explore.extract(None, "own", WHOLE)
    with pytest.raises(gr.Error, match="this page has no model"):
        explore.extract({"path": str(photo)}, "nope", WHOLE)


def test_a_page_without_models_says_what_to_do(models):
    shelf = Shelf("own")
    shelf._sources.clear()
    explore = Explore(shelf)
    assert explore.first() == (None, message("No model found: put one into checkpoints/, or start with --model PATH."))
    assert explore.remember() is None
    assert {f.api_name for f in build_page(shelf).fns.values()} >= {"extract"}  # the page opens all the same


def test_examples_are_not_read_from_disk_again(explore):
    shown = explore.remember()
    assert open_photo(shown) is open_photo(shown)


def test_a_run_that_went_on_is_explained_anew_and_a_deleted_one_no_more(models, tmp_path):
    run = tmp_path / "flowers"
    run.mkdir()

    def train(model: str) -> None:
        for suffix in (".json", ".safetensors"):
            shutil.copy(models / f"{model}{suffix}", run / f"new{suffix}")
            (run / f"new{suffix}").replace(run / f"best{suffix}")

    train("own")
    shelf = Shelf(str(models / "plain.safetensors"), device="cpu")
    explore = Explore(shelf)
    shown = replace(explore.remember(), model="flowers")
    for model in ("own", "blank", "own"):
        train(model)
        shelf.offer_runs({"flowers": run})  # as it does at each look, whether a run went on meanwhile or not
        payload, _, problem = explore._show(shown)
        expected = extract_tokens(load_examples()["cat"].image, str(models / f"{model}.safetensors"))
        assert problem == ""
        assert np.array_equal(decode_layer(payload["layers"][0]), expected.layers[0].coefficients)
        assert shelf.get("flowers").name == model
    shelf.offer_runs({})
    assert "this page has no model" in explore._show(shown)[2]
    assert skipped(explore._show(shown)[0])


def test_doors_have_names_and_nothing_is_kept(shelf, photo):
    page = build_page(shelf)
    public = {f.api_name for f in page.fns.values() if f.api_visibility == "public"}
    assert "extract" in public
    assert all(isinstance(name, str) and "lambda" not in name for name in public)
    explore = {
        "open_upload",
        "open_example",
        "reopen",
        "open_mask",
        "unmask",
        "arrays",
        "open_link",
        "analyse",
        "report",
    }
    assert not public & explore
    model_calls = [f for f in page.fns.values() if f.concurrency_id == "model"]
    assert {f.name for f in model_calls} >= {"open_upload", "open_example", "open_link", "reopen", "arrays", "extract"}
    assert {f.concurrency_limit for f in model_calls if f.name in explore} == {1}
    assert page.delete_cache == (600, 3600)
    assert page.analytics_enabled is False
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    options = launch_options()
    assert options["allowed_paths"] == []
    assert options["run_history"] is False
    explore = Explore(shelf)
    with gr.Blocks():
        explore.build()
    assert (explore.state.value, explore.state.time_to_live) == (None, 3600)


# --- segmentation


@pytest.fixture(scope="module")
def scenes(segment_shelf) -> Explore:
    explore = Explore(segment_shelf)
    with gr.Blocks():
        explore.build()
    return explore


@pytest.fixture
def mask(tmp_path):
    """Writes a mask of the photo ``my coffee.jpg`` (400 x 600) and gives what the browser would send."""

    def write(values: np.ndarray, name: str = "true.png") -> dict[str, str]:
        Image.fromarray(values).save(tmp_path / name)
        return {"path": str(tmp_path / name)}

    return write


def halves(left: int, right: int) -> np.ndarray:
    values = np.full((400, 600), left, np.uint8)
    values[:, 300:] = right
    return values


def test_a_segmentation_model_runs_once_a_photo(scenes, photo):
    predictor = scenes.shelf.get("scene")
    runs = []
    handle = predictor.model.register_forward_hook(lambda *_: runs.append(1))
    payload, shown, problem, _ = scenes.open_upload({"path": str(photo)}, "scene", WHOLE)
    handle.remove()
    assert (problem, len(runs)) == ("", 1)
    assert [layer["name"] for layer in payload["layers"]] == ["p2", "p3", "p4", "p5"]
    expected = predictor.segment(photo)
    assert [each["area"] for each in payload["segmentation"]["classes"]] == expected.areas().tolist()
    assert scenes.reopen(shown, "own", WHOLE)[0]["segmentation"] is None


def test_a_mask_is_compared_with_and_taken_back(scenes, photo, mask):
    _, shown, *_ = scenes.open_upload({"path": str(photo)}, "scene", WHOLE)
    payload, again, problem, slot = scenes.open_mask(mask(halves(0, 1)), shown)
    assert (problem, slot, again.photo) == ("", None, shown.photo)
    scores = segmentation_scores(scenes.shelf.get("scene").segment(photo).labels, halves(0, 1), 6)
    assert payload["segmentation"]["miou"] == scores.miou
    other, both, problem = scenes.reopen(again, "scene_fpn", CENTRE)
    assert (problem, both.mask) == ("", again.mask)
    assert other["segmentation"]["given"] is not None
    plain, without, problem = scenes.unmask(both)
    assert (problem, without.mask, plain["segmentation"]["given"]) == ("", "", None)
    assert scenes.open_mask(None, shown)[2:] == ("", None)
    assert scenes.open_upload({"path": str(photo)}, "scene", WHOLE)[1].mask == ""  # another photo, no mask


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (np.zeros((600, 400), np.uint8), "<b>.png has 400 x 600 pixels, but the photo has 600 x 400"),
        (halves(0, 6), "value 6 at row 0, column 300, which is none of the model's 6 classes (0 to 5) nor 255"),
        (halves(255, 255), "nothing to compare"),
        (np.zeros((400, 600, 3), np.uint8), "must hold one 8-bit class index per pixel"),
    ],
)
def test_a_mask_that_does_not_fit_is_one_line_and_loses_nothing(scenes, photo, mask, tmp_path, values, line):
    _, shown, *_ = scenes.open_upload({"path": str(photo)}, "scene", WHOLE)
    canvas, state, problem, slot = scenes.open_mask(mask(values, "<b>.png"), shown)
    assert skipped(canvas)
    assert skipped(state)
    assert slot is None
    assert line in unescape(problem)
    assert str(tmp_path) not in problem
    assert problem.count("<") == 2
    assert "\n" not in problem


@pytest.mark.parametrize("path", ["/nowhere/mask.png", "", "/etc", __file__, None])
def test_whatever_is_sent_as_a_mask_is_checked(scenes, photo, path):
    _, shown, *_ = scenes.open_upload({"path": str(photo)}, "scene", WHOLE)
    canvas, _, problem, _ = scenes.open_mask({"path": path}, shown)
    assert skipped(canvas)
    assert "mask" in problem
    assert scenes.open_mask({"path": path}, None)[2] == scenes.unmask(None)[2] == message(EXPIRED)


def test_a_mask_without_place_in_the_next_model_is_dropped_with_a_word(scenes, photo, mask):
    _, shown, *_ = scenes.open_upload({"path": str(photo)}, "scene", WHOLE)
    _, shown, *_ = scenes.open_mask(mask(halves(0, 5)), shown)
    payload, state, problem = scenes.reopen(shown, "scene_fpn", WHOLE)
    assert "none of the model's 4 classes" in unescape(problem)
    assert (payload["model"], payload["segmentation"]["given"]) == ("scene_fpn", None)
    assert (state.model, state.mask) == ("scene_fpn", "")
    assert scenes.reopen(shown, "own", WHOLE)[2] == ""  # a classifier has no use for it


def test_a_mask_of_other_classes_is_taken_away(scenes, photo, mask):
    """Their numbers would fit, and mean something else: building would be called hair."""
    _, shown, *_ = scenes.open_upload({"path": str(photo)}, "scene", WHOLE)
    _, shown, *_ = scenes.open_mask(mask(halves(0, 1)), shown)
    assert shown.mask_of == "scene"
    foreign = replace(shown, mask_of="own")
    payload, state, problem = scenes.reopen(foreign, "scene_fpn", WHOLE)
    assert "scene_fpn has other classes than the mask, which was taken away." in problem
    assert (payload["segmentation"]["given"], state.mask) == (None, "")
    _, between, problem = scenes.reopen(shown, "own", WHOLE)  # a classifier: it may come back after it
    assert (problem, between.mask) == ("", shown.mask)
    assert scenes.reopen(between, "scene", WHOLE)[0]["segmentation"]["given"] is not None


def test_a_model_that_is_gone_is_told_by_the_page_and_not_by_the_control(segment_shelf, scenes):
    """Gradio would say of an empty control that it cannot hold what was sent."""
    handlers = {"open_upload", "open_example", "reopen"}
    assert {
        fn.name: fn.preprocess for fn in build_page(segment_shelf).fns.values() if fn.name in handlers
    } == dict.fromkeys(handlers, False)
    assert "this page has no model" in scenes.open_example(None, WHOLE, SimpleNamespace(key="cat"))[2]


def test_an_example_may_have_a_mask_too(scenes, mask, tmp_path):
    payload, shown, _ = scenes.open_example("scene", WHOLE, SimpleNamespace(key="coffee"))
    true = np.zeros(load_examples()["coffee"].image.shape[:2], np.uint8)
    scored, *_ = scenes.open_mask(mask(true), shown)
    assert scored["segmentation"]["miou"] is not None
    assert scenes.unmask(replace(shown, mask="x"))[0] is payload  # the examples' own payloads know of no mask


@pytest.mark.parametrize("model", ["scene", "scene_fpn"])
def test_the_arrays_hold_the_labels(scenes, photo, model):
    path, problem = scenes.arrays(Shown(str(photo), uploaded=True, model=model, view=CENTRE))
    assert problem == ""
    expected = scenes.shelf.get(model).segment(photo, crop="center")
    with np.load(path) as stored:
        np.testing.assert_array_equal(stored["labels"], expected.labels)
        np.testing.assert_array_equal(stored["logits"], expected.logits)
        assert ("p5.coefficients" in stored.files) == (model == "scene")
