"""The tab Video: what is said before, what is made, and a film played in a browser."""

import json
import re
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from app import video
from app.page import build_page
from app.video import MOST_FRAMES, VideoTab, describe_footage, gather, parse_tokens
from vtviz.errors import ImageError, VtvizError
from vtviz.footage import Footage, open_footage
from vtviz.video import write_film

NOBODY = SimpleNamespace(session_hash="nobody")
SCRIPT = "<script>alert(1)</script>"


def silent(*_: object, **__: object) -> None:
    """A progress bar that nobody looks at."""


@pytest.fixture(scope="module")
def clip(tmp_path_factory, chelsea) -> Path:
    """Nine frames of a cat that moves to the left, 9 a second."""
    path = tmp_path_factory.mktemp("clips") / "my cat.webm"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"VP80"), 9, (160, 120))
    for i in range(9):
        writer.write(cv2.cvtColor(np.ascontiguousarray(chelsea[60:180, 10 * i : 10 * i + 160]), cv2.COLOR_RGB2BGR))
    writer.release()
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory, chelsea, coffee) -> list[dict]:
    """Uploads as Gradio has them, each in a folder of its own: "frame 10" before "frame 9", and two of one name."""
    top = tmp_path_factory.mktemp("uploads")
    found = []
    for i, (name, image) in enumerate((("frame 10", chelsea), ("frame 9", coffee), ("frame 9", chelsea[:, ::-1]))):
        (top / str(i)).mkdir()
        Image.fromarray(image[::3, ::3]).save(top / str(i) / f"{name}.png")
        found.append({"path": str(top / str(i) / f"{name}.png")})
    return found


@pytest.fixture(scope="module")
def tab(shelf) -> VideoTab:
    """As the page has it, with a place to put files."""
    page = build_page(shelf)
    return next(fn.fn.__self__ for fn in page.fns.values() if fn.api_name == "video")


def form(files: object, **changes: object) -> list[object]:
    fields = {"model": "own", "layer": "block1", "tokens": "0, 5", "every": 2, "frames": 100, "kind": "webm"}
    return [files, *(fields | changes).values()]


def upload(path: Path) -> list[dict]:
    return [{"path": str(path), "orig_name": path.name}]


def test_limits_and_cost_are_told_before(tab, clip, photos):
    nothing = tab.measure(None, 1, 100)
    assert "100 MB" in nothing
    assert f"{MOST_FRAMES} frames" in nothing
    assert "9 frames at 9 a second; 9 are looked at, for a film of 1.0 s" in tab.measure(upload(clip), 1, 100)
    assert "5 are looked at, for a film of 1.1 s" in tab.measure(upload(clip), 2, 100)
    assert "3 are looked at" in (told := tab.measure(upload(clip), 1, 3))
    assert "take one frame of 3" in told
    assert "3 photos; 3 are looked at" in tab.measure(photos, 1, 100)
    unknown = Footage(clip, None, None, None)
    assert "unknown number of frames; up to 300" in describe_footage(unknown, 1, 1000)


def test_photos_follow_one_another_by_name(photos, tmp_path, chelsea):
    footage = open_footage(gather(photos, tmp_path))
    assert [file.name for file in footage.files] == ["frame 9.png", "frame 9~2.png", "frame 10.png"]
    frames = list(footage.frames())
    np.testing.assert_array_equal(frames[1].image, chelsea[:, ::-1][::3, ::3])


def test_a_film_comes_with_the_arrays_of_the_api(tab, clip, shelf):
    view, problem, film, arrays, told = tab.run(*form(upload(clip)), NOBODY, silent)
    assert problem == ""
    assert view["kind"] == "video"
    assert "2 tokens in 5 frames" in view["text"]
    assert Path(film.value["path"]).name == "my cat.webm"
    made = json.loads(Path(told.value["path"]).read_text())
    assert made["tokens"] == [0, 5]
    with np.load(arrays.value["path"]) as stored:
        assert stored.files == [f"frame{i:06d}" for i in (0, 2, 4, 6, 8)]
        frame = list(open_footage(clip).frames(2))[3]
        expected = shelf.get("own").extract(frame.image).layers[1].of_head()[[0, 5]]
        np.testing.assert_array_equal(stored["frame000006"], expected)


