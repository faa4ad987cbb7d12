"""Who may come in, what they may ask for and how often, and that no file and no address is fetched on their word."""

import http.client
import http.server
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import gradio as gr
import pytest
from gradio import route_utils
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

import app
from app.__main__ import main
from app.armour import BURST, CLIENTS, HEADERS, PER_SECOND, Armour, RateLimit
from app.explore import KEEP_SECONDS, VIEWS
from app.page import build_page, launch_options
from app.shown import EXPIRED
from app.stops import TooLong, deadline

ROOT = Path(app.__file__).parent.parent
WHOLE = next(iter(VIEWS))


def ask(address: str, path: str, method: str = "GET", body: object = None, **headers: str) -> tuple[int, str, dict]:
    """Status, text and headers, of a path that is sent exactly as it is."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=30)
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    kind = {} if body is None or "Content-Type" in names else {"Content-Type": "application/json"}
    connection.putrequest(method, path, skip_host="Host" in names)
    for name, value in (names | kind | ({} if data is None else {"Content-Length": str(len(data))})).items():
        connection.putheader(name, value)
    connection.endheaders(data)
    answer = connection.getresponse()
    text = answer.read().decode(errors="replace")
    connection.close()
    return answer.status, text, {name.lower(): value for name, value in answer.getheaders()}


def upload(address: str, data: bytes, name: str = "photo.jpg") -> str:
    """Upload a file, under a name that is sent exactly as it is; where it then lies."""
    body = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode() + data
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    status, text, _ = ask(address, "/gradio_api/upload", "POST", body + b"\r\n--x--\r\n", **kind)
    assert status == 200
    return json.loads(text)[0]


@pytest.fixture(scope="module")
def open_address(serve, shelf) -> Iterator[str]:
    """The page as it is served where other machines reach it."""
    with serve(build_page(shelf), **launch_options(reachable=True)) as url:
        yield url


# --- the start


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0 lets other machines reach the page: add --auth USER:PASSWORD"),
        (["--host", "::"], "or --public for everybody"),
        (["--host", "192.0.2.7"], "--host 192.0.2.7 lets other machines reach the page"),
        (["--share"], "--share lets other machines reach the page"),
        (["--share", "--allow-training"], "--share lets other machines reach the page"),
    ],
)
def test_a_page_that_others_reach_does_not_start_without_a_word(arguments, line, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert line in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "reachable"),
    [
        ([], False),
        (["--auth", "me:secret"], False),
        (["--public"], True),  # behind a proxy
        (["--public", "--auth", "me:secret"], True),
        (["--host", "0.0.0.0", "--public"], True),
        (["--host", "0.0.0.0", "--auth", "me:secret", "--allow-training"], True),
        (["--share", "--auth", "me:secret"], True),
    ],
)
def test_what_others_reach_is_guarded_and_trains_only_if_told_to(
    arguments, reachable, models, tmp_path, monkeypatch, capsys
):
    seen = []
    monkeypatch.setattr(gr.Blocks, "launch", lambda page, **options: seen.append((page, options)))
    common = ["--model", "own", "--device", "cpu", "--data-root", str(tmp_path), "--runs", str(tmp_path / "runs")]
    assert main([*common, *arguments]) == 0
    [(page, options)] = seen
    [middleware] = options["app_kwargs"]["middleware"]
    assert middleware.kwargs == {"reachable": reachable}
    assert options["allowed_paths"] == []
    assert options["run_history"] is options["enable_monitoring"] is options["show_error"] is False
    assert page.analytics_enabled is False
    names = {f.name for f in page.fns.values()}
    assert ("dissect" in names) == ("trial" in names) == (not reachable or "--allow-training" in arguments)


# --- doors


def test_every_answer_carries_the_headers(address, open_address):
    for url in (address, open_address):
        for path in ("/", "/config", "/nowhere", "/gradio_api/file=/etc/passwd", "/theme.css", "/gradio_api/info"):
            headers = ask(url, path)[2]
            assert {name: headers.get(name.lower()) for name in HEADERS} == HEADERS, path
    policy = HEADERS["Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    for name in ("default-src", "base-uri", "form-action", "frame-ancestors"):  # the last three have no default
        assert rules[name] == "'self'"
    assert rules["object-src"] == "'none'"
    assert "data:" not in rules["script-src"] + rules["style-src"]
    assert "http" not in policy
    assert "*" not in policy
    assert HEADERS["X-Content-Type-Options"] == "nosniff"
    assert HEADERS["X-Frame-Options"] == "SAMEORIGIN"
    assert HEADERS["Referrer-Policy"] == HEADERS["Cross-Origin-Resource-Policy"] == "same-origin"
    assert "microphone=()" in HEADERS["Permissions-Policy"]


@pytest.mark.parametrize(
    "path",
    [
        "/proxy=http://example.org/",
        "/gradio_api/proxy=http://example.org/",
        "/gradio_api/proxy=https://huggingface.co/api/whoami-v2",
        "/gradio_api/deep_link?session_hash=a",
        "/gradio_api/run-history/records",
        "/gradio_api/component_server",
        "/gradio_api/stream/a/b/1/playlist-file",
        "/gradio_api/process_recording",
        "/gradio_api/vibe-code",
        "/gradio_api/custom_component/1/client/component/index.js",
        "/gradio_api/file/etc/passwd",
        "/monitoring",
        "/monitoring/summary",
        "/dev/reload",
        "/docs",
        "/redoc",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_routes_that_the_page_does_not_need_are_closed(address, path, method):
    assert ask(address, path, method)[0] == 404


@pytest.mark.parametrize("reachable", [False, True])
def test_no_web_socket_gets_past_the_door(awaited, reachable):
    """A browser opens one to any site without asking; the page uses none."""
    reached, sent = [], []

    async def behind(*_: object) -> None:
        reached.append(True)

    async def send(message: dict) -> None:
        sent.append(message)

    door = Armour(behind, reachable=reachable)
    scope = {"type": "websocket", "path": "/gradio_api/queue/join", "headers": [(b"host", b"localhost")]}
    awaited(door(scope, None, send))
    assert (reached, sent) == ([], [{"type": "websocket.close", "code": 1008}])
    awaited(door({"type": "lifespan"}, None, send))  # the server's own start and end
    assert reached == [True]


def test_no_address_is_fetched(address, tally):
    asked = []

    class Listener(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)

    server = http.server.HTTPServer(("127.0.0.1", 0), Listener)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    there = f"//127.0.0.1:{server.server_port}/secret.png"
    schemes = ("http:", "https:", "HTTP:", "hTTps:", "ftp:", "file:", "data:", "gopher:", "s3+x:")
    tried = [f"/gradio_api/file={quote(scheme + there, safe=safe)}" for scheme in schemes for safe in ("", ":/")]
    tried += [f"/gradio_api/proxy={scheme}{there}" for scheme in schemes] + [f"/{there}"]
    for path in tried:
        assert ask(address, path)[0] == 404, path
        assert ask(address, path, "HEAD")[0] == 404
    for scheme in ("http:", "https:", "HTTP:"):  # behind a slash, or none, it is a path that is not there
        for path in (f"/gradio_api/file=/{scheme}{there}", f"/gradio_api/file=./{scheme}{there}"):
            assert ask(address, path)[0] == 403
            tried.append(path)
    server.shutdown()
    server.server_close()
    assert asked == []
    tally("addresses given to be fetched (none was)", len(tried))


def test_a_model_is_one_of_the_page_s(address, photo, tmp_path):
    client = Client(address, verbose=False, download_files=tmp_path)
    for name in ("hf://owner/name", "http://127.0.0.1:1/x.safetensors", "../own", "/etc/passwd", "runs/../own"):
        with pytest.raises(AppError, match="this page has no model"):
            client.predict(handle_file(photo), name, WHOLE, api_name="/extract")


def test_files_of_the_server_are_out_of_reach(address, models, tmp_path, monkeypatch, tally):
    """Gradio's own tests of /file, with more ways to write a path."""
    secret = tmp_path / "secret.txt"
    secret.write_text("the secret")
    monkeypatch.chdir(tmp_path)
    mine = Path(upload(address, b"mine"))
    assert ask(address, f"/gradio_api/file={mine}")[:2] == (200, "mine")
    link = mine.parent / f"{tmp_path.name}.txt"
    link.unlink(missing_ok=True)
    link.symlink_to(secret)  # nobody can upload one, but still
    up = "/".join([".."] * 12)
    targets = [secret, *(ROOT / name for name in ("app.py", "pyproject.toml", "app/page.py", ".git/config"))]
    targets += [models / "own.json", models / "own.safetensors", Path.home() / ".bashrc", Path("/etc/passwd")]
    plain = [str(path) for path in targets] + [f"{mine}/../../../..{path}" for path in targets]
    plain += [f"{mine.parent}/{up}{path}" for path in targets] + [f"{up}{path}" for path in targets]
    plain += [f"/proc/self/root{path}" for path in targets] + [f"/{path}" for path in targets]
    plain += ["secret.txt", "./secret.txt", "/proc/self/cwd/secret.txt", "/proc/self/environ", "/dev/fd/0", str(link)]
    plain += ["", ".", "/", str(mine.parent), str(mine.parent.parent), f"{mine}\0.png", "~/.bashrc", "$HOME/.bashrc"]
    plain += [f"{path}\0.png" for path in targets[:2]] + [f"file://{path}" for path in targets[:2]]
    plain += [str(path).replace("/", "\\") for path in targets[:2]] + [f"{up}{targets[0]}".replace("..", "....//")]
    spelt = [each for path in plain for each in (quote(path), quote(path, safe=""), quote(quote(path, safe="")))]
    spelt += [quote(path).replace("..", "%2e%2e") for path in plain if ".." in path]
    spelt += [path.replace("..", "%c0%ae%c0%ae").replace("\0", "%00").replace("\\", "%5c") for path in plain[:60]]
    doors = ("/gradio_api/file=", "/file=", "/gradio_api/file/", "/static/", "/assets/", "/svelte/", "/pwa_icon/", "/")
    count = 0
    for path in spelt:
        for door in doors:
            status, text, _ = ask(address, door + path)
            count += 1
            if not text.startswith("<!doctype html>"):  # the page itself, where a path is nothing but dots
                assert status >= 300, (door, path)
                assert not any(word in text for word in ("the secret", "root:", "[project]", "import ", '"classes"'))
    link.unlink()
    tally("paths to files of the server tried (none was served)", count)


