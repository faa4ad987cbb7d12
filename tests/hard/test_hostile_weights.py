"""Weights and cards that lie, or want to run: refused with the reason in one line, and never executed."""

import copy
import io
import json
import os
import pickle
import struct
import zipfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import vtviz
from app.about import About
from app.explore import VIEWS, Explore
from app.shelf import Shelf
from vtviz import checkpoints
from vtviz.backbones import create_model
from vtviz.cli import main
from vtviz.errors import CheckpointError, VtvizError

FAST = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
MANY = settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_model, tiny_card) -> Path:
    """A folder with a whole checkpoint, ``tiny``, and one that is damaged again and again, ``bad``."""
    folder = tmp_path_factory.mktemp("weights")
    checkpoints.save(folder / "tiny.safetensors", tiny_model(), tiny_card(tiny_model()))
    return folder


@pytest.fixture(scope="module")
def card(folder) -> dict[str, Any]:
    return json.loads((folder / "tiny.json").read_text())


@pytest.fixture(scope="module")
def weights(folder) -> bytes:
    return (folder / "tiny.safetensors").read_bytes()


def put(folder: Path, data: bytes, card: Any) -> Path:
    """Lay down a checkpoint whose card, if it is one, has the right hash."""
    path = folder / "bad.safetensors"
    path.write_bytes(data)
    if isinstance(card, dict):
        card = card | {"sha256": sha256(data).hexdigest()}
    path.with_suffix(".json").write_text(card if isinstance(card, str) else json.dumps(card))
    return path


def refused(path: Path) -> str:
    """The line with which a checkpoint is refused."""
    with pytest.raises(CheckpointError) as caught:
        checkpoints.load(path)
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 600
    assert path.name in line or path.with_suffix(".json").name in line
    return line


def load_or_refuse(path: Path) -> bool:
    """Whether it loads: then its weights are finite and it has what its card says."""
    try:
        model, card = checkpoints.load(path)
    except CheckpointError as error:
        line = str(error)
        assert "\n" not in line
        assert len(line) < 600
        return False
    assert all(torch.isfinite(t).all() for t in model.state_dict().values())
    assert model.config.num_classes == len(card.classes)
    return True


# --- code in the place of weights


class Bomb:
    """What unpickling would run: it makes a folder named ``owned``."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("owned",)


def hostile_pickles() -> dict[str, bytes]:
    modern, plain = io.BytesIO(), io.BytesIO()
    torch.save({"fc.weight": Bomb()}, modern)
    torch.save({"fc.weight": Bomb()}, plain, _use_new_zipfile_serialization=False)
    hidden = io.BytesIO()
    with zipfile.ZipFile(hidden, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Bomb()))
        archive.writestr("archive/version", "3")
        archive.writestr("archive/../../../owned", "zip slip")
    by_name = b"cposix\nsystem\n(S'mkdir owned'\ntR."
    known = b"cbuiltins\nexec\n(S'import os; os.mkdir(\"owned\")'\ntR."
    return {
        "torch": modern.getvalue(),
        "old torch": plain.getvalue(),
        "zip": hidden.getvalue(),
        "plain": pickle.dumps(Bomb()),
        "by name": by_name,
        "exec": known,
    }


@pytest.mark.parametrize("kind", hostile_pickles())
def test_pickles_are_never_run(kind, folder, card, tmp_path, monkeypatch, capsys, tally):
    """Not as a checkpoint, nor as a backbone or a teacher, nor by the page; whatever the file is called."""
    monkeypatch.chdir(tmp_path)
    data = hostile_pickles()[kind]
    for name in ("evil.pt", "evil.pth", "evil.safetensors", "evil.bin", "evil.ckpt"):
        Path(name).write_bytes(data)
        Path("evil.json").write_text(json.dumps(card | {"sha256": sha256(data).hexdigest()}))
        for gate in (checkpoints.load_tensors, lambda path: create_model("vt_resnet18", weights=path)):
            with pytest.raises(CheckpointError) as caught:
                gate(f"./{name}")
            assert "\n" not in str(caught.value)
        with pytest.raises(CheckpointError):
            vtviz.load_model(f"./{name}")
        with pytest.raises(SystemExit) as stop:
            main(["evaluate", f"./{name}", "--data", "."])
        assert stop.value.code == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
        tally("hostile weights tried", 4)
    with pytest.raises(CheckpointError):
        Shelf("./evil.safetensors").get("evil")
    assert not Path("owned").exists()
    assert not Path("../owned").exists()


def test_a_resumed_run_reads_its_own_state_alone(tmp_path):
    """A run's state is a pickle, which only --resume of that very folder reads; no model is loaded from it."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "state.ckpt").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match=r"needs best\.safetensors"):
        vtviz.load_model(tmp_path / "run")
    with pytest.raises(CheckpointError):
        vtviz.load_model(tmp_path / "run" / "state.ckpt")