def test_progress_is_told_and_a_film_can_be_cancelled(tab, clip):
    seen = []

    def watch(at: tuple[int, int], **_: object) -> None:
        seen.append(at)
        if len(seen) == 3:
            tab.stops.cancel(SimpleNamespace(session_hash="another"))
            tab.stops.cancel(NOBODY)

    *_, problem, film, _, _ = tab.run(*form(upload(clip), every=1), NOBODY, watch)
    assert "Cancelled" in problem
    assert seen == [(1, 18), (2, 18), (3, 18)]
    assert film == {"__type__": "update"}
    assert tab.run(*form(upload(clip), frames=1), NOBODY, silent)[1] == ""  # and another be made then


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"model": SCRIPT}, "this page has no model &#x27;&lt;script&gt;"),
        ({"model": "plain"}, "plain has no layer"),
        ({"layer": SCRIPT}, "own has no layer &#x27;&lt;script&gt;"),
        ({"layer": None}, "own has no layer"),
        ({"tokens": SCRIPT}, "tokens must be whole numbers such as 0,3,5, got &#x27;&lt;script"),
        ({"tokens": "0,0"}, "tokens must be one or more different ones"),
        ({"tokens": "99"}, "there is no token 99"),
        ({"every": 0}, "One frame of: must be a whole number from 1, got &#x27;0&#x27;"),
        ({"every": 1.5}, "One frame of: must be a whole number from 1, got &#x27;1.5&#x27;"),
        ({"every": None}, "One frame of: must be a whole number from 1, got nothing"),
        ({"frames": None}, "Frames at most: must be a whole number from 1, got nothing"),
        ({"frames": 0}, "Frames at most: must be a whole number from 1, got &#x27;0&#x27;"),
        ({"frames": float("inf")}, "Frames at most: must be a whole number from 1, got &#x27;inf"),
        ({"frames": float("nan")}, "Frames at most: must be a whole number from 1, got &#x27;nan"),
        ({"frames": MOST_FRAMES + 1}, "at most 300 frames"),
        ({"kind": "mp4"}, "unknown kind of film"),
    ],
)
def test_a_wrong_field_is_one_escaped_line(tab, clip, changes, line):
    problem = tab.run(*form(upload(clip), **changes), NOBODY, silent)[1]
    assert line in problem
    assert "<script>" not in problem
    if "whole number from" in line:  # and as soon as it is entered
        assert tab.measure(upload(clip), *({"every": 2, "frames": 100} | changes).values()) == problem


def test_wrong_files_are_told_by_name_alone(tab, clip, photos, tmp_path):
    text = tmp_path / "notes.mp4"
    text.write_text("hello")
    broken = tmp_path / "broken.png"
    broken.write_text("hello")
    for files, line in (
        ([], "choose a video or photos"),
        (None, "choose a video or photos"),
        ([{"path": "/nowhere/x.mp4"}], "uploaded an hour ago is gone"),
        ([None], "uploaded an hour ago is gone"),
        (upload(text), "notes.mp4: not an MP4"),
        ([*photos, *upload(clip)], "my cat.webm is no photo"),
        ([*photos, *upload(broken)], "is not a JPEG, PNG"),
    ):
        problem = tab.run(*form(files), NOBODY, silent)[1]
        assert line in problem
        assert "/" not in re.sub(r"</?p[^>]*>", "", problem)
    with pytest.raises(ImageError, match="no photo"):
        gather([*upload(clip), *upload(clip)], tmp_path)


def test_tokens_are_read_as_people_write_them():
    assert parse_tokens(" 0, 3,5 ") == [0, 3, 5]
    assert parse_tokens("") is parse_tokens("All") is parse_tokens(None) is None
    with pytest.raises(VtvizError):
        parse_tokens("1;2")


def test_the_layers_are_the_model_s(tab):
    assert tab.layers("own").choices == [("block0", "block0"), ("block1", "block1")]
    assert tab.layers("owl") == {"__type__": "update"}
    assert tab.open("own", "block1")[1] == {"__type__": "update"}


# --- through the network and in a browser


@pytest.fixture(scope="module")
def served(serve, shelf) -> str:
    with serve(build_page(shelf)) as url:
        yield url


def test_a_program_makes_a_film(served, clip, tmp_path, models):
    client = Client(served, verbose=False, download_files=tmp_path)
    files = [handle_file(clip)]
    told, film, arrays = client.predict(files, "own", "block0", "1", 4, 2, "webp", api_name="/video")
    assert [frame["number"] for frame in told["frames"]] == [0, 4]
    assert told["source"] == clip.name
    with Image.open(film) as picture:
        assert picture.n_frames == 2
        assert picture.size == tuple(told["size"][::-1])
    with np.load(arrays) as stored:
        assert stored["frame000004"].shape[0] == 1
    no_film = [handle_file(models / "own.json")]
    for wrong, line in ((no_film, r"own\.json: not an MP4"), (files, "there is no token 77")):
        with pytest.raises(AppError, match=line):
            client.predict(wrong, "own", "block0", "77", 1, 2, "webm", api_name="/video")


