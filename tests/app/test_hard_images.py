"""What a browser, or a program, can hand the page as a photo: damaged files, bombs, and ways to files of the server."""

import io
import json
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import numpy as np
import pytest
from gradio import processing_utils
from PIL import Image, PngImagePlugin

from app.analyses import Analyses
from app.explore import VIEWS, Explore
from app.page import build_page
from app.shown import Shown
from app.uploads import FILES, is_upload

WHOLE = next(iter(VIEWS))
META = {"_type": "gradio.FileData"}


@pytest.fixture(scope="module")
def page(serve, shelf) -> Iterator[object]:
    """The page, served by this process; its address is ``page.local_url``."""
    page = build_page(shelf)
    with serve(page):
        yield page


@pytest.fixture
def elsewhere() -> Iterator[tuple[str, list[str]]]:
    """Another server, with a photo, and what it was asked for."""
    asked: list[str] = []
    photo = io.BytesIO()
    Image.new("RGB", (8, 8)).save(photo, "PNG")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(photo.getvalue())

        do_HEAD = do_GET  # noqa: N815 - how http.server names it

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/photo.png", asked
    server.shutdown()
    server.server_close()


def upload(url: str, data: bytes, name: str = "photo.jpg") -> dict[str, object]:
    """Upload a file as a browser does; what stands for it in a call."""
    answer = httpx.post(f"{url}gradio_api/upload", files={"files": (name, data)}, timeout=60).raise_for_status()
    return {"path": answer.json()[0], "orig_name": name, "meta": META}


def call(url: str, name: str, *data: object) -> tuple[str, object]:
    """Call an endpoint: "complete" or "error", and what came with it."""
    posted = httpx.post(f"{url}gradio_api/call/{name}", json={"data": data}, timeout=60).raise_for_status()
    answer = httpx.get(f"{url}gradio_api/call/{name}/{posted.json()['event_id']}", timeout=60).text
    event, _, rest = answer.strip().rpartition("event: ")[2].partition("\n")
    return event, json.loads(rest.removeprefix("data: "))


def trigger(url: str, index: int, data: list[object]) -> dict[str, object]:
    """Make one of the page's own events happen, as its script would; Gradio's last word on it."""
    session = f"hard{index}"
    body = {"data": data, "fn_index": index, "session_hash": session}
    httpx.post(f"{url}gradio_api/queue/join", json=body, timeout=60).raise_for_status()
    with httpx.stream("GET", f"{url}gradio_api/queue/data?session_hash={session}", timeout=60) as stream:
        for line in stream.iter_lines():
            told = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else {}
            if told.get("msg") == "process_completed":
                return told
    raise AssertionError("no answer")


# --- other ways in than an upload


def ways_in(secret: Path, weights: Path, url: str) -> list[object]:
    """What a caller may put where a photo belongs, marked as a file or not."""
    texts = [
        str(secret),
        f"../../../../../../../..{secret}",
        f"file://{secret}",
        "/etc/passwd",
        "/proc/self/environ",
        str(weights),
        url,
        "http://169.254.169.254/latest/meta-data/",
        "https://example.com/photo.png",
        "data:image/png;base64,iVBORw0KGgo=",
        "nul\0byte",
        "x" * 5000,
        "",
    ]
    return [
        *({"path": text, "meta": META} for text in texts),
        *({"path": text} for text in texts),
        *({"path": None, "url": text, "meta": META} for text in (url, texts[9])),
        {"path": str(secret), "meta": META, "is_stream": True},
        {"path": str(secret), "meta": {"_type": "other"}},
        {"path": str(secret), "meta": "gradio.FileData"},
        {"path": [str(secret)], "meta": META},
        {"path": {"path": str(secret), "meta": META}},
        {"value": {"path": str(secret)}},
        *texts,
        [str(secret)],
        [[{"path": str(secret)}]],
        7,
        True,
        {},
    ]


def test_paths_and_addresses_are_refused_in_one_line(page, models, chelsea, elsewhere, tmp_path, monkeypatch, tally):
    """By endpoints that take a file; nothing is fetched, and a photo of the server's is not opened."""
    url, asked = elsewhere
    secret = tmp_path / "secret.png"
    Image.fromarray(chelsea).save(secret)
    fetched: list[str] = []

    async def fetch(address: str, **_: object) -> str:
        fetched.append(address)
        return str(secret)

    monkeypatch.setattr(processing_utils, "async_ssrf_protected_download", fetch)  # Gradio's, for public addresses
    calls = {
        "extract": lambda bad: (bad, "own", WHOLE),
        "compare": lambda bad: (bad, "own", None, "own"),
        "video": lambda bad: ([bad], "own", "block0", "", 1, 2, "webp"),
    }
    for number, bad in enumerate(ways_in(secret, models / "own.safetensors", url)):
        for name in ("extract", "compare", "video") if number % 6 == 0 else ("extract",):
            event, told = call(page.local_url, name, *calls[name](bad))
            assert event == "error", (name, bad)
            assert "is no file that was uploaded to this page" in told["error"], (name, bad)
            assert "\n" not in told["error"]
            assert "<" not in told["error"]
            tally("ways in other than an upload tried")
    assert fetched == asked == []


