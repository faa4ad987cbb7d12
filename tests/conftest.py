"""Photos and settings that several test modules share."""

import atexit
import copy
import os
import shutil
import signal
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes: its share of the cores, its own folder of uploads
    share = max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    os.environ.setdefault("OMP_NUM_THREADS", str(share))  # before PyTorch is imported, and for what tests start
    os.environ["GRADIO_TEMP_DIR"] = uploads = tempfile.mkdtemp(prefix="vtviz-tests-")
    atexit.register(shutil.rmtree, uploads, ignore_errors=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored otherwise, also by what tests start

import numpy as np
import pytest
import skimage.data
import torch

from vtviz import checkpoints
from vtviz.card import Card
from vtviz.cli import main
from vtviz.models.registry import build_model, config_to_dict

_TALLY: Counter[str] = Counter()


@pytest.fixture(scope="session")
def tally() -> Callable[[str, int], None]:
    """Counts what the tests of hard use tried: ``tally("images tried", 500)``. The sums are printed at the end."""

    def add(what: str, count: int = 1) -> None:
        _TALLY[what] += count

    return add


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["tally"] = dict(_TALLY)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A process of several has ended: its counts are added to the sums."""
    _TALLY.update(getattr(node, "workeroutput", {}).get("tally", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _TALLY:
        terminalreporter.section("hard use")
        for what, count in sorted(_TALLY.items()):
            terminalreporter.write_line(f"{count:8,} {what}")


def _frozen(image: np.ndarray) -> np.ndarray:
    image.flags.writeable = False
    return image


@pytest.fixture(scope="session")
def chelsea() -> np.ndarray:
    """A cat: (300, 451, 3) uint8, read-only."""
    return _frozen(skimage.data.chelsea())


@pytest.fixture(scope="session")
def coffee() -> np.ndarray:
    """A cup: (400, 600, 3) uint8, read-only."""
    return _frozen(skimage.data.coffee())


@pytest.fixture(scope="session")
def astronaut() -> np.ndarray:
    """A person: (512, 512, 3) uint8, read-only."""
    return _frozen(skimage.data.astronaut())


@lru_cache(maxsize=8)
def _tiny(name: str, preset: str | None, overrides: tuple[tuple[str, object], ...]) -> torch.nn.Module:
    narrow = {"token_channels": 64, "heads": 4} if name.startswith("vt_") else {}
    narrow |= {"channels": 32} if name.startswith("vt_resnet") else {}
    model = build_model(name, preset, **{"num_classes": 5, **narrow, **dict(overrides)}).eval()
    for key, tensor in model.state_dict().items():
        random = np.random.default_rng(zlib.crc32(key.encode()))
        if tensor.dim() > 1:  # kernels: unit gain
            values = random.normal(size=tensor.shape) / np.sqrt(tensor[0].numel())
        elif key.endswith(("running_mean", "bias")):
            values = random.normal(size=tensor.shape) * 0.1
        else:
            values = random.uniform(0.8, 1.2, size=tensor.shape)
        tensor.copy_(torch.from_numpy(np.asarray(values)))
    return model


@pytest.fixture(scope="session")
def tiny_model():
    """Builds a narrow model in eval mode whose every weight depends on its name alone, whatever the initialisation."""

    def build(name: str = "vt_resnet18", preset: str | None = None, **overrides: object) -> torch.nn.Module:
        return copy.deepcopy(_tiny(name, preset, tuple(sorted(overrides.items()))))

    return build


@pytest.fixture(scope="session")
def tiny_card():
    """Builds the card of a tiny model."""

    def build(model: torch.nn.Module, /, **fields: object) -> Card:
        count = model.config.num_classes
        classes = tuple(f"class {i}" for i in range(count))
        ids = tuple(f"n{i:08d}" for i in range(count))
        values = {"name": "tiny", "model": "vt_resnet18", "config": config_to_dict(model.config), "classes": classes}
        return Card(**{**values, "class_ids": ids, **fields})

    return build


@pytest.fixture(scope="session")
def _saved_tiny(tmp_path_factory, tiny_model, tiny_card) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.safetensors"
    checkpoints.save(path, tiny_model(), tiny_card(tiny_model()))
    return path


@pytest.fixture
def tiny_checkpoint(tmp_path, monkeypatch, _saved_tiny) -> Path:
    """A checkpoint named "tiny" that is found by its name; each test has its own copy."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(_saved_tiny.parent, folder, dirs_exist_ok=True)
    monkeypatch.setenv("VTVIZ_CHECKPOINTS", str(folder))
    return folder / _saved_tiny.name


@pytest.fixture(scope="session")
def _saved_segmenter(tmp_path_factory, tiny_model, tiny_card) -> Path:
    path = tmp_path_factory.mktemp("segmenter") / "segmenter.safetensors"
    model = tiny_model("vt_fpn_resnet18")
    card = tiny_card(
        model,
        name="segmenter",
        model="vt_fpn_resnet18",
        task="segmentation",
        palette=((0, 0, 0), (255, 0, 0), (0, 128, 0), (0, 0, 255), (250, 250, 250)),
    )
    checkpoints.save(path, model, card)
    return path


@pytest.fixture
def tiny_segmenter(tmp_path, monkeypatch, _saved_segmenter) -> Path:
    """A VT-FPN's checkpoint named "segmenter" that is found by its name; each test has its own copy."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(_saved_segmenter.parent, folder, dirs_exist_ok=True)
    monkeypatch.setenv("VTVIZ_CHECKPOINTS", str(folder))
    return folder / _saved_segmenter.name


@pytest.fixture
def run(capfd):
    """Runs a command in this process: exit code, and what stdout and stderr got, of libraries too."""

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        return stop.value.code or 0, *capfd.readouterr()

    return call
