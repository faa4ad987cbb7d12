"""What is explained: one class's score in a model's answer, on a model that the explanation has for itself."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from vtviz.errors import ConfigError
from vtviz.hooks import install_hooks
from vtviz.models.registry import plain_model
from vtviz.predictor import Predictor
from vtviz.tokens import check_index

PIXELS_AT_ONCE = 8 * 224**2
"""Of the images that go through a model together with their gradients, which keep every layer's activations."""


def images_at_once(x: Tensor, most: int = 8) -> int:
    """How many images of the size of ``x`` (..., h, w) go through a model together where gradients are asked for.

    Where none are, ``most`` may be more, and the pixels are in proportion.
    """
    return max(1, min(most, most * PIXELS_AT_ONCE // (8 * x.shape[-2] * x.shape[-1])))


@dataclass(frozen=True, eq=False)
class Target:
    """A class, and for segmentation the pixels that make up its score.

    Attributes:
        index: among the classes.
        label: its name.
        pixels: (h, w) bool at the model's input size, the pixels predicted as this class; None for a classifier.
    """

    index: int
    label: str
    pixels: Tensor | None = None

    def score(self, logits: Tensor) -> Tensor:
        """Logits (N, C), or (N, C, h, w) -> (N,): the class's logit; of segmentation its sum over ``pixels``."""
        ours = logits[:, self.index]
        return ours if self.pixels is None else ours[:, self.pixels].sum(dim=1)

    def probability(self, logits: Tensor) -> Tensor:
        """Logits (N, C), or (N, C, h, w) -> (N,): the class's probability; of segmentation its mean over ``pixels``."""
        ours = logits.softmax(dim=1)[:, self.index]
        return ours if self.pixels is None else ours[:, self.pixels].mean(dim=1)


def choose_target(logits: Tensor, classes: Sequence[str], wanted: int | None = None) -> Target:
    """The class to explain.

    Args:
        logits: (1, C), or (1, C, h, w), of the image as it is.
        classes: C names.
        wanted: index of the class; None for the most probable one, or the one that most pixels are predicted as.

    Raises:
        ConfigError: for a class that is not there, or that no pixel is predicted as.
    """
    segmentation = logits.dim() == 4
    labels = logits[0].argmax(dim=0) if segmentation else None
    if wanted is None:
        index = int(logits.argmax()) if labels is None else int(labels.flatten().bincount().argmax())
    else:
        index = check_index("class", wanted, len(classes)) % len(classes)
    pixels = None if labels is None else labels == index
    if pixels is not None and not pixels.any():
        found = ", ".join(classes[i] for i in labels.unique().tolist())  # type: ignore[union-attr]
        raise ConfigError(
            f"no pixel is predicted as {classes[index]!r}, so there is nothing to explain; there are {found}"
        )
    return Target(index, classes[index], pixels)


def private_copy(predictor: Predictor) -> nn.Module:
    """The model once more, in float32, for evaluation, without gradients of its weights.

    Captum hooks the model that it explains, so that a forward pass beside it on the same model goes wrong. A copy of
    one's own costs some 20 ms of an explanation's seconds, and needs no lock.
    """
    install_hooks(predictor.model)  # now, so that no other thread puts them on while the model is copied
    return copy.deepcopy(plain_model(predictor.model)).float().eval().requires_grad_(False)
