"""What takes long: progress, cancelling, errors in one line, and answers that are those of the API."""

import base64
import json
import threading
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from app import analyses as analyses_module
from app.analyses import FAILED, FINEST, Analyses, Job, encode_attributions, encode_faithfulness
from app.explore import Explore
from app.page import build_page
from app.shown import EXPIRED, VIEWS, Shown
from app.stops import Cancelled
from vtviz.errors import ConfigError
from vtviz.explain import curves as curves_module
from vtviz.explain.ablation import ablate
from vtviz.explain.attribution import attribute
from vtviz.explain.attribution_picture import scale_end
from vtviz.explain.curves import STEPS as SHARES
from vtviz.explain.curves import area, order
from vtviz.explain.explainer import METHODS, STEPS
from vtviz.explain.faithfulness import BASELINES, measure_faithfulness

WHOLE, CENTRE = VIEWS
CLASSES = ("tabby cat", "<b>cup</b>", "rocket")
TOKEN_METHODS = [name for name, method in METHODS.items() if method.tokens]


@pytest.fixture(scope="module")
def analyses(shelf) -> Analyses:
    explore = Explore(shelf)
    with gr.Blocks():
        explore.build()
    return explore.analyses


@pytest.fixture(scope="module")
def shown(photo) -> Shown:
    return Shown(str(photo), uploaded=True, model="own", view=WHOLE)


ME = SimpleNamespace(session_hash="me")


def event(**data) -> SimpleNamespace:
    return SimpleNamespace(job="j1", **data)


def last(answers) -> dict:
    *steps, end = list(answers)
    assert all(step["job"] == "j1" and 0 <= step["done"] <= step["total"] for step in steps)
    return end


def test_an_ablation_is_the_api_s(analyses, shown, shelf, photo):
    end = last(analyses.analyse(shown, event(kind="ablation", label=2), ME))
    expected = ablate(shelf.get("own"), photo, target=2).to_dict() | {"image": None}  # nor where an upload lies
    assert end["result"] == json.loads(json.dumps(expected))


def test_a_segmentation_s_ablation_is_scored_against_the_mask(segment_shelf, photo, tmp_path):
    Image.fromarray(np.ones((400, 600), np.uint8)).save(tmp_path / "mask.png")
    shown = Shown(str(photo), uploaded=True, model="scene", view=WHOLE, mask=str(tmp_path / "mask.png"))
    analyses = Analyses(segment_shelf)
    quiet = lambda *_: None  # noqa: E731
    found = analyses.ablation(shown, None, quiet)
    effects = found.layers[0].effects["absent"]
    assert effects.iou.shape == (8, 6)
    assert analyses.ablation(replace(shown, mask=""), None, quiet).layers[0].effects["absent"].iou is None


def test_maps_of_an_attribution_arrive_where_they_were(shelf, photo):
    found = attribute(shelf.get("own"), photo, TOKEN_METHODS, crop="center")
    sent = json.loads(json.dumps(encode_attributions(found)))
    assert sent["geometry"] == found.geometry.to_dict()
    assert np.allclose(sent["agreement"], found.agreement)
    for item, each in zip(found.items, sent["methods"], strict=True):
        height, width = each["shape"]
        assert max(height, width) <= FINEST
        assert each["end"] == scale_end(item)
        cells = np.frombuffer(base64.b64decode(each["cells"]), np.uint8).reshape(height, width)
        values = (cells.astype(float) - 128) / 127 * each["end"]
        places = np.arange(20, height - 20, 17)
        middle = each["stride"] * places + (each["stride"] - 1) / 2
        y, x = found.geometry.to_original(middle, middle)
        there = item.map[np.ix_(np.rint(y).astype(int), np.rint(x).astype(int))]
        expected = np.clip(there, -each["end"], each["end"])
        assert np.abs(values[np.ix_(places, places)] - expected).max() < 0.12 * each["end"]
        assert values.std() > 0.05 * each["end"]


