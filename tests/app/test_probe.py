"""A run's token maps by epoch: which panel is shown when, and in a browser."""

import base64
import io
import json
import re
import resource
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.page import build_page
from app.probe import Probe, panel, whole
from app.shelf import Shelf
from app.train import Train
from vtviz.predictor import load_model
from vtviz.train.jobs import REQUEST, STATUS, Job, Jobs
from vtviz.train.probe import animate, list_panels, write_probe

SKIP = {"__type__": "update"}


@pytest.fixture(scope="module")
def panels(tmp_path_factory, models, coffee):
    """The probes of three epochs, which differ, and the animation."""
    run = tmp_path_factory.mktemp("panels")
    predictor = load_model(str(models / "own.safetensors"))
    for epoch in (1, 2, 3):
        write_probe(run, predictor, np.roll(coffee, 40 * epoch, axis=1), epoch)
    animate(run)
    return run / "probe"


@pytest.fixture
def job(tmp_path, panels):
    """A run with as many panels as are wanted: job(2)."""

    def make(count: int, state: str = "running") -> Job:
        folder = tmp_path / "runs" / "flowers"
        (folder / "probe").mkdir(parents=True, exist_ok=True)
        for number in range(1, count + 1):
            shutil.copy(panels / f"epoch{number:04d}.png", folder / "probe")
        if state == "done":
            shutil.copy(panels / "tokens.webp", folder / "probe")
        training = {"data": "/x/flowers", "model": "vt_resnet18", "recipe": {"epochs": 3}}
        (folder / REQUEST).write_text(json.dumps({"number": 1, "pid": 1, "born": "never", "training": training}))
        (folder / STATUS).write_text(json.dumps({"state": state, "started": 1.0}))
        return Job("flowers", folder, 1, training, state)

    return make


@pytest.fixture
def probe(tmp_path) -> Probe:
    return Probe(Jobs(tmp_path / "runs"))


def epoch_of(html: str) -> int:
    return int(re.search(r"after epoch (\d+)", html)[1])


def test_the_newest_panel_is_followed_while_it_is_the_one_shown(probe, job):
    (box, shown, slider, play, save), known = probe.look(job(0), 1, None)
    assert (box.visible, shown, play.visible, save.visible) == (False, SKIP, False, False)
    (box, shown, slider, play, save), known = probe.look(job(1), 1, known)
    assert (box.visible, epoch_of(shown), slider.visible, play.visible) == (True, 1, False, False)
    (box, shown, slider, play, save), known = probe.look(job(2), 1, known)
    assert (epoch_of(shown), slider.value, slider.maximum, slider.visible, play.visible) == (2, 2, 2, True, True)
    assert probe.look(job(2), 2, known) == ([SKIP] * 5, known)
    assert probe.look(job(2), 1, known) == ([SKIP] * 5, known)  # the slider was moved back, and stays there
    (_, shown, slider, _, _), known = probe.look(job(3), 1, known)
    assert shown == SKIP
    assert slider.maximum == 3
    assert "value" not in slider._constructor_args[0]
    (*_, save), known = probe.look(job(3, "done"), 1, known)
    assert save.visible


def test_another_job_shows_its_newest_and_one_without_tokens_nothing(probe, job, tmp_path):
    _, known = probe.look(job(3), 1, None)
    other = replace(job(3), name="other")
    (_, shown, slider, _, _), known = probe.look(other, 1, known)
    assert (epoch_of(shown), slider.value) == (3, 3)
    (box, *_), known = probe.look(replace(other, name="plain", folder=tmp_path), 1, known)
    assert not box.visible
    assert not probe.look(None, 1, known)[0][0].visible


def test_a_panel_is_one_picture_and_the_one_of_its_epoch(probe, job, panels):
    job(3)
    texts = [probe.turn("flowers", epoch) for epoch in (1, 2, 3)]
    for epoch, text in enumerate(texts, start=1):
        assert text.count("<img") == 1
        assert len(text) < 400_000
        picture = Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^\"]+)", text)[1])))
        with Image.open(panels / f"epoch{epoch:04d}.png") as original:
            assert picture.size == original.size
            assert np.abs(np.asarray(picture, int) - np.asarray(original, int)).mean() < 3
    assert len(set(texts)) == 3


