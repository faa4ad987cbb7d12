import copy

import pytest
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file

from vtviz import checkpoints
from vtviz.data.folder import ClassList
from vtviz.errors import CheckpointError, ConfigError
from vtviz.models.registry import build_model
from vtviz.train.classifier import ClassifierTraining
from vtviz.train.recipes import ClassificationRecipe
from vtviz.train.teachers import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Teacher,
    imagenet_classes,
    load_teacher,
    pad_like_tensorflow,
)

CLASSES = ClassList(("n01440764", "n02106662", "n09999999"), ("tench", "German_shepherd", "unicorn"))


@pytest.fixture
def images():
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def mobilenet():
    torch.manual_seed(0)
    network = torchvision.models.mobilenet_v2(weights=None).eval()
    for parameter in network.parameters():
        if parameter.ndim == 4:
            torch.nn.init.kaiming_normal_(parameter)  # so that the logits are of order 1
    return network


def write(path, tensors, **metadata):
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata=metadata or None)
    return str(path)


@pytest.mark.parametrize("depth", [18, 50])
def test_the_first_stages_of_a_resnet_give_features_alone(tmp_path, images, depth):
    torch.manual_seed(0)
    whole = torchvision.models.get_model(f"resnet{depth}", weights=None).eval()
    stages = {k: v.half() for k, v in whole.state_dict().items() if not k.startswith(("layer4", "fc"))}
    stages = {k: v for k, v in stages.items() if "num_batches" not in k}
    teacher = load_teacher(write(tmp_path / "stages.safetensors", stages), CLASSES)
    said = teacher(images)
    assert (said.logits, said.coefficients, teacher.name) == (None, None, "stages")
    x = teacher.preprocessing.normalize(images)
    x = whole.maxpool(whole.relu(whole.bn1(whole.conv1(x))))
    for own, stage in zip(said.features, (whole.layer1, whole.layer2, whole.layer3), strict=True):
        x = stage(x)
        assert (own - x).norm() < 0.01 * x.norm()  # stored as float16
    torch.save(whole.state_dict(), tmp_path / "whole.pth")  # a whole ResNet will do too
    assert torch.allclose(load_teacher(str(tmp_path / "whole.pth"), CLASSES)(images).features[2], x, atol=1e-4)


def test_a_mobilenet_gives_logits_of_the_classes_that_both_know(tmp_path, images, mobilenet):
    teacher = load_teacher(write(tmp_path / "m.safetensors", mobilenet.state_dict()), CLASSES)
    said = teacher(images)
    assert said.features is None
    assert teacher.shared == [0, 1]
    names = torchvision.models.MobileNet_V2_Weights.DEFAULT.meta["categories"]
    with torch.no_grad():
        wanted = mobilenet(teacher.preprocessing.normalize(images))[
            :, [names.index("tench"), names.index("German shepherd")]
        ]
    assert torch.equal(said.logits, wanted)


def test_tensorflows_padding_is_at_the_bottom_and_on_the_right(tmp_path, images, mobilenet):
    tensors = mobilenet.state_dict()
    teacher = load_teacher(write(tmp_path / "m.safetensors", tensors, source="mobilenet_v2.tflite"), CLASSES)
    network = copy.deepcopy(mobilenet)
    padded = 0
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d) and module.stride == (2, 2):
            module.padding = (0, 0)
            module.register_forward_pre_hook(lambda _, inputs: (F.pad(inputs[0], (0, 1, 0, 1)),))
            padded += 1
    assert padded == 5
    with torch.no_grad():
        wanted = network(images * 2 - 1)
        ours = pad_like_tensorflow(copy.deepcopy(mobilenet))(images * 2 - 1)
        assert torch.allclose(ours, wanted, atol=1e-4 * float(wanted.std()))
        assert not torch.allclose(mobilenet(images * 2 - 1), wanted, atol=0.1 * float(wanted.std()))
    columns = [imagenet_classes().index(name) for name in ("tench", "German shepherd")]
    assert torch.allclose(teacher(images).logits, wanted[:, columns], atol=1e-4 * float(wanted.std()))


def test_a_vtviz_run_gives_features_logits_and_token_coefficients(tiny_checkpoint, images):
    classes = ClassList(("n00000003", "x", "n00000001"), ("a", "class 4", "b"))
    teacher = load_teacher("tiny", classes)
    assert (teacher.name, teacher.shared) == ("tiny", [0, 1, 2])
    said = teacher(images)
    model, card = checkpoints.load(tiny_checkpoint)
    with torch.no_grad():
        logits, blocks = model(card.preprocessing.normalize(images), return_maps=True)
    assert torch.equal(said.logits, logits[:, [3, 4, 1]])
    for own, block in zip(said.coefficients, blocks, strict=True):
        assert torch.equal(own, block.tokenizer.coefficients)
    assert [f.shape[1:] for f in said.features] == [(64, 16, 16), (128, 8, 8), (256, 4, 4)]


def test_a_plain_resnet_of_ours_is_a_teacher_too(tmp_path, tiny_card, images):
    model = build_model("resnet18", num_classes=5).eval()
    checkpoints.save(tmp_path / "plain.safetensors", model, tiny_card(model, model="resnet18"), half=False)
    said = load_teacher(str(tmp_path / "plain.safetensors"), ClassList(("n00000002", "n00000004"), ("x", "y")))(images)
    assert said.coefficients is None
    assert len(said.features) == 3  # stages 2 to 4, which a VT-ResNet has
    with torch.no_grad():
        logits = model(checkpoints.Preprocessing().normalize(images))
    assert torch.allclose(said.logits, logits[:, [2, 4]], atol=1e-6)