@pytest.mark.browser
def test_a_film_is_made_and_played(browser, served, clip):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(60_000)
    faults, hosts = [], set()
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda entry: faults.append(entry.text) if entry.type == "error" else None)
    page.on("request", lambda request: hosts.add(re.match(r"\w+:(//[^:/]+)?", request.url)[0]))
    page.goto(served)
    page.get_by_role("tab", name="Video").click()
    page.get_by_text("films are made one at a time").wait_for()
    page.locator("#video-layer input").click()
    page.get_by_role("option", name="block1").click()
    page.set_input_files("#video-files input[type=file]", clip)
    page.get_by_text("9 are looked at, for a film of 1.0 s").wait_for()
    page.get_by_role("button", name="Make the film").click()
    page.locator("video[src]").wait_for()
    page.wait_for_function("document.querySelector('video').currentTime > 0.2")  # it plays
    size = page.evaluate("[document.querySelector('video').videoWidth, document.querySelector('video').videoHeight]")
    assert size == [int(page.get_attribute("video", name)) for name in ("width", "height")]
    assert "8 tokens in 9 frames" in page.locator(".vtx-video .vtx-cost").inner_text()
    with page.expect_download() as download:
        page.get_by_role("button", name="Arrays (NPZ)").click()
    with np.load(download.value.path()) as stored:
        assert len(stored.files) == 9

    page.get_by_label("Animated WebP picture").check()
    page.get_by_role("button", name="Make the film").click()
    page.wait_for_function("document.querySelector('.vtx-film img')?.naturalWidth > 100")
    assert [fault for fault in faults if not fault.startswith("AbortError")] == []
    assert hosts <= {"http://127.0.0.1", "data:", "blob:"}
    page.close()


@pytest.mark.browser
def test_what_is_told_is_of_the_form_as_it_is_now(browser, served, clip, monkeypatch):
    """An answer that took long does not replace the answer to a later question."""
    asked, answered = [], []

    def measure(source, every, frames):
        asked.append(every)
        time.sleep(0.1 if every == 7 else 3)
        answered.append(every)
        return f"every {every} of {frames}"

    monkeypatch.setattr("app.video.describe_footage", measure)
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(60_000)
    page.goto(served)
    page.get_by_role("tab", name="Video").click()
    page.get_by_text("films are made one at a time").wait_for()
    page.set_input_files("#video-files input[type=file]", clip)
    page.get_by_text("every 1 of").wait_for()
    for label, text in (("Frames at most", "5"), ("One frame of", "7")):
        page.get_by_label(label).fill(text)
        page.wait_for_timeout(500)
    while len(answered) < len(asked) or 7 not in asked:
        page.wait_for_timeout(100)
    page.wait_for_timeout(1000)  # the answers arrive
    assert page.locator("#video-told").inner_text() == "every 7 of 5"
    page.context.close()


@pytest.mark.browser
def test_a_film_that_waits_for_another_can_be_cancelled(browser, served, clip, monkeypatch):
    begun, gate = [], threading.Event()

    def write(*arguments, progress, **options):
        begun.append(True)
        progress(1, 18)
        assert gate.wait(60)
        return write_film(*arguments, progress=progress, **options)

    monkeypatch.setattr(video, "write_film", write)
    first, second = browser.new_page(), browser.new_page()
    for page in (first, second):
        page.set_default_timeout(60_000)
        page.goto(served)
        page.get_by_role("tab", name="Video").click()
        page.locator("#video-layer input").click()
        page.get_by_role("option", name="block1").click()
        page.set_input_files("#video-files input[type=file]", clip)
        page.get_by_text("9 are looked at, for a film of 1.0 s").wait_for()
        page.get_by_role("button", name="Make the film").click()
        page.locator("#video .progress-text, #video .meta-text, #video .eta-bar").first.wait_for(state="attached")
    first.locator("#video .progress-level").wait_for()
    assert first.locator("#video .progress-text").is_hidden()  # would lie across the bar's edge
    second.locator("#video .progress-text", has_text="queue").wait_for()
    second.wait_for_timeout(500)
    second.locator("#video-cancel").click()
    second.wait_for_timeout(500)
    gate.set()
    second.get_by_text("Cancelled; nothing was kept.").wait_for()
    first.locator("video[src]").wait_for()
    assert begun == [True]
    first.close()
    second.close()
