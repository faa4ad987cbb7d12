"""Checkpoints that lie, and how they are refused."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

from vtviz import checkpoints
from vtviz.errors import CheckpointError

FAST = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
MANY = settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])


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
