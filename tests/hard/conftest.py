"""What tests of hard use share: a checkpoint, and a folder to use the command line in."""

import json
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from PIL import Image

import vtviz
import vtviz.predictor
from vtviz import checkpoints


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


@pytest.fixture(scope="module")
def place(tmp_path_factory, chelsea, coffee) -> Path:
    """Photos, class folders, a set with masks, and things that are none of these; to be read only."""
    root = tmp_path_factory.mktemp("place")
    for folder in ("photos", "folders/train/class 0", "folders/train/class 1", "folders/val/class 0", "empty"):
        (root / folder).mkdir(parents=True)
    Image.fromarray(chelsea[:60, :80]).save(root / "photo.png")
    for i in range(4):
        Image.fromarray(coffee[40 * i :][:50, :70]).save(root / f"photos/{i}.png")
        for folder in ("train/class 0", "train/class 1", "val/class 0"):
            Image.fromarray(coffee[30 * i :][:50, :70]).save(root / "folders" / folder / f"{i}.png")
    Image.new("L", (80, 60)).save(root / "mask.png")
    (root / "notes.txt").write_text("no picture\n")
    (root / "empty.safetensors").touch()
    return root


@pytest.fixture
def here(tmp_path, monkeypatch, place, tiny_checkpoint, tiny_segmenter) -> Path:
    """An empty working folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return folder


@pytest.fixture
def idle(monkeypatch):
    """No network may run and no training start; models that were loaded once are kept."""

    def busy(*_, **__):
        raise AssertionError("the model was at work before the complaint")

    monkeypatch.setattr(torch.nn.Conv2d, "forward", busy)
    monkeypatch.setattr(lightning.Trainer, "fit", busy)
    monkeypatch.setattr(vtviz.predictor, "load_model", _load)


_LOADED: dict = {}
_load_model = vtviz.predictor.load_model


def _load(model, device=None, **engine):
    if model not in {"tiny", "segmenter"} or engine != {"engine": "torch", "dtype": "float32"}:
        return _load_model(model, device, **engine)
    if model not in _LOADED:
        _LOADED[model] = _load_model(model, device)
    return _LOADED[model]
