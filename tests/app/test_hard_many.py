"""Many at once: every answer is the one that a single caller gets, and nobody sees or stops what is another's."""

import itertools
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.utils import QueueError
from PIL import Image

from app.explore import VIEWS
from app.page import build_page
from app.shown import EXPIRED
from vtviz.errors import VtvizError

WHOLE, CENTRE = VIEWS


class Session:
    """A browser without a screen: it calls the page's own events, which have no public name."""

    def __init__(self, served: SimpleNamespace) -> None:
        self.page, self.hash = served.page, f"{random.getrandbits(64):x}"
        self.http = httpx.Client(base_url=f"{served.url}gradio_api/", timeout=60)

    def join(self, name: str, *data: Any, **event: Any) -> str:
        """Ask for an event by its handler's name: the id that the queue gave it."""
        [index] = [i for i, f in self.page.fns.items() if f.name == name and f.api_visibility == "private"]
        body = {"data": data, "fn_index": index, "session_hash": self.hash, "event_data": event or None}
        answer = self.http.post("queue/join", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()["event_id"]

    def hear(self) -> Iterator[dict[str, Any]]:
        """What the server tells until all is done; closing this is closing the browser."""
        with self.http.stream("GET", "queue/data", params={"session_hash": self.hash}) as stream:
            for line in stream.iter_lines():
                if line.startswith("data: "):
                    yield json.loads(line[6:])

    def call(self, name: str, *data: Any, **event: Any) -> list[Any]:
        """The outputs of one event."""
        self.join(name, *data, **event)
        [done] = [each for each in self.hear() if each["msg"] == "process_completed"]
        assert done["success"], done
        return done["output"]["data"]

    def upload(self, path: Path) -> dict[str, Any]:
        """A file as the browser names it afterwards."""
        [there] = self.http.post("upload", files={"files": (path.name, path.read_bytes())}).json()
        return {"path": there, "orig_name": path.name, "meta": {"_type": "gradio.FileData"}}


@pytest.fixture(scope="module")
def served(serve, segment_shelf) -> Iterator[SimpleNamespace]:
    """A page, and its address."""
    page = build_page(segment_shelf)
    with serve(page) as url:
        yield SimpleNamespace(page=page, url=url)


@pytest.fixture(scope="module")
def photos(tmp_path_factory, chelsea, coffee, astronaut) -> list[Path]:
    folder = tmp_path_factory.mktemp("many")
    found = []
    for number, image in enumerate((chelsea, coffee[:300, :280], astronaut[::2, ::2], np.rot90(chelsea))):
        found.append(folder / f"{number}.png")
        Image.fromarray(image).save(found[-1])
    return found


@pytest.fixture
def analyses(served) -> Any:
    """The page's handler of analyses."""
    return next(f.fn.__self__ for f in served.page.fns.values() if f.name == "analyse")


# --- every answer is the serial one


def arrays(file: str) -> dict[str, tuple[Any, ...]]:
    with np.load(file) as stored:
        return {name: (stored[name].dtype, stored[name].shape, stored[name].tobytes()) for name in stored.files}


def timeless(value: Any) -> Any:
    """Without what a clock told."""
    if isinstance(value, dict):
        return {key: timeless(each) for key, each in value.items() if key != "seconds"}
    return [timeless(each) for each in value] if isinstance(value, list) else value


def make_calls(photos: list[Path]) -> list[tuple[Any, ...]]:
    """Endpoint and arguments: photos x models x crops, and the other endpoints."""
    first, *others = photos
    calls = [("/extract", *each) for each in itertools.product(photos, ("own", "blank", "scene"), VIEWS)]
    calls += [("/extract", first, "scene_fpn", WHOLE)]
    calls += [
        ("/lineage", photo, model, view) for photo in photos for model, view in (("own", WHOLE), ("scene", CENTRE))
    ]
    calls += [("/query", photo, "own", view, 130, 120, None, None) for photo in photos for view in VIEWS]
    calls += [("/query", first, "blank", WHOLE, 10, 20, 90, 100)]
    calls += [("/compare", first, "own", photo, "blank") for photo in others]
    calls += [("/ablate", photos[2], "own", WHOLE, "1", None), ("/attribute", photos[2], "own", WHOLE, "2")]
    return calls


def answer(client: Client, call: tuple[Any, ...]) -> list[Any]:
    """JSON as it is, of a file its arrays."""
    name, *data = call
    sent = [handle_file(each) if isinstance(each, Path) else each for each in data]
    found = client.predict(*sent, api_name=name)
    parts = found if isinstance(found, tuple) else (found,)
    return [arrays(part) if isinstance(part, str) else timeless(part) for part in parts]


@pytest.mark.parametrize(
    ("clients", "each"),
    [(4, 4), pytest.param(32, 30, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])],
    ids=["few", "many"],
)
def test_every_answer_is_the_serial_one(clients, each, served, photos, tmp_path, tally):
    *calls, long = make_calls(photos)  # the last is Captum's, on a model that others look through meanwhile
    calls = calls if clients > 10 else calls[::4]
    chance = random.Random(7)
    plan = [chance.sample(calls, each) for _ in range(clients)]
    for mine in plan[: clients // 8]:
        mine[0] = long
    alone = Client(served.url, verbose=False, download_files=tmp_path / "alone")
    expected = {call: answer(alone, call) for call in dict.fromkeys(itertools.chain(*plan))}

    def work(number: int) -> list[tuple[Any, ...]]:
        # its own limit is 5 s, for a page that 31 others ask
        patient = {"timeout": 120}
        client = Client(served.url, verbose=False, download_files=tmp_path / str(number), httpx_kwargs=patient)
        wrong = [call for call in plan[number] if answer(client, call) != expected[call]]
        client.close()
        return wrong

    with ThreadPoolExecutor(clients) as pool:
        wrong = list(itertools.chain(*pool.map(work, range(clients))))
    alone.close()
    assert wrong == []
    tally("calls of many clients at once", clients * each)
    tally("answers of many clients at once that were not the serial ones", len(wrong))


def test_captum_and_plain_views_share_a_model_unharmed(shelf, chelsea):
    """Captum's hooks on a shared model gave wrong maps; it gets a copy."""
    from vtviz.explain.attribution import attribute

    predictor = shelf.get("own")
    small = chelsea[::2, ::2]
    logits = predictor.extract(small).logits.tobytes()
    methods = ["token_integrated_gradients", "gradient_x_token", "grad_cam"]
    maps = {item.method: item.map.tobytes() for item in attribute(predictor, small, methods, target=1).items}
    with ThreadPoolExecutor(4) as pool:
        explained = [pool.submit(attribute, predictor, small, methods, target=1) for _ in range(3)]
        plain = [pool.submit(predictor.extract, small) for _ in range(15)]
        assert {each.result().logits.tobytes() for each in plain} == {logits}
        for each in explained:
            assert {item.method: item.map.tobytes() for item in each.result().items} == maps


# --- waiting, stopping, leaving


class Gate:
    """Work that goes on until it is let go, or stopped."""

    def __init__(self) -> None:
        self.begun, self.ended, self.open = threading.Event(), threading.Event(), threading.Event()

    def work(self, progress: Callable[[int, int], None]) -> None:
        try:
            self.begun.set()
            while not self.open.wait(0.02):
                progress(1, 2)
        finally:
            self.ended.set()


@pytest.fixture
def gate(analyses, monkeypatch) -> Iterator[Gate]:
    """Ablations end when the gate is opened, and then have failed with a line."""
    gate = Gate()

    def ablation(_shown: object, _label: object, progress: Callable[[int, int], None]) -> None:
        gate.work(progress)
        raise VtvizError("the gate was opened")

    monkeypatch.setattr(analyses, "ablation", ablation)
    yield gate
    gate.open.set()


def started(served: SimpleNamespace, gate: Gate, job: str = "j") -> tuple[Session, Iterator[dict[str, Any]]]:
    """A session whose analysis has begun, and what it hears."""
    session = Session(served)
    session.call("arrive")
    session.join("analyse", None, kind="ablation", job=job)
    heard = session.hear()
    assert gate.begun.wait(20)
    next(each for each in heard if each["msg"] == "process_generating")
    return session, heard


def test_a_slow_analysis_keeps_no_plain_view_waiting(served, gate, photos, tmp_path):
    _, heard = started(served, gate)
    client = Client(served.url, verbose=False, download_files=tmp_path)
    for view in VIEWS:
        assert answer(client, ("/extract", photos[0], "own", view))
    assert not gate.ended.is_set()  # it is still at it
    gate.open.set()
    assert "the gate was opened" in json.dumps([*heard])
    client.close()


def test_a_closed_browser_frees_its_analysis(served, gate):
    threads = threading.active_count()
    for _ in range(3):
        gate.begun.clear()
        gate.ended.clear()
        session, heard = started(served, gate)
        heard.close()
        session.http.close()
        assert gate.ended.wait(20)
    end = time.monotonic() + 20
    while threading.active_count() > threads + 5 and time.monotonic() < end:  # the server's pool may grow a little
        time.sleep(0.1)
    assert threading.active_count() <= threads + 5


@pytest.mark.slow  # a quarter of a minute, of which Gradio sleeps most
def test_a_program_that_is_gone_frees_its_work(served, gate, photos, tmp_path):
    client = Client(served.url, verbose=False, download_files=tmp_path)
    client.submit(handle_file(photos[0]), "own", WHOLE, "", None, api_name="/ablate")
    assert gate.begun.wait(20)
    client.close()
    assert gate.ended.wait(40)
    assert not gate.open.is_set()


def test_no_session_stops_another_s_work(served, gate):
    mine, heard = started(served, gate, job="known")
    other = Session(served)
    [index] = [i for i, f in served.page.fns.items() if f.name == "cancel" and not f.queue and f.inputs == []][:1]
    assert served.page.fns[index].fn.__self__ is not None
    cancel = {"data": [], "fn_index": index, "event_data": {"job": "known"}}
    for each in (other.hash, None, "", mine.hash[:-1]):
        other.http.post("run/predict", json=cancel | {"session_hash": each}).raise_for_status()
    assert not gate.ended.wait(0.5)
    mine.http.post("run/predict", json=cancel | {"session_hash": mine.hash}).raise_for_status()
    assert gate.ended.wait(20)
    last = [each for each in heard if each["msg"] in {"process_generating", "process_completed"}]
    assert "cancelled" in json.dumps(last)


def test_a_full_queue_says_so_at_once(served, gate, monkeypatch, photos, tmp_path):
    monkeypatch.setattr(served.page._queue, "max_size", 3)
    sessions = [started(served, gate)]
    waiting = [Session(served) for _ in range(3)]
    for each in waiting:
        each.join("analyse", None, kind="ablation", job="w")
    client = Client(served.url, verbose=False, download_files=tmp_path)
    begun = time.monotonic()
    with pytest.raises(QueueError, match="Queue is full"):
        client.predict(handle_file(photos[0]), "own", WHOLE, api_name="/extract")
    late = Session(served)
    body = {"data": [], "fn_index": 0, "session_hash": late.hash}
    told = late.http.post("queue/join", json=body)
    assert (told.status_code, "Queue is full" in told.json()["detail"]) == (503, True)
    assert time.monotonic() - begun < 20
    for each in waiting:  # they go, and their places are free
        heard = each.hear()
        next(heard)
        heard.close()
    gate.open.set()
    assert list(sessions[0][1])
    assert answer(client, ("/extract", photos[0], "own", WHOLE))
    client.close()


@pytest.mark.browser
def test_a_full_queue_is_told_in_the_browser(served, browser, monkeypatch):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(served.url)
    page.wait_for_selector(".vtx[data-ready]")
    page.wait_for_timeout(1000)
    page.get_by_role("tab", name="Does it matter?", exact=True).click()
    with monkeypatch.context() as patch:
        patch.setattr(served.page._queue, "max_size", 0)
        page.locator(".vtx-go:visible").first.click()
        page.get_by_text("The page did not take it; try again in a moment.").wait_for()
        assert page.locator(".vtx-busy:visible").count() == 0
        page.get_by_text("This application is currently busy").first.wait_for()
    page.locator(".vtx-go:visible").first.click()
    page.locator(".vtx-busy:visible").wait_for()
    page.locator(".vtx-busy:visible").wait_for(state="detached", timeout=60_000)
    assert page.locator(".vtx-fault:visible").count() == 0
    page.close()


# --- sessions


def test_two_sessions_see_their_own_photos(served, photos, segment_shelf, tmp_path):
    sessions = [Session(served) for _ in photos]

    def live(number: int) -> None:
        session, photo = sessions[number], photos[number]
        for model in ("own", "blank", "own"):
            main, _, note, _ = session.call("open_upload", session.upload(photo), model, WHOLE)
            assert note == ""
            shown = segment_shelf.get(model).extract(photo)
            assert main["geometry"] == shown.geometry.to_dict()
            file, _ = session.call("arrays", None)
            data = session.http.get(f"file={file['path']}").content
            (tmp_path / f"{number}.npz").write_bytes(data)
            with np.load(tmp_path / f"{number}.npz") as stored:
                assert stored["logits"].tobytes() == shown.logits.tobytes()

    with ThreadPoolExecutor(len(sessions)) as pool:
        list(pool.map(live, range(len(sessions))))


def test_a_session_has_nothing_of_another_s(served, photos, tally):
    mine, other = Session(served), Session(served)
    file = mine.upload(photos[0])
    mine.call("open_upload", file, "own", WHOLE)
    for name in ("arrays", "unmask"):  # what would show the other's photo
        assert EXPIRED in json.dumps(other.call(name, None))
    assert EXPIRED in json.dumps(other.call("analyse", None, kind="ablation", job="j"))
    path = Path(file["path"])
    assert len(path.parent.name) >= 32  # no one guesses it
    guesses = [path.parent.parent / name / path.name for name in ("", "0" * 64, path.parent.name[:-1] + "x", "*", "..")]
    guesses += [path.parent, path.parent.parent, path.with_name("*"), path.with_name("photo.png")]
    for guess in guesses:
        assert other.http.get(f"file={guess}").status_code == 403
        sent = file | {"path": str(guess)}
        other.join("open_upload", sent, "own", WHOLE)
        [done] = [each for each in other.hear() if each["msg"] == "process_completed"]
        assert not done["success"] or done["output"]["data"][0].get("__type__") == "update"  # nothing to see
    for wrong in (mine.hash[:-1], mine.hash.upper() + "x", "", "*"):
        with other.http.stream("GET", "queue/data", params={"session_hash": wrong}) as heard:
            assert 'session_not_found":true' in next(heard.iter_text())
    tally("guesses at another session's files and messages (none was right)", len(guesses) * 2 + 4)
    assert isinstance(mine.call("arrays", None)[0], dict)  # which is still there


def test_states_are_of_one_session(served):
    """No state begins with something that sessions would share."""
    states = [block for block in served.page.blocks.values() if isinstance(block, gr.State)]
    assert states
    assert all(state.value in (None, False) for state in states)
