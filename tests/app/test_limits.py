"""The limits that SECURITY.md states, each just below and just above it."""

import http.client
from collections.abc import Iterator
from types import SimpleNamespace
from urllib.parse import urlsplit

import gradio as gr
import numpy as np
import pytest

import app.analyses
import app.page
from app.__main__ import main
from app.analyses import MOST_PIXELS, Analyses
from app.atlas import AtlasTab
from app.datasets import DataRoot
from app.page import build_page, launch_options
from app.shown import VIEWS, Shown
from app.stops import TooLong
from vtviz.geometry import MAX_SIDE, fit

ME = SimpleNamespace(session_hash="me")
WHOLE = next(iter(VIEWS))


def silent(*_: object, **__: object) -> None:
    """Progress that nobody looks at."""


def last(answers) -> dict:
    return list(answers)[-1]


@pytest.mark.parametrize(("pixels", "refused"), [(MOST_PIXELS, False), (MOST_PIXELS + 1000, True)])
def test_attribution_takes_photos_of_at_most_20_megapixels(shelf, monkeypatch, pixels, refused):
    asked = []
    monkeypatch.setattr(app.analyses, "open_photo", lambda _: np.broadcast_to(np.uint8(7), (pixels // 1000, 1000, 3)))
    monkeypatch.setattr(app.analyses, "attribute", lambda *_, **__: asked.append(1) or ZeroDivisionError)
    monkeypatch.setattr(app.analyses, "encode_attributions", lambda _: {"made": True})
    shown = Shown("photo.png", uploaded=True, model="own", view=WHOLE)
    end = last(Analyses(shelf).analyse(shown, SimpleNamespace(job="j", kind="attribution", label=None), ME))
    assert MOST_PIXELS == 20_000_000
    assert len(asked) == (not refused)
    if refused:
        assert "photo.png has 20 megapixels, and attribution on this page takes photos of at most 20" in end["error"]
    else:
        assert end["result"] == {"made": True}


@pytest.mark.parametrize("kind", ["ablation", "attribution"])
def test_the_page_s_own_analyses_end_where_its_patience_does(shelf, photo, kind):
    shown = Shown(str(photo), uploaded=True, model="own", view=WHOLE)
    event = SimpleNamespace(job="j", kind=kind, label=None)
    end = last(Analyses(shelf, seconds=-1).analyse(shown, event, ME))
    assert end == {"job": "j", "error": "Stopped: this page works -1 s on one call at most; ask for less."}


def test_a_dissection_ends_where_the_page_s_patience_does(shelf, data_root):
    tab = AtlasTab(shelf, DataRoot(data_root), seconds=-1)
    with pytest.raises(TooLong, match="works -1 s on one call at most"):
        tab.examine("own", "colours", "none", 4, ME, silent)


@pytest.mark.parametrize(
    ("arguments", "seconds"), [([], None), (["--auth", "me:secret"], None), (["--public"], 300.0), (["--share"], 300.0)]
)
def test_calls_end_after_300_s_where_others_reach_the_page(arguments, seconds, models, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(app.page, "build_page", lambda *_, **more: given.append(more["seconds"]) or gr.Blocks())
    monkeypatch.setattr(gr.Blocks, "launch", lambda *_, **__: None)
    word = ["--public"] if "--share" in arguments else []
    assert main(["--model", "own", "--device", "cpu", "--runs", str(tmp_path / "runs"), *arguments, *word]) == 0
    assert given == [seconds]


def test_every_long_call_of_a_page_has_the_page_s_patience(shelf, data_root):
    """Whatever works for long is stopped by a handler's :class:`Stops` or its :class:`Analyses`."""
    page = build_page(shelf, data=DataRoot(data_root), seconds=7)
    owners = {name: getattr(fn.fn, "__self__", None) for fn in page.fns.values() if (name := fn.name)}
    for name in ("run", "dissect", "video"):
        assert owners[name].stops.seconds == 7, name
    for name in ("ablate", "attribute"):
        assert owners[name].stops.seconds == owners[name].analyses.seconds == 7
    for name in ("analyse", "report"):
        assert owners[name].seconds == 7


def test_500_sessions_are_remembered_and_no_more(serving, shelf):
    assert launch_options()["state_session_capacity"] == 500
    page = build_page(shelf)
    serving(page, state_session_capacity=3)  # each takes time to make
    for number in range(5):
        page.state_holder[f"session {number}"].state_data[0] = number
    assert len(page.state_holder.session_data) == 3
    assert "session 0" not in page.state_holder
    assert page.state_holder["session 4"].state_data[0] == 4


@pytest.fixture
def few(serve, shelf, monkeypatch) -> Iterator[str]:
    """The page as others reach it, where a client has three requests, and regains none."""
    monkeypatch.setattr("app.armour.BURST", 3)
    monkeypatch.setattr("app.armour.PER_SECOND", 1e-9)
    monkeypatch.delenv("FORWARDED_ALLOW_IPS", raising=False)
    with serve(build_page(shelf), **launch_options(reachable=True)) as url:
        yield url


def test_a_proxy_is_believed_from_this_machine_only(few):
    """A client that says it is another one each time is still one client; a proxy on this machine speaks for many."""

    def ask(source: str, client: str) -> int:
        connection = http.client.HTTPConnection(urlsplit(few).netloc, timeout=30, source_address=(source, 0))
        connection.request("GET", "/robots.txt", headers={"X-Forwarded-For": client})
        status = connection.getresponse().status
        connection.close()
        return status

    assert 429 not in {ask("127.0.0.1", f"198.51.100.{number}") for number in range(8)}
    try:  # all of 127.0.0.0/8 is this machine, but the proxy's address is the one
        told = [ask("127.0.0.2", f"203.0.113.{number}") for number in range(8)]
    except OSError:
        pytest.skip("this machine has one address of its own")
    assert told[3:] == [429] * 5
    assert [ask("127.0.0.1", "203.0.113.99") for _ in range(5)][3:] == [429] * 2


@pytest.mark.parametrize("shape", [(16_384, 1), (1, 16_384), (5000, 8000), (1, 1)])
@pytest.mark.parametrize("crop", VIEWS.values())
def test_maps_are_of_a_model_s_input_however_large_the_photo(shape, crop):
    """What a view holds grows with tokens and cells, and not with the photo."""
    for multiple in (16, 32):
        assert max(fit(shape, size=224, crop=crop, multiple=multiple).input) <= MAX_SIDE == 1024