def test_a_teacher_s_stages_of_another_width_teach_nothing(tmp_path, images, tiny_model):
    """All stages of a ResNet-50 are four times as wide as a ResNet-18's; its logits may still teach."""
    whole = torchvision.models.resnet50(weights=None)
    teacher = load_teacher(write(tmp_path / "r50.safetensors", whole.state_dict()), CLASSES)
    assert teacher.channels == (256, 512, 1024)
    assert not teacher.has_to_say(tiny_model())
    assert teacher.has_to_say(build_model("resnet50", num_classes=3))
    named = Teacher("named", whole, IMAGENET_MEAN, IMAGENET_STD, [(0, 1), (2, 5)])
    assert named.channels == (256, 512, 1024, 2048)
    student = tiny_model()
    assert named.has_to_say(student)
    module = ClassifierTraining(student, ClassificationRecipe(), checkpoints.Preprocessing(), teacher=named)
    module.__dict__["current_epoch"] = 0
    features, _, logits = module._forward(images)
    parts = {"label": torch.tensor(0.0)}
    module._distil(named, named(images), features, [], logits, parts)
    assert set(parts) == {"label", "logits"}


def test_a_single_class_that_both_know_says_nothing(tmp_path, mobilenet):
    """Its softmax is 1 whatever the logits are, and the labels would have lost their weight for it."""
    teacher = load_teacher(
        write(tmp_path / "m.safetensors", mobilenet.state_dict()), ClassList(("n01440764",), ("tench",))
    )
    assert (teacher.shared, teacher.channels) == ([], ())


def test_nothing_of_the_teacher_gets_into_the_student(tiny_checkpoint, tiny_model):
    teacher = load_teacher("tiny", ClassList(("n00000001",), ("x",)))
    student = tiny_model()
    module = ClassifierTraining(student, ClassificationRecipe(), checkpoints.Preprocessing(), teacher=teacher)
    assert module.teacher is teacher
    assert set(module.state_dict()) == {f"model.{k}" for k in student.state_dict()}
    assert copy.deepcopy(module).teacher is teacher  # nor do averages double it
    module.train()
    teacher.train()
    assert not any(m.training for m in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())


def test_a_name_that_two_classes_share_matches_none():
    """ImageNet's Cardigan is a dog, its cardigan is worn."""
    assert len(imagenet_classes()) == 1000
    assert len(imagenet_classes().find("cardigan")) == 2
    assert imagenet_classes().find("TENCH") == [0]


def test_what_is_no_teacher(tmp_path):
    with pytest.raises(CheckpointError, match=r"neither a ResNet nor a MobileNetV2 .*; its first tensor is x"):
        load_teacher(write(tmp_path / "x.safetensors", {"x": torch.zeros(1)}), CLASSES)
    tensors = {f"layer3.{i}.conv1.weight": torch.zeros(1) for i in range(7)} | {"layer1.0.conv1.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match="a ResNet with 7 blocks in layer3 is none of 18, 34, 50, 101"):
        load_teacher(write(tmp_path / "y.safetensors", tensors), CLASSES)
    tensors = build_model("resnet18").backbone.state_dict()
    del tensors["layer2.0.conv1.weight"]
    with pytest.raises(CheckpointError, match=r"Missing key.*layer2\.0\.conv1\.weight") as caught:
        load_teacher(write(tmp_path / "z.safetensors", tensors), CLASSES)
    assert "\n" not in str(caught.value)
    (tmp_path / "notes.txt").write_text("no weights")
    with pytest.raises(CheckpointError, match="weights must be"):
        load_teacher(str(tmp_path / "notes.txt"), CLASSES)
    with pytest.raises(CheckpointError, match="no such file"):
        load_teacher(str(tmp_path / "none.safetensors"), CLASSES)
    with pytest.raises(ConfigError, match="torchvision has no model 'resnet19'; did you mean"):
        load_teacher("torchvision:resnet19", CLASSES)


def test_a_segmentation_model_is_no_teacher(tmp_path, tiny_card):
    model = build_model("vt_fpn_resnet18", num_classes=5, token_channels=64, heads=4).eval()
    card = tiny_card(model, model="vt_fpn_resnet18", task="segmentation")
    checkpoints.save(tmp_path / "seg.safetensors", model, card)
    with pytest.raises(ConfigError, match="tiny is a segmentation model; a classifier's teacher must be a classifier"):
        load_teacher(str(tmp_path / "seg.safetensors"), CLASSES)


def test_torchvision_without_a_network_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(
        CheckpointError, match=r"cannot download torchvision's weights of resnet18 .*give a file"
    ) as caught:
        load_teacher("torchvision:resnet18", CLASSES)
    assert "\n" not in str(caught.value)


def test_torchvisions_models_by_name(monkeypatch, images):
    """The network is not asked: only the weights' download is left out."""
    real = torchvision.models.get_model
    monkeypatch.setattr(torchvision.models, "get_model", lambda name, weights: real(name, weights=None))
    said = load_teacher("torchvision:resnet18", CLASSES)(images)
    assert said.logits.shape == (2, 2)
    assert [f.shape[1] for f in said.features] == [64, 128, 256]
