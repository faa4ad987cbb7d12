"""What evaluation folds away gives what the plain form gives."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from vtviz.models.layers import Pointwise, groups_for, scale_and_shift
from vtviz.models.visual_transformer import Projector, Tokenizer


def _unsettle(module: nn.Module) -> nn.Module:
    """Running statistics and weights of batch norms as after training."""
    generator = torch.Generator().manual_seed(0)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor, low, high in (
                (norm.weight, 0.5, 2.0),
                (norm.bias, -1.0, 1.0),
                (norm.running_mean, -1.0, 1.0),
                (norm.running_var, 0.2, 3.0),
            ):
                tensor.data.uniform_(low, high, generator=generator)
    return module.eval()


def test_scale_and_shift_are_batch_norm_in_evaluation():
    norm = _unsettle(nn.BatchNorm2d(6))
    x = torch.randn(2, 6, 3, 4)
    scale, shift = scale_and_shift(norm)
    torch.testing.assert_close(x * scale[:, None, None] + shift[:, None, None], norm(x))


@pytest.mark.parametrize("part", ["conv", "norm"])
def test_hooks_of_the_way_back_are_called(part):
    layer = _unsettle(Pointwise(2, 8, 16))
    seen = []
    hooked = getattr(layer, part)
    hooked.register_full_backward_hook(lambda *_: seen.append("after"))
    hooked.register_full_backward_pre_hook(lambda *_: seen.append("before"))
    layer(torch.randn(2, 8, 4, 4, requires_grad=True)).sum().backward()
    assert seen == ["before", "after"]


@pytest.mark.parametrize("groups", [1, 4, 32])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_pointwise_convolution_folds_its_norm(groups, layout):
    layer = _unsettle(Pointwise(2, 64, 128, groups))
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    x = torch.randn(2, 64, 5, 7).contiguous(memory_format=layout)
    torch.testing.assert_close(layer(x), layer.norm(layer.conv(x)), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


@pytest.mark.parametrize("change", ["norm in training", "no statistics", "no weights", "hook", "pruned", "adapter"])
def test_nothing_is_folded_past_what_somebody_put_there(change):
    """The plain form runs: a norm that calibrates, a hook, another layer in the place of one."""
    layer = _unsettle(Pointwise(2, 8, 16))
    x = torch.randn(2, 8, 4, 4)
    before, seen = layer(x), []
    if change == "norm in training":
        layer.norm.train()
    elif change == "no statistics":
        layer.norm = nn.BatchNorm2d(16, track_running_stats=False).eval()
    elif change == "no weights":
        layer.norm = nn.BatchNorm2d(16, affine=False).eval()
    elif change == "hook":
        layer.conv.register_forward_hook(lambda *_: seen.append(1))
    elif change == "pruned":
        prune.l1_unstructured(layer.conv, "weight", 0.5)
        layer.conv.weight_orig.data.mul_(2)
    else:
        layer.conv = _Doubled(layer.conv)
    after = layer(x)
    torch.testing.assert_close(after, layer.norm(layer.conv(x)), rtol=1e-4, atol=1e-5)
    assert bool(seen) == (change == "hook")
    assert torch.allclose(after, before, atol=1e-5) == (change == "hook")


class _Doubled(nn.Module):
    """As an adapter is: in the place of a convolution, with its attributes."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv, self.weight, self.groups = conv, conv.weight, conv.groups

    def forward(self, x):
        return 2 * self.conv(x)


def test_a_projector_whose_norm_calibrates_normalises_its_map():
    projector = _unsettle(Projector(32, 64, 48, heads=4))
    feature, tokens = torch.randn(2, 32, 5, 6), torch.randn(2, 48, 3)
    still = projector(feature, tokens).feature
    projector.norm.train()
    before = projector.norm.running_mean.clone()
    assert not torch.allclose(projector(feature, tokens).feature, still, atol=1e-3)
    assert not torch.equal(projector.norm.running_mean, before)


@pytest.mark.parametrize(("widths", "groups"), [((256,), 4), ((512, 256), 8), ((1024, 1024), 16), ((640, 256), 8)])
def test_groups_divide_every_width(widths, groups):
    assert groups_for(*widths) == groups


def test_training_still_normalises_by_the_batch():
    layer = _unsettle(Pointwise(2, 8, 16)).train()
    x = 3 + torch.randn(4, 8, 5, 5)
    before = layer.norm.running_mean.clone()
    y = layer(x)
    mean = y.mean(dim=(0, 2, 3)) - layer.norm.bias
    torch.testing.assert_close(mean, torch.zeros(16), atol=1e-4, rtol=0)
    assert not torch.equal(layer.norm.running_mean, before)


def test_gradients_of_folded_layers_are_those_of_the_plain_form():
    layer = _unsettle(Pointwise(2, 8, 16, 2))
    x = torch.randn(1, 8, 4, 4, requires_grad=True)
    weights = torch.randn(1, 16, 4, 4)
    (folded,) = torch.autograd.grad((layer(x) * weights).sum(), x)
    (plain,) = torch.autograd.grad((layer.norm(layer.conv(x)) * weights).sum(), x)
    torch.testing.assert_close(folded, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("missing", [None, [], [1], [0, 1, 2]])
def test_a_projector_normalises_its_values_and_not_its_map(missing):
    projector = _unsettle(Projector(32, 64, 48, heads=4))
    feature, tokens = torch.randn(2, 32, 5, 6), torch.randn(2, 48, 3)
    absent = None
    if missing is not None:
        absent = torch.zeros(2, 3, dtype=torch.bool)
        absent[:, missing] = True
    found = projector(feature, tokens, absent)
    value = projector.value(tokens).unflatten(1, (4, -1))
    read = (value @ found.coefficients.flatten(3)).flatten(1, 2).unflatten(-1, (5, 6))
    expected = projector.adapter(feature) + projector.norm(read)
    torch.testing.assert_close(found.feature, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_tokens_are_gathered_by_equation_1_in_any_layout(layout):
    tokenizer = _unsettle(Tokenizer(32, 64, 4, heads=4, dynamic=False, position_encoding=True, static_scale=False))
    feature = torch.randn(2, 32, 6, 5).contiguous(memory_format=layout)
    found = tokenizer(feature)
    values = found.values.double().flatten(3)
    expected = torch.einsum("nhcp,nhlp->nhcl", values, found.coefficients.double().flatten(3))
    torch.testing.assert_close(found.gathered.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("groups", [1, 4])
def test_a_fresh_convolution_keeps_the_spread_whatever_its_groups(groups):
    torch.manual_seed(0)
    out = Pointwise(1, 256, 256, groups).conv(torch.randn(8, 256, 50))
    assert float(out.detach().std()) == pytest.approx(1, abs=0.05)