def test_every_event_that_takes_a_file_refuses_other_files(page, models, chelsea, elsewhere, tmp_path, tally):
    """Those of the page's own script too, which a program can call as well; whatever tabs there come to be."""
    url, asked = elsewhere
    secret = tmp_path / "secret.png"
    Image.fromarray(chelsea).save(secret)
    events = {i: fn for i, fn in page.fns.items() if any(isinstance(block, FILES) for block in fn.inputs) and fn.fn}
    assert len(events) >= 10  # photo, mask, two uploads to compare and their forms, videos, and three endpoints
    for index, event in events.items():
        for bad in ({"path": str(secret), "meta": META}, {"path": str(secret)}, {"path": url, "meta": META}, url):
            data = [bad if isinstance(block, FILES) else getattr(block, "value", None) for block in event.inputs]
            told = trigger(page.local_url, index, data)
            assert told["success"] is False, (event.name, bad)
            assert "is no file that was uploaded" in told["output"]["error"], (event.name, bad)
            tally("ways in other than an upload tried")
    assert asked == []


def test_a_path_hidden_in_another_control_is_refused_too(page, chelsea, tmp_path):
    """Gradio looks for files in every value, also in that of a list of models."""
    secret = tmp_path / "secret.png"
    Image.fromarray(chelsea).save(secret)
    good = upload(page.local_url, secret.read_bytes())
    event, told = call(page.local_url, "extract", good, {"path": "http://127.0.0.1:9/x", "meta": META}, WHOLE)
    assert event == "error"
    assert "is no file that was uploaded" in told["error"]
    assert call(page.local_url, "extract", good, "own", WHOLE)[0] == "complete"


@pytest.mark.parametrize("key", ["anything", "url", "orig_name", "meta"])
@pytest.mark.parametrize("deep", [False, True])
def test_an_address_hidden_within_an_upload_is_not_fetched(page, photo, elsewhere, monkeypatch, key, deep, tally):
    url, asked = elsewhere
    fetched: list[str] = []

    async def fetch(address: str, **_: object) -> str:
        fetched.append(address)
        return str(photo)

    monkeypatch.setattr(processing_utils, "async_ssrf_protected_download", fetch)
    good = upload(page.local_url, photo.read_bytes())
    evil: object = {"path": url, "meta": META}
    bad = {"path": good["path"], key: [{"in": evil}] if deep else evil}
    event, told = call(page.local_url, "extract", bad, "own", WHOLE)
    assert event == "error"
    assert "is no file that was uploaded" in told["error"]
    assert call(page.local_url, "extract", good | {"url": url}, "own", WHOLE)[0] == "complete"  # as clients send it
    assert fetched == asked == []
    tally("ways in other than an upload tried")


def test_links_out_of_the_uploads_are_no_uploads(page, photo, tmp_path):
    inside = Path(upload(page.local_url, photo.read_bytes())["path"])
    assert is_upload(str(inside))
    assert not is_upload(str(inside.parent.parent))
    assert not is_upload(f"{inside.parent}/../../../etc/passwd")
    link = inside.with_name("link.png")
    link.symlink_to(photo)
    try:
        assert not is_upload(str(link))
    finally:
        link.unlink()


# --- damaged photos


def damaged(photos: list[bytes], count: int, seed: int) -> Iterator[bytes]:
    """Files with bytes replaced, ends cut off, and pieces of one another."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        data = bytearray(photos[number % len(photos)])
        for where in rng.integers(0, int(rng.choice([40, 300, len(data)])), size=rng.integers(1, 12)):
            data[where] = rng.integers(0, 256)
        cut = int(rng.integers(10, len(data)))
        other = photos[rng.integers(len(photos))]
        yield bytes([data, data[:cut], data[:cut] + other[cut // 2 :]][rng.choice(3, p=(0.6, 0.2, 0.2))])


@pytest.fixture(scope="module")
def photos(coffee) -> list[bytes]:
    """A small photo in every format."""
    files = []
    for kind in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"):
        file = io.BytesIO()
        Image.fromarray(coffee[::10, ::10]).save(file, kind)
        files.append(file.getvalue())
    return files


@pytest.mark.parametrize("count", [50, pytest.param(300, marks=pytest.mark.slow)])
def test_the_upload_s_handler_shows_a_photo_or_one_line(shelf, photos, tmp_path, tally, count):
    explore, path = Explore(shelf), tmp_path / "photo.jpg"
    shown = 0
    for data in damaged(photos, count, count):
        path.write_bytes(data)
        canvas, state, line, _ = explore.open_upload({"path": str(path)}, "own", WHOLE)
        if line:
            assert line.count("<") == 2  # one paragraph, its text escaped
            assert str(tmp_path) not in line
            assert "photo.jpg" in line
        else:
            assert canvas["layers"]
            assert state.photo == str(path)
            shown += 1
    assert 0 < shown < count
    tally("damaged images tried", count)
    tally("of these, still readable", shown)


@pytest.mark.parametrize("count", [20, pytest.param(120, marks=pytest.mark.slow)])
def test_the_endpoint_answers_every_upload(page, photos, tally, count):
    """Over HTTP, one after the other: arrays or one line, and then still a good photo's."""
    done = 0
    for data in damaged(photos, count, 2 * count):
        event, told = call(page.local_url, "extract", upload(page.local_url, data), "own", WHOLE)
        if event == "error":
            assert told["error"]
            assert "\n" not in told["error"]
            assert "/tmp" not in told["error"]
        else:
            done += 1
    assert 0 < done < count
    assert call(page.local_url, "extract", upload(page.local_url, photos[0]), "own", WHOLE)[0] == "complete"
    tally("damaged images tried", count)
    tally("of these, still readable", done)


