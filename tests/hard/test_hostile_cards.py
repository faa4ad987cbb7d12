"""Cards that lie, and names that are ways out: refused with the reason in one line, or shown as text."""

import copy
import os
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import vtviz
from app.about import About
from app.explore import VIEWS, Explore
from app.shelf import Shelf
from tests.hard.lies import FAST, MANY, load_or_refuse, put, refused
from vtviz import checkpoints
from vtviz.cli import main
from vtviz.errors import CheckpointError, VtvizError

HTML = '<img src=x onerror="alert(1)"><script>alert(2)</script>'


def deep(levels: int, value: Any = 1) -> Any:
    for _ in range(levels):
        value = {"a": value}
    return value


LIES: dict[str, dict[str, Any]] = {
    "size": {"preprocessing": {"size": 10**9}},
    "size of text": {"preprocessing": {"size": "224"}},
    "mean": {"preprocessing": {"mean": [float("nan")] * 3}},
    "std": {"preprocessing": {"std": [float("inf")] * 3}},
    "tiny std": {"preprocessing": {"std": [1e-320] * 3}},
    "model": {"model": HTML},
    "model's path": {"model": "../../vt_resnet18"},
    "task": {"task": HTML},
    "epochs": {"epochs": float("nan")},
    "a field": {HTML: 1},
    "palette": {"palette": [[999, -1, 0]] * 5},
    "palette of text": {"palette": [["a", "b", "c"]] * 5},
    "palette of one": {"palette": [[]] * 5},
    "deep": {"config": deep(400)},
    "deep classes": {"classes": [deep(900)] * 5},
    "blocks": {"config": ("stage", "blocks", 10**9)},
    "many blocks": {"config": ("stage", "blocks", 100_000)},
    "heads": {"config": ("stage", "heads", 0)},
    "depth": {"config": ("depth", 10**6)},
    "groups": {"config": ("stage", "kqv_groups", 10**12)},
    "channels": {"config": ("stage", "channels", 10**18)},
    "huge": {"config": ("stage", "token_channels", 10**30)},
    "in_channels": {"config": ("in_channels", 0)},
    "dropout": {"config": ("dropout", float("nan"))},
    "drop_path": {"config": ("drop_path", 1e308)},
}


@pytest.mark.parametrize("name", LIES)
def test_cards_that_lie_are_refused_in_one_line_at_once(folder, weights, card, name, tally):
    changed = copy.deepcopy(card)
    for key, value in LIES[name].items():
        if isinstance(value, tuple):
            *path, last, number = value
            inner = changed[key]
            for step in path:
                inner = inner[step]
            inner[last] = number
        else:
            changed[key] = value
    refused(put(folder, weights, changed))
    tally("cards that lie tried")


TEXTS = [
    "NaN",
    "1e400",
    '"a"',
    "null",
    "9" * 5000,
    "[" * 5000,
    '{"a":' * 900 + "1" + "}" * 900,
    '{"name": "a", "name": "b"}',
    '{"name":"a","model":"b","config":{},"class_ids":[],"classes":' + "[" * 940 + "]" * 940 + "}",
    "\ufeff{}",
    "",
]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_what_is_no_card_is_refused(folder, weights, text):
    refused(put(folder, weights, text))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8) | st.just(HTML),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where everything in a card stands."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(each for key, inner in items for each in paths_of(inner, (*path, key)))]


def lying_cards(data: st.DataObject, folder: Path, weights: bytes, card: dict[str, Any]) -> None:
    """A card with one to three of its values replaced: what loads can be used, and shown on the page."""
    changed = copy.deepcopy(card)
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(paths_of(changed)[1:]))
        inner = changed
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = data.draw(JSON)
    path = put(folder, weights, changed)
    if load_or_refuse(path):
        html = About(Shelf(str(path), device="cpu")).card("bad")
        assert "<script" not in html
        assert "<img" not in html


@FAST
@given(data=st.data())
def test_cards_with_other_values_are_refused_or_harmless(data, folder, weights, card):
    lying_cards(data, folder, weights, card)