@pytest.mark.parametrize(
    "name", ["../../x.png", "/etc/x.png", "..\\\\..\\\\x.png", "a/../../x.png", "%2e%2e%2fx.png", ""]
)
def test_an_upload_lies_where_uploads_lie(address, name):
    folder = Path(upload(address, b"known")).parents[1]
    path = Path(upload(address, b"data of " + name.encode(), name or "x"))
    assert path.resolve().parents[1] == folder.resolve()
    assert path.read_bytes().startswith(b"data of")


def test_an_upload_that_is_too_large_is_refused_while_it_comes(address, monkeypatch):
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="x.jpg"\r\n\r\n' + bytes(101_000_000)
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    status, text, _ = ask(address, "/gradio_api/upload", "POST", body + b"\r\n--x--\r\n", **kind)
    assert (status, "maximum allowed size" in text) == (413, True)


def test_nobody_passes_by_the_queue(address):
    calls = json.loads(ask(address, "/config")[1])["dependencies"]
    for each in calls:
        if each["queue"] is not False and each["backend_fn"]:
            body = {"data": [None] * len(each["inputs"]), "fn_index": each["id"], "session_hash": "s"}
            assert ask(address, "/gradio_api/run/predict", "POST", body)[0] == 404


def test_another_web_site_may_not_act_for_a_visitor(address):
    body = {"data": [], "fn_index": 0, "session_hash": "s"}
    for path in ("/gradio_api/queue/join", "/gradio_api/run/predict", "/gradio_api/upload", "/gradio_api/cancel"):
        status, text, _ = ask(address, path, "POST", body, Sec_Fetch_Site="cross-site", Origin="http://evil.example")
        assert (status, "Another web site" in text) == (403, True)
    assert ask(address, "/", Sec_Fetch_Site="cross-site")[0] == 200  # a link to the page


