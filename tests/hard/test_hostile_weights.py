"""Weights that lie, or want to run: refused with the reason in one line, and never executed."""

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

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

import vtviz
from app.shelf import Shelf
from tests.hard.lies import FAST, MANY, load_or_refuse, put, refused
from vtviz import checkpoints
from vtviz.backbones import create_model
from vtviz.cli import main
from vtviz.errors import CheckpointError

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