@pytest.mark.slow
@MANY
@given(data=st.data())
def test_many_cards_with_other_values_are_refused_or_harmless(data, folder, weights, card):
    lying_cards(data, folder, weights, card)


HARMLESS = {
    "accuracy": {"top1": HTML, "n": HTML, "miou": [1, 2], "size": {}},
    "accuracy of text": {"top1": "0.5"},
    "accuracy of nothing": {"top1": None, "n": None},
    "accuracy of NaN": {"top1": 1e999, "n": -1},
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_a_card_says_of_itself_cannot_stop_the_page(
    folder, weights, card, name, coffee, tmp_path, capsys, monkeypatch
):
    """Free fields may hold anything: the page and the command line show them as text, or leave them out."""
    changed = card | {"accuracy": HARMLESS[name], "data": {"name": HTML, "n": [HTML]}, "notes": HTML, "licence": HTML}
    changed |= {"classes": [HTML, "", "\0", "a\nb", "x" * 10_000], "tokens": deep(40, HTML), "recipe": deep(60)}
    path = put(folder, weights, changed)
    try:
        shelf = Shelf(str(path), device="cpu")
        shelf.get("bad")
    except CheckpointError as error:
        line = str(error)
        assert "\n" not in line
        return
    with gr.Blocks():
        explore = Explore(shelf)
        explore.build()
    photo = tmp_path / "a.png"
    Image.fromarray(coffee[::8, ::8]).save(photo)
    canvas, _, line, _ = explore.open_upload({"path": str(photo)}, "bad", next(iter(VIEWS)))
    assert line == ""
    assert canvas["prediction"]
    html = About(shelf).card("bad")
    assert "<script" not in html
    monkeypatch.setenv("VTVIZ_CHECKPOINTS", str(folder))
    for options in ([], ["--json"]):
        with pytest.raises(SystemExit) as stop:
            main(["models", *options])
        assert stop.value.code == 0, capsys.readouterr().err


# --- names that are ways out

NAMES = [
    "../tiny",
    "../../etc/passwd",
    "..",
    ".",
    "",
    "/etc/passwd",
    "/dev/zero",
    "/proc/self/mem",
    "tiny\0.safetensors",
    "a\0b",
    "~root/x",
    "~nobody-of-this-name/x",
    "tiny/../../tiny",
    "x" * 5000,
    "/" + "x" * 5000,
    "http://127.0.0.1:9/tiny.safetensors",
    "file:///etc/passwd",
    "hf://../..",
    "hf:///etc/passwd",
    "hf://a/b/../../c",
    "C:\\tiny",
    "*",
    "tin?",
    "[tiny]",
    HTML,
]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name[:24]))
def test_a_model_s_name_is_no_way_out(name, folder, monkeypatch, capsys, tmp_path, tally):
    """API, command line and page: one line each. The page knows the names it offers and looks for no other."""
    monkeypatch.setenv("VTVIZ_CHECKPOINTS", str(folder))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(VtvizError) as caught:
        vtviz.load_model(name)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 6000
    photo = tmp_path / "a.png"
    photo.write_bytes(b"")
    with pytest.raises(SystemExit) as stop:
        main(["extract", str(photo), "--out", str(tmp_path / "out"), "--model", name])
    if name:  # an empty one means the default
        assert stop.value.code == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
    explore = Explore(Shelf(str(folder / "tiny.safetensors"), device="cpu"))
    canvas, _, line, _ = explore.open_upload({"path": str(photo)}, name, next(iter(VIEWS)))
    assert "this page has no model" in line
    assert "<img" not in line
    assert not isinstance(canvas, dict) or "layers" not in canvas
    tally("names that are ways out tried", 3)


@pytest.mark.timeout(60)
def test_a_checkpoint_that_is_no_regular_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "pipe.json").write_text("{}")
    with pytest.raises(CheckpointError):
        checkpoints.load(tmp_path / "pipe.safetensors")
    os.mkfifo(tmp_path / "card.json")
    (tmp_path / "card.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError):
        checkpoints.load(tmp_path / "card.safetensors")
    os.mkfifo(tmp_path / "weights.pt")
    with pytest.raises(CheckpointError):
        checkpoints.load_tensors(tmp_path / "weights.pt")
