"""A folded model computes what the model does; in bfloat16 nothing is left to convert."""

import pytest
import torch
from torch import nn

from vtviz.models.folding import fold, to_bfloat16
from vtviz.models.registry import build_model
from vtviz.models.visual_transformer import Projector, Tokenizer, Transformer

SMALL = {"num_tokens": 4, "token_channels": 64, "heads": 2}
MODELS = {
    "resnet18": {},
    "resnet50": {},
    "vt_resnet18": SMALL | {"channels": 64},
    "vt_resnet50": SMALL | {"channels": 64},
    "vt_fpn_resnet18": SMALL | {"channels": 64, "head_channels": 64},
    "panoptic_fpn_resnet50": {"channels": 64, "head_channels": 64},
}


@pytest.fixture(params=MODELS)
def model(request) -> nn.Module:
    """With norms that do something."""
    torch.manual_seed(0)
    built = build_model(request.param, num_classes=5, **MODELS[request.param]).eval()
    for module in built.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return built


@torch.no_grad()
def test_folding_changes_nothing_but_rounding_and_leaves_the_model_alone(model):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x = torch.randn(2, 3, 96, 64)
    expected = model(x)
    got = fold(model)(x)
    assert (got - expected).abs().max() < 1e-4 * expected.abs().max()
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    assert torch.equal(fold(fold(model))(x), got)


def test_the_only_norms_left_are_behind_matrix_products(model):
    folded = fold(model)
    left = {id(m) for m in folded.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)}
    assert left == {id(m.norm) for m in folded.modules() if isinstance(m, Tokenizer | Transformer | Projector)}


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_in_bfloat16_weights_are_converted_once_and_answers_are_as_near_as_autocast_s(name):
    torch.manual_seed(0)
    model, x = build_model(name, num_classes=5, **MODELS[name]), torch.randn(8, 3, 96, 64)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = 1.0
    model(x)  # norms that fit their inputs: softmaxes that are all but steps turn any rounding into another answer
    expected = model.eval()(x)
    lowered = to_bfloat16(model)
    layers = [m for m in lowered.modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Linear)]
    assert layers
    assert all(p.dtype == torch.bfloat16 for layer in layers for p in layer.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        got, plain = lowered(x), model(x)
    error, usual = ((y.float() - expected).abs().mean() for y in (got, plain))
    assert 0 < error < 2 * usual
