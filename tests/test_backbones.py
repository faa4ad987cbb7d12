import pytest
import safetensors.torch
import torch

from vtviz import checkpoints
from vtviz.backbones import create_model, load_backbone
from vtviz.errors import CheckpointError, ConfigError
from vtviz.models.registry import build_model


def fails(match: str):
    return pytest.raises(CheckpointError, match=match)


@pytest.fixture
def resnet_file(tmp_path, tiny_model):
    """A whole ResNet-18 under torchvision's names, float16, without counters."""
    state = tiny_model("resnet18").state_dict()
    tensors = {
        n.removeprefix("backbone."): t.half().contiguous()
        for n, t in state.items()
        if not n.endswith("num_batches_tracked")
    }
    path = tmp_path / "resnet18.safetensors"
    safetensors.torch.save_file(tensors, path)
    return path


def test_backbones_take_the_stages_they_have(resnet_file):
    tensors = safetensors.torch.load_file(resnet_file)
    model = create_model("vt_resnet18", weights=resnet_file, num_classes=3)
    whole = create_model("resnet18", weights=resnet_file, num_classes=3)
    assert torch.equal(model.backbone.layer3[0].conv1.weight, tensors["layer3.0.conv1.weight"].float())
    assert torch.equal(whole.backbone.layer4[1].bn2.running_var, tensors["layer4.1.bn2.running_var"].float())
    assert whole.fc.weight.shape == (3, 512)  # the file's own head is left out


def test_a_backbone_comes_out_of_our_own_checkpoints(tiny_checkpoint):
    loaded, _ = checkpoints.load(tiny_checkpoint)
    model = create_model("vt_resnet18", weights=tiny_checkpoint, num_classes=3)
    for name, value in loaded.backbone.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], value), name


def test_backbone_weights_that_do_not_fit(resnet_file, tmp_path):
    model = build_model("vt_resnet18")
    before = {n: t.clone() for n, t in model.state_dict().items()}
    tensors = safetensors.torch.load_file(resnet_file)
    for changes, match in (
        ({"conv1.weight": torch.zeros(64, 4, 7, 7)}, r"conv1.weight: the model has shape \(64, 3, 7, 7\)"),
        ({"layer3.2.conv1.weight": torch.zeros(1)}, "the first is layer3.2.conv1.weight"),
        ({"bn1.running_mean": torch.full((64,), float("nan"))}, "bn1.running_mean has values"),
    ):
        safetensors.torch.save_file(tensors | changes, tmp_path / "bad.safetensors")
        with fails(match):
            load_backbone(model, tmp_path / "bad.safetensors")
    del tensors["layer2.0.conv1.weight"]
    safetensors.torch.save_file(tensors, tmp_path / "bad.safetensors")
    with fails("lacks 1 of .* the first is layer2.0.conv1.weight"):
        load_backbone(model, tmp_path / "bad.safetensors")
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    with fails("Linear has no ResNet backbone"):
        load_backbone(torch.nn.Linear(1, 1), resnet_file)


def test_torchvision_weights_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for variable in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # nobody listens there
    with fails("cannot download torchvision's resnet18 IMAGENET1K_V1 .*give the path of a file") as caught:
        create_model("vt_resnet18", weights="IMAGENET1K_V1")
    assert "\n" not in str(caught.value)
    with fails("no weights 'IMAGENET1K_V7' for resnet18; did you mean 'IMAGENET1K_V1'"):
        create_model("vt_resnet18", weights="IMAGENET1K_V7")
    with fails("needs a backbone with stride_in_1x1=False"):
        create_model("panoptic_fpn_resnet50", "counts", weights="IMAGENET1K_V1")
    with pytest.raises(ConfigError, match="no option 'nun_tokens'"):
        create_model("vt_resnet18", nun_tokens=8)
