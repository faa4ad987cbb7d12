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

from app.analyses import FAILED, FINEST, Analyses, Job, encode_attributions
from app.explore import Explore
from app.page import build_page
from app.shown import EXPIRED, VIEWS, Shown
from vtviz.explain.ablation import ablate
from vtviz.explain.attribution import attribute
from vtviz.explain.attribution_picture import scale_end
from vtviz.explain.explainer import METHODS

WHOLE, CENTRE = VIEWS
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
    assert end["result"] == json.loads(json.dumps(ablate(shelf.get("own"), photo, target=2).to_dict()))


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


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"kind": "ablation", "label": 99}, "there is no class 99"),
        ({"kind": "ablation", "label": "cat"}, "class must be an integer"),
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


def test_long_calls_wait_for_one_another_and_keep_nobody_else_waiting(shelf):
    long = [f for f in build_page(shelf).fns.values() if f.concurrency_id == "analysis"]
    assert {f.name: f.api_visibility for f in long} == {
        "analyse": "private",
        "report": "private",
        "ablate": "public",
        "attribute": "public",
    }
    assert all(f.concurrency_limit == 1 for f in long)
