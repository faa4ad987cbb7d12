import pytest
import torch

from vtviz.errors import ConfigError
from vtviz.models.registry import MODELS, build_model
from vtviz.models.resnet import drop_path_rates

CLASSIFIERS = [name for name in MODELS if name.startswith(("resnet", "vt_resnet"))]
EVERY_PRESET = [(name, preset) for name in CLASSIFIERS for preset in MODELS[name].presets]
WITH_VALUES = [(name, preset) for name, preset in EVERY_PRESET if name.endswith("resnet18")]  # basic blocks
WITH_VALUES += [("resnet50", "counts"), ("vt_resnet50", "counts")]  # bottlenecks
SIZES = [(1, 1), (33, 47), (96, 64), (5, 300)]


@pytest.mark.parametrize(("name", "preset"), EVERY_PRESET)
def test_every_preset_at_full_width_takes_odd_sizes(name, preset):
    with torch.device("meta"):
        model = build_model(name, preset).eval()
        assert model(torch.empty(2, 3, 33, 47)).shape == (2, 1000)


@pytest.mark.parametrize(("name", "preset"), WITH_VALUES)
@torch.no_grad()
def test_any_size_gives_logits_and_blocks_whose_maps_sum_to_one(tiny_model, name, preset):
    model = tiny_model(name, preset)
    for height, width in SIZES:
        image = torch.randn(1, 3, height, width)
        logits = model(image)
        assert logits.shape == (1, 5)
        assert logits.isfinite().all()
        if not model.token_strides:
            continue
        again, blocks = model(image, return_maps=True)
        assert torch.equal(again, logits)
        cells = (-(-height // 16), -(-width // 16))  # the stem and stages round up
        assert len(blocks) == len(model.token_strides) == len(model.token_names)
        for block, stride in zip(blocks, model.token_strides, strict=True):
            maps = block.tokenizer.coefficients
            assert stride == 16
            assert maps.shape[-2:] == cells
            assert maps.min() >= 0
            assert (maps.sum((-2, -1)) - 1).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["resnet18", "vt_resnet18", "vt_resnet34"])
@torch.no_grad()
def test_features_and_head_make_the_model(tiny_model, name):
    model, images = tiny_model(name), torch.randn(2, 3, 64, 48)
    features = model.forward_features(images)
    assert features.shape[1] == model.num_features
    assert torch.equal(model.forward_head(features), model(images))


@pytest.mark.parametrize("name", ["resnet18", "vt_resnet18", "vt_resnet50"])
@torch.no_grad()
def test_a_batch_is_its_images_one_by_one_and_again(tiny_model, name):
    model, images = tiny_model(name, dropout=0.5, drop_path=0.5), torch.randn(3, 3, 64, 80)
    together = model(images)
    scale = together.abs().max()
    assert (together - torch.cat([model(i[None]) for i in images])).abs().max() < 1e-4 * scale
    assert torch.equal(model(images), together)
    assert (together[0] - together[1]).abs().max() > 1e-2 * scale


@torch.no_grad()
def test_dropout_and_stochastic_depth_act_in_training_only(tiny_model):
    images = torch.randn(4, 3, 32, 32)
    for option in ({"dropout": 0.5}, {"drop_path": 0.5}):
        model = tiny_model(**option).train()
        assert not torch.equal(model(images), model(images))
    still = tiny_model().train()
    assert torch.equal(still(images), still(images))


@pytest.mark.parametrize("name", ["resnet18", "vt_resnet18", "vt_resnet34"])
def test_stochastic_depth_rises_linearly_to_the_last_block(name):
    model = build_model(name, drop_path=0.1, num_classes=2)
    rates = [block.drop_path.p for block in model.backbone.residual_blocks()]
    if name.startswith("vt_"):
        for block in model.stage.blocks:
            rates.append(block.transformer.drop_path.p)
            assert block.projector is None or block.projector.drop_path.p == rates[-1]
    step = 0.1 / len(rates)
    assert rates == pytest.approx([step * (i + 1) for i in range(len(rates))])
    assert drop_path_rates(0.0, 3) == [0, 0, 0]


@pytest.mark.parametrize("name", ["resnet18", "vt_resnet18"])
@torch.no_grad()
def test_state_dict_round_trip(tiny_model, name, tmp_path):
    model, images = tiny_model(name), torch.randn(2, 3, 40, 40)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    twin = tiny_model(name)
    for parameter in twin.parameters():
        parameter.add_(1)
    assert not torch.equal(twin(images), model(images))
    twin.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert torch.equal(twin(images), model(images))


def test_backbone_has_torchvisions_parameter_names():
    import torchvision

    theirs = {k: v.shape for k, v in torchvision.models.resnet18().state_dict().items()}
    ours = {k: v.shape for k, v in build_model("vt_resnet18").backbone.state_dict().items()}
    assert ours == {k: v for k, v in theirs.items() if not k.startswith(("layer4", "fc"))}
    plain = {k: v.shape for k, v in build_model("resnet18").backbone.state_dict().items()}
    assert plain == {k: v for k, v in theirs.items() if not k.startswith("fc")}


@pytest.mark.parametrize(("name", "depth"), [("resnet18", 18), ("resnet50", 50)])
@torch.no_grad()
def test_the_baseline_computes_what_torchvision_computes(tiny_model, name, depth):
    import torchvision

    model = tiny_model(name)
    reference = getattr(torchvision.models, f"resnet{depth}")(num_classes=5).eval()
    weights = {k.removeprefix("backbone."): v for k, v in model.state_dict().items()}
    reference.load_state_dict(weights)
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(model(images), reference(images))


@pytest.mark.parametrize("name", ["resnet18", "vt_resnet18"])
@pytest.mark.parametrize(("channels", "classes"), [(1, 1), (4, 1000), (13, 2)])
@torch.no_grad()
def test_any_channels_and_classes(tiny_model, name, channels, classes):
    model = tiny_model(name, in_channels=channels, num_classes=classes)
    assert model(torch.randn(2, channels, 32, 32)).shape == (2, classes)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@torch.no_grad()
def test_other_dtypes_keep_their_logits_and_float32_maps(tiny_model, dtype):
    model, images = tiny_model(), torch.randn(1, 3, 48, 64)
    expected = model(images)
    logits, blocks = model.to(dtype)(images.to(dtype), return_maps=True)
    assert logits.dtype == blocks[0].feature.dtype == dtype
    assert all(block.tokenizer.coefficients.dtype == torch.float32 for block in blocks)
    tolerance = 1e-4 if dtype == torch.float64 else 0.05
    assert (logits.float() - expected).abs().max() < tolerance * expected.abs().max()


@pytest.mark.parametrize("name", ["resnet18", "vt_resnet18"])
@torch.no_grad()
def test_reset_classifier_changes_the_head_alone(tiny_model, name):
    model, images = tiny_model(name).double(), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    before = model.forward_features(images)
    model.reset_classifier(7)
    assert model(images).shape == (2, 7)
    assert model.config.num_classes == 7
    assert model.fc.weight.dtype == torch.float64
    assert torch.equal(model.forward_features(images), before)
    with pytest.raises(ConfigError, match="num_classes must be at least 1, got 0"):
        model.reset_classifier(0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 19}, "depth must be one of 18, 34, 50, 101, got 19"),
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"in_channels": 0}, "in_channels must be at least 1, got 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"drop_path": -0.1}, r"drop_path must be in \[0, 1\), got -0.1"),
        ({"drop_path": float("nan")}, r"drop_path must be in \[0, 1\), got nan"),
    ],
)
@pytest.mark.parametrize("name", ["resnet18", "vt_resnet18"])
def test_configuration_errors_name_the_value(name, options, message):
    with pytest.raises(ConfigError, match=message):
        build_model(name, **options)


