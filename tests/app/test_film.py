"""A film in a real browser: it plays."""

import pytest
from PIL import Image

from vtviz.predictor import Predictor
from vtviz.video import write_film

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def films(tmp_path_factory, tiny_model, coffee):
    """One film of each kind, of twelve frames."""
    folder = tmp_path_factory.mktemp("films")
    (folder / "pan").mkdir()
    for i in range(12):
        Image.fromarray(coffee[100:220, 20 * i : 20 * i + 180]).save(folder / "pan" / f"{i:02d}.png")
    return [
        write_film(Predictor(tiny_model()), folder / "pan", folder, size=64, tokens=range(4), kind=kind)
        for kind in ("webm", "webp")
    ]


@pytest.fixture
def page(browser, films):
    path = films[0].files["film.webm"].with_name("film.html")
    path.write_text("<video src='film.webm' muted></video><img src='film.webp'>")
    page = browser.new_page()
    page.goto(path.as_uri())
    yield page
    page.close()


def test_webm_plays_to_its_end(page, films):
    film = films[0]
    page.wait_for_function("() => document.querySelector('video').readyState >= 2")
    size = page.evaluate("() => { const v = document.querySelector('video'); return [v.videoHeight, v.videoWidth] }")
    assert tuple(size) == film.size
    assert page.evaluate("() => document.querySelector('video').error") is None
    assert page.evaluate("() => document.querySelector('video').duration") == pytest.approx(12 / 10, abs=0.11)
    page.evaluate("() => document.querySelector('video').play()")
    page.wait_for_function("() => document.querySelector('video').currentTime > 0.3")
    page.wait_for_function("() => document.querySelector('video').ended")


def test_webp_is_shown_at_its_size(page, films):
    page.wait_for_function("() => document.querySelector('img').complete")
    size = page.evaluate("() => { const i = document.querySelector('img'); return [i.naturalHeight, i.naturalWidth] }")
    assert tuple(size) == films[1].size
