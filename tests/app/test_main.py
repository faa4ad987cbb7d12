import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from gradio import Blocks, networking

import app
from app.__main__ import main

ROOT = Path(app.__file__).parent.parent


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    """What ``main`` sets ends with the test."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--auth", "me"], "--auth must be USER:PASSWORD"),
        (["--auth", ":secret"], "--auth must be USER:PASSWORD"),
        (["--port", "http"], "'http' is no port: give a number from 1 to 65535"),
        (["--host", ".."], "argument --host: '..' is no address of this machine"),
        (["--host", "a..b"], "argument --host: 'a..b' is no address of this machine"),
        (["--host", "a" * 64], "is no address of this machine"),
        (["--host", "\udcff"], "argument --host: '\\udcff' is no address of this machine"),
    ],
)
def test_wrong_options_are_one_line(arguments, line, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert line in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--model", "onw"], "error: no checkpoint named 'onw'"),
        (["--model", "own", "--device", "tpu9"], "error: cannot use device 'tpu9'"),
        (["--model", "own", "--engine", "tensorrt"], "error: unknown engine 'tensorrt'"),
        (["--model", "own", "--dtype", "int8"], "error: unknown dtype 'int8'"),
        (["--model", "/nowhere/x.safetensors"], "error: /nowhere/x.safetensors: no such file"),
    ],
)
def test_a_model_or_device_that_is_not_there_stops_the_start(arguments, line, models, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(line)
    assert error.count("\n") == 1


@pytest.fixture
def launched(monkeypatch) -> Iterator[list[Blocks]]:
    """The pages that ``main`` starts here, which then returns at once; they, and no others, are closed at the end."""
    pages = []

    def launch(self, prevent_thread_lock=False, **options):
        pages.append(self)
        return real(self, prevent_thread_lock=True, **options)

    real = Blocks.launch
    monkeypatch.setattr(Blocks, "launch", launch)
    yield pages
    for page in pages:
        page.close(verbose=False)


@pytest.fixture
def port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def test_a_page_that_a_proxy_hides_is_one_line(models, launched, port, capsys, monkeypatch):
    monkeypatch.setattr(networking, "url_ok", lambda _: False)  # as Gradio finds it out
    assert main(["--model", "own", "--device", "cpu", "--port", str(port)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: the page does not answer on 127.0.0.1:")
    assert "NO_PROXY" in error
    assert error.count("\n") == 1


def test_a_proxy_does_not_hide_the_page(models, launched, port, monkeypatch):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        assert main(["--model", "own", "--device", "cpu", "--port", str(port)]) == 0
        assert launched[0].local_url == f"http://127.0.0.1:{port}/"


def test_a_port_in_use_is_one_line(models, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["--model", "own", "--device", "cpu", "--port", str(port)]) == 2
    assert capsys.readouterr().err == f"error: cannot listen on 127.0.0.1:{port}; try another --port\n"


def test_a_file_that_cannot_be_read_is_not_taken_for_a_port_in_use(models, monkeypatch, capsys):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "runs/mine")

    monkeypatch.setattr("app.page.build_page", refuse)
    assert main(["--port", "7999"]) == 2
    assert capsys.readouterr().err == "error: runs/mine: Permission denied\n"


def test_the_script_finds_the_package_from_any_folder(tmp_path):
    """app.py and app/ have one name: the package must win."""
    done = subprocess.run(
        [sys.executable, ROOT / "app.py", "--help"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "--model NAME|PATH" in done.stdout
