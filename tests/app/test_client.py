"""The page's endpoints through gradio_client, and the example that shows them."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from app.__main__ import main
from app.datasets import DataRoot
from app.explore import VIEWS
from app.page import build_page, launch_options
from vtviz.explain.atlas_file import parse_atlas, read_atlas, save_atlas
from vtviz.explain.compare import compare, side_of_maps
from vtviz.explain.dissection import dissect
from vtviz.predictor import extract_tokens

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "client.py"
PUBLIC = {
    "/extract": ("photo", "model", "view"),
    "/compare": ("photo", "model", "second_photo", "second_model"),
    "/atlas": ("model",),
    "/dissect": ("model", "data", "masks", "n"),
    "/video": ("files", "model", "layer", "tokens", "every", "frames", "kind"),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory, chelsea, coffee, astronaut) -> Path:
    """A data root with one set, of five photos."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    folder.mkdir()
    for i, image in enumerate((chelsea, coffee, astronaut, chelsea[:, ::-1], coffee[:, ::-1])):
        Image.fromarray(image).save(folder / f"{i}.png")
    return folder.parent


@pytest.fixture(scope="module")
def address(shelf, data) -> str:
    """The page with all that it can do; the model "own" has an atlas."""
    path = Path(shelf.source("own")).with_suffix(".atlas.json")
    save_atlas(path, dissect(shelf.get("own"), data / "photos"))
    page = build_page(shelf, data=DataRoot(data))
    options = launch_options() | {"server_name": "127.0.0.1", "server_port": None, "quiet": True}
    _, url, _ = page.launch(prevent_thread_lock=True, **options)
    yield url
    page.close(verbose=False)
    path.unlink()


@pytest.fixture(scope="module")
def client(address, tmp_path_factory) -> Client:
    return Client(address, verbose=False, download_files=tmp_path_factory.mktemp("downloads"))


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("client_example", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_endpoint_is_named_typed_and_documented_and_nothing_else_is_public(client):
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    assert {name: tuple(p["parameter_name"] for p in each["parameters"]) for name, each in endpoints.items()} == PUBLIC
    for each in endpoints.values():
        assert len(each["description"]) > 80
        assert all(part["python_type"]["type"] for part in (*each["parameters"], *each["returns"]))
    assert not client.view_api(return_format="dict")["unnamed_endpoints"]


@pytest.mark.parametrize("view", VIEWS)
def test_the_example_s_arrays_are_the_api_s_bit_for_bit(example, client, photo, models, view):
    summary, file = example.extract(client, photo, "own", view)
    expected = extract_tokens(photo, str(models / "own.safetensors"), crop=VIEWS[view])
    assert summary["prediction"][0]["label"] == expected.topk(1)[0].label
    with np.load(file) as stored:
        assert stored["logits"].tobytes() == expected.logits.tobytes()
        assert {name.partition(".")[0] for name in stored.files} == {"logits", "block0", "block1"}
        for layer in expected.layers:
            for name in ("coefficients", "attention", "projector"):
                array = getattr(layer, name)
                assert (f"{layer.name}.{name}" in stored.files) == (array is not None)
                if array is not None:
                    assert stored[f"{layer.name}.{name}"].tobytes() == array.tobytes()


def test_a_comparison_is_that_of_the_api(example, client, photo, shelf, chelsea, tmp_path):
    other = tmp_path / "cat.png"
    Image.fromarray(chelsea).save(other)
    got = example.compare(client, photo, "own", other)
    sides = [side_of_maps(shelf.get("own").extract(each), "own") for each in (photo, other)]
    assert got == json.loads(json.dumps(compare(*sides).to_dict()))
    alone = client.predict(handle_file(photo), "own", None, "blank", api_name="/compare")
    assert alone["labels"] == ["own", "blank"]


def test_an_atlas_is_read_and_made(example, client, shelf, data):
    told = example.atlas(client, "own")
    assert told == read_atlas(Path(shelf.source("own")).with_suffix(".atlas.json")).to_dict()
    made, file = client.predict("blank", "photos", "none", 3, api_name="/dissect")
    assert parse_atlas(made).data.n == 3
    assert read_atlas(file).to_dict() == made
    expected = dissect(shelf.get("blank"), data / "photos", limit=3)
    np.testing.assert_allclose(parse_atlas(made).layers[0].trained.peak, expected.layers[0].trained.peak, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "name", "line"),
    [
        (("blank",), "/atlas", "No atlas of blank yet"),
        (("owl",), "/atlas", "this page has no model"),
        (("own", "../photos", "none", 3), "/dissect", "there is no data set"),
        (("own", "photos", "none", 1), "/dissect", "a whole number from 2"),
        ((None, "own", None, "own"), "/compare", "no longer on the server"),
    ],
)
def test_a_wrong_call_is_answered_with_one_line(client, arguments, name, line):
    with pytest.raises(AppError, match=line) as raised:
        client.predict(*arguments, api_name=name)
    assert "\n" not in str(raised.value)


def test_the_example_runs_as_it_is(address, tmp_path, photo):
    done = subprocess.run(
        [sys.executable, EXAMPLE, photo, "--page", address, "--model", "own", "--out", tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "block0.coefficients: float32 (1, 16, " in done.stdout
    assert "atlas over 5 photos of photos" in done.stdout
    gone = subprocess.run(
        [sys.executable, EXAMPLE, "--page", "http://127.0.0.1:9"], capture_output=True, text=True, check=False
    )
    assert gone.returncode == 1
    assert gone.stderr.startswith("error: ")
    assert gone.stderr.count("\n") == 1


def test_without_the_package_mcp_one_line_says_what_to_install(monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if name == "mcp" else find(name))
    with pytest.raises(SystemExit) as stop:
        main(["--mcp"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("--mcp needs a package more: pip install 'gradio[mcp]'")
