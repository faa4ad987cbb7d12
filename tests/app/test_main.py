import socket
import subprocess
import sys
from pathlib import Path

import pytest

import app
from app.__main__ import main

ROOT = Path(app.__file__).parent.parent


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--auth", "me"], "--auth must be USER:PASSWORD"),
        (["--auth", ":secret"], "--auth must be USER:PASSWORD"),
        (["--port", "http"], "'http' is no port: give a number from 1 to 65535"),
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


def test_a_port_in_use_is_one_line(models, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["--model", "own", "--device", "cpu", "--port", str(port)]) == 2
    assert capsys.readouterr().err == f"error: cannot listen on 127.0.0.1:{port}; try another --port\n"


def test_the_script_finds_the_package_from_any_folder(tmp_path):
    """app.py and app/ have one name: the package must win."""
    done = subprocess.run(
        [sys.executable, ROOT / "app.py", "--help"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "--model NAME|PATH" in done.stdout
