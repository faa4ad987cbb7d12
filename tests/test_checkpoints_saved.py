"""What is saved can be loaded: a checkpoint that was good is not replaced by one that is not."""

import pytest
import torch

from vtviz import checkpoints
from vtviz.errors import CheckpointError
from vtviz.models.folding import fold


def test_a_compiled_model_is_saved_as_what_it_wraps(tmp_path, tiny_model, tiny_card):
    model = tiny_model()
    plain, compiled = tmp_path / "plain.safetensors", tmp_path / "compiled.safetensors"
    for path, each in ((plain, model), (compiled, torch.compile(model))):
        checkpoints.save(path, each, tiny_card(model))
    assert plain.read_bytes() == compiled.read_bytes()
    checkpoints.load(compiled)


def test_what_load_would_refuse_replaces_nothing(tiny_checkpoint, tiny_model, tiny_card):
    model = tiny_model()
    before = {path.name: path.read_bytes() for path in tiny_checkpoint.parent.iterdir()}
    more = tiny_model()
    more.register_buffer("spare", torch.zeros(1))
    wider = tiny_model()
    wider.fc = torch.nn.Linear(64, 7)
    for changed, match in (
        (fold(model), r"tiny\.safetensors: lacks \d+ of \d+ tensors, the first is "),
        (more, "has 1 tensors that the model has not, the first is spare"),
        (wider, r"fc\.weight: the model has shape"),
    ):
        with pytest.raises(CheckpointError, match=match):
            checkpoints.save(tiny_checkpoint, changed, tiny_card(model))
    for name, match in (("resnet18", "tiny.json: resnet18 has no option 'stage'"), ("vt_resnet19", "unknown model")):
        with pytest.raises(CheckpointError, match=match):
            checkpoints.save(tiny_checkpoint, model, tiny_card(model, model=name))
    assert {path.name: path.read_bytes() for path in tiny_checkpoint.parent.iterdir()} == before