def test_a_mask_that_is_damaged_is_one_line(segment_shelf, photo, coffee, tmp_path, tally):
    explore, mask = Explore(segment_shelf), tmp_path / "mask.png"
    good = io.BytesIO()
    Image.fromarray(np.zeros((coffee.shape[1], coffee.shape[0]), np.uint8)).save(good, "PNG")
    state = Shown(str(photo), uploaded=True, model="scene", view=WHOLE)
    lines = 0
    for data in damaged([good.getvalue()], 40, 3):
        mask.write_bytes(data)
        _, _, line, _ = explore.open_mask({"path": str(mask)}, state)
        if line:
            lines += 1
            assert line.count("<") == 2
            assert str(tmp_path) not in line
    assert lines > 10
    tally("damaged images tried", 40)


def bomb() -> bytes:
    """A whole PNG of 20 kB and 169 megapixels."""
    file = io.BytesIO()
    Image.new("1", (13_000, 13_000)).save(file, "PNG", compress_level=9)
    assert len(file.getvalue()) < 30_000
    return file.getvalue()


def test_a_bomb_is_refused_over_http(page):
    event, told = call(page.local_url, "extract", upload(page.local_url, bomb(), "photo.png"), "own", WHOLE)
    assert event == "error"
    assert "photo.png' is 13000 x 13000 = 169.0 megapixels; at most 40 are read: shrink it" in told["error"]


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("1", "PNG"), ("L", "JPEG"), ("LA", "PNG"), ("P", "GIF"), ("I;16", "PNG"), ("CMYK", "JPEG"), ("RGBA", "WEBP")],
)
def test_photos_of_every_mode_are_shown(shelf, coffee, tmp_path, mode, kind):
    image = Image.fromarray(coffee[::8, ::8])
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    else:
        image = image.convert(mode)
    path = tmp_path / "photo"
    image.save(path, kind)
    canvas, _, line, _ = Explore(shelf).open_upload({"path": str(path)}, "own", WHOLE)
    assert line == ""
    assert canvas["geometry"]["original"] == [50, 75]


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (31, 17)])
def test_photos_of_odd_sizes_are_shown(shelf, tmp_path, size):
    path = tmp_path / "photo.png"
    Image.new("RGB", size, (200, 30, 30)).save(path)
    canvas, _, line, _ = Explore(shelf).open_upload({"path": str(path)}, "own", WHOLE)
    assert line == ""
    assert canvas["geometry"]["original"] == [size[1], size[0]]


# --- nothing of a photo but its pixels goes out

SECRETS = (b"SECRETCAMERA", b"SECRETPLACE", b"SECRETNOTE", b"GPSLatitude", b"Exif\0\0")


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_no_metadata_leaves_the_page(page, shelf, coffee, tmp_path, kind):
    """Neither in the canvas's payload, nor in the arrays, nor in a report's ZIP file."""
    exif = Image.Exif()
    exif[0x010F] = "SECRETCAMERA"
    place = exif.get_ifd(0x8825)
    place[1], place[2], place[28] = "N", (52.0, 31.0, 12.0), b"SECRETPLACE"
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Comment", "SECRETNOTE")
    path = tmp_path / f"holiday.{kind.lower()}"
    options = {"pnginfo": notes} if kind == "PNG" else {"comment": b"SECRETNOTE"}
    Image.fromarray(coffee[::4, ::4]).save(path, kind, exif=exif, **options)
    raw = path.read_bytes()
    assert all(secret in raw for secret in SECRETS[:3])

    explore = Explore(shelf)
    canvas, state, _, _ = explore.open_upload({"path": str(path)}, "own", WHOLE)
    out = [json.dumps(canvas).encode()]
    event, (summary, file) = call(page.local_url, "extract", upload(page.local_url, raw, path.name), "own", WHOLE)
    assert event == "complete"
    out += [json.dumps(summary).encode(), httpx.get(file["url"]).content]
    report = next(fn.fn.__self__ for fn in page.fns.values() if isinstance(getattr(fn.fn, "__self__", None), Analyses))
    out.append(Path(report.pack(state, {}, lambda *_: None)).read_bytes())
    assert len(out[2]) > 1000
    for data in list(out):
        if data[:2] == b"PK":
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                out += [archive.read(name) for name in archive.namelist()]
    assert len(out) > 6
    for data in out:
        for secret in SECRETS:
            assert secret not in data