@pytest.mark.parametrize(
    ("asked", "shown"), [(0, 1), (2.0, 2), (99, 3), (-5, 1), ("2", 1), (None, 1), (float("nan"), 1)]
)
def test_any_number_gives_a_panel_that_is_there(probe, job, asked, shown):
    job(3)
    assert epoch_of(probe.turn("flowers", asked)) == shown


def test_a_run_that_is_gone_shows_nothing(probe, tmp_path):
    assert probe.turn("flowers", 1) == SKIP
    assert probe.turn("../../etc", 1) == SKIP
    assert probe.turn(None, 1) == SKIP
    assert probe.save("flowers") == SKIP
    assert panel(tmp_path / "none.png", 1) == ""
    assert whole(1e400) == 0


def test_play_walks_to_the_end_and_stops(probe, job):
    job(3)
    epoch, shown, clock, button, playing = probe.play("flowers", 3, False)
    assert (epoch, epoch_of(shown), clock.active, button.value, playing) == (1, 1, True, "Pause", True)
    epoch, shown, *rest = probe.step("flowers", epoch)
    assert (epoch, epoch_of(shown), rest) == (2, 2, [SKIP] * 3)
    epoch, shown, clock, button, playing = probe.step("flowers", epoch)
    assert (epoch, epoch_of(shown), clock.active, button.value, playing) == (3, 3, False, "Play", False)
    assert probe.step("flowers", 3)[:2] == (SKIP, SKIP)
    assert probe.play("flowers", 2, False)[0] == 2  # from where it was left
    assert probe.play("flowers", 2, True)[4] is False


def test_panels_are_listed_by_epoch(panels, tmp_path):
    assert list(list_panels(panels.parent)) == [1, 2, 3]
    assert list_panels(tmp_path) == {}


def test_a_run_may_have_more_panels_than_a_process_may_open_files(tmp_path):
    (tmp_path / "probe").mkdir()
    for epoch in range(1, 101):
        panel_of_one_colour = Image.new("RGB", (16, 8), (97 * epoch % 256, 53 * epoch % 256, 0))
        panel_of_one_colour.save(tmp_path / "probe" / f"epoch{epoch:04d}.png")
    few = max(int(file.name) for file in Path("/dev/fd").iterdir()) + 20
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, before[1]))
    try:
        made = animate(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    with Image.open(made) as animation:
        assert animation.n_frames == 100


@pytest.mark.browser
def test_tokens_are_seen_to_form(browser, serving, job, models, tmp_path):
    running = job(2)
    url = serving(build_page(shelf := Shelf("own", device="cpu"), Train(shelf, running.folder.parent)))
    page = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True).new_page()
    faults = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.set_default_timeout(60_000)
    page.goto(url)
    page.get_by_role("tab", name="Train").click()
    slider = page.get_by_role("slider", name=re.compile("Epoch"))

    def wait_for(epoch: int) -> None:
        page.locator(f'.vtx-panel img[alt$="after epoch {epoch}"]').wait_for()
        page.wait_for_function(
            "(n) => document.querySelector('#train-turn input[type=range]').value === n", arg=str(epoch)
        )

    wait_for(2)
    assert page.locator(".vtx-panel img").evaluate("image => image.naturalWidth") > 500
    job(3)  # another epoch is done
    wait_for(3)
    slider.press("Home")
    wait_for(1)
    assert page.get_by_role("button", name="Save animation").is_hidden()
    job(3, "done")
    page.get_by_role("button", name="Play", exact=True).click()
    wait_for(3)
    page.get_by_role("button", name="Play", exact=True).wait_for()
    with page.expect_download() as download:
        page.get_by_role("button", name="Save animation").click()
    with Image.open(download.value.path()) as animation:
        assert (animation.format, animation.n_frames) == ("WEBP", 3)
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    (running.folder / REQUEST).unlink()
    page.get_by_text("No runs yet.").wait_for()
    page.locator(".vtx-panel").wait_for(state="hidden")
    assert faults == []
    page.context.close()
