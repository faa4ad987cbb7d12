"""A folded model computes what the model does; in bfloat16 nothing is left to convert."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from vtviz.models.folding import fold, to_bfloat16
from vtviz.models.registry import build_model
from vtviz.models.resnet import BasicBlock
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


@torch.no_grad()
@pytest.mark.parametrize("change", ["group norms", "norms of the batch", "weight norm", "hook"])
def test_what_cannot_be_folded_stays_as_it_is(change):
    torch.manual_seed(0)
    model, seen = build_model("vt_resnet18", num_classes=5, **MODELS["vt_resnet18"]).eval(), []
    for block in (m for m in model.modules() if isinstance(m, BasicBlock)):
        if change == "group norms":
            block.bn1 = nn.GroupNorm(8, block.bn1.num_features)
        elif change == "norms of the batch":
            block.bn1 = nn.BatchNorm2d(block.bn1.num_features, track_running_stats=False).eval()
        elif change == "weight norm":
            parametrizations.weight_norm(block.conv1)
        else:
            block.bn1.register_forward_hook(lambda *_: seen.append(1))
    x = torch.randn(2, 3, 64, 64)
    expected = model(x)
    called = len(seen)
    assert (fold(model)(x) - expected).abs().max() < 1e-4 * expected.abs().max()
    assert len(seen) == 2 * called
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(to_bfloat16(model)(x)).all()