@pytest.fixture
def three_methods(monkeypatch):
    """Without the two that take longest."""
    pytest.importorskip("captum")
    for name in ("integrated_gradients", "occlusion"):
        monkeypatch.delitem(METHODS, name)


@pytest.mark.usefixtures("three_methods")
def test_faithfulness_is_the_library_s_of_the_maps_that_are_shown(analyses, shown, shelf, photo, monkeypatch):
    end = last(analyses.analyse(shown, event(kind="faithfulness", label=2), ME))
    predictor, ranked = shelf.get("own"), []
    monkeypatch.setattr(curves_module, "order", lambda cells, size: ranked.append(cells) or order(cells, size))
    found = measure_faithfulness(predictor, [photo], target=2, steps=STEPS, randomize=False)
    assert end["result"] == json.loads(json.dumps(encode_faithfulness(found)))
    shows = attribute(predictor, photo, target=2)
    for item, cells in zip(shows.items, ranked[: -len(BASELINES)], strict=True):
        assert np.array_equal(item.cells, cells), item.method
    told = end["result"]
    assert told["target"] == CLASSES[2]
    assert told["probability"] == pytest.approx(shows.probability, rel=1e-4)
    assert [each["method"] for each in told["methods"]] == [*METHODS, *BASELINES]
    assert [each["method"] for each in told["methods"] if each["baseline"]] == list(BASELINES)
    for each, own in zip(told["methods"], found.methods, strict=True):
        assert each["deletion"] == area(own.deletion)[0]
        assert each["insertion"] == area(own.insertion)[0]
        for test in ("deletion", "insertion"):
            assert len(told[f"{test}_curves"][each["method"]]) == SHARES + 1


@pytest.mark.usefixtures("three_methods")
def test_a_segmentation_s_maps_are_tested_for_a_class_that_is_there(segment_shelf, photo):
    shown, quiet = Shown(str(photo), uploaded=True, model="scene_fpn", view=CENTRE), lambda *_: None
    analyses, predictor = Analyses(segment_shelf), segment_shelf.get("scene_fpn")
    there = predictor.segment(photo, crop="center").areas()
    found = analyses.faithfulness(shown, int(there.argmax()), quiet)
    assert found.targets == (predictor.classes[there.argmax()],)
    assert all(np.ptp(each.deletion) > 0 for each in found.methods)
    with pytest.raises(ConfigError, match="no pixel is predicted as"):
        analyses.faithfulness(replace(shown, model="scene", view=WHOLE), 5, quiet)


@pytest.mark.usefixtures("three_methods")
def test_a_test_of_maps_stops_within_a_map(analyses, shown):
    calls = []

    def progress(done, total):
        calls.append(done / total)
        if done:
            raise Cancelled

    with pytest.raises(Cancelled):
        analyses.faithfulness(shown, 1, progress)
    assert 0 < calls[-1] < 1 / 20  # of five maps


def test_a_photo_that_is_too_large_is_neither_attributed_nor_tested(analyses, shown, monkeypatch):
    monkeypatch.setattr(analyses_module, "MOST_PIXELS", 400 * 600 - 1)
    for kind in ("attribution", "faithfulness"):
        end = last(analyses.analyse(shown, event(kind=kind, label=1), ME))
        assert "my coffee.jpg has 0 megapixels, and attribution on this page takes" in end["error"]


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"kind": "ablation", "label": 99}, "there is no class 99"),
        ({"kind": "ablation", "label": "cat"}, "class must be an integer"),
        ({"kind": "faithfulness", "label": 99}, "there is no class 99"),
        ({"kind": "faithfulness", "label": "cat"}, "class must be an integer"),
        ({"kind": "horoscope"}, "there is no analysis 'horoscope'"),
        ({}, "there is no analysis 'None'"),
    ],
)
def test_what_cannot_be_is_one_line(analyses, shown, fields, line):
    end = last(analyses.analyse(shown, event(**fields), ME))
    assert line in end["error"]
    assert "\n" not in end["error"]


