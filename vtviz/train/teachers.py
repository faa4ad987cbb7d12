"""Teachers to distil from: a trained vtviz model, a torchvision model by name, or a file of torchvision-named weights.

A teacher gives targets for what it has: stage outputs, logits over the student's classes, token coefficients. No tensor
of it ever enters the student.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
import torchvision
from safetensors import safe_open
from torch import Tensor, nn
from torchvision.models._meta import _IMAGENET_CATEGORIES

from vtviz import checkpoints
from vtviz.card import Preprocessing
from vtviz.data.folder import ClassList
from vtviz.errors import CheckpointError, ConfigError, did_you_mean
from vtviz.models.resnet import LAYOUTS, Classifier, ResNet, ResNetBackbone
from vtviz.models.vt_resnet import VTResNet

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Targets(NamedTuple):
    """What a teacher says of a batch; None where it has nothing to say."""

    features: list[Tensor] | None
    """Outputs of stages 2 to 4, (N, C, H / stride, W / stride) each."""
    logits: Tensor | None
    """(N, k) over the classes that teacher and student share."""
    coefficients: list[Tensor] | None
    """Token coefficients A of each block, (N, heads, tokens, h, w)."""


class Teacher(nn.Module):
    """A frozen network in eval mode behind its own normalisation.

    Attributes:
        name: for the student's card.
        shared: positions among the student's classes that the teacher's logits speak of, in their order; empty
            where it has no logits, and for a single class, which any logits give the whole probability.
        channels: of its stages' outputs, as :attr:`ResNetBackbone.channels`; empty where it has none.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        classes: Sequence[tuple[int, int]],
    ) -> None:
        """``classes``: (student's index, teacher's index) of each class that both know."""
        super().__init__()
        self.name = name
        self.network = network.eval().requires_grad_(False)
        self.preprocessing = Preprocessing(mean=mean, std=std)
        self.shared = [student for student, _ in classes] if len(classes) > 1 else []
        self._own = [teacher for _, teacher in classes] if len(classes) > 1 else []
        self.channels = _channels(network)

    def has_to_say(self, student: Classifier) -> bool:
        """Whether there is anything that the student could learn from it."""
        alike = any(own == given for own, given in zip(student.backbone.channels, self.channels, strict=False))
        return bool(alike or self.shared or (isinstance(student, VTResNet) and isinstance(self.network, VTResNet)))

    def train(self, mode: bool = True) -> Teacher:  # noqa: ARG002
        """Stay in eval mode, whatever is asked."""
        return super().train(mode=False)

    def __deepcopy__(self, memo: dict[int, Any]) -> Teacher:
        """Itself: it never changes, and averages of a student's weights must not double it."""
        return self

    @torch.no_grad()
    def forward(self, images: Tensor) -> Targets:
        """Images (N, 3, H, W) in [0, 1] -> targets."""
        network, x = self.network, self.preprocessing.normalize(images)
        features: list[Tensor] | None = None
        coefficients: list[Tensor] | None = None
        logits: Tensor | None = None
        if isinstance(network, VTResNet):
            features = network.backbone(x)
            blocks = network.stage(features[-1])
            coefficients = [block.tokenizer.coefficients for block in blocks]
            logits = network.forward_head(blocks[-1].tokens)
        elif isinstance(network, ResNet):
            features = network.backbone(x)
            logits = network.forward_head(features[-1])
        elif isinstance(network, ResNetBackbone):
            features = network(x)
        elif isinstance(network, torchvision.models.ResNet):
            features = _stage_outputs(network, x)
            logits = network.fc(torch.flatten(network.avgpool(features[-1]), 1))
        else:
            logits = network(x)
        if logits is not None:
            logits = logits[:, self._own] if self._own else None
        return Targets(None if features is None else features[:3], logits, coefficients)


def load_teacher(source: str, classes: ClassList) -> Teacher:
    """Open a teacher for a student of ``classes``.

    Args:
        source: a vtviz model (name, file or run folder), ``torchvision:NAME``, or a file with the tensors of a
            torchvision ResNet (whole, or its first stages) or MobileNetV2.
        classes: the student's classes, matched by id or by ImageNet name.

    Raises:
        CheckpointError, ConfigError: where the teacher cannot be had or is of no known kind.
    """
    if source.startswith("torchvision:"):
        return _torchvision_teacher(source.removeprefix("torchvision:"), classes)
    path = Path(source).expanduser()
    with suppress(OSError):  # a name that no disk takes, of which the next gate tells
        if path.is_file() and not path.with_suffix(".json").is_file():
            return _file_teacher(path, classes)
    model, card = checkpoints.load(source)
    if not isinstance(model, Classifier):
        raise ConfigError(f"{card.name} is a {card.task} model; a classifier's teacher must be a classifier")
    pairs = _match(classes, ClassList(card.class_ids, card.classes))
    return Teacher(card.name, model, card.preprocessing.mean, card.preprocessing.std, pairs)