@pytest.mark.parametrize("preset", MODELS["vt_resnet34"].presets)
def test_after_the_first_steps_gradients_reach_every_weight(preset):
    torch.manual_seed(0)
    narrow = {"token_channels": 64, "channels": 32, "heads": 4, "num_classes": 5, "num_tokens": 4}
    model = build_model("vt_resnet34", preset, **narrow).train()
    images, labels = torch.randn(6, 3, 64, 64), torch.arange(6) % 5
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):  # zero-initialised norms shut branches until the first steps
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if parameter.dim() > 1:  # some norms' shifts cancel in a softmax or in the next norm
            assert parameter.grad.any(), name


def test_a_few_steps_fit_a_few_images():
    torch.manual_seed(0)
    model = build_model("vt_resnet18", token_channels=64, channels=32, heads=4, num_classes=4, num_tokens=4).train()
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8) % 4
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        losses.append(torch.nn.functional.cross_entropy(model(images), labels))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.2 * losses[0]


@torch.no_grad()
def test_golden_logits_and_maps(tiny_model):
    """A shipped checkpoint must go on meaning the same: weights made by a formula, outputs written down."""
    model = tiny_model("vt_resnet18", num_tokens=4, blocks=3)
    for i, (name, value) in enumerate(sorted(model.state_dict().items())):
        if value.dim() > 1:
            scrambled = torch.arange(value.numel()).square() % 10007 * (i + 2) % 10007 / 5003 - 1
            value.copy_(scrambled.view_as(value) * (4.0 / value[0].numel()) ** 0.5)
        elif value.is_floating_point():
            value.fill_(0.7 if name.endswith(("weight", "running_var")) else 0.1)
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(80.0), indexing="ij")
    image = torch.stack((torch.sin(x / 7), torch.cos(y / 5), torch.sin((x + y) / 9)))[None]
    logits, blocks = model(image, return_maps=True)
    torch.testing.assert_close(logits, torch.tensor([[0.8395, -1.5003, 1.0844, 0.3762, 0.4946]]), atol=2e-3, rtol=0)
    corners = [
        [0.0595, 0.0297, 0.0390, 0.0314],
        [0.0409, 0.0491, 0.0612, 0.0539],
        [0.0581, 0.0261, 0.0215, 0.0197],
    ]
    for block, corner in zip(blocks, corners, strict=True):
        found = block.tokenizer.coefficients[0, 0, 0].flatten()[:4]
        torch.testing.assert_close(found, torch.tensor(corner), atol=2e-4, rtol=0)


@torch.no_grad()
def test_exports_with_maps(tiny_model):
    class WithMaps(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            logits, blocks = self.model(x, return_maps=True)
            return logits, [block.tokenizer.coefficients for block in blocks]

    model, images = WithMaps(tiny_model(num_tokens=4)), torch.randn(1, 3, 64, 48)
    exported = torch.export.export(model, (images,)).module()
    logits, maps = exported(images)
    expected, expected_maps = model(images)
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(maps, expected_maps)