# --- headers that lie


def header_of(data: bytes) -> dict[str, Any]:
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


def with_header(header: Any, data: bytes, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    body = data[8 + int.from_bytes(data[:8], "little") :]
    return struct.pack("<Q", len(text) if length is None else length) + text + body


NUMBERS = st.sampled_from([0, 1, -1, 2, 4, 2**31, 2**32, 2**53, 2**63 - 1, 2**64, 10**30]) | st.integers(-5, 10**7)
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "F16", "BF16", "F64", "I64", "U8", "BOOL", "F8_E4M3", "X", "", None, 7]),
        "shape": st.lists(NUMBERS, max_size=5) | st.none() | st.text(max_size=3),
        "data_offsets": st.lists(NUMBERS, max_size=3) | st.none() | st.text(max_size=3),
        "more": st.text(max_size=3),
    },
)


def lying_headers(data: st.DataObject, folder: Path, weights: bytes, card: dict[str, Any]) -> None:
    header = header_of(weights)
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(sorted(header)))
        change = data.draw(st.sampled_from(["entry", "remove", "rename", "copy", "swap"]))
        if change == "entry" and isinstance(header[name], dict):
            header[name] = header[name] | data.draw(ENTRIES)
        elif change == "remove":
            del header[name]
        elif change == "rename":
            header[data.draw(st.text(max_size=20))] = header.pop(name)
        elif change == "copy":
            header[data.draw(st.text(max_size=20))] = copy.deepcopy(header[name])
        else:
            other = data.draw(st.sampled_from(sorted(header)))
            header[name], header[other] = header[other], header[name]
        if not header:
            break
    length = data.draw(st.none() | st.sampled_from([0, 1, 7, 2**24, 2**32, 2**63, 2**64 - 1]))
    load_or_refuse(put(folder, with_header(header, weights, length), card))


@FAST
@given(data=st.data())
def test_headers_that_lie_are_refused(data, folder, weights, card):
    lying_headers(data, folder, weights, card)


@pytest.mark.slow
@MANY
@given(data=st.data())
def test_many_headers_that_lie_are_refused(data, folder, weights, card):
    lying_headers(data, folder, weights, card)


def test_lies_that_are_well_made_are_refused_with_the_reason(folder, weights, card, tally):
    """Each file keeps to the format, but says what the model is not, or what is not there."""
    header = header_of(weights)
    first = next(name for name in header if name != "__metadata__")
    huge = {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    cases = {
        "damaged": [
            with_header({**header, first: huge}, weights),
            with_header({**header, first: {**header[first], "data_offsets": [0, 2**62]}}, weights),
            with_header({**header, "x": {**header[first]}}, weights),  # two tensors in one place
            with_header(b"[" * 100_000, weights),
            with_header(b'{"a":' * 50_000, weights),
            with_header(b"\xff\xfe", weights),
            with_header(b"", weights),
            weights[: len(weights) // 2],
            weights + b"more",
        ],
        "header of": [
            with_header(header, weights, 2**63),
            with_header(header, weights, 17 * 2**20),
            b"",
            b"\x01",
        ],
        "has 1 tensors that the model has not": [with_header({**header, "x": empty}, weights)],
        "has 50000 tensors": [with_header({**header, **{f"x{i}": empty for i in range(50_000)}}, weights)],
    }
    for reason, files in cases.items():
        for data in files:
            assert reason in refused(put(folder, data, card))
            tally("hostile weights tried")


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(float("nan"), torch.float16), (float("inf"), torch.bfloat16), (-float("inf"), torch.float32)],
)
def test_values_that_are_not_finite_are_refused_wherever_they_are(folder, weights, card, value, dtype):
    tensors = safetensors.torch.load(weights)
    for name in ("backbone.conv1.weight", "backbone.bn1.running_var", "fc.bias"):
        changed = tensors[name].to(dtype).clone()
        changed.view(-1)[-1] = value
        line = refused(put(folder, safetensors.torch.save(tensors | {name: changed}), card))
        assert f"{name} has values that are not finite" in line


@FAST
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 20), near=st.booleans())
def test_bytes_that_were_changed_are_noticed(seed, count, near, folder, weights, card):
    """With the right hash, as a forger would give it: a finite model of the right shapes comes out, or one line."""
    rng = np.random.default_rng(seed)
    data = bytearray(weights)
    reach = 8 + int.from_bytes(weights[:8], "little") if near else len(weights)
    for where in rng.integers(0, reach, count):
        data[where] = rng.integers(0, 256)
    load_or_refuse(put(folder, bytes(data), card))


# --- cards that lie

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