def test_lost_photos_and_faults_of_the_server_are_told(analyses, shown, caplog):
    assert last(analyses.analyse(None, event(kind="ablation"), ME)) == {"job": "j1", "error": EXPIRED}
    gone = replace(shown, photo="/nowhere/photo.png")
    assert last(analyses.analyse(gone, event(kind="ablation"), ME))["error"] == EXPIRED
    plain = replace(shown, model="plain")
    assert "without tokens" in last(analyses.analyse(plain, event(kind="ablation"), ME))["error"]

    def fault(*_):
        raise ZeroDivisionError("secret")

    assert last(analyses._run(Job("me", "j1"), shown, fault)) == {"job": "j1", "error": FAILED}
    assert "secret" in caplog.text


def test_a_cancelled_job_stops_at_its_next_step(analyses, shown):
    steps = []
    go = threading.Event()

    def work(_, progress):
        for done in range(1, 100):
            steps.append(done)
            progress(done, 100)
            go.wait(5)
        return {}

    answers = analyses._run(Job("me", "j2"), shown, work)
    assert "done" in next(answers)
    analyses.cancel(SimpleNamespace(job="j2"), ME)
    go.set()
    assert list(answers)[-1] == {"job": "j2", "cancelled": True}
    assert len(steps) <= 3
    assert last(analyses._run(Job("me", "j1"), shown, lambda *_: {})) == {"job": "j1", "result": {}}  # others go on
    never = analyses._run(Job("me", "j2"), shown, lambda *_: steps.append("started"))
    assert list(never) == [{"job": "j2", "cancelled": True}]  # cancelled while it waited
    assert "started" not in steps


def test_whoever_leaves_stops_the_work(analyses, shown):
    stopped = threading.Event()

    def work(_, progress):
        try:
            while True:
                progress(1, 2)
        finally:
            stopped.set()

    answers = analyses._run(Job("me", "j3"), shown, work)
    next(answers)
    answers.close()
    assert stopped.wait(10)


def test_a_report_holds_what_was_computed(analyses, shown, photo):
    *_, (end, file) = analyses.report(shown, event(sections={"ablation": 1}), ME)
    assert end == {"job": "j1", "result": {"file": file}}
    with zipfile.ZipFile(file) as archive:
        assert sorted(archive.namelist()) == ["manifest.json", "maps.npz", "report.html"]
        page = archive.read("report.html").decode()
        manifest = archive.read("manifest.json").decode()
    assert "Does a token matter?" in page
    assert "my coffee.jpg" in page
    assert str(photo.parent) not in page + manifest
    *_, (_, file) = analyses.report(replace(shown, photo="cat", uploaded=False), event(sections="all of them"), ME)
    with zipfile.ZipFile(file) as archive:
        page = archive.read("report.html").decode()
    assert "Chelsea the cat" in page
    assert "Does a token matter?" not in page


@pytest.mark.usefixtures("three_methods")
def test_a_report_holds_the_test_of_the_maps(analyses, shown):
    *_, (_, file) = analyses.report(shown, event(sections={"faithfulness": 2}), ME)
    with zipfile.ZipFile(file) as archive:
        page = archive.read("report.html").decode()
    section = page[page.index("Do the maps point at what counts?") :]
    section = section[: section.index("</section>")]
    assert "no interval" in section
    assert "<td>A random map</td><td>yes</td>" in section
    assert "<td>Grad-CAM</td><td>no</td>" in section
    assert "Attribution: " not in page


def test_long_calls_wait_for_one_another_and_keep_nobody_else_waiting(shelf):
    long = [f for f in build_page(shelf).fns.values() if f.concurrency_id == "analysis"]
    assert {f.name: f.api_visibility for f in long} == {
        "analyse": "private",
        "report": "private",
        "ablate": "public",
        "attribute": "public",
    }
    assert all(f.concurrency_limit == 1 for f in long)
