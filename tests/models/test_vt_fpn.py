"""VT-FPN and Panoptic FPN: Table 4's counts, levels, tokens, any size, layouts, configuration."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet50

from vtviz.errors import ConfigError
from vtviz.hooks import record
from vtviz.models.layers import BatchNorm2d
from vtviz.models.registry import MODELS, build_model, config_to_dict, make_config, model_from_config
from vtviz.models.resnet import ResNetBackbone
from vtviz.models.vt_fpn import LEVELS, PanopticFPNConfig, SemanticHead, VTFPNConfig, upsample

FAMILIES = ("vt_fpn", "panoptic_fpn")


@pytest.fixture
def small(tiny_model):
    """Builds a narrow segmentation model on a ResNet-18."""

    def build(family="vt_fpn", **options):
        widths = {"channels": 32, "head_channels": 64}
        widths |= {"groups": 8, "num_tokens": 4} if family == "vt_fpn" else {}
        return tiny_model(f"{family}_resnet18", **{**widths, **options})

    return build


def image(height=96, width=128, batch=1):
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    planes = [torch.sin(x * 0.21 + y * 0.13 * c + c) for c in (1, 2, 3)]
    return torch.stack([torch.stack(planes) * (i + 1) for i in range(batch)])


def test_the_vt_neck_is_over_five_times_cheaper():
    with torch.device("meta"):
        features = [torch.empty(1, c, 1024 // s, 768 // s) for c, s in ((64, 4), (128, 8), (256, 16), (512, 32))]
    flops = {}
    for family in FAMILIES:
        with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
            build_model(f"{family}_resnet18").neck(features)
        flops[family] = counter.get_total_flops()
    assert flops["panoptic_fpn"] / flops["vt_fpn"] > 5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("depth", [18, 34, 50, 101])
def test_presets(family, depth):
    name = f"{family}_resnet{depth}"
    default, counts = make_config(name), make_config(name, "counts")
    assert default == make_config(name, "torchvision")
    assert not default.stride_in_1x1
    assert counts.stride_in_1x1 == (depth >= 50)
    with torch.device("meta"):
        shapes = [
            {k: v.shape for k, v in MODELS[name].build(config).state_dict().items()} for config in (default, counts)
        ]
    assert shapes[0] == shapes[1]


def test_stride_placement():
    reference = resnet50()
    reference.fc = nn.Identity()
    with torch.device("meta"):
        backbone, msra = ResNetBackbone(50), ResNetBackbone(50, stride_in_1x1=True)
    for model in (backbone, msra):
        model.eval().load_state_dict(reference.state_dict(), assign=True)
    x = image(64, 64)
    with torch.no_grad():
        torch.testing.assert_close(backbone(x)[-1].mean(dim=(2, 3)), reference.eval()(x))
    for stage in (msra.layer2, msra.layer3, msra.layer4):
        assert [stage[0].conv1.stride, stage[0].conv2.stride, stage[1].conv1.stride] == [(2, 2), (1, 1), (1, 1)]
    with torch.no_grad():
        ours, theirs = msra(x), backbone(x)
    assert [t.shape for t in ours] == [t.shape for t in theirs]
    torch.testing.assert_close(ours[0], theirs[0])  # layer1 has no stride
    assert not torch.allclose(ours[1], theirs[1], rtol=0.1)


@pytest.mark.parametrize(("depth", "stride_in_1x1"), [(18, False), (50, False), (50, True)])
def test_every_level_reads_the_image_at_its_stride(depth, stride_in_1x1):
    """The gradient's centroid of cell i lies at row stride * i, in a linear twin with equal positive weights."""
    backbone = ResNetBackbone(depth, in_channels=1, stride_in_1x1=stride_in_1x1).eval()
    backbone.maxpool = nn.AvgPool2d(3, 2, 1)
    for module in backbone.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU | nn.BatchNorm2d):
                setattr(module, name, nn.Identity())
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
    x = torch.zeros(1, 1, 1216, 8, requires_grad=True)
    for stride, level in zip(backbone.strides, backbone(x), strict=True):
        cell = level.shape[2] // 2
        (gradient,) = torch.autograd.grad(level[0, 0, cell, 0], x, retain_graph=True)
        weights = gradient[0, 0].sum(dim=1).double()
        centroid = (weights * torch.arange(1216)).sum() / weights.sum()
        assert abs(centroid.item() - stride * cell) < 0.01


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (3, 20), (33, 47), (64, 96), (101, 66)])
def test_logits_have_the_size_of_any_image(small, family, size):
    model = small(family)
    with torch.inference_mode():
        logits = model(image(*size, batch=2))
        assert logits.shape == (2, 5, *size)
        assert logits.isfinite().all()
        torch.testing.assert_close(model(image(*size)), logits[:1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_upsample_keeps_the_grid_at_odd_sizes(mode):
    x = torch.rand(2, 3, 7, 5)
    whole = upsample(x, (14, 10), mode=mode)
    torch.testing.assert_close(whole, F.interpolate(x, size=(14, 10), mode=mode))
    assert upsample(x, (13, 9), mode=mode).equal(whole[..., :13, :9])
    assert upsample(x, (25, 17), factor=4).shape == (2, 3, 25, 17)


def test_levels(small):
    model = small()
    x = image(90, 122)
    with torch.inference_mode():
        logits, levels = model(x, return_maps=True)
        assert logits.equal(model(x))
        assert [f.shape for f in model.forward_features(x)] == [level.feature.shape for level in levels]
    assert model.token_names == LEVELS == ("p2", "p3", "p4", "p5")
    assert model.token_strides == (4, 8, 16, 32)
    for stride, level in zip(model.token_strides, levels, strict=True):
        cells = (math.ceil(90 / stride), math.ceil(122 / stride))
        assert level.tokenizer.coefficients.shape == (1, 1, 4, *cells)
        assert level.projector.coefficients.shape == (1, 4, 4, *cells)
        assert level.tokens.shape == level.tokenizer.tokens.shape == (1, 64, 4)
        assert level.transformer.attention.shape == (1, 4, 4, 16)
        torch.testing.assert_close(level.tokenizer.coefficients.sum((3, 4)), torch.ones(1, 1, 4))
        torch.testing.assert_close(level.projector.coefficients.sum(2), torch.ones(1, 4, *cells))
        torch.testing.assert_close(level.transformer.attention.sum(3), torch.ones(1, 4, 4))
        maps, values = level.tokenizer.coefficients.flatten(3), level.tokenizer.values.flatten(3)
        torch.testing.assert_close(values @ maps.mT, level.tokenizer.gathered)  # Eq. 1


def test_hooks_see_what_return_maps_gives(small):
    model = small()
    with torch.inference_mode(), record(model) as recorder:
        _, levels = model(image(batch=2), return_maps=True)
    assert len(recorder.layers()) == len(levels)
    for layer, level in zip(recorder.layers(), levels, strict=True):
        for seen, given in zip(layer, (level.tokenizer, level.transformer, level.projector), strict=True):
            assert all(a.equal(b) for a, b in zip(seen, given, strict=True))


def test_baseline_has_no_tokens(small):
    model = small("panoptic_fpn")
    assert model.token_names == model.token_strides == ()
    assert [tuple(f.shape) for f in model.forward_features(image(64, 64))] == [(1, 32, s, s) for s in (16, 8, 4, 2)]


def test_a_fresh_neck_passes_its_laterals_through():
    neck = build_model("vt_fpn_resnet18").neck.eval()
    features = [torch.rand(1, c, s, s) for c, s in ((64, 16), (128, 8), (256, 4), (512, 2))]
    with torch.no_grad():
        for lateral, feature, level in zip(neck.laterals, features, neck(features), strict=True):
            assert level.feature.equal(lateral(feature))


def test_levels_meet_in_the_transformer_and_nowhere_else(small):
    model = small()
    features = [f.detach().requires_grad_() for f in model.backbone(image())]

    def reach():
        """Which backbone outputs p2's map depends on."""
        grads = torch.autograd.grad(model.neck(features)[0].feature.sum(), features, allow_unused=True)
        return [g is not None and bool(g.abs().max() > 0) for g in grads]

    assert reach() == [True] * 4
    nn.init.zeros_(model.neck.transformer.norm.weight)
    assert reach() == [True, False, False, False]


def test_baseline_fuses_from_the_top_down(small):
    model = small("panoptic_fpn")
    features = [f.detach().requires_grad_() for f in model.backbone(image())]
    maps = model.neck(features)
    for i, level in enumerate(maps):
        grads = torch.autograd.grad(level.sum(), features, allow_unused=True, retain_graph=True)
        assert [g is not None for g in grads] == [j >= i for j in range(4)]


# mean and standard deviation of the logits
GOLDEN = {"vt_fpn": (0.396338, 1.571070), "panoptic_fpn": (0.368497, 1.838849)}


@pytest.mark.parametrize("family", FAMILIES)
def test_golden_logits(small, family):
    with torch.inference_mode():
        logits = small(family)(image()).double()
    assert (logits.mean().item(), logits.std().item()) == pytest.approx(GOLDEN[family], rel=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_trains_in_bf16_and_channels_last(small, family):
    model = small(family).train().to(memory_format=torch.channels_last)
    x = image(40, 56, batch=2).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(x)
    F.cross_entropy(logits.float(), torch.randint(0, 5, (2, 40, 56))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_batch_norm_gradients_keep_their_layout(memory_format):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 8, 5, 6, generator=generator, dtype=torch.float64).contiguous(memory_format=memory_format)
    mixing = torch.randn(30, 30, generator=generator, dtype=torch.float64)  # its gradient comes back row by row
    ours, plain = BatchNorm2d(8).double(), nn.BatchNorm2d(8).double()
    y = ours(x)
    gradients = []
    y.grad_fn.next_functions[0][0].register_prehook(lambda grads: gradients.append(grads[0]))
    (y.flatten(2) @ mixing).square().sum().backward()
    (plain(x).flatten(2) @ mixing).square().sum().backward()
    assert gradients[0].is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(ours.weight.grad, plain.weight.grad)
    torch.testing.assert_close(ours.bias.grad, plain.bias.grad)


@pytest.mark.parametrize("family", FAMILIES)
def test_reset_classifier(small, family):
    model = small(family)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.reset_classifier(3)
    assert model.config.num_classes == 3
    assert model(image(32, 32)).shape == (1, 3, 32, 32)
    changed = {k for k, v in model.state_dict().items() if v.shape != before[k].shape or not v.equal(before[k])}
    assert changed == {"head.predictor.weight", "head.predictor.bias"}


@pytest.mark.parametrize("family", FAMILIES)
def test_rebuilt_from_its_configuration(small, family):
    model = small(family)
    twin = model_from_config(f"{family}_resnet18", config_to_dict(model.config)).eval()
    assert twin.config == model.config
    twin.load_state_dict(model.state_dict())
    with torch.inference_mode():
        assert twin(image()).equal(model(image()))


@pytest.mark.parametrize("family", FAMILIES)
def test_exports(small, family):
    model, x = small(family), image(64, 96)
    exported = torch.export.export(model, (x,)).module()
    with torch.no_grad():
        torch.testing.assert_close(exported(x), model(x))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (PanopticFPNConfig, {"num_classes": 0}, "num_classes must be at least 1, got 0"),
        (PanopticFPNConfig, {"head_channels": 96}, "head_channels must be a multiple of 64, got 96"),
        (PanopticFPNConfig, {"dropout": 1.0}, "dropout must be in"),
        (VTFPNConfig, {"num_tokens": 0}, "num_tokens must be at least 1, got 0"),
        (VTFPNConfig, {"heads": 7}, "heads=7 must divide channels=256"),
        (VTFPNConfig, {"kqv_groups": 3}, "kqv_groups=3 must divide"),
        (VTFPNConfig, {"groups": 24}, "groups=24 must divide channels=256"),
    ],
)
def test_impossible_configurations(kind, options, message):
    with pytest.raises(ConfigError, match=message):
        kind(18, **options)


def test_dropout_acts_before_the_last_layer_and_in_training_only():
    torch.manual_seed(0)
    head = SemanticHead(32, 64, 3, dropout=0.5)
    maps = [torch.randn(1, 32, 16 // 2**level, 16 // 2**level) for level in range(4)]
    assert not torch.equal(head(maps), head(maps))
    head.eval()
    assert torch.equal(head(maps), head(maps))
