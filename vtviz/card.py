"""The model card: what a checkpoint says about itself, as JSON beside the weights."""

from __future__ import annotations

import math
from dataclasses import MISSING, asdict, dataclass, field, fields
from types import NoneType
from typing import Any

from torch import Tensor

from vtviz.errors import CheckpointError, did_you_mean
from vtviz.geometry import MAX_SIDE, MIN_SIDE

LEAST_STD = 1e-6
"""Of preprocessing: divided by less, a pixel is no number that a network can do with."""
DEEPEST = 100
"""Levels that a card's values may lie in each other; Python would run out of stack at some hundreds."""
TASKS = ("classification", "segmentation")


@dataclass(frozen=True)
class Preprocessing:
    """How a model wants its images.

    Attributes:
        size: side in pixels of the square whose area the model input has by default.
        mean: of the RGB values in [0, 1], subtracted.
        std: of the same, divided by.
    """

    size: int = 224
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        numbers = len(self.mean) == len(self.std) == 3 and all(map(math.isfinite, (*self.mean, *self.std)))
        size = type(self.size) is int and MIN_SIDE <= self.size <= MAX_SIDE
        if not (size and numbers and min(self.std) >= LEAST_STD):
            raise CheckpointError(
                f"preprocessing needs a whole size of {MIN_SIDE} to {MAX_SIDE}, 3 means and 3 positive stds, "
                f"got {str(self)[:200]}"
            )

    def normalize(self, images: Tensor) -> Tensor:
        """RGB (..., 3, H, W) float32 in [0, 1] -> the same shape, what the model takes."""
        mean, std = (images.new_tensor(v).view(3, 1, 1) for v in (self.mean, self.std))
        return (images - mean) / std


@dataclass(frozen=True)
class Card:
    """What a checkpoint says about itself: the JSON file beside the weights.

    Attributes:
        name: of the checkpoint.
        model: key of the model registry.
        config: the model's configuration, as :func:`~vtviz.models.registry.config_to_dict` gives it.
        classes: display names, in the order of the logits.
        class_ids: the same classes as data folders know them (WNIDs); unique.
        preprocessing: what the model's input must look like.
        task: "classification" or "segmentation".
        trained: False for a checkpoint of random weights.
        data: what it was trained on (name, terms, n_train, n_val, ...).
        recipe: how (optimiser, schedule, augmentation, ...).
        teacher: the network it was distilled from, if any.
        seed: of the training run.
        epochs: trained for, in passes over the data.
        accuracy: as ``vtviz evaluate`` printed it.
        tokens: statistics of the token maps, per layer.
        sha256: of the safetensors file, in hexadecimal; :func:`save` fills it in.
        licence: of the weights.
        date: of the checkpoint, ISO 8601.
        notes: anything else a user should know.
        palette: for segmentation, one (r, g, b) of 0-255 per class.
        groups: for segmentation, named groups of classes.
    """

    name: str
    model: str
    config: dict[str, Any]
    classes: tuple[str, ...]
    class_ids: tuple[str, ...]
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    task: str = "classification"
    trained: bool = True
    data: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    teacher: str | None = None
    seed: int | None = None
    epochs: float | None = None
    accuracy: dict[str, Any] = field(default_factory=dict)
    tokens: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""
    licence: str = ""
    date: str = ""
    notes: str = ""
    palette: tuple[tuple[int, int, int], ...] | None = None
    groups: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise CheckpointError(f"card: task must be one of {', '.join(TASKS)}, got {self.task!r}")
        if not len(self.classes) == len(self.class_ids) == self.config.get("num_classes"):
            raise CheckpointError(
                f"card: {len(self.classes)} classes, {len(self.class_ids)} class_ids and "
                f"config.num_classes={self.config.get('num_classes')} must agree"
            )
        if len(set(self.class_ids)) != len(self.class_ids):
            raise CheckpointError("card: class_ids must be unique")
        for colour in self.palette or ():
            if len(colour) != 3 or not all(type(v) is int and 0 <= v <= 255 for v in colour):
                raise CheckpointError(
                    f"card: palette must have 3 whole numbers of 0 to 255 a class, got {colour!r:.80}"
                )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Any) -> Card:
        """A card from JSON data.

        Raises:
            CheckpointError: where a field is unknown, missing, of the wrong kind or too deep.
        """
        if _is_deeper(data, DEEPEST):
            raise CheckpointError(f"card: it goes more than {DEEPEST} levels deep")
        values = _checked_fields(cls, data, "card")
        if "preprocessing" in values:
            inner = _checked_fields(Preprocessing, values["preprocessing"], "card: preprocessing")
            values["preprocessing"] = Preprocessing(**inner)
        return cls(**values)


def _is_deeper(data: Any, levels: int) -> bool:
    """Whether JSON data has more levels of objects and lists."""
    if not isinstance(data, dict | list):
        return False
    inner = data.values() if isinstance(data, dict) else data
    return levels == 0 or any(_is_deeper(each, levels - 1) for each in inner)


_JSON_KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "bool": (bool,),
    "str | None": (str, NoneType),
    "int | None": (int, NoneType),
    "float | None": (float, int, NoneType),
    "dict[str, Any]": (dict,),
    "dict[str, Any] | None": (dict, NoneType),
    "Preprocessing": (dict,),
    "tuple[str, ...]": (list,),
    "tuple[float, float, float]": (list,),
    "tuple[tuple[int, int, int], ...] | None": (list, NoneType),
}
"""Annotation of a card's field -> what JSON may hold there."""
_ELEMENTS: dict[str, tuple[type, ...]] = {
    "tuple[str, ...]": (str,),
    "tuple[float, float, float]": (float, int),
    "tuple[tuple[int, int, int], ...] | None": (list,),
}


def _checked_fields(kind: type, data: Any, what: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise CheckpointError(f"{what} must be a JSON object, got {type(data).__name__}")
    known = {f.name: str(f.type) for f in fields(kind)}
    if unknown := sorted(set(data) - set(known)):
        raise CheckpointError(f"{what} has no field {unknown[0]!r}{did_you_mean(unknown[0], known)}")
    required = {f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING}
    if missing := sorted(required - set(data)):
        raise CheckpointError(f"{what} lacks the field {missing[0]!r}")
    values: dict[str, Any] = {}
    for name, value in data.items():
        annotation = known[name]
        fits = isinstance(value, _JSON_KINDS[annotation]) and (annotation == "bool" or not isinstance(value, bool))
        if isinstance(value, list):
            fits = fits and all(isinstance(v, _ELEMENTS[annotation]) for v in value)
            value = tuple(tuple(v) if isinstance(v, list) else v for v in value)  # noqa: PLW2901 - JSON has no tuples
        if not fits:
            raise CheckpointError(f"{what}: {name} must be {annotation}, got {str(value)[:80]!r}")
        values[name] = value
    return values
