"""The page's endpoints through gradio_client, and the example that shows them."""

import importlib.util
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

import app
from app.__main__ import main
from app.datasets import DataRoot
from app.explore import VIEWS
from app.page import build_page
from vtviz.explain.ablation import ablate
from vtviz.explain.atlas_file import parse_atlas, read_atlas, save_atlas
from vtviz.explain.attribution import attribute
from vtviz.explain.compare import compare, side_of_maps
from vtviz.explain.dissection import dissect
from vtviz.explain.lineage import lineage
from vtviz.explain.query import query
from vtviz.shortcuts import extract_tokens

PHOTO = handle_file(Path(app.__file__).parent / "photos" / "cat.jpg")
WHOLE = next(iter(VIEWS))
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "client.py"
PUBLIC = {
    "/extract": ("photo", "model", "view"),
    "/ablate": ("photo", "model", "view", "target", "mask"),
    "/attribute": ("photo", "model", "view", "target"),
    "/lineage": ("photo", "model", "view"),
    "/query": ("photo", "model", "view", "x", "y", "x1", "y1"),
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
def address(serve, shelf, data) -> str:
    """The page with all that it can do; the model "own" has an atlas."""
    path = Path(shelf.source("own")).with_suffix(".atlas.json")
    save_atlas(path, dissect(shelf.get("own"), data / "photos"))
    with serve(build_page(shelf, data=DataRoot(data))) as url:
        yield url
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


def plain(result) -> dict:
    return json.loads(json.dumps(result.to_dict()))


@pytest.mark.parametrize("target", ["", "Rocket", "3"])
def test_an_ablation_is_that_of_the_api(example, client, photo, shelf, target):
    got = example.ablate(client, photo, "own", target)
    index = {"": None, "Rocket": 2, "3": 3}[target]
    assert got == plain(ablate(shelf.get("own"), photo, target=index)) | {"image": None}
    if target:
        assert got["target"]["index"] == index


def test_a_segmentation_s_ablation_is_scored_against_the_mask(segment_address, segment_shelf, photo, tmp_path):
    client = Client(segment_address, verbose=False, download_files=tmp_path)
    truth = np.ones((400, 600), np.uint8)
    Image.fromarray(truth).save(tmp_path / "mask.png")
    asked = {"photo": handle_file(photo), "model": "scene", "api_name": "/ablate"}
    got = client.predict(**asked, mask=handle_file(tmp_path / "mask.png"))
    assert got == plain(ablate(segment_shelf.get("scene"), photo, truth=truth)) | {"image": None}
    assert client.predict(**asked)["layers"][0]["effects"]["absent"]["iou"] is None
    small = tmp_path / "small.png"
    Image.fromarray(truth[:9, :9]).save(small)
    with pytest.raises(AppError, match=r"small\.png has 9 x 9 pixels, but the photo has 600 x 400"):
        client.predict(**asked, mask=handle_file(small))


def test_attributions_arrays_are_the_api_s_bit_for_bit(client, photo, shelf):
    pytest.importorskip("captum")
    got, file = client.predict(handle_file(photo), "own", WHOLE, "person", api_name="/attribute")
    expected = attribute(shelf.get("own"), photo, target=3)
    same = plain(expected)
    for each in (*got["methods"], *same["methods"]):
        assert each.pop("seconds") > 0
    assert got == same | {"image": None}  # where an upload lies is nobody's business
    with np.load(file) as stored:
        assert set(stored.files) == {f"{item.method}{part}" for item in expected.items for part in ("", ".cells")}
        for item in expected.items:
            assert stored[item.method].tobytes() == item.map.tobytes()
            assert stored[f"{item.method}.cells"].tobytes() == item.cells.tobytes()


def test_lineage_and_query_are_those_of_the_api(client, photo, models):
    maps = extract_tokens(photo, str(models / "own.safetensors"))
    descent = lineage(maps)
    got, file = client.predict(handle_file(photo), "own", WHOLE, api_name="/lineage")
    assert got == plain(descent) | {"image": None}
    with np.load(file) as stored:
        assert stored.files == ["block0", "block1"]
        for array, each in zip(stored.values(), descent.attention, strict=True):
            assert array.tobytes() == each.tobytes()
    for place, numbers in ({"at": (70, 50)}, (70, 50)), ({"box": (10, 20, 90, 80)}, (10, 20, 90, 80)):
        got = client.predict(handle_file(photo), "own", WHOLE, *numbers, api_name="/query")
        assert got == plain(query(maps, **place)) | {"image": None}


def test_a_comparison_is_that_of_the_api(example, client, photo, shelf, chelsea, tmp_path):
    other = tmp_path / "cat.png"
    Image.fromarray(chelsea).save(other)
    got = example.compare(client, photo, "own", other)
    sides = [replace(side_of_maps(shelf.get("own").extract(each), "own"), source=None) for each in (photo, other)]
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
        (("owl",), "/atlas", "this page has no model 'owl'; did you mean 'own'"),
        (("own", "../photos", "none", 3), "/dissect", "there is no data set"),
        (("own", "photos", "none", 1), "/dissect", "a whole number from 2"),
        ((None, "own", None, "own"), "/compare", "no longer on the server"),
        ((PHOTO, "own", None, "owl"), "/compare", "this page has no model 'owl'"),
        ((PHOTO, "owl", WHOLE), "/extract", "this page has no model 'owl'"),
        ((None, "own", WHOLE, "", None), "/ablate", "a photo is needed"),
        ((PHOTO, "plain", WHOLE, "", None), "/ablate", "without tokens"),
        ((PHOTO, "own", WHOLE, "tabby", None), "/ablate", "the model has no class 'tabby'; did you mean 'tabby cat'"),
        ((PHOTO, "own", WHOLE, "5"), "/attribute", "the model has no class '5'"),
        ((PHOTO, "own", WHOLE, "9" * 9000), "/attribute", "the model has no class '999"),
        ((PHOTO, "own", WHOLE, [1, {}], None), "/ablate", r"the model has no class '\[1, {}\]'"),
        ((PHOTO, ["own"], WHOLE), "/lineage", r"this page has no model \"\['own'\]\""),
        ((PHOTO, "own", 5, "", None), "/ablate", "unknown view '5'"),
        ((PHOTO, "own", WHOLE, "a", None), "/query", "at needs two whole numbers"),
        ((PHOTO, "own", WHOLE, 600, 0), "/query", "the pixel 600, 0 is outside the image of"),
        ((PHOTO, "own", WHOLE, 1, 1, 9, None), "/query", "box needs four whole numbers"),
        ((PHOTO, "own", WHOLE, 0.5, 0), "/query", "at needs two whole numbers"),
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
    assert re.search(r"block1: without token (kept (8|9|1[0-5])|[0-7]) .+ has [-+]\d", done.stdout)
    gone = subprocess.run(
        [sys.executable, EXAMPLE, "--page", "http://127.0.0.1:9"], capture_output=True, text=True, check=False
    )
    assert gone.returncode == 2
    assert gone.stderr.startswith("error: ")
    assert gone.stderr.count("\n") == 1


def test_with_mcp_the_endpoints_are_tools(serving, shelf, data):
    pytest.importorskip("mcp")
    url = serving(build_page(shelf, data=DataRoot(data)), mcp_server=True)
    tools = httpx.get(f"{url}gradio_api/mcp/schema").json()
    asked = {tool["name"]: tool["inputSchema"]["properties"] for tool in tools}
    assert {f"/{name}": tuple(each) for name, each in asked.items()} == PUBLIC
    for name in ("extract", "ablate", "attribute", "lineage", "query"):
        assert all(part["description"] for part in asked[name].values())


@pytest.mark.parametrize(
    "options", [["--auth", "me:secret"], ["--public"], ["--host", "0.0.0.0", "--auth", "me:secret"]], ids=" ".join
)
def test_mcp_is_no_way_past_a_password_or_to_another_machine(options, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--mcp", *options])
    assert stop.value.code == 2
    assert "--mcp serves programs on this machine" in capsys.readouterr().err.splitlines()[-1]


def test_without_the_package_mcp_one_line_says_what_to_install(monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if name == "mcp" else find(name))
    with pytest.raises(SystemExit) as stop:
        main(["--mcp"])
    assert stop.value.code == 2
    assert "--mcp needs a package more: pip install 'gradio[mcp]'" in capsys.readouterr().err.splitlines()[-1]