def test_a_page_of_this_machine_has_this_machine_s_names_only(address, open_address):
    """Or else any web site could make its own name point here, and be let in."""
    port = urlsplit(address).port
    for host in (f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}", "localhost"):
        assert ask(address, "/config", Host=host)[0] == 200
    for host in (
        "evil.example",
        f"evil.example:{port}",
        "127.0.0.1.evil.example",
        "192.168.0.7",
        "",
        "[",
        "localhost@x",
    ):
        status, text, _ = ask(address, "/config", Host=host)
        assert (status, "start it with --public" in text) == (403, True), host
    assert ask(open_address, "/config", Host="my.example")[0] == 200


# --- limits


def test_each_client_has_a_limit_where_others_reach_the_page(address, open_address):
    answers = (ask(open_address, "/robots.txt") for _ in range(20 * BURST))
    _, text, headers = next(answer for answer in answers if answer[0] == 429)  # a busy machine takes more than BURST
    assert json.loads(text) == {
        "detail": f"Too many requests from your address; try again in {headers['retry-after']} s."
    }
    assert ask(open_address, "/favicon.ico")[0] == 200  # the page's own files are not counted
    time.sleep(2 / PER_SECOND)
    assert ask(open_address, "/robots.txt")[0] == 200
    assert {ask(address, "/robots.txt")[0] for _ in range(BURST + 60)} == {200}  # this machine's own page