def _torchvision_teacher(name: str, classes: ClassList) -> Teacher:
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise ConfigError(f"torchvision has no model {name!r}{did_you_mean(name, known)}")
    try:
        network = torchvision.models.get_model(name, weights="DEFAULT")
    except OSError as error:
        raise CheckpointError(
            f"cannot download torchvision's weights of {name} ({error}); give a file of weights instead"
        ) from None
    return Teacher(name, network, IMAGENET_MEAN, IMAGENET_STD, _match(classes, imagenet_classes()))


def _file_teacher(path: Path, classes: ClassList) -> Teacher:
    tensors = checkpoints.load_tensors(path)
    if "features.0.0.weight" in tensors:
        network = torchvision.models.mobilenet_v2(weights=None)
        if _from_tensorflow(path):
            network = pad_like_tensorflow(network)
        _fill(network, tensors, path)
        half = (0.5, 0.5, 0.5)
        mean, std = (half, half) if _from_tensorflow(path) else (IMAGENET_MEAN, IMAGENET_STD)
        return Teacher(path.stem, network, mean, std, _match(classes, imagenet_classes()))
    if "layer1.0.conv1.weight" not in tensors:
        raise CheckpointError(
            f"{path}: neither a ResNet nor a MobileNetV2 with torchvision's names; its first tensor is {min(tensors)}"
        )
    backbone = ResNetBackbone(_resnet_depth(tensors, path), stages=4)
    wanted = backbone.state_dict()
    _fill(backbone, {k: v for k, v in tensors.items() if k in wanted}, path)
    return Teacher(path.stem, backbone, IMAGENET_MEAN, IMAGENET_STD, [])


def _fill(network: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    counters = {k: v for k, v in network.state_dict().items() if k.endswith("num_batches_tracked")}
    stored = {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
    try:
        network.load_state_dict({**counters, **stored})
    except RuntimeError as error:
        raise CheckpointError(f"{path}: {' '.join(str(error).split())[:300]}") from None


def _resnet_depth(tensors: dict[str, Tensor], path: Path) -> int:
    """Which ResNet these tensors are of, by its third residual stage."""
    blocks = len({k.split(".")[1] for k in tensors if k.startswith("layer3.")})
    bottleneck = "layer1.0.conv3.weight" in tensors
    for depth, (block, layers) in LAYOUTS.items():
        if layers[2] == blocks and (block.expansion == 4) == bottleneck:
            return depth
    raise CheckpointError(f"{path}: a ResNet with {blocks} blocks in layer3 is none of {', '.join(map(str, LAYOUTS))}")


def _from_tensorflow(path: Path) -> bool:
    """Whether the file says that it was converted from TensorFlow (which pads and normalises its own way)."""
    if path.suffix != ".safetensors":
        return False
    with safe_open(str(path), framework="pt") as file:
        return ".tflite" in (file.metadata() or {}).get("source", "")


def pad_like_tensorflow(network: nn.Module) -> nn.Module:
    """Give stride-2 convolutions TensorFlow's "SAME" padding of even inputs: at the bottom and on the right only."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d) and child.stride == (2, 2) and child.kernel_size == (3, 3):
                child.padding = (0, 0)
                setattr(module, name, _BottomRightPadded(child))
    return network


class _BottomRightPadded(nn.Conv2d):
    """A convolution that pads one row at the bottom and one column on the right; parameters as the original's."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(
            conv.in_channels, conv.out_channels, 3, stride=2, groups=conv.groups, bias=conv.bias is not None
        )
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 1, 0, 1)))


def imagenet_classes() -> ClassList:
    """ImageNet-1k's 1000 classes in torchvision's order, by name."""
    # a Cardigan is a dog and a cardigan is worn: a name alone does not say which, and torchvision has no ids
    return ClassList(tuple(f"imagenet:{i}" for i in range(len(_IMAGENET_CATEGORIES))), tuple(_IMAGENET_CATEGORIES))


def _match(student: ClassList, teacher: ClassList) -> list[tuple[int, int]]:
    """Pairs (student's index, teacher's index) of the classes that both know, by id, else by an unambiguous name."""
    pairs = []
    for i, labels in enumerate(zip(student.ids, student.names, strict=True)):
        found = next((found for label in labels if len(found := teacher.find(label)) == 1), [])
        pairs += [(i, index) for index in found]
    return pairs


def _channels(network: nn.Module) -> tuple[int, ...]:
    backbone = network.backbone if isinstance(network, Classifier) else network
    if isinstance(backbone, ResNetBackbone):
        return backbone.channels
    if isinstance(backbone, torchvision.models.ResNet):
        return tuple(64 * cast("int", backbone.layer1[0].expansion) * 2**i for i in range(4))
    return ()


def _stage_outputs(network: torchvision.models.ResNet, x: Tensor) -> list[Tensor]:
    x = network.maxpool(network.relu(network.bn1(network.conv1(x))))
    outputs = []
    for layer in (network.layer1, network.layer2, network.layer3, network.layer4):
        x = layer(x)
        outputs.append(x)
    return outputs