def test_a_limit_is_each_client_s_own_and_forgets():
    now = [0.0]
    limit = RateLimit(lambda: now[0])
    assert [limit.take("1.2.3.4") for _ in range(BURST)] == [0.0] * BURST
    assert limit.take("1.2.3.4") >= 1
    assert limit.take("1.2.3.5") == 0
    assert {limit.take(f"2001:db8::{i:x}") for i in range(BURST)} == {0.0}
    assert limit.take("2001:db8::ffff") >= 1  # one network, one client
    assert limit.take("2001:db8:0:1::1") == 0
    now[0] += 1
    assert [limit.take("1.2.3.4") == 0 for _ in range(7)] == [True] * 5 + [False] * 2
    now[0] += 1e6
    assert [limit.take("1.2.3.4") == 0 for _ in range(BURST + 1)] == [True] * BURST + [False]
    for i in range(CLIENTS + 10):
        limit.take(f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}")
    assert len(limit._left) == CLIENTS


def test_work_ends_where_the_page_s_patience_does(serving, shelf, photo, tmp_path):
    url = serving(build_page(shelf, seconds=0.0))
    client = Client(url, verbose=False, download_files=tmp_path)
    for name, more in (("/ablate", ("",)), ("/attribute", ("",))):
        with pytest.raises(AppError, match="works 0 s on one call at most"):
            client.predict(handle_file(photo), "own", WHOLE, *more, api_name=name)
    with pytest.raises(AppError, match="works 0 s on one call at most"):
        client.predict([handle_file(photo)], "own", "block0", "", 1, 5, "webp", api_name="/video")
    client.close()
    deadline(None)()
    check = deadline(0.05)
    check()
    time.sleep(0.06)
    with pytest.raises(TooLong):
        check()


def test_uploads_are_deleted_when_they_are_old(serving, shelf, photo, tmp_path):
    page = build_page(shelf)
    assert page.delete_cache == (600, KEEP_SECONDS)
    page.delete_cache = (1, 2)
    url = serving(page)
    data = photo.read_bytes() + b"not what other tests upload"
    path = Path(upload(url, data))
    client = Client(url, verbose=False, download_files=tmp_path)
    file = {"path": str(path), "meta": {"_type": "gradio.FileData"}}
    made = client.predict(file, "own", WHOLE, api_name="/extract")
    assert made
    end = time.monotonic() + 30
    while path.is_file() and time.monotonic() < end:
        time.sleep(0.2)
    assert not path.is_file()
    assert ask(url, f"/gradio_api/file={path}")[0] == 403
    join = {"data": [file, "own", WHOLE]}
    event = json.loads(ask(url, "/gradio_api/call/extract", "POST", join)[1])["event_id"]
    assert EXPIRED in ask(url, f"/gradio_api/call/extract/{event}")[1]
    client.close()


def test_a_file_that_comes_while_old_ones_are_deleted_does_not_end_that_for_good(shelf, tmp_path, monkeypatch):
    page = build_page(shelf)
    result = next(block for block in page.blocks.values() if isinstance(block, gr.Image))
    old = [tmp_path / str(number) for number in range(6)]
    for number, path in enumerate(old):
        path.write_bytes(b"")
        (page.upload_file_set if number < 3 else result.temp_files).add(str(path))

    def remove(path: str) -> None:  # as if another thread took an upload and made a result just then
        Path(path).unlink()
        page.upload_file_set.update(str(tmp_path / f"new{number}") for number in range(100))
        result.temp_files.update(str(tmp_path / f"made{number}") for number in range(100))

    monkeypatch.setattr(route_utils.os, "remove", remove)
    route_utils.delete_files_created_by_app(page, age=None)
    assert not any(path.exists() for path in old)
    assert not {str(path) for path in old} & (page.upload_file_set | result.temp_files)
    assert str(tmp_path / "new99") in page.upload_file_set


def test_what_is_left_is_deleted_when_the_page_stops(serve, shelf):
    with serve(build_page(shelf)) as url:
        path = Path(upload(url, b"left behind"))
        assert path.is_file()
    end = time.monotonic() + 10
    while path.is_file() and time.monotonic() < end:
        time.sleep(0.1)
    assert not path.exists()
